"""What a witness has signed: one row for each log, in a SQLite file of its own.

Checking what was signed last and storing what is signed next are one transaction, and it is durable before the
signature leaves: two requests that race cannot roll a log back.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eastwest.errors import Corrupt, Unavailable
from eastwest.log.witness import EMPTY, Seen

MAX_CONFLICTS = 100
"""Evidence kept of each log; the first pieces say most, so later ones are not kept."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note BLOB NOT NULL, signed_at INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS conflict (
    origin TEXT NOT NULL, received_at INTEGER NOT NULL, why TEXT NOT NULL, note BLOB NOT NULL, last BLOB NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Signed:
    """The last checkpoint of a log that was signed: ``note`` has the log's and the witness's lines."""

    origin: str
    seen: Seen
    note: bytes
    signed_at: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A checkpoint under a log's own key that contradicts ``last``, which was signed before it came."""

    origin: str
    received_at: int
    why: str
    note: bytes
    last: bytes


class WitnessStore:
    """Opened by one process at a time for writing; every method blocks and may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Raises ``Corrupt`` or ``Unavailable``."""
        self._path = path
        self._lock = threading.Lock()
        with self._trouble():
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            self._connection.execute("PRAGMA journal_mode = WAL")
            # What was signed must survive a power cut: forgetting it would let the log sign another history.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)

    def last(self, origin: str) -> Signed | None:
        """What was signed last of a log."""
        found = self._read("SELECT origin, size, root, note, signed_at FROM seen WHERE origin = ?", (origin,))
        return _signed(found[0]) if found else None

    def all(self) -> list[Signed]:
        """What was signed last of each log, by origin."""
        return [_signed(row) for row in self._read("SELECT origin, size, root, note, signed_at FROM seen ORDER BY 1")]

    def replace(self, expected: Seen, new: Signed) -> bool:
        """Store ``new`` if ``expected`` is what was signed last (``EMPTY``: nothing was); False if it is not."""
        row = (new.origin, new.seen.size, new.seen.root, new.note, new.signed_at)
        with self._lock, self._trouble():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                found = self._connection.execute("SELECT size, root FROM seen WHERE origin = ?", row[:1]).fetchone()
                if (Seen(*found) if found else EMPTY) != expected:
                    self._connection.execute("ROLLBACK")
                    return False
                self._connection.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", row)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            return True

    def keep(self, conflict: Conflict) -> bool:
        """Keep evidence, unless it is there already or there is enough of this log; whether it was kept."""
        query = """
            INSERT INTO conflict SELECT ?1, ?2, ?3, ?4, ?5
            WHERE (SELECT count(*) FROM conflict WHERE origin = ?1) < ?6
            AND NOT EXISTS (SELECT 1 FROM conflict WHERE origin = ?1 AND note = ?4)
        """
        row = (conflict.origin, conflict.received_at, conflict.why, conflict.note, conflict.last, MAX_CONFLICTS)
        with self._lock, self._trouble():
            return self._connection.execute(query, row).rowcount == 1

    def conflicts(self) -> list[Conflict]:
        """All evidence, oldest first."""
        query = "SELECT origin, received_at, why, note, last FROM conflict ORDER BY received_at, rowid"
        return [_conflict(row) for row in self._read(query)]

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def _read(self, query: str, values: tuple[str, ...] = ()) -> list[tuple[object, ...]]:
        with self._lock, self._trouble():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise Unavailable(f"the witness's database cannot be used: {error}", where=str(self._path)) from error
        except sqlite3.DatabaseError as error:
            raise Corrupt(
                f"the witness's database is damaged: {error}",
                where=str(self._path),
                fix="restore the newest copy; with an older one the witness could be shown a second history",
            ) from error


def _conflict(row: tuple[object, ...]) -> Conflict:
    origin, received_at, why, note, last = row
    assert isinstance(origin, str)
    assert isinstance(received_at, int)
    assert isinstance(why, str)
    assert isinstance(note, bytes)
    assert isinstance(last, bytes)
    return Conflict(origin, received_at, why, note, last)


def _signed(row: tuple[object, ...]) -> Signed:
    origin, size, root, note, signed_at = row
    assert isinstance(origin, str)
    assert isinstance(size, int)
    assert isinstance(root, bytes)
    assert isinstance(note, bytes)
    assert isinstance(signed_at, int)
    return Signed(origin, Seen(size, root), note, signed_at)
