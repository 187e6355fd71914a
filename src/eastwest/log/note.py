"""Signed notes (C2SP signed-note) and the keys that sign them, each as one line of text.

Three types of signature are known: plain Ed25519 (0x01), and the cosignatures of checkpoints with a time in them,
Ed25519 (0x04) and ML-DSA-44 (0x06). Others are passed over.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from eastwest.errors import InvalidInput, Unauthenticated
from eastwest.log.cosignature import MAX_NAME_BYTES, MAX_TIME, TIME_BYTES, ed25519_message, ml_dsa_message

MAX_NOTE_BYTES = 1 << 20
MAX_SIGNATURES = 100
_KEY_ID_BYTES = 4


class KeyType(enum.IntEnum):
    """The signature type identifier of a key (C2SP signed-note, "Signature types")."""

    ED25519 = 0x01
    ED25519_COSIGNATURE = 0x04
    ML_DSA_44 = 0x06


_PUBLIC_BYTES = {KeyType.ED25519: 32, KeyType.ED25519_COSIGNATURE: 32, KeyType.ML_DSA_44: 1312}
_TYPE_NAMES = {
    KeyType.ED25519: "Ed25519",
    KeyType.ED25519_COSIGNATURE: "Ed25519 cosignature",
    KeyType.ML_DSA_44: "ML-DSA-44",
}
COSIGNATURES = frozenset({KeyType.ED25519_COSIGNATURE, KeyType.ML_DSA_44})
"""The types that have a time in them and sign checkpoints only; what witnesses use."""


class MalformedNote(InvalidInput):
    """Bytes are not a signed note, or a text is not a note key."""


class UntrustedNote(Unauthenticated):
    """A note without a valid signature by a key that is trusted, or with a false one in its name."""


class Signer(Protocol):
    """Holds a private key; for a note it must be Ed25519 or ML-DSA-44."""

    @property
    def public_key(self) -> object:
        """A public key of ``cryptography``."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The signature over ``data``."""
        ...


@dataclass(frozen=True, slots=True)
class NoteKey:
    """Who may sign a note: a name, a raw public key, and the type of its signatures."""

    name: str
    public: bytes
    kind: KeyType = KeyType.ED25519

    def __post_init__(self) -> None:
        if not self.name or "+" in self.name or any(c.isspace() or ord(c) < 0x20 for c in self.name):
            raise MalformedNote(f"{self.name!r} cannot name a note key: spaces and + are not allowed in it")
        if len(self.name.encode()) > MAX_NAME_BYTES:
            raise MalformedNote(f"the name of a note key has at most {MAX_NAME_BYTES} bytes")
        if len(self.public) != _PUBLIC_BYTES[self.kind]:
            length = _PUBLIC_BYTES[self.kind]
            raise MalformedNote(f"a public key of type {_TYPE_NAMES[self.kind]} has {length} bytes")

    @classmethod
    def of(cls, name: str, signer: Signer, *, cosigner: bool = False) -> NoteKey:
        """The key of a signer; raises ``InvalidInput`` unless it is Ed25519 or ML-DSA-44.

        ``cosigner``: an Ed25519 key then signs as a witness does (0x04). ML-DSA-44 has one form only.
        """
        public = signer.public_key
        if isinstance(public, Ed25519PublicKey):
            kind = KeyType.ED25519_COSIGNATURE if cosigner else KeyType.ED25519
            return cls(name, public.public_bytes_raw(), kind)
        if isinstance(public, MLDSA44PublicKey):
            return cls(name, public.public_bytes_raw(), KeyType.ML_DSA_44)
        raise InvalidInput("the key of a log or a witness must be an Ed25519 or ML-DSA-44 key")

    @classmethod
    def parse(cls, vkey: str) -> NoteKey:
        """Read ``name+keyid+base64``; raises ``MalformedNote``."""
        parts = vkey.strip().split("+", 2)
        if len(parts) != 3:
            raise MalformedNote("a verifier key has the form name+keyid+base64")
        raw = strict_base64(parts[2])
        try:
            kind = KeyType(raw[0]) if raw else None
        except ValueError:
            kind = None
        if kind is None:
            raise MalformedNote("the verifier key is not of type Ed25519 (1), Ed25519 cosignature (4) or ML-DSA-44 (6)")
        key = cls(parts[0], raw[1:], kind)
        if parts[1] != key.id.hex():
            raise MalformedNote(f"the key ID of the verifier key is {parts[1]}, its contents give {key.id.hex()}")
        return key

    @property
    def id(self) -> bytes:
        """The four bytes that go before each signature."""
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:_KEY_ID_BYTES]

    @property
    def vkey(self) -> str:
        """The key as a line of text: ``name+keyid+base64``."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"

    @property
    def type_name(self) -> str:
        """The type for people, such as ``ML-DSA-44``."""
        return _TYPE_NAMES[self.kind]

    def message(self, text: str, seconds: int) -> bytes:
        """What the key signs for a note; ``seconds`` counts for cosignatures. Raises ``MalformedNote``."""
        if self.kind is KeyType.ED25519:
            return text.encode()
        if self.kind is KeyType.ED25519_COSIGNATURE:
            return ed25519_message(text, seconds)
        try:
            return ml_dsa_message(self.name, text, seconds)
        except ValueError as error:
            raise MalformedNote(f"ML-DSA-44 signs checkpoints only: {error}") from None

    def verify(self, text: str, blob: bytes) -> int:
        """The time in a signature (0 where the type has none), once it is verified; raises ``UntrustedNote``."""
        seconds = 0
        if self.kind in COSIGNATURES:
            seconds = int.from_bytes(blob[:TIME_BYTES])
            blob = blob[TIME_BYTES:]
        if seconds > MAX_TIME:
            raise UntrustedNote(f"the {self.type_name} signature of {self.name} has a time that no clock has")
        message = self.message(text, seconds)
        try:
            if self.kind is KeyType.ML_DSA_44:
                MLDSA44PublicKey.from_public_bytes(self.public).verify(blob, message)
            else:
                Ed25519PublicKey.from_public_bytes(self.public).verify(blob, message)
        except (InvalidSignature, ValueError):
            # A wrong length is a ValueError for some types.
            raise UntrustedNote(f"the {self.type_name} signature of {self.name} is false") from None
        return seconds


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that was verified: whose, and when by its own word (POSIX seconds; 0 where it does not say)."""

    key: NoteKey
    seconds: int


