"""Keys: the algorithms in use, the ports behind which private keys live, and the public side as a value.

A private key never appears in an error, a log or a ``repr``; whoever needs a signature holds a ``Signer``.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from eastwest.errors import InvalidInput

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | mldsa.MLDSA65PublicKey
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | mldsa.MLDSA65PrivateKey


class KeyAlgorithm(enum.StrEnum):
    """The key types Eastwest makes and certifies, by the names profiles use."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    ED25519 = "ed25519"
    ML_DSA_65 = "ml-dsa-65"


class UnsupportedKey(InvalidInput):
    """A key is of a type that is not made or certified here."""


class Signer(Protocol):
    """One private key that can be used and not seen.

    Signatures are DER ``ECDSA-Sig-Value`` with SHA-256 (P-256) or SHA-384 (P-384), 64 bytes of Ed25519, or 3,309 bytes
    of ML-DSA-65 (FIPS 204, pure, empty context; RFC 9881).
    """

    @property
    def algorithm(self) -> KeyAlgorithm:
        """The key's type, which fixes the hash."""
        ...

    @property
    def public_key(self) -> PublicKey:
        """The public half."""
        ...

    @property
    def key_id(self) -> str:
        """The subject key identifier in lower-case hex: SHA-1 of the key bits (RFC 5280, 4.2.1.2)."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether a signature is a round trip to another machine or device: then never sign on an event loop."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Sign ``data`` (unhashed). Raises ``Unavailable`` when the key cannot be reached. Safe from many threads."""
        ...


class KeyStore(Protocol):
    """Named private keys that outlive the process, each usable only through a ``Signer``.

    Names are 1 to 100 characters of ``a-z 0-9 . _ -`` that start with a letter or digit.
    """

    def create(self, name: str, algorithm: KeyAlgorithm) -> Signer:
        """Make a key and keep it durably before returning. Raises ``AlreadyExists``; never overwrites."""
        ...

    def load(self, name: str) -> Signer:
        """Open a key. Raises ``NotFound``, ``FailedPrecondition`` when it is exposed to others, or ``Corrupt``."""
        ...

    def names(self) -> Sequence[str]:
        """The names of all keys, sorted."""
        ...

    def delete(self, name: str) -> None:
        """Destroy a key for good before returning. Raises ``NotFound``. Signers loaded before may go on working."""
        ...


class NoteSigner(Protocol):
    """An ML-DSA-44 key that signs the log's checkpoints and is never certified (so it is no ``Signer``)."""

    @property
    def public_key(self) -> mldsa.MLDSA44PublicKey:
        """The public half."""
        ...

    @property
    def is_remote(self) -> bool:
        """As ``Signer.is_remote``."""
        ...

    def sign(self, data: bytes) -> bytes:
        """2,420 bytes of ML-DSA-44 (FIPS 204, pure, empty context). Raises ``Unavailable``. Safe from many threads."""
        ...


@runtime_checkable
class NoteKeyStore(Protocol):
    """A key store that also keeps ML-DSA-44 keys for the log; one that cannot simply lacks these methods.

    Their names are among ``names`` and ``delete`` destroys them; ``load`` refuses them, so none is ever certified.
    """

    def create_note_key(self, name: str) -> NoteSigner:
        """As ``KeyStore.create``."""
        ...

    def load_note_key(self, name: str) -> NoteSigner:
        """As ``KeyStore.load``; ``Corrupt`` also for a key of another type."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStoreContext:
    """What a key store plug-in is given: the directory (a path) that is its own, which it may leave unused."""

    directory: str


@dataclass(frozen=True, slots=True)
class SubjectKey:
    """A public key ready to be certified: its type, its SubjectPublicKeyInfo in DER, and its bare key bits."""

    algorithm: KeyAlgorithm
    spki: bytes
    bits: bytes

    @classmethod
    def of(cls, public_key: object, algorithm: KeyAlgorithm | None = None) -> SubjectKey:
        """Encode a public key; raise ``UnsupportedKey`` for other types (RSA, other curves).

        ``algorithm`` is given by those who have asked ``algorithm_of`` already.
        """
        algorithm = algorithm or algorithm_of(public_key)
        # Algorithm_of has checked its type.
        spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
        return cls(algorithm, spki, spki[_SPKI_HEADER_LENGTH[algorithm] :])

    @property
    def identifier(self) -> bytes:
        """The subject key identifier: SHA-1 of the key bits, as a name and not for security."""
        return hashlib.sha1(self.bits, usedforsecurity=False).digest()


class BaseSigner:
    """What every ``Signer`` says of its key, in one place; a subclass adds ``is_remote`` and ``sign``.

    It shows nothing but the public half, and is neither copied nor pickled. Raises ``UnsupportedKey`` when it is made
    for a key of another type.
    """

    __slots__ = ("_algorithm", "_key_id", "_public_key")

    def __init__(self, public_key: PublicKey) -> None:
        self._public_key = public_key
        self._algorithm = algorithm_of(public_key)
        self._key_id = key_id_of(public_key)

    @property
    def algorithm(self) -> KeyAlgorithm:
        return self._algorithm

    @property
    def public_key(self) -> PublicKey:
        return self._public_key

    @property
    def key_id(self) -> str:
        return self._key_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._algorithm}, {self._key_id})"

    def __reduce__(self) -> str:
        raise TypeError("a signer is not copied or pickled")


class SoftwareSigner(BaseSigner):
    """A ``Signer`` whose private key is in this process's memory."""

    __slots__ = ("_ecdsa", "_key")

    def __init__(self, private_key: PrivateKey) -> None:
        super().__init__(private_key.public_key())
        self._key = private_key
        self._ecdsa = ec.ECDSA(HASHES[self._algorithm]) if self._algorithm in HASHES else None

    @property
    def is_remote(self) -> bool:
        return False

    def sign(self, data: bytes) -> bytes:
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            assert self._ecdsa is not None
            return self._key.sign(data, self._ecdsa)
        return self._key.sign(data)


