"""Checkpoints (C2SP tlog-checkpoint): a log's name, size and root in a signed note."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from eastwest.log.note import (
    MalformedNote,
    NoteKey,
    Signer,
    UntrustedNote,
    cosign,
    sign_note,
    strict_base64,
    verified_signatures,
)
from eastwest.log.tree import HASH_SIZE

MAX_DIGITS = 19
"""Digits of a size or an index: tlog-checkpoint bounds them by 2^63."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: the log's origin line, the number of entries, the RFC 6962 root."""

    origin: str
    size: int
    root: bytes

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a note's text; raises ``MalformedNote``. Extension lines are passed over."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise MalformedNote("a checkpoint has three lines or more, none of them empty")
        origin, size, root = lines[:3]
        if not (size.isascii() and size.isdigit()) or (size[0] == "0" and size != "0"):
            raise MalformedNote("the size in a checkpoint is a whole number without leading zeros")
        if len(size) > MAX_DIGITS:
            raise MalformedNote("the size in a checkpoint is larger than any log")
        checkpoint = cls(origin, int(size), strict_base64(root))
        if len(checkpoint.root) != HASH_SIZE:
            raise MalformedNote(f"the root in a checkpoint has {HASH_SIZE} bytes")
        return checkpoint

    @property
    def text(self) -> str:
        """The lines that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def sign_checkpoint(checkpoint: Checkpoint, signer: Signer, second: Signer | None = None, seconds: int = 0) -> str:
    """The signed note; the name of every key is the origin.

    ``signer`` is an Ed25519 key, whose line comes first. ``second`` is the log's ML-DSA-44 key, if it has one: its
    line is a cosignature (C2SP tlog-cosignature) at the time ``seconds`` (POSIX).
    """
    note = sign_note(checkpoint.text, checkpoint.origin, signer)
    return note if second is None else note + cosign(checkpoint.text, checkpoint.origin, second, seconds)


def open_checkpoint(raw: bytes, key: NoteKey) -> Checkpoint:
    """A checkpoint of the log that ``key`` belongs to; raises ``MalformedNote`` or ``UntrustedNote``."""
    return open_any_checkpoint(raw, [key])


def open_any_checkpoint(raw: bytes, keys: Iterable[NoteKey]) -> Checkpoint:
    """A checkpoint signed by one of ``keys``, whose name must be its origin; a false one of any of them spoils it."""
    return _open(raw, list(keys))[0]


def open_checkpoint_of_all(raw: bytes, keys: Iterable[NoteKey]) -> Checkpoint:
    """A checkpoint that every one of ``keys`` has signed, so that none of the algorithms alone decides."""
    trusted = list(keys)
    checkpoint, signed = _open(raw, trusted)
    missing = [key for key in trusted if key not in signed]
    if missing:
        told = ", ".join(f"the {key.type_name} key of {key.name}" for key in missing)
        raise UntrustedNote(f"the checkpoint is not signed by {told}")
    return checkpoint


def _open(raw: bytes, trusted: list[NoteKey]) -> tuple[Checkpoint, set[NoteKey]]:
    text, signatures = verified_signatures(raw, trusted)
    if not signatures:
        raise UntrustedNote(f"the note is not signed by {', '.join(sorted({key.name for key in trusted}))}")
    checkpoint = Checkpoint.parse(text)
    signed = {signature.key for signature in signatures if signature.key.name == checkpoint.origin}
    if not signed:
        raise MalformedNote(f"the checkpoint is of the log {checkpoint.origin!r}, which is not the one that is trusted")
    return checkpoint, signed
