"""Keys as PEM files (PKCS #8) in one directory that only their owner may open, encrypted where a secret is given.

A new key is written to a temporary file, flushed, and then linked to its name, so that a crash leaves either a
whole key or none, and an existing key is never overwritten. With a passphrase each key costs about 0.2 s when it is
made and when it is loaded (scrypt); a server loads its keys once, at start.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import mldsa, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from eastwest.entropy import SystemEntropy
from eastwest.errors import AlreadyExists, Corrupt, FailedPrecondition, InvalidInput, NotFound, Unavailable
from eastwest.pki.signer import (
    KeyAlgorithm,
    KeyStoreContext,
    NoteSigner,
    PrivateKey,
    Signer,
    SoftwareNoteSigner,
    SoftwareSigner,
    generate_private_key,
)
from eastwest.pki.token_signer import SoftwareTokenSigner, TokenSigner, generate_token_key, is_token_key
from eastwest.plugins.key_names import check_key_name, is_key_name
from eastwest.plugins.pkcs8 import FOR_PASSPHRASE, FOR_RANDOM_KEY, Cost, encrypt_pkcs8
from eastwest.plugins.secret_files import OversizedFile, bytes_from_file, one_secret, read_private

MAX_KEY_FILE_BYTES = 16 * 1024
MIN_KEY_FILE_BYTES = 32
MIN_PASSPHRASE_BYTES = 8
_SUFFIX = ".pem"
_AnyKey = PrivateKey | mldsa.MLDSA44PrivateKey | rsa.RSAPrivateKey
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


@dataclass(frozen=True, slots=True)
class Protection:
    """What keys are encrypted under. ``source`` names the option it came from, never the secret."""

    password: bytes = field(repr=False)
    cost: Cost
    source: str

    @classmethod
    def by_passphrase(cls, passphrase: bytes, source: str = "the passphrase") -> Self:
        """Under words that a person chose. Raises ``InvalidInput`` when they are fewer than 8 bytes."""
        if len(passphrase) < MIN_PASSPHRASE_BYTES:
            raise InvalidInput(
                f"{source} is shorter than {MIN_PASSPHRASE_BYTES} bytes", fix="make one: openssl rand -base64 32"
            )
        return cls(passphrase, FOR_PASSPHRASE, source)

    @classmethod
    def by_random_key(cls, key: bytes, source: str = "the key file") -> Self:
        """Under random bytes; their lower-case hex is the passphrase that other tools take."""
        if not MIN_KEY_FILE_BYTES <= len(key) <= 1024 or len(set(key)) < 8:
            raise InvalidInput(f"{source} needs 32 to 1,024 random bytes", fix="make it: openssl rand -out FILE 32")
        return cls(key.hex().encode(), FOR_RANDOM_KEY, source)


class DiskKeyStore:
    """The keys of ``directory``, which is made with mode 0700 when the first key is.

    With ``protection`` a key that lies there in clear is refused: ``reencrypt`` is what changes how keys are kept.
    """

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[key_stores.disk]``: at most one of these; with none, keys are kept in clear.

        ``passphrase_file``: a private file with one line. ``passphrase_env``: an environment variable that holds it.
        ``key_file``: a private file with 32 or more random bytes, which opens keys a hundred times faster.
        """

        passphrase_file: str = ""
        passphrase_env: str = ""
        key_file: str = ""

    def __init__(self, directory: Path, protection: Protection | None = None) -> None:
        self._directory = Path(directory)
        self._protection = protection

    @classmethod
    def from_options(cls, options: Options, context: KeyStoreContext) -> Self:
        """As the entry point makes it."""
        return cls(Path(context.directory), protection_from(options))

    def create(self, name: str, algorithm: KeyAlgorithm) -> Signer:
        private_key = generate_private_key(algorithm)
        self._keep(name, private_key)
        return SoftwareSigner(private_key)

    def create_note_key(self, name: str) -> NoteSigner:
        private_key = mldsa.MLDSA44PrivateKey.generate()
        self._keep(name, private_key)
        return SoftwareNoteSigner(private_key)

    def load(self, name: str) -> Signer:
        private_key = self._read(name, self._protection)
        if isinstance(private_key, mldsa.MLDSA44PrivateKey):
            raise Corrupt("the file holds a key that signs the log, nothing else", where=str(self._path(name)))
        if isinstance(private_key, rsa.RSAPrivateKey):
            raise Corrupt("the file holds a key of a type that signs tokens, if any", where=str(self._path(name)))
        return SoftwareSigner(private_key)

    def load_note_key(self, name: str) -> NoteSigner:
        private_key = self._read(name, self._protection)
        if not isinstance(private_key, mldsa.MLDSA44PrivateKey):
            raise Corrupt("the file does not hold an ML-DSA-44 key", where=str(self._path(name)))
        return SoftwareNoteSigner(private_key)

    def create_token_key(self, name: str) -> TokenSigner:
        private_key = generate_token_key()
        self._keep(name, private_key)
        return SoftwareTokenSigner(private_key)

    def load_token_key(self, name: str) -> TokenSigner:
        private_key = self._read(name, self._protection)
        if not isinstance(private_key, rsa.RSAPrivateKey) or not is_token_key(private_key.public_key()):
            raise Corrupt("the file does not hold a key of RSA 2048", where=str(self._path(name)))
        return SoftwareTokenSigner(private_key)

    def _keep(self, name: str, private_key: _AnyKey) -> None:
        path = self._path(name)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_directory()
            _write_new(path, self._seal(private_key))
        except FileExistsError:
            raise AlreadyExists(f"a key named {name} exists already", where=str(path)) from None
        except OSError as error:
            raise Unavailable(f"the key cannot be stored: {error.strerror}", where=str(path)) from None

    def names(self) -> Sequence[str]:
        try:
            found = [entry.name.removesuffix(_SUFFIX) for entry in self._directory.iterdir() if entry.suffix == _SUFFIX]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Unavailable(f"the keys cannot be listed: {error.strerror}", where=str(self._directory)) from None
        return sorted(name for name in found if is_key_name(name))

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            self._check_directory()
            path.unlink()
            _sync_directory(path.parent)
        except FileNotFoundError:
            raise NotFound(f"there is no key named {name}", where=str(path)) from None
        except OSError as error:
            raise Unavailable(f"the key cannot be deleted: {error.strerror}", where=str(path)) from None

    def reencrypt(self, former: Protection | None) -> list[str]:
        """Bring every key that is kept under ``former`` (None: in clear) under this store's protection.

        Returns the names of those changed. A key that is kept as it should be is left alone, so this may be run
        again after a crash. Raises ``FailedPrecondition`` at the first key that neither secret opens.
        """
        changed = []
        for name in self.names():
            try:
                self._read(name, self._protection)
            except FailedPrecondition:
                private_key = self._read(name, former)
            else:
                continue
            path = self._path(name)
            try:
                _replace(path, self._seal(private_key))
            except OSError as error:
                raise Unavailable(f"the key cannot be stored: {error.strerror}", where=str(path)) from None
            changed.append(name)
        return changed

    def _seal(self, private_key: _AnyKey) -> bytes:
        if self._protection is None:
            return private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        protection = self._protection
        return encrypt_pkcs8(private_key, protection.password, protection.cost, SystemEntropy())

    def _read(self, name: str, protection: Protection | None) -> _AnyKey:
        path = self._path(name)
        try:
            self._check_directory()
            pem = read_private(path, "the key file", MAX_KEY_FILE_BYTES)
        except FileNotFoundError:
            raise NotFound(f"there is no key named {name}", where=str(path)) from None
        except OversizedFile:
            raise Corrupt("the key file is too large to be a key", where=str(path)) from None
        except OSError as error:
            raise Unavailable(f"the key cannot be read: {error.strerror}", where=str(path)) from None
        return _parse(pem, path, protection)

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


