"""Keys as PEM files (PKCS#8, not encrypted) in one directory that only their owner may open.

A new key is written to a temporary file, flushed, and then linked to its name, so that a crash leaves either a
whole key or none, and an existing key is never overwritten.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from eastwest.errors import AlreadyExists, Corrupt, FailedPrecondition, InvalidInput, NotFound, Unavailable
from eastwest.pki.signer import KeyAlgorithm, KeyStoreContext, Signer, SoftwareSigner, generate_private_key

MAX_KEY_FILE_BYTES = 16 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_SUFFIX = ".pem"


class DiskKeyStore:
    """The keys of ``directory``, which is made with mode 0700 when the first key is."""

    def __init__(self, directory: Path) -> None:
        self._directory = Path(directory)

    @classmethod
    def from_options(cls, _options: None, context: KeyStoreContext) -> Self:
        """As the entry point makes it."""
        return cls(Path(context.directory))

    def create(self, name: str, algorithm: KeyAlgorithm) -> Signer:
        path = self._path(name)
        private_key = generate_private_key(algorithm)
        pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_directory()
            _write_new(path, pem)
        except FileExistsError:
            raise AlreadyExists(f"a key named {name} exists already", where=str(path)) from None
        except OSError as error:
            raise Unavailable(f"the key cannot be stored: {error.strerror}", where=str(path)) from None
        return SoftwareSigner(private_key)

    def load(self, name: str) -> Signer:
        path = self._path(name)
        try:
            self._check_directory()
            pem = _read_private(path)
        except FileNotFoundError:
            raise NotFound(f"there is no key named {name}", where=str(path)) from None
        except OSError as error:
            raise Unavailable(f"the key cannot be read: {error.strerror}", where=str(path)) from None
        return SoftwareSigner(_parse(pem, path))

    def names(self) -> Sequence[str]:
        try:
            found = [entry.name.removesuffix(_SUFFIX) for entry in self._directory.iterdir() if entry.suffix == _SUFFIX]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Unavailable(f"the keys cannot be listed: {error.strerror}", where=str(self._directory)) from None
        return sorted(name for name in found if _NAME.fullmatch(name))

    def _path(self, name: str) -> Path:
        check_key_name(name)
        return self._directory / (name + _SUFFIX)

    def _check_directory(self) -> None:
        found = self._directory.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise FailedPrecondition("the key store is not a directory", where=str(self._directory))
        if found.st_mode & 0o077:
            raise FailedPrecondition(
                f"the key directory is open to other users (mode {stat.S_IMODE(found.st_mode):04o})",
                fix=f"chmod 700 {self._directory}",
                where=str(self._directory),
            )


def check_key_name(name: str) -> None:
    """Refuse a name that could leave the store or hide in it; raise ``InvalidInput``."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name[:80]!r} is not a key name", fix="use 1 to 100 of a-z 0-9 . _ - and start with a letter or digit"
        )


def _write_new(path: Path, content: bytes) -> None:
    # mkstemp opens with O_EXCL and mode 0600; link refuses an existing name, which rename would replace.
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_private(path: Path) -> bytes:
    # The checks are on the open file, so that the name cannot be pointed elsewhere between check and read.
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise FailedPrecondition("the key is not a regular file", where=str(path))
        if found.st_mode & 0o077:
            raise FailedPrecondition(
                f"the key file is open to other users (mode {stat.S_IMODE(found.st_mode):04o})",
                fix=f"chmod 600 {path}, and replace the key if others may have read it",
                where=str(path),
            )
        if found.st_uid not in {os.geteuid(), 0}:
            raise FailedPrecondition(f"the key file belongs to another user (uid {found.st_uid})", where=str(path))
        if found.st_size > MAX_KEY_FILE_BYTES:
            raise Corrupt("the key file is too large to be a key", where=str(path))
        return file.read(MAX_KEY_FILE_BYTES)


def _parse(pem: bytes, path: Path) -> ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    # The parser's own words are dropped: they might quote the file.
    try:
        private_key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Corrupt("the file does not hold an unencrypted PEM private key", where=str(path)) from None
    if not isinstance(private_key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise Corrupt("the file holds a key of a type that is never made here", where=str(path))
    return private_key
