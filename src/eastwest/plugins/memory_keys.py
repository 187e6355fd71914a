"""A key store that forgets everything at exit: for tests, demonstrations and throw-away authorities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from cryptography.hazmat.primitives.asymmetric import mldsa

from eastwest.errors import AlreadyExists, Corrupt, NotFound
from eastwest.pki.signer import (
    KeyAlgorithm,
    KeyStoreContext,
    NoteSigner,
    Signer,
    SoftwareNoteSigner,
    SoftwareSigner,
    generate_private_key,
)
from eastwest.pki.token_signer import SoftwareTokenSigner, TokenSigner, generate_token_key
from eastwest.plugins.key_names import check_key_name


class MemoryKeyStore:
    """Keeps the ``KeyStore`` promises for as long as the object lives."""

    @classmethod
    def from_options(cls, _options: None, _context: KeyStoreContext) -> Self:
        """As the entry point makes it."""
        return cls()

    def __init__(self) -> None:
        self._signers: dict[str, SoftwareSigner | SoftwareNoteSigner | SoftwareTokenSigner] = {}

    def create(self, name: str, algorithm: KeyAlgorithm) -> Signer:
        self._check_free(name)
        signer = self._signers[name] = SoftwareSigner(generate_private_key(algorithm))
        return signer

    def load(self, name: str) -> Signer:
        signer = self._find(name)
        if not isinstance(signer, SoftwareSigner):
            raise Corrupt(f"the key {name} signs the log or tokens, nothing else")
        return signer

    def create_note_key(self, name: str) -> NoteSigner:
        self._check_free(name)
        signer = self._signers[name] = SoftwareNoteSigner(mldsa.MLDSA44PrivateKey.generate())
        return signer

    def load_note_key(self, name: str) -> NoteSigner:
        signer = self._find(name)
        if not isinstance(signer, SoftwareNoteSigner):
            raise Corrupt(f"the key {name} is not one of ML-DSA-44")
        return signer

    def create_token_key(self, name: str) -> TokenSigner:
        self._check_free(name)
        signer = self._signers[name] = SoftwareTokenSigner(generate_token_key())
        return signer

    def load_token_key(self, name: str) -> TokenSigner:
        signer = self._find(name)
        if not isinstance(signer, SoftwareTokenSigner):
            raise Corrupt(f"the key {name} is not one that signs tokens")
        return signer

    def names(self) -> Sequence[str]:
        return sorted(self._signers)

    def delete(self, name: str) -> None:
        check_key_name(name)
        if self._signers.pop(name, None) is None:
            raise NotFound(f"there is no key named {name}")

    def _check_free(self, name: str) -> None:
        check_key_name(name)
        if name in self._signers:
            raise AlreadyExists(f"a key named {name} exists already", fix="choose another name")

    def _find(self, name: str) -> SoftwareSigner | SoftwareNoteSigner | SoftwareTokenSigner:
        check_key_name(name)
        if name not in self._signers:
            raise NotFound(f"there is no key named {name}")
        return self._signers[name]
