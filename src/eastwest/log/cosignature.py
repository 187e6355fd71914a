"""Cosignatures (C2SP tlog-cosignature): what is signed, with a time, over a checkpoint.

Type 0x04 is Ed25519 over two lines and the whole note text; type 0x06 is ML-DSA-44 over a structure that names the
cosigner and the tree. Both are carried as eight bytes of time (POSIX seconds, big-endian) before the signature.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from hashlib import sha256

TIME_BYTES = 8
MAX_TIME = (1 << 63) - 1
MAX_NAME_BYTES = 255
_SUBTREE_LABEL = b"subtree/v1\n\0"
_MAX_SIZE = (1 << 63) - 1


def ed25519_message(text: str, seconds: int) -> bytes:
    """What an Ed25519 cosigner signs for the checkpoint ``text`` (its lines, without signatures)."""
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def ml_dsa_message(cosigner: str, text: str, seconds: int) -> bytes:
    """What an ML-DSA-44 cosigner signs for the checkpoint ``text``; raises ``ValueError`` if it is none.

    Extension lines are not part of it.
    """
    lines = text.split("\n")
    if len(lines) < 4:
        raise ValueError("a checkpoint has three lines or more")
    origin, size, root = lines[:3]
    if not (size.isascii() and size.isdigit()) or len(size) > 19:
        raise ValueError("the size is not a number")
    try:
        hash_ = base64.b64decode(root, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the root is not base64") from None
    return subtree_message(cosigner, origin, 0, int(size), hash_, seconds)


def subtree_message(cosigner: str, origin: str, start: int, end: int, hash_: bytes, seconds: int) -> bytes:
    """``cosigned_message`` over the leaves ``start`` to ``end`` (exclusive); raises ``ValueError`` out of bounds."""
    if len(hash_) != sha256().digest_size or not 0 <= start <= end <= _MAX_SIZE or not 0 <= seconds <= MAX_TIME:
        raise ValueError("a hash, a range or a time is out of bounds")
    if start and seconds:
        raise ValueError("a subtree that does not begin at 0 is signed without a time")
    parts = (
        _SUBTREE_LABEL,
        *_prefixed(cosigner),
        seconds.to_bytes(8),
        *_prefixed(origin),
        start.to_bytes(8),
        end.to_bytes(8),
        hash_,
    )
    return b"".join(parts)


def _prefixed(name: str) -> Sequence[bytes]:
    raw = name.encode()
    if not 0 < len(raw) <= MAX_NAME_BYTES:
        raise ValueError(f"a name here has 1 to {MAX_NAME_BYTES} bytes")
    return bytes([len(raw)]), raw