class SoftwareNoteSigner:
    """A ``NoteSigner`` whose private key is in this process's memory; shown and kept as little as any signer."""

    __slots__ = ("_key", "_public_key")

    def __init__(self, private_key: mldsa.MLDSA44PrivateKey) -> None:
        self._key = private_key
        self._public_key = private_key.public_key()

    @property
    def public_key(self) -> mldsa.MLDSA44PublicKey:
        return self._public_key

    @property
    def is_remote(self) -> bool:
        return False

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)

    def __repr__(self) -> str:
        return "SoftwareNoteSigner(ml-dsa-44)"

    def __reduce__(self) -> str:
        raise TypeError("a signer is not copied or pickled")


def generate_private_key(algorithm: KeyAlgorithm) -> PrivateKey:
    """A fresh private key, from the generator inside the cryptography library."""
    if algorithm is KeyAlgorithm.ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm is KeyAlgorithm.ML_DSA_65:
        return mldsa.MLDSA65PrivateKey.generate()
    return ec.generate_private_key(CURVES[algorithm])


def verify_signature(public_key: PublicKey, signature: bytes, data: bytes) -> None:
    """Check a ``Signer``'s signature; raise cryptography's ``InvalidSignature``."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        public_key.verify(signature, data, ec.ECDSA(HASHES[algorithm_of(public_key)]))
    else:
        public_key.verify(signature, data)


def algorithm_of(public_key: object) -> KeyAlgorithm:
    """The type of a public key; raise ``UnsupportedKey`` with the types that would do."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        algorithm = _BY_CURVE.get(public_key.curve.name)
        if algorithm is not None:
            return algorithm
        raise UnsupportedKey(f"keys on curve {public_key.curve.name} are not accepted", fix=_FIX)
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return KeyAlgorithm.ED25519
    if isinstance(public_key, mldsa.MLDSA65PublicKey):
        return KeyAlgorithm.ML_DSA_65
    kind = type(public_key).__name__.removesuffix("PublicKey")
    raise UnsupportedKey(f"{kind} keys are not accepted", fix=_FIX)


def key_id_of(public_key: object) -> str:
    """The key's subject key identifier in lower-case hex."""
    return SubjectKey.of(public_key).identifier.hex()


CLASSICAL = frozenset({KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519})
"""What every peer's TLS library reads; ML-DSA-65 is for those that were told to speak it."""

HASHES: dict[KeyAlgorithm, hashes.HashAlgorithm] = {
    KeyAlgorithm.EC_P256: hashes.SHA256(),
    KeyAlgorithm.EC_P384: hashes.SHA384(),
}
"""The hash that goes with a key type; the types that are missing here hash by themselves."""

CURVES: dict[KeyAlgorithm, ec.EllipticCurve] = {
    KeyAlgorithm.EC_P256: ec.SECP256R1(),
    KeyAlgorithm.EC_P384: ec.SECP384R1(),
}
_BY_CURVE = {curve.name: algorithm for algorithm, curve in CURVES.items()}
# Bytes of a SubjectPublicKeyInfo before the key bits; fixed, since every type has one length.
_SPKI_HEADER_LENGTH = {
    KeyAlgorithm.EC_P256: 26,
    KeyAlgorithm.EC_P384: 23,
    KeyAlgorithm.ED25519: 12,
    KeyAlgorithm.ML_DSA_65: 22,
}
_FIX = "use a P-256, P-384, Ed25519 or ML-DSA-65 key"
