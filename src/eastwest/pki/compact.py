"""JWTs of our own making in compact form (RFC 7515), of one type: drafted, and read again.

For tokens that only this trust domain makes and reads; JWT-SVIDs, which others make too, are ``eastwest.pki.jwt``.
They are read as Envoy's ``jwt_authn`` reads them, so that one that passes in one place passes in the other.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from string import ascii_letters, digits
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from eastwest.pki.jwt import UnsignedJwt
from eastwest.pki.signer import Signer, UnsupportedKey
from eastwest.pki.token_signer import RSA_BITS, TokenSigner, is_token_key

RSA_ALGORITHM = "RS256"
EC_ALGORITHM = "ES256"
_HALF = 32
_SHA256 = hashes.SHA256()
_ECDSA = ec.ECDSA(_SHA256)
Key = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
Keys = Mapping[str, Key]
"""Public keys (RSA or P-256) by ``kid``."""


_KNOWN = frozenset(f"{family}{bits}" for family in ("ES", "HS", "PS", "RS") for bits in (256, 384, 512)) | {"EdDSA"}
_MAX_DEPTH = 100  # objects and lists in one another


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a token says; nothing of it is proved unless ``is_signed_by`` is true."""

    claims: Mapping[str, Any] = field(repr=False)
    algorithm: str
    key_id: str
    _message: bytes = field(repr=False)
    _signature: bytes = field(repr=False)

    def is_signed_by(self, keys: Keys) -> bool:
        """Whether the key that it names signed it; where it names none, whether any did."""
        named = [keys[self.key_id]] if self.key_id in keys else []
        return any(self._verifies(key) for key in named or self._any(keys))

    def _any(self, keys: Keys) -> list[Key]:
        return [] if self.key_id else list(keys.values())

    def _verifies(self, key: Key) -> bool:
        """By the one algorithm that goes with the key's type: a header chooses none."""
        try:
            if isinstance(key, rsa.RSAPublicKey) and self.algorithm == RSA_ALGORITHM:
                key.verify(self._signature, self._message, padding.PKCS1v15(), _SHA256)
            elif isinstance(key, ec.EllipticCurvePublicKey) and self.algorithm == EC_ALGORITHM:
                half = len(self._signature) // 2
                r, s = int.from_bytes(self._signature[:half]), int.from_bytes(self._signature[half : 2 * half])
                key.verify(encode_dss_signature(r, s), self._message, _ECDSA)
            else:
                return False
        except InvalidSignature:
            return False
        return True


def draft(signer: Signer | TokenSigner, kind: str, claims: Mapping[str, Any]) -> UnsignedJwt:
    """A token of type ``kind`` (the header's ``typ``) to be signed by ``signer``, whose key must be RSA or P-256."""
    algorithm, half = _algorithm(signer)
    header = {"alg": algorithm, "kid": signer.key_id, "typ": kind}
    message = _segment(msgspec.json.encode(header)) + b"." + _segment(msgspec.json.encode(claims))
    return UnsignedJwt(message, header, claims, half)


def signature_length(signer: Signer | TokenSigner) -> int:
    """How many characters the signature of a drafted token will have."""
    return -(-4 * (2 * _algorithm(signer)[1] or RSA_BITS // 8) // 3)


def parse(token: str, limit: int) -> Parsed | None:
    """A token of at most ``limit`` bytes, taken apart; None where the text is none.

    The header's ``typ`` is not looked at, as Envoy does not: keys of one kind of token sign no other.
    """
    if len(token) > limit or not token.isascii() or token.count(".") != 2:
        return None
    message, _, signature = token.rpartition(".")
    first, _, second = message.partition(".")
    try:
        header, claims = _object(_bytes(first)), _object(_bytes(second))
        raw = _bytes(signature)
    except (msgspec.MsgspecError, binascii.Error, RecursionError, ValueError):
        return None
    algorithm, key_id = header.get("alg"), header.get("kid", "")
    if not isinstance(algorithm, str) or algorithm not in _KNOWN or not isinstance(key_id, str):
        return None
    return Parsed(claims, algorithm, key_id, message.encode(), raw)


def read_keys(document: bytes) -> dict[str, Key]:
    """The RSA (2,048 bits) and P-256 keys of a JWK set (RFC 7517) by ``kid``, without others.

    Raises ``ValueError``.
    """
    found: dict[str, Key] = {}
    for key in msgspec.json.decode(document, type=_KeySet).keys:
        if key.kid and key.kty == "EC" and key.crv == "P-256":
            x, y = (int.from_bytes(_decoded(part)) for part in (key.x, key.y))
            found[key.kid] = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        elif key.kid and key.kty == "RSA":
            e, n = (int.from_bytes(_decoded(part)) for part in (key.e, key.n))
            public = rsa.RSAPublicNumbers(e, n).public_key()
            if is_token_key(public):
                found[key.kid] = public
    return found


def _algorithm(signer: Signer | TokenSigner) -> tuple[str, int]:
    """JOSE's name of how a key signs, and the bytes of half a signature (0: it has no halves)."""
    if isinstance(signer.public_key, rsa.RSAPublicKey):
        return RSA_ALGORITHM, 0
    if isinstance(signer.public_key, ec.EllipticCurvePublicKey) and signer.public_key.curve.name == "secp256r1":
        return EC_ALGORITHM, _HALF
    raise UnsupportedKey(f"{signer!r} cannot sign {RSA_ALGORITHM} or {EC_ALGORITHM}", fix="use ec-p256")


class _Key(msgspec.Struct, frozen=True):
    kty: str = ""
    crv: str = ""
    kid: str = ""
    x: str = ""
    y: str = ""
    n: str = ""
    e: str = ""


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


def _bytes(segment: str) -> bytes:
    """Of a token's segment. Stray bits at its end are overlooked; what they could change is signed."""
    if not segment or not _ALPHABET.issuperset(segment):
        raise ValueError("a segment is not base64url")
    return urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object that no two readers can read differently: no name is in it twice."""
    found = msgspec.json.decode(text, type=dict[str, Any])
    json.loads(text.decode(), object_pairs_hook=_unique, parse_int=_bounded)
    if _is_deep(found):
        raise ValueError("the JSON is nested too deep")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name is there twice")


def _bounded(text: str) -> None:
    if not isfinite(float(text)):
        raise ValueError("a number is too large")


def _is_deep(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        inner = [one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)]
        level = [one for one in inner if isinstance(one, dict | list)]
    return bool(level)


_ALPHABET = frozenset(ascii_letters + digits + "-_")
