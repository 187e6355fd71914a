"""The index of the log's entries: a SQLite file of its own, derived, rebuildable at any time, never trusted.

An entry is known by up to seven numbers, one for each field it may be found by. A number has 63 bits:

    run (16) | hash of field and value (31) | place in the run (16)

A run is 65,536 entries in a row. So what is added lands close together however random the values are, a run once
full is never touched again, and a search is one range of keys in each run: 153 of them at ten million entries.
Some 90 bytes an entry. Beside the keys: the times of each bundle of 256, for searches by time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from eastwest.errors import Corrupt, InvalidInput, NotFound, Unavailable
from eastwest.log.index import LogQuery, entry_terms, read_fields, term_hashes
from eastwest.log.tiles import TILE_WIDTH

RUN_BITS = 16
RUN = 1 << RUN_BITS
MAX_ENTRIES = 1 << 32
VERSION = 1
_TERM_BITS = 31
_PLACES = RUN - 1
# How many keys of a term are counted in a run before it is called frequent.
_PROBE = 512
_PAUSE_EVERY = 64
_HAVING = " AND EXISTS (SELECT 1 FROM posting AS o WHERE o.key = (p.key & 65535) | ?)"
_HAVING_ANY = " AND EXISTS (SELECT 1 FROM posting AS o WHERE o.key IN ((p.key & 65535) | ?, (p.key & 65535) | ?))"

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS about (
    id INTEGER PRIMARY KEY CHECK (id = 1), origin TEXT NOT NULL, size INTEGER NOT NULL, last BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS posting (key INTEGER PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS span (bundle INTEGER PRIMARY KEY, low TEXT NOT NULL, high TEXT NOT NULL) STRICT;
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True, slots=True)
class Covered:
    """What an index knows: the log's origin, how many entries, and the leaf hash of the last one of them."""

    origin: str
    size: int
    last: bytes


