"""JWTs of our own making in compact form (RFC 7515), of one algorithm and one type: drafted, and read again.

For tokens that only this trust domain makes and reads; JWT-SVIDs, which others make too, are ``eastwest.pki.jwt``.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from eastwest.pki.jwt import UnsignedJwt
from eastwest.pki.signer import KeyAlgorithm, Signer, UnsupportedKey

ALGORITHM = "ES256"
_HALF = 32
_SHA256 = ec.ECDSA(hashes.SHA256())
Keys = Mapping[str, ec.EllipticCurvePublicKey]
"""Public keys (P-256) by ``kid``."""


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: str
    kid: str
    typ: str


def draft(signer: Signer, kind: str, claims: Mapping[str, Any]) -> UnsignedJwt:
    """A token of type ``kind`` (the header's ``typ``) to be signed by ``signer``, whose key must be P-256."""
    if signer.algorithm is not KeyAlgorithm.EC_P256:
        raise UnsupportedKey(f"{signer.algorithm} keys cannot sign {ALGORITHM}", fix="use ec-p256")
    header = {"alg": ALGORITHM, "kid": signer.key_id, "typ": kind}
    message = _segment(msgspec.json.encode(header)) + b"." + _segment(msgspec.json.encode(claims))
    return UnsignedJwt(message, header, claims, _HALF)


def genuine_claims(token: str, kind: str, keys: Keys, limit: int) -> dict[str, Any] | None:
    """The claims of a token of type ``kind`` that one of ``keys`` signed; None for anything else.

    ``limit``: bytes that it may have. Times and all other claims are the caller's to judge.
    """
    if len(token) > limit or not token.isascii() or token.count(".") != 2:
        return None
    message, _, signature = token.rpartition(".")
    first, _, second = message.partition(".")
    try:
        header = msgspec.json.decode(_decoded(first), type=_Header)
        raw = _decoded(signature)
        if header.alg != ALGORITHM or header.typ != kind or header.kid not in keys or len(raw) != 2 * _HALF:
            return None
        der = encode_dss_signature(int.from_bytes(raw[:_HALF]), int.from_bytes(raw[_HALF:]))
        keys[header.kid].verify(der, message.encode(), _SHA256)
        return msgspec.json.decode(_decoded(second), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, binascii.Error, InvalidSignature, RecursionError, ValueError):
        return None


def read_keys(document: bytes) -> dict[str, ec.EllipticCurvePublicKey]:
    """The P-256 keys of a JWK set (RFC 7517) by ``kid``; keys of other kinds are left out. Raises ``ValueError``."""
    found = {}
    for key in msgspec.json.decode(document, type=_KeySet).keys:
        if key.kty != "EC" or key.crv != "P-256" or not key.kid:
            continue
        x, y = (int.from_bytes(_decoded(part)) for part in (key.x, key.y))
        found[key.kid] = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    return found


class _Key(msgspec.Struct, frozen=True):
    kty: str = ""
    crv: str = ""
    kid: str = ""
    x: str = ""
    y: str = ""


class _KeySet(msgspec.Struct, frozen=True):
    keys: tuple[_Key, ...]


def _segment(content: bytes) -> bytes:
    return urlsafe_b64encode(content).rstrip(b"=")


def _decoded(segment: str) -> bytes:
    """There is one spelling of each segment (RFC 7515, 2): no padding, no stray bits or characters."""
    content = urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if _segment(content) != segment.encode():
        raise ValueError("a segment is not base64url")
    return content
