"""What the two sides of ``x509pop`` say to each other: SPIRE's messages, and the signature that is asked for.

Both sides choose 32 random bytes; the node signs SHA-256 of both with the key of its certificate. RSA (PSS over
SHA-256) and ECDSA are SPIRE's. Ed25519 is ours: SPIRE knows no such certificates, and ignores the extra field.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256

from eastwest.errors import InvalidInput, PermissionDenied

T = TypeVar("T")
NONCE_BYTES = 32
MAX_JSON = 64 * 1024
_ED25519_CONTEXT = b"eastwest x509pop\0"
"""Ed25519 signs the text itself: a context keeps it from being any other text that a device signs."""

DeviceKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
DevicePublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class AttestationData(msgspec.Struct, frozen=True):
    """The payload: DER certificates, the node's own first."""

    certificates: list[bytes]


class Nonce(msgspec.Struct, frozen=True):
    """One side's random bytes."""

    nonce: bytes


class Signed(msgspec.Struct, frozen=True):
    """An RSA or Ed25519 answer."""

    nonce: bytes
    signature: bytes


class SignedPair(msgspec.Struct, frozen=True):
    """An ECDSA answer: r and s as big-endian magnitudes."""

    nonce: bytes
    r: bytes
    s: bytes


class Question(msgspec.Struct, frozen=True):
    """The challenge; one field is set, after the key's type."""

    rsa_signature: Nonce | None = None
    ecdsa_signature: Nonce | None = None
    ed25519_signature: Nonce | msgspec.UnsetType | None = msgspec.UNSET


class Answer(msgspec.Struct, frozen=True):
    """The response, in the field of the question."""

    rsa_signature: Signed | None = None
    ecdsa_signature: SignedPair | None = None
    ed25519_signature: Signed | msgspec.UnsetType | None = msgspec.UNSET


def question_for(key: DevicePublicKey, nonce: bytes) -> Question:
    """What a key of this type is asked."""
    asked = Nonce(nonce)
    if isinstance(key, rsa.RSAPublicKey):
        return Question(rsa_signature=asked)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return Question(ecdsa_signature=asked)
    return Question(ed25519_signature=asked)


def answer_with(key: DeviceKey, question: Question, own_nonce: bytes) -> Answer:
    """Sign; raises ``InvalidInput`` when the question is for a key of another type or its nonce is not one."""
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(SHA256()), padding.PSS.DIGEST_LENGTH)
        signature = key.sign(_digest(_asked(question.rsa_signature), own_nonce), pss, Prehashed(SHA256()))
        return Answer(rsa_signature=Signed(own_nonce, signature))
    if isinstance(key, ec.EllipticCurvePrivateKey):
        digest = _digest(_asked(question.ecdsa_signature), own_nonce)
        r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(Prehashed(SHA256()))))
        return Answer(ecdsa_signature=SignedPair(own_nonce, _magnitude(r), _magnitude(s)))
    digest = _digest(_asked(question.ed25519_signature or None), own_nonce)
    return Answer(ed25519_signature=Signed(own_nonce, key.sign(_ED25519_CONTEXT + digest)))


def check_answer(key: DevicePublicKey, nonce: bytes, answer: Answer) -> None:
    """Raise ``PermissionDenied`` unless the answer proves possession of ``key``."""
    try:
        if isinstance(key, rsa.RSAPublicKey):
            signed = _given(answer.rsa_signature)
            pss = padding.PSS(padding.MGF1(SHA256()), padding.PSS.AUTO)
            key.verify(signed.signature, _digest(nonce, signed.nonce), pss, Prehashed(SHA256()))
        elif isinstance(key, ec.EllipticCurvePublicKey):
            pair = _given(answer.ecdsa_signature)
            r, s = int.from_bytes(_bounded(pair.r)), int.from_bytes(_bounded(pair.s))
            signature = encode_dss_signature(r, s)
            key.verify(signature, _digest(nonce, pair.nonce), ec.ECDSA(Prehashed(SHA256())))
        else:
            signed = _given(answer.ed25519_signature or None)
            key.verify(signed.signature, _ED25519_CONTEXT + _digest(nonce, signed.nonce))
    except InvalidSignature:
        raise PermissionDenied("the node does not have the private key of its certificate") from None


def _digest(server: bytes, agent: bytes) -> bytes:
    if len(server) != NONCE_BYTES or len(agent) != NONCE_BYTES:
        raise InvalidInput(f"a nonce has {NONCE_BYTES} bytes")
    return hashlib.sha256(server + agent).digest()


def _asked(nonce: Nonce | None) -> bytes:
    if nonce is None:
        raise InvalidInput("the challenge is for a key of another type than the certificate's")
    return nonce.nonce


def _given(part: T | None) -> T:
    if part is None:
        raise InvalidInput("the answer is for a key of another type than the certificate's")
    return part


def _magnitude(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)


def _bounded(magnitude: bytes) -> bytes:
    if len(magnitude) > 66:  # P-521
        raise InvalidInput("the signature is too long")
    return magnitude
