"""A key store that forgets everything at exit: for tests, demonstrations and throw-away authorities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from eastwest.errors import AlreadyExists, NotFound
from eastwest.pki.signer import KeyAlgorithm, KeyStoreContext, Signer, SoftwareSigner, generate_private_key
from eastwest.plugins.key_names import check_key_name


class MemoryKeyStore:
    """Keeps the ``KeyStore`` promises for as long as the object lives."""

    @classmethod
    def from_options(cls, _options: None, _context: KeyStoreContext) -> Self:
        """As the entry point makes it."""
        return cls()

    def __init__(self) -> None:
        self._signers: dict[str, SoftwareSigner] = {}

    def create(self, name: str, algorithm: KeyAlgorithm) -> Signer:
        check_key_name(name)
        if name in self._signers:
            raise AlreadyExists(f"a key named {name} exists already", fix="choose another name")
        signer = self._signers[name] = SoftwareSigner(generate_private_key(algorithm))
        return signer

    def load(self, name: str) -> Signer:
        check_key_name(name)
        if name not in self._signers:
            raise NotFound(f"there is no key named {name}")
        return self._signers[name]

    def names(self) -> Sequence[str]:
        return sorted(self._signers)

    def delete(self, name: str) -> None:
        check_key_name(name)
        if self._signers.pop(name, None) is None:
            raise NotFound(f"there is no key named {name}")
