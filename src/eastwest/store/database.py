"""The SQLite engine under every adapter: one writer thread with group commit, readers beside it.

Whatever waits when a commit ends is committed together next, without a timed window: alone, a write
costs one fsync; under load, a hundred share one. Each operation runs in a SAVEPOINT of its own, so one
that fails does not fail its neighbours, and its caller hears of success only after COMMIT.

    database = Database.open(path, trust_domain="saas.example", clock=clock)
    await database.write(lambda c: c.execute("INSERT INTO ...", row))
    rows = await database.read(lambda c: c.execute("SELECT ...").fetchall())
    await database.close()
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eastwest.clock import Clock
from eastwest.errors import Corrupt, FailedPrecondition, Internal, Unavailable
from eastwest.store.migrations import Migration, check_not_newer, known_migrations, migrate

T = TypeVar("T")

BUSY_TIMEOUT_SECONDS = 5.0
MAX_GROUP = 1024
READERS = 2


class Database:
    """An open database file; made by ``open``, usable from one event loop.

    An *operation* is a plain function of a ``sqlite3.Connection``. It must not commit, roll back or use
    ``executescript``, must not keep the connection, and must not touch state outside the database: it
    may be rolled back after it returned. Constraint and syntax errors of SQLite reach the caller as
    they are; trouble with disk or file comes as ``Unavailable`` (nothing was stored; trying again may
    help: the database works again when the disk does) or ``Corrupt``.
    """

    @classmethod
    def open(
        cls, path: Path, *, trust_domain: str, clock: Clock, migrations: Sequence[Migration] | None = None
    ) -> Database:
        """Open or create ``path`` (mode 0600) and bring its schema up to date.

        Raises ``FailedPrecondition`` if the file belongs to another trust domain or a newer program (it
        is not changed then), ``Corrupt`` if it is no database, ``Unavailable`` if it cannot be opened.
        """
        known = known_migrations() if migrations is None else tuple(migrations)
        try:
            _create_private(path)
            writer = _connect_writer(path)
        except (OSError, sqlite3.Error) as error:
            raise _translate(error, path) from error
        try:
            _claim(writer, path, trust_domain, known, clock)
            return cls(path, trust_domain, writer)
        except (OSError, sqlite3.Error) as error:
            writer.close()
            raise _translate(error, path) from error
        except BaseException:
            writer.close()
            raise

    def __init__(self, path: Path, trust_domain: str, writer: sqlite3.Connection) -> None:
        self.path = path
        self.trust_domain = trust_domain
        self._writer = _Writer(path, writer)
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._opened_lock = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="database-read")
        self._closed = False

    async def write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``operation`` in the writer thread; return its result once it is durable.

        An error it raises undoes its changes and no one else's. If the waiting task is cancelled before
        the operation has begun it does not run; after that it may still be stored.
        """
        if self._closed:
            raise Unavailable("the database is closed")
        job = _Job(operation, asyncio.get_running_loop().create_future())
        self._writer.put(job)
        result: T = await job.future
        return result

    async def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``operation`` in a reader thread on one consistent snapshot; it cannot write."""
        if self._closed:
            raise Unavailable("the database is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, operation)

    def read_now(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """As ``read``, at once in the calling thread: for look-ups of some tens of microseconds."""
        if self._closed:
            raise Unavailable("the database is closed")
        return self._read(operation)

    async def close(self) -> None:
        """Finish what was handed in, then close the file; harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._writer.stop)
        await asyncio.to_thread(self._readers.shutdown)
        with self._opened_lock:
            for connection in self._opened:
                connection.close()

    def _read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._reader()
            connection.execute("BEGIN")
            try:
                return operation(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY:
                raise Internal("a read operation tried to write") from error
            raise _translate(error, self.path) from error

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = _connect_reader(self.path)
            self._local.connection = connection
            with self._opened_lock:
                self._opened.append(connection)
        return connection


@dataclass(slots=True)
class _Job:
    operation: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None

    def finish(self) -> None:
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class _Writer:
    """The one thread that writes."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="database-write", daemon=True)
        self._thread.start()

    def put(self, job: _Job) -> None:
        self._queue.put(job)

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group, stopping = self._next_group()
            if not group:
                continue
            self._commit(group)
            # One wake-up of the loop for the whole group; a loop that is gone has nobody waiting.
            with suppress(RuntimeError):
                group[0].future.get_loop().call_soon_threadsafe(_finish, group)
        self._connection.close()

    def _next_group(self) -> tuple[list[_Job], bool]:
        group: list[_Job] = []
        job = self._queue.get()
        while job is not None:
            if not job.future.cancelled():
                group.append(job)
            if len(group) >= MAX_GROUP:
                return group, False
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _commit(self, group: list[_Job]) -> None:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            if len(group) == 1:
                self._apply_alone(group[0])
            else:
                for job in group:
                    self._apply(job)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it is, each waiting caller must hear of it
            self._roll_back()
            cause = _translate(error, self._path)
            for job in group:
                job.error = job.error or _again(cause)

    def _apply(self, job: _Job) -> None:
        """Run one job in its savepoint; raise only if the whole transaction is lost."""
        connection = self._connection
        connection.execute("SAVEPOINT job")
        try:
            job.result = _call(job.operation, connection)
        except Exception as error:
            job.error = _translate(error, self._path)
            # On a full disk SQLite may have rolled everything back by itself.
            if not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")

    def _apply_alone(self, job: _Job) -> None:
        """Run the only job of a transaction: with no neighbour to protect, that is savepoint enough."""
        try:
            job.result = _call(job.operation, self._connection)
        except Exception as error:
            job.error = _translate(error, self._path)
            raise

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _call(operation: Callable[[sqlite3.Connection], Any], connection: sqlite3.Connection) -> Any:
    try:
        result = operation(connection)
    except StopIteration as error:  # a future refuses to carry it, and its caller would wait for ever
        raise Internal("the operation ran out of rows") from error
    if not connection.in_transaction:
        raise Internal("the operation ended the transaction it was called in")
    return result


def _finish(group: list[_Job]) -> None:
    for job in group:
        job.finish()


def _create_private(path: Path) -> None:
    """Make the file with mode 0600 before SQLite sees it; its -wal and -shm files take the same mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _connect_writer(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        # Read before the first change: a file that is no database fails here, unharmed.
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA journal_size_limit = 67108864")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_reader(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _claim(
    connection: sqlite3.Connection, path: Path, trust_domain: str, known: Sequence[Migration], clock: Clock
) -> None:
    """Check whose database it is before changing anything, then bring it up to date and sign it."""
    owner = _owner(connection)
    if owner not in (None, trust_domain):
        raise FailedPrecondition(
            f"the database {path} belongs to trust domain {owner}, not {trust_domain}",
            fix="use the data directory of this trust domain, or a new one",
        )
    check_not_newer(connection, known)
    migrate(connection, known, clock.now())
    if owner is None:
        connection.execute("INSERT INTO meta VALUES ('trust_domain', ?)", (trust_domain,))


def _owner(connection: sqlite3.Connection) -> str | None:
    if connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'meta'").fetchone() is None:
        return None
    row = connection.execute("SELECT value FROM meta WHERE key = 'trust_domain'").fetchone()
    return None if row is None else str(row[0])


_DISK_CODES = frozenset(
    (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
    )
)
_DAMAGE_CODES = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))


def _translate(error: Exception, path: Path) -> Exception:
    """Disk trouble and damage as errors of ours; anything else as it is."""
    if isinstance(error, OSError):
        return Unavailable(f"the database {path} cannot be opened: {error.strerror}")
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return error
    name = getattr(error, "sqlite_errorname", "")
    primary = code & 0xFF  # the extended code keeps the primary one in its low byte
    if primary == sqlite3.SQLITE_FULL:
        return Unavailable(f"the disk that holds the database {path} is full", fix="free some space; it then goes on")
    if primary in _DISK_CODES:
        return Unavailable(f"the database {path} cannot be used now: {error} ({name})")
    if primary in _DAMAGE_CODES:
        return Corrupt(f"the database {path} is damaged or no database: {error}", fix="restore it from a backup")
    return error


def _again(error: Exception) -> Exception:
    """A fresh exception per caller: one object raised in many tasks would mix their tracebacks."""
    if isinstance(error, Unavailable | Corrupt):
        return type(error)(error.message, fix=error.fix, where=error.where)
    return Internal(f"the transaction failed: {error}")
