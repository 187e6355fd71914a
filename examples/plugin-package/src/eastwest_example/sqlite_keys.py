"""Keys in one SQLite file, in clear, which only its owner may open. Good for an example, and for a laptop."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from eastwest.errors import AlreadyExists, Corrupt, NotFound, Unavailable
from eastwest.pki.signer import KeyAlgorithm, KeyStoreContext, Signer, SoftwareSigner, generate_private_key
from eastwest.plugins.key_names import check_key_name


class SqliteKeyStore:
    """A table of names and keys. SQLite itself sees to it that a name is taken once, and that a commit lasts."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``file``: its name in the server's directory for keys."""

        file: str = "keys.db"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    @classmethod
    def from_options(cls, options: Options, context: KeyStoreContext) -> Self:
        """As the entry point makes it."""
        check_key_name(options.file)
        return cls(Path(context.directory) / options.file)

    def create(self, name: str, algorithm: KeyAlgorithm) -> Signer:
        """Make a key."""
        check_key_name(name)
        key = generate_private_key(algorithm)
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        with self._opened() as connection:
            try:
                connection.execute("INSERT INTO keys VALUES (?, ?)", (name, der))
            except sqlite3.IntegrityError:
                raise AlreadyExists(f"a key named {name} exists already", where=str(self._path)) from None
        return SoftwareSigner(key)

    def load(self, name: str) -> Signer:
        """Open a key."""
        check_key_name(name)
        with self._opened() as connection:
            row = connection.execute("SELECT der FROM keys WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise NotFound(f"there is no key named {name}", where=str(self._path))
        try:
            return SoftwareSigner(load_der_private_key(row[0], None))  # type: ignore[arg-type]  # made above
        except ValueError:
            raise Corrupt(f"the key {name} cannot be read", where=str(self._path)) from None

    def names(self) -> Sequence[str]:
        """All keys."""
        with self._opened() as connection:
            return [name for (name,) in connection.execute("SELECT name FROM keys ORDER BY name")]

    def delete(self, name: str) -> None:
        """Destroy a key; SQLite overwrites it."""
        check_key_name(name)
        with self._opened() as connection:
            if connection.execute("DELETE FROM keys WHERE name = ?", (name,)).rowcount == 0:
                raise NotFound(f"there is no key named {name}", where=str(self._path))

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                # Made here first, since SQLite would make it readable to others.
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                connection = sqlite3.connect(self._path, timeout=10)
            except (OSError, sqlite3.Error) as error:
                raise Unavailable(f"the keys cannot be opened: {type(error).__name__}", where=str(self._path)) from None
            try:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute("CREATE TABLE IF NOT EXISTS keys (name TEXT PRIMARY KEY, der BLOB NOT NULL)")
                with connection:
                    yield connection
            except sqlite3.Error as error:
                raise Unavailable(f"the keys cannot be used: {type(error).__name__}", where=str(self._path)) from None
            finally:
                connection.close()