def protection_from(options: DiskKeyStore.Options) -> Protection | None:
    """What the options ask for; None: keys in clear. Reads the secret, and raises what is wrong with it."""
    given = [name for name in options.__struct_fields__ if getattr(options, name)]
    if len(given) > 1:
        raise InvalidInput(f"set only one of {' and '.join(given)}")
    if options.key_file:
        return Protection.by_random_key(bytes_from_file(options.key_file, "key_file"), "the file of key_file")
    passphrase = one_secret(passphrase_file=options.passphrase_file, passphrase_env=options.passphrase_env)
    return None if passphrase is None else Protection.by_passphrase(passphrase, f"the passphrase of {given[0]}")


def _write_new(path: Path, content: bytes) -> None:
    # Link refuses an existing name, which rename would replace.
    temporary = _write_temporary(path.parent, content)
    try:
        os.link(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    _sync_directory(path.parent)


def _replace(path: Path, content: bytes) -> None:
    temporary = _write_temporary(path.parent, content)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise
    _sync_directory(path.parent)


def _write_temporary(directory: Path, content: bytes) -> Path:
    # It opens with O_EXCL and mode 0600.
    descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        Path(temporary).unlink()
        raise
    return Path(temporary)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _parse(pem: bytes, path: Path, protection: Protection | None) -> _AnyKey:
    # The parser's own words are dropped: they might quote the file.
    encrypted = pem.lstrip().startswith(_ENCRYPTED)
    if encrypted and protection is None:
        raise FailedPrecondition(
            "the key is encrypted, and no secret is configured",
            where=str(path),
            fix="set passphrase_file, passphrase_env or key_file of this key store",
        )
    if protection is not None and not encrypted:
        raise FailedPrecondition(
            "the key is kept in clear, and this key store is to be encrypted",
            where=str(path),
            fix="encrypt the keys: eastwest ca reencrypt-keys",
        )
    try:
        private_key = load_pem_private_key(pem, protection.password if protection is not None else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if protection is not None:
            raise FailedPrecondition(
                f"{protection.source} does not open the key, or its file is damaged",
                where=str(path),
                fix="configure the secret that the key was made under",
            ) from None
        raise Corrupt("the file does not hold a PEM private key", where=str(path)) from None
    if not isinstance(private_key, _AnyKey):
        raise Corrupt("the file holds a key of a type that is never made here", where=str(path))
    return private_key
