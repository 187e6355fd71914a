"""Signed notes (C2SP signed-note) with Ed25519 keys (type 0x01), and their keys as one line of text."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from eastwest.errors import InvalidInput, Unauthenticated

MAX_NOTE_BYTES = 1 << 20
MAX_SIGNATURES = 100
_ED25519 = b"\x01"
_KEY_ID_BYTES = 4


class MalformedNote(InvalidInput):
    """Bytes are not a signed note, or a text is not a note key."""


class UntrustedNote(Unauthenticated):
    """A note without a valid signature by a key that is trusted, or with a false one in its name."""


class Signer(Protocol):
    """Holds a private key; for a note it must be Ed25519."""

    @property
    def public_key(self) -> object:
        """A public key of ``cryptography``."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The signature over ``data``."""
        ...


@dataclass(frozen=True, slots=True)
class NoteKey:
    """Who may sign a note: a name and an Ed25519 public key of 32 bytes."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        if not self.name or "+" in self.name or any(c.isspace() or ord(c) < 0x20 for c in self.name):
            raise MalformedNote(f"{self.name!r} cannot name a note key: spaces and + are not allowed in it")
        if len(self.public) != 32:
            raise MalformedNote("an Ed25519 public key has 32 bytes")

    @classmethod
    def of(cls, name: str, signer: Signer) -> NoteKey:
        """The key of a signer; raises ``InvalidInput`` unless it is Ed25519."""
        public = signer.public_key
        if not isinstance(public, Ed25519PublicKey):
            raise InvalidInput("the log's key must be an Ed25519 key")
        return cls(name, public.public_bytes_raw())

    @classmethod
    def parse(cls, vkey: str) -> NoteKey:
        """Read ``name+keyid+base64``; raises ``MalformedNote``."""
        parts = vkey.strip().split("+", 2)
        if len(parts) != 3:
            raise MalformedNote("a verifier key has the form name+keyid+base64")
        raw = strict_base64(parts[2])
        if raw[:1] != _ED25519:
            raise MalformedNote("the verifier key is not of type Ed25519 (1)")
        key = cls(parts[0], raw[1:])
        if parts[1] != key.id.hex():
            raise MalformedNote(f"the key ID of the verifier key is {parts[1]}, its contents give {key.id.hex()}")
        return key

    @property
    def id(self) -> bytes:
        """The four bytes that go before each signature."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:_KEY_ID_BYTES]

    @property
    def vkey(self) -> str:
        """The key as a line of text: ``name+keyid+base64``."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"


def sign_note(text: str, name: str, signer: Signer) -> str:
    """``text`` (ending in a newline) with one signature by ``signer`` under ``name``."""
    _check_text(text)
    signature = NoteKey.of(name, signer).id + signer.sign(text.encode())
    return f"{text}\n\u2014 {name} {base64.b64encode(signature).decode()}\n"


def open_note(raw: bytes, trusted: Iterable[NoteKey]) -> str:
    """The text of a note that one of ``trusted`` has signed.

    Signatures of other keys are passed over; a false signature of a trusted key spoils the note.
    Raises ``MalformedNote`` or ``UntrustedNote``.
    """
    text, signatures = split_note(raw)
    keys = {(key.name, key.id): key for key in trusted}
    verified = False
    for name, blob in signatures:
        key = keys.get((name, blob[:_KEY_ID_BYTES]))
        if key is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key.public).verify(blob[_KEY_ID_BYTES:], text.encode())
        except InvalidSignature:
            raise UntrustedNote(f"the signature of {name} is false") from None
        verified = True
    if not verified:
        names = ", ".join(sorted(key.name for key in keys.values()))
        raise UntrustedNote(f"the note is not signed by {names}")
    return text


def split_note(raw: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The text and the (name, key ID + signature) lines of a note, nothing verified."""
    if len(raw) > MAX_NOTE_BYTES:
        raise MalformedNote("the note is too long")
    try:
        whole = raw.decode()
    except UnicodeDecodeError:
        raise MalformedNote("the note is not UTF-8") from None
    text, empty_line, block = whole.rpartition("\n\n")
    if not empty_line or not block.endswith("\n"):
        raise MalformedNote("the note has no block of signatures after an empty line")
    text += "\n"
    _check_text(whole)
    lines = block[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise MalformedNote("the note has too many signatures")
    return text, [_signature(line) for line in lines]


def strict_base64(text: str) -> bytes:
    """Standard base64 in its one canonical form; raises ``MalformedNote``."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedNote("not base64") from None
    # The decoder lets unused bits of the last character be anything; then two texts would mean the same.
    if base64.b64encode(raw).decode() != text:
        raise MalformedNote("not base64 in canonical form")
    return raw


def _signature(line: str) -> tuple[str, bytes]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "\u2014" or not parts[1]:
        raise MalformedNote("a signature line has the form: em dash, name, base64")
    blob = strict_base64(parts[2])
    if len(blob) <= _KEY_ID_BYTES:
        raise MalformedNote("a signature is too short")
    return parts[1], blob


def _check_text(text: str) -> None:
    if not text.endswith("\n"):
        raise MalformedNote("the text of a note ends in a newline")
    if any(c < " " and c != "\n" for c in text):
        raise MalformedNote("a note has no control characters")
