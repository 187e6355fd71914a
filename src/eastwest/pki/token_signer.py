"""RSA keys that sign transaction tokens and nothing else: they are never certified, so they are no ``Signer``.

Every call with a fresh token costs its verifier one verification, and RSA's is the cheapest there is: a third of what
P-256 takes. Making a token is dearer in turn, once, at the server (ADR 0016).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

RSA_BITS = 2048
PUBLIC_EXPONENT = 65537


class TokenSigner(Protocol):
    """An RSA key of 2,048 bits that signs transaction tokens."""

    @property
    def public_key(self) -> rsa.RSAPublicKey:
        """The public half."""
        ...

    @property
    def key_id(self) -> str:
        """As ``Signer.key_id``."""
        ...

    @property
    def is_remote(self) -> bool:
        """As ``Signer.is_remote``."""
        ...

    def sign(self, data: bytes) -> bytes:
        """256 bytes of RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 8.2). Raises ``Unavailable``. Safe from threads."""
        ...


@runtime_checkable
class TokenKeyStore(Protocol):
    """A key store that also keeps such keys; one that cannot simply lacks these methods, and tokens get P-256.

    Their names are among ``names`` and ``delete`` destroys them; ``load`` refuses them, so none is ever certified.
    """

    def create_token_key(self, name: str) -> TokenSigner:
        """As ``KeyStore.create``. Raises ``InvalidInput`` where the keys' keeper makes no RSA keys."""
        ...

    def load_token_key(self, name: str) -> TokenSigner:
        """As ``KeyStore.load``; ``Corrupt`` also for a key of another type."""
        ...


class BaseTokenSigner:
    """What every ``TokenSigner`` says of its key; a subclass adds ``is_remote`` and ``sign``.

    It shows nothing but the public half, and is neither copied nor pickled.
    """

    __slots__ = ("_key_id", "_public_key")

    def __init__(self, public_key: rsa.RSAPublicKey) -> None:
        self._public_key = public_key
        self._key_id = x509.SubjectKeyIdentifier.from_public_key(public_key).digest.hex()

    @property
    def public_key(self) -> rsa.RSAPublicKey:
        return self._public_key

    @property
    def key_id(self) -> str:
        return self._key_id

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rsa-{RSA_BITS}, {self._key_id})"

    def __reduce__(self) -> str:
        raise TypeError("a signer is not copied or pickled")


class SoftwareTokenSigner(BaseTokenSigner):
    """A ``TokenSigner`` whose private key is in this process's memory."""

    __slots__ = ("_key",)

    def __init__(self, private_key: rsa.RSAPrivateKey) -> None:
        super().__init__(private_key.public_key())
        self._key = private_key

    @property
    def is_remote(self) -> bool:
        return False

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def generate_token_key() -> rsa.RSAPrivateKey:
    """A fresh private key, from the generator inside the cryptography library; takes about 0.1 s."""
    return rsa.generate_private_key(PUBLIC_EXPONENT, RSA_BITS)


def is_token_key(public_key: object) -> bool:
    """Whether a public key is of the kind that is made here."""
    return isinstance(public_key, rsa.RSAPublicKey) and public_key.key_size == RSA_BITS