class SqliteLogIndex:
    """Serves ``eastwest.log.index.LogIndex``; one writer at most, any number of readers beside it."""

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False) -> SqliteLogIndex:
        """Open the file, or make it (mode 0600). One of another version or none of ours is begun anew.

        With ``readonly`` raises ``NotFound`` if there is no usable index; ``Unavailable`` if the disk fails.
        """
        try:
            if readonly:
                return cls(path, _reader(path))
            connection = _writer(path)
        except sqlite3.Error as error:
            raise Unavailable(f"the index {path} cannot be opened: {error}") from error
        except OSError as error:
            raise Unavailable(f"the index {path} cannot be opened: {error.strerror}") from error
        return cls(path, connection)

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @property
    def covered(self) -> Covered | None:
        """What is indexed; None if nothing is."""
        row = self._connection.execute("SELECT origin, size, last FROM about").fetchone()
        return Covered(*row) if row else None

    def add(
        self, first: int, entries: Sequence[bytes], after: Covered, pause: Callable[[], None] | None = None
    ) -> None:
        """Index entries that follow those covered, in one transaction; ``after`` is what is covered then.

        ``pause`` is called after every few entries. Raises ``InvalidInput`` unless ``first`` is where the index
        ends, ``Unavailable`` if the disk fails.
        """
        known = self.covered
        if first != (known.size if known else 0) or after.size != first + len(entries):
            raise InvalidInput(f"entries {first} to {after.size} do not continue the index {self.path}")
        if after.size > MAX_ENTRIES:
            raise InvalidInput(f"an index holds {MAX_ENTRIES} entries")
        keys, spans = index_rows(first, entries, pause)
        self.extend(keys, spans, after)

    def extend(self, keys: Sequence[int], spans: Sequence[tuple[int, str, str]], after: Covered) -> None:
        """As ``add``, with what ``index_rows`` made of the entries and nothing checked."""
        connection = self._connection
        with _disk_trouble(self.path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                # One statement for all keys: the interpreter is held once, not once a key.
                joined = msgspec.json.encode(keys).decode()
                connection.execute("INSERT OR IGNORE INTO posting SELECT value FROM json_each(?)", (joined,))
                connection.executemany(
                    "INSERT INTO span VALUES (?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET low = min(low, excluded.low), high = max(high, excluded.high)",
                    spans,
                )
                connection.execute(
                    "INSERT INTO about VALUES (1, ?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET origin = excluded.origin, size = excluded.size, last = excluded.last",
                    (after.origin, after.size, after.last),
                )
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def clear(self) -> None:
        """Forget everything."""
        with _disk_trouble(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            for table in ("about", "posting", "span"):
                self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names from the line above
            self._connection.execute("COMMIT")

    def search(self, query: LogQuery) -> list[int]:
        try:
            self._connection.execute("BEGIN")
            try:
                return self._search(query.normal())
            finally:
                self._connection.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            raise Corrupt(
                f"the index {self.path} cannot be read: {error}", fix="remove the file; it is made anew from the log"
            ) from error

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _search(self, query: LogQuery) -> list[int]:
        low, high = self._bounds(query)
        found: list[int] = []
        if low >= high:
            return found
        runs: Sequence[int] = range(low >> RUN_BITS, (high - 1 >> RUN_BITS) + 1)
        step = -1 if query.newest_first else 1
        terms = [term_hashes(field, value) for field, value in query.terms()]
        for run in runs[::step]:
            first, end = max(low, run << RUN_BITS), min(high, (run + 1) << RUN_BITS)
            left = query.limit - len(found)
            if not terms:
                found.extend(range(first, end)[::step][:left])
            else:
                found.extend(self._in_run(terms, first, end, left, newest_first=query.newest_first))
            if len(found) >= query.limit:
                break
        return found

    def _in_run(
        self, terms: Sequence[Sequence[int]], first: int, end: int, limit: int, *, newest_first: bool
    ) -> list[int]:
        """The entries of one run that have all terms; each term is any of some hashes."""
        run = first >> RUN_BITS
        ranges = [[_range(run, hash_, first, end) for hash_ in hashes] for hashes in terms]
        rare = self._rarest(ranges)
        if rare is None:
            return []
        others = [hashes for place, hashes in enumerate(terms) if place != rare]
        having = "".join(_HAVING if len(hashes) == 1 else _HAVING_ANY for hashes in others)
        values = [_base(run, hash_) for hashes in others for hash_ in hashes]
        order = "DESC" if newest_first else "ASC"
        found: set[int] = set()
        for low, high in ranges[rare]:
            rows = self._connection.execute(
                f"SELECT p.key & 65535 FROM posting AS p WHERE p.key BETWEEN ? AND ?{having}"  # noqa: S608 - no value in it
                f" ORDER BY p.key {order} LIMIT ?",
                (low, high, *values, limit),
            )
            found.update(place for (place,) in rows)
        start = run << RUN_BITS
        return [start + place for place in sorted(found, reverse=newest_first)][:limit]

    def _rarest(self, ranges: Sequence[Sequence[tuple[int, int]]]) -> int | None:
        """Which term has the fewest keys; None if one has none at all."""
        if len(ranges) == 1:
            return 0
        count = "SELECT count(*) FROM (SELECT 1 FROM posting WHERE key BETWEEN ? AND ? LIMIT ?)"
        counts = [
            sum(self._connection.execute(count, (low, high, _PROBE)).fetchone()[0] for low, high in places)
            for places in ranges
        ]
        least = min(counts)
        return counts.index(least) if least else None

    def _bounds(self, query: LogQuery) -> tuple[int, int]:
        """The first index in question, and the one after the last; by time to the bundle only."""
        known = self.covered
        low, high = 0, known.size if known else 0
        if query.start:
            row = self._connection.execute("SELECT min(bundle) FROM span WHERE high >= ?", (query.start,)).fetchone()
            low = high if row[0] is None else row[0] * TILE_WIDTH
        if query.end:
            row = self._connection.execute("SELECT max(bundle) FROM span WHERE low < ?", (query.end,)).fetchone()
            high = 0 if row[0] is None else min(high, (row[0] + 1) * TILE_WIDTH)
        if query.after is not None:
            low, high = (low, min(high, query.after)) if query.newest_first else (max(low, query.after + 1), high)
        return max(low, 0), high


def index_rows(
    first: int, entries: Sequence[bytes], pause: Callable[[], None] | None = None
) -> tuple[list[int], list[tuple[int, str, str]]]:
    """The keys (sorted) and the spans of time of entries from index ``first`` on."""
    keys: list[int] = []
    times: dict[int, list[str]] = {}
    for index, raw in enumerate(entries, first):
        if pause is not None and index % _PAUSE_EVERY == 0:
            pause()
        fields = read_fields(raw)
        if fields is None:
            continue
        base = (index >> RUN_BITS) << (_TERM_BITS + RUN_BITS) | index & _PLACES
        keys += [base | hash_ << RUN_BITS for hash_ in entry_terms(fields)]
        if fields.time:
            times.setdefault(index // TILE_WIDTH, []).append(fields.time)
    keys.sort()
    return keys, [(bundle, min(some), max(some)) for bundle, some in times.items()]


def catch_up(
    index: SqliteLogIndex,
    origin: str,
    size: int,
    read: Callable[[int, int], Sequence[bytes]],
    leaf: Callable[[int], bytes],
    *,
    batch: int = 16 * TILE_WIDTH,
    pause: Callable[[], None] | None = None,
) -> Iterator[int]:
    """Index a log up to ``size`` entries; yields how many are covered after each batch.

    ``read(start, end)`` gives the entries, b"" for one that is pruned; ``leaf(i)`` gives a leaf hash. An index that
    is of another log or of another history of this one is begun anew. ``pause`` is called after every few entries.
    """
    known = index.covered
    if known is not None and (known.origin != origin or known.size > size or leaf(known.size - 1) != known.last):
        index.clear()
        known = None
    at = known.size if known else 0
    while at < size:
        end = min(size, at - at % batch + batch)
        entries = read(at, end)
        index.add(at, entries, Covered(origin, end, leaf(end - 1)), pause)
        at = end
        yield at


def _base(run: int, hash_: int) -> int:
    return (run << _TERM_BITS | hash_) << RUN_BITS


def _range(run: int, hash_: int, first: int, end: int) -> tuple[int, int]:
    """The keys of a term for entries ``first`` to ``end`` (exclusive), all in ``run``; both ends count."""
    base = _base(run, hash_)
    return base | first & _PLACES, base | (end - 1) & _PLACES


def _writer(path: Path) -> sqlite3.Connection:
    try:
        return _prepared(path)
    except _OtherVersion:
        pass
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return _prepared(path)


def _prepared(path: Path) -> sqlite3.Connection:
    path.touch(0o600)
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise _OtherVersion
        connection.execute("PRAGMA journal_mode = WAL")
        # What a power cut takes is indexed again: no fsync, but never half a batch after a crash of ours.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -16000")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def _reader(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise NotFound(f"there is no index {path}")
    connection: sqlite3.Connection | None = None
    # A directory that cannot be written has no shared memory file: then nobody else changes the index either.
    for mode in ("mode=ro", "immutable=1"):
        connection = sqlite3.connect(
            f"file:{path.absolute().as_posix().replace('?', '%3f').replace('#', '%23')}?{mode}",
            uri=True,
            timeout=5.0,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute("SELECT size FROM about").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            continue
        except sqlite3.DatabaseError:
            connection.close()
            break
        if version == VERSION:
            return connection
        connection.close()
        break
    raise NotFound(f"there is no usable index in {path}")


class _OtherVersion(Exception):
    """The file was made by a program that keeps another form of index."""


class _disk_trouble:  # noqa: N801 - reads as a phrase after with
    """Turns what SQLite refuses into ``Unavailable``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise Unavailable(f"the index {self._path} cannot be written: {error}") from error