def sign_note(text: str, name: str, signer: Signer) -> str:
    """``text`` (ending in a newline) with one signature by ``signer`` (Ed25519) under ``name``."""
    _check_text(text)
    key = NoteKey.of(name, signer)
    if key.kind is not KeyType.ED25519:
        raise InvalidInput("the first signature of a note here is an Ed25519 one; others are added by cosign")
    return f"{text}\n{signature_line(key, signer.sign(text.encode()))}"


def cosign(text: str, name: str, signer: Signer, seconds: int) -> str:
    """One line: a cosignature (0x04 or 0x06, by the signer's type) of the checkpoint ``text`` at ``seconds``."""
    key = NoteKey.of(name, signer, cosigner=True)
    return signature_line(key, seconds.to_bytes(TIME_BYTES) + signer.sign(key.message(text, seconds)))


def signature_line(key: NoteKey, blob: bytes) -> str:
    """A signature as a line of a note, with its newline."""
    return f"\u2014 {key.name} {base64.b64encode(key.id + blob).decode()}\n"


def open_note(raw: bytes, trusted: Iterable[NoteKey]) -> str:
    """The text of a note that one of ``trusted`` has signed.

    Signatures of other keys are passed over; a false signature of a trusted key spoils the note.
    Raises ``MalformedNote`` or ``UntrustedNote``.
    """
    keys = list(trusted)
    text, signatures = verified_signatures(raw, keys)
    if not signatures:
        names = ", ".join(sorted({key.name for key in keys}))
        raise UntrustedNote(f"the note is not signed by {names}")
    return text


def verified_signatures(raw: bytes, trusted: Iterable[NoteKey]) -> tuple[str, list[Signature]]:
    """The text of a note and the signatures that ``trusted`` put there, perhaps none.

    A false signature of a trusted key spoils the note. Raises ``MalformedNote`` or ``UntrustedNote``.
    """
    text, lines = split_note(raw)
    keys = {(key.name, key.id): key for key in trusted}
    verified = []
    for name, blob in lines:
        key = keys.get((name, blob[:_KEY_ID_BYTES]))
        if key is not None:
            verified.append(Signature(key, key.verify(text, blob[_KEY_ID_BYTES:])))
    return text, verified


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
    return text, [split_signature(line) for line in lines]


def split_signature(line: str) -> tuple[str, bytes]:
    """The name and key ID + signature of a signature line (without its newline); raises ``MalformedNote``."""
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "\u2014" or not parts[1]:
        raise MalformedNote("a signature line has the form: em dash, name, base64")
    blob = strict_base64(parts[2])
    if len(blob) <= _KEY_ID_BYTES:
        raise MalformedNote("a signature is too short")
    return parts[1], blob


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


def _check_text(text: str) -> None:
    if not text.endswith("\n"):
        raise MalformedNote("the text of a note ends in a newline")
    if any(c < " " and c != "\n" for c in text):
        raise MalformedNote("a note has no control characters")
