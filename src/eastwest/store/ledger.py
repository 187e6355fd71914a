"""The ledger's hot half: rows as agents reported them, durable in a database of their own until they are sealed.

It is no part of ``server.db``: what a certificate waits for there must not wait behind twenty thousand decisions.
A segment goes through ``planned`` (which rows), ``written`` (its file is on disk) and ``sealed`` (its hash is in the
log); each step is one transaction, and the rows are deleted in the one that says ``sealed``. So whoever reads in one
snapshot finds each row exactly once, here or in a file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from eastwest.clock import Clock
from eastwest.errors import Exhausted, InvalidInput
from eastwest.ledger.query import FILTERS, FLAGS, DecisionQuery, micros, moment
from eastwest.ledger.record import Decision, Lost, LostReason, Row
from eastwest.ledger.segment import SegmentRecord, segment_path
from eastwest.store.database import Database
from eastwest.store.migrations import Migration

MAX_ROWS = 1_000_000
MAX_SPOOLS = 4096
"""Spools of one agent whose place is remembered; it begins one each time it starts."""
SPOOL_DAYS = 90
MAX_PRUNED = 256
"""Segments that are pruned at a time."""
HOT = "hot.db"
"""The file below the ledger's directory."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
-- time: microseconds since 1970; body: the row's JSON.
CREATE TABLE decisions (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  agent TEXT NOT NULL,
  time INTEGER NOT NULL,
  caller TEXT NOT NULL,
  service TEXT NOT NULL,
  verdict TEXT NOT NULL,
  code TEXT NOT NULL,
  body TEXT NOT NULL
) STRICT;
-- How far each agent's spool has been stored: what comes again is not stored again.
CREATE TABLE spools (
  agent TEXT NOT NULL,
  spool TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  seen INTEGER NOT NULL,
  PRIMARY KEY (agent, spool)
) STRICT, WITHOUT ROWID;
-- state: planned, written, sealed, pruned. log_from: the entry of the log, if there is one, is not before this index.
CREATE TABLE segments (
  first INTEGER PRIMARY KEY,
  last INTEGER NOT NULL,
  path TEXT NOT NULL,
  state TEXT NOT NULL,
  first_time INTEGER NOT NULL DEFAULT 0,
  last_time INTEGER NOT NULL DEFAULT 0,
  log_from INTEGER NOT NULL DEFAULT 0,
  log_index INTEGER,
  sealed_at INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0,
  record TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX segments_state ON segments (state, first);
INSERT INTO meta VALUES ('lost', '0');
INSERT INTO meta VALUES ('identity', lower(hex(randomblob(16))));
"""
MIGRATIONS = (Migration(1, "ledger", _SCHEMA),)

MIN_SHARE = 1000
SHARES = 4
"""While more than half of the room for unsealed rows is taken, one agent has at most a share of it."""
_COLUMNS = frozenset(("agent", "caller", "service", "verdict", "code"))


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment on its way: rows ``first`` to ``last``, where its file lies, and how far it is."""

    first: int
    last: int
    path: str
    state: str
    log_from: int = 0
    record: SegmentRecord | None = None


class SqliteLedger:
    """Takes rows exactly once and remembers what became of them; made by ``open``.

    ``identity``: random, made with the file: row numbers mean something within one identity only.
    """

    @classmethod
    async def open(cls, directory: Path, *, trust_domain: str, clock: Clock, max_rows: int = MAX_ROWS) -> SqliteLedger:
        """Open or create ``directory``/hot.db. ``max_rows`` may wait to be sealed; beyond that no more are taken."""
        database = Database.open(directory / HOT, trust_domain=trust_domain, clock=clock, migrations=MIGRATIONS)
        ledger = cls(database, clock, max_rows)
        ledger.identity = str(await database.read(lambda c: _meta(c, "identity")))
        return ledger

    def __init__(self, database: Database, clock: Clock, max_rows: int = MAX_ROWS) -> None:
        self._database = database
        self._clock = clock
        self._max_rows = max_rows
        self.identity = ""

    async def close(self) -> None:
        await self._database.close()

    async def add(self, agent: str, spool: str, sequence: int, rows: Sequence[Row]) -> int:
        """Store a report; durable when this returns, with the last sequence that is held of this spool.

        A report whose sequence is not above it was stored before, and is not again. Raises ``Exhausted`` while too
        many rows wait to be sealed, in all or of this agent: it keeps the report and sends it again.
        """
        stored = [_stored(agent, row) for row in rows]
        lost = sum(row.count for row in rows if isinstance(row, Lost))
        seen = int(self._clock.now().timestamp())

        def insert(connection: sqlite3.Connection) -> int:
            held = _held(connection, agent, spool)
            if sequence <= held:
                return held
            if _waiting(connection) + len(stored) > self._max_rows:
                raise Exhausted(
                    f"{self._max_rows} decisions wait to be sealed", fix="see the server's /ready: it cannot seal them"
                )
            # One agent that floods must not have the reports of all others refused.
            share = max(self._max_rows // SHARES, MIN_SHARE)
            if (
                _waiting(connection) > self._max_rows // 2
                and _waiting_of(connection, agent, share) + len(stored) > share
            ):
                raise Exhausted(
                    f"{share} decisions of this agent alone wait to be sealed",
                    fix="see the server's /ready, and what this node reports so many decisions about",
                )
            _insert(connection, stored, lost)
            if held == 0:
                _forget_spools(connection, agent, seen)
            connection.execute(
                "INSERT INTO spools VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET sequence = excluded.sequence, "
                "seen = excluded.seen",
                (agent, spool, sequence, seen),
            )
            return sequence

        return await self._database.write(insert)

    async def take_over(self, old: Database, batch: int = 20_000) -> int:
        """Bring rows that a release before kept in ``server.db`` here, and delete them there; gives how many.

        Crash-safe: what was brought is remembered with it. Such rows keep their numbers if no others are here yet.
        """
        brought = 0
        while rows := await old.read(
            lambda c: c.execute("SELECT id, agent, body FROM decisions ORDER BY id LIMIT ?", (batch,)).fetchall()
        ):
            brought += await self._database.write(lambda c, rows=rows: _bring(c, rows))  # type: ignore[misc]  # a lambda with a default has no inferable type
            last = rows[-1][0]
            await old.write(lambda c, last=last: c.execute("DELETE FROM decisions WHERE id <= ?", (last,)))  # type: ignore[misc]  # as above
        lost = await old.read(lambda c: c.execute("SELECT agent, lost FROM decisions_lost").fetchall())
        if lost:
            await self._database.write(lambda c: _bring_lost(c, lost, self._clock.now()))
            await old.write(lambda c: c.execute("DELETE FROM decisions_lost"))
        # From now on numbers are given here, also to what an older release may write after a step back.
        await self._database.write(lambda c: c.execute("INSERT OR REPLACE INTO meta VALUES ('numbers', 'own')"))
        return brought

    async def search(self, query: DecisionQuery) -> list[dict[str, Any]]:
        """Matching rows that are not sealed yet."""
        return [shown(*row) for row in await self._database.read(lambda c: find(c, query))]

    async def look(self, query: DecisionQuery) -> tuple[list[dict[str, Any]], bool]:
        """Matching rows that are not sealed yet, and whether these are the whole answer: no segment can add to it."""

        def both(connection: sqlite3.Connection) -> tuple[list[tuple[int, str, str]], bool]:
            rows = find(connection, query)
            if query.newest_first and len(rows) >= query.limit:
                return rows, True
            return rows, not sealed_paths(connection, query, first_only=True)

        rows, whole = await self._database.read(both)
        return [shown(*row) for row in rows], whole

    async def lost(self) -> int:
        """How many decisions were ever confessed lost."""
        return int(await self._database.read(lambda c: _meta(c, "lost")))

    async def kept_since(self) -> datetime | None:
        """Since when all rows are still there: older ones were pruned, or lost with their file. None: all ever are.

        A segment that is there says nothing of rows of its time that came earlier, so only what is after it is told.
        """
        return await self._database.read(lambda c: _kept_since(c, self._clock.now()))

    async def waiting(self) -> int:
        """How many rows are not sealed yet."""
        return await self._database.read(_waiting)

    async def plan(self, now: datetime, limit: int) -> Segment | None:
        """The segment under way, or the next one of at most ``limit`` rows; None when no row waits."""

        def choose(connection: sqlite3.Connection) -> Segment | None:
            if found := _under_way(connection):
                return found
            first, last = connection.execute("SELECT MIN(id), MAX(id) FROM decisions").fetchone()
            if first is None:
                return None
            last = min(last, first + limit - 1)
            path = segment_path(f"{now:%Y-%m-%d}", now.hour, first, last)
            connection.execute(
                "INSERT INTO segments (first, last, path, state) VALUES (?, ?, ?, 'planned')", (first, last, path)
            )
            return Segment(first, last, path, "planned")

        return await self._database.write(choose)

    async def previous(self) -> str:
        """SHA-256 of the segment sealed last; "" before the first."""
        return str(await self._database.read(lambda c: _meta(c, "previous")))

    async def written(self, segment: Segment, record: SegmentRecord, times: tuple[int, int], log_from: int) -> None:
        """The file is on disk as the record says; its log entry will not be before ``log_from``."""
        body = msgspec.json.encode(record).decode()
        await self._database.write(
            lambda c: c.execute(
                "UPDATE segments SET state = 'written', record = ?, first_time = ?, last_time = ?, log_from = ? "
                "WHERE first = ?",
                (body, *times, log_from, segment.first),
            )
        )

    async def again(self, segment: Segment) -> None:
        """The file is not what was written: it is made anew."""
        await self._database.write(
            lambda c: c.execute("UPDATE segments SET state = 'planned' WHERE first = ?", (segment.first,))
        )

    async def sealed(self, segment: Segment, record: SegmentRecord, index: int) -> None:
        """The log has the segment at ``index``: its rows go, in the same transaction."""
        now = int(self._clock.now().timestamp())

        def finish(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE segments SET state = 'sealed', log_index = ?, sealed_at = ?, bytes = ? WHERE first = ?",
                (index, now, record.bytes, segment.first),
            )
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('previous', ?)", (record.sha256,))
            connection.execute("DELETE FROM decisions WHERE id BETWEEN ? AND ?", (segment.first, segment.last))

        await self._database.write(finish)

    async def segments(self, start: datetime | None = None, end: datetime | None = None) -> list[SealedSegment]:
        """Sealed segments that may have rows of the window, in order."""
        query = DecisionQuery(start=start, end=end)

        def read(connection: sqlite3.Connection) -> list[SealedSegment]:
            where, values = _overlaps(query)
            rows = connection.execute(
                f"SELECT record, log_index FROM segments WHERE {where} ORDER BY first",  # noqa: S608 - fixed text
                values,
            )
            return [SealedSegment(msgspec.json.decode(body, type=SegmentRecord), index) for body, index in rows]

        return await self._database.read(read)

    async def paths(self) -> set[str]:
        """Paths of all segments that are known, whatever their state."""
        return await self._database.read(lambda c: {path for (path,) in c.execute("SELECT path FROM segments")})

    async def adopt(self, segments: Sequence[SealedSegment], logged: Sequence[SealedSegment], last: int) -> None:
        """Know these segments again, with their rows sealed.

        ``logged`` are all that the log has, in its order: the chain and the total of losses go on from them, and
        numbers after ``last``.
        """
        lost = sum(each.record.lost for each in logged)
        now = int(self._clock.now().timestamp())

        def store(connection: sqlite3.Connection) -> None:
            for each in segments:
                record = each.record
                times = (micros(datetime.fromisoformat(text)) for text in (record.first_time, record.last_time))
                body = msgspec.json.encode(record).decode()
                connection.execute(
                    "INSERT OR REPLACE INTO segments (first, last, path, state, first_time, last_time, log_index, "
                    "sealed_at, bytes, record) VALUES (?, ?, ?, 'sealed', ?, ?, ?, ?, ?, ?)",
                    (record.first_row, record.last_row, record.segment, *times, each.index, now, record.bytes, body),
                )
                span = (record.first_row, record.last_row)
                connection.execute("DELETE FROM decisions WHERE id BETWEEN ? AND ?", span)
            if logged:
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('previous', ?)", (logged[-1].record.sha256,))
            if lost > int(_meta(connection, "lost")):
                connection.execute("UPDATE meta SET value = ? WHERE key = 'lost'", (str(lost),))
            [(highest,)] = connection.execute("SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence").fetchall()
            connection.execute("DELETE FROM sqlite_sequence WHERE name = 'decisions'")
            connection.execute("INSERT INTO sqlite_sequence VALUES ('decisions', ?)", (max(highest, last),))

        await self._database.write(store)

    async def due(self, sealed_before: datetime | None, max_bytes: int) -> list[tuple[SegmentRecord, str]]:
        """The oldest segments that must go: sealed before a moment, or beyond so many bytes in all (0: any)."""
        before = 0 if sealed_before is None else int(sealed_before.timestamp())

        def choose(connection: sqlite3.Connection) -> list[tuple[SegmentRecord, str]]:
            held = int(
                connection.execute("SELECT COALESCE(SUM(bytes), 0) FROM segments WHERE state = 'sealed'").fetchone()[0]
            )
            chosen: list[tuple[SegmentRecord, str]] = []
            statement = "SELECT record, bytes, sealed_at FROM segments WHERE state = 'sealed' ORDER BY first"
            for body, size, sealed_at in connection.execute(statement):
                reason = "keep_days" if sealed_at < before else "keep_mib" if 0 < max_bytes < held else ""
                if not reason or len(chosen) == MAX_PRUNED:
                    break
                chosen.append((msgspec.json.decode(body, type=SegmentRecord), reason))
                held -= size
            return chosen

        return await self._database.read(choose)

    async def pruned(self, record: SegmentRecord) -> None:
        """The log says that the segment is pruned: it is no more part of any answer."""
        await self._database.write(
            lambda c: c.execute("UPDATE segments SET state = 'pruned' WHERE path = ?", (record.segment,))
        )

    async def leftovers(self) -> list[str]:
        """Paths of pruned segments, whose files may still be there."""
        return await self._database.read(
            lambda c: [path for (path,) in c.execute("SELECT path FROM segments WHERE state = 'pruned'")]
        )

    async def forget(self, paths: Sequence[str]) -> None:
        """The files of these pruned segments are gone."""
        await self._database.write(
            lambda c: c.executemany(
                "DELETE FROM segments WHERE state = 'pruned' AND path = ?", [(path,) for path in paths]
            )
        )


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """A sealed segment and the index of its log entry."""

    record: SegmentRecord
    index: int


def shown(number: int, agent: str, body: str) -> dict[str, Any]:
    """A row as answers have it."""
    return {"row": number, "agent": agent, **msgspec.json.decode(body)}


def find(connection: sqlite3.Connection, query: DecisionQuery) -> list[tuple[int, str, str]]:
    """(row number, agent, JSON) of matching rows that are not sealed, at most ``limit``."""
    where, values = conditions(query)
    order = "DESC" if query.newest_first else "ASC"
    statement = f"SELECT id, agent, body FROM decisions WHERE {where} ORDER BY id {order} LIMIT ?"  # noqa: S608 - only fixed names are joined
    return connection.execute(statement, [*values, query.limit]).fetchall()


def conditions(query: DecisionQuery) -> tuple[str, list[str | int]]:
    """A WHERE clause over the table of hot rows, made of fixed texts, and the values bound to it."""
    clauses, values = ["1"], list[str | int]()

    def where(clause: str, *bound: str | int) -> None:
        clauses.append(clause)
        values.extend(bound)

    if query.after:
        where("id < ?" if query.newest_first else "id > ?", query.after)
    for name in FILTERS:
        if value := getattr(query, name):
            where(f"{name if name in _COLUMNS else _field(name)} = ?", value)
    for name in FLAGS:
        if getattr(query, name):
            where(f"{_field(name)} = 1")
    if query.no_canary:
        where(f"{_field('canary')} <> 1")
    if query.start is not None:
        where("time >= ?", micros(query.start))
    if query.end is not None:
        where("time < ?", micros(query.end))
    if query.reasons is not None:
        pairs = msgspec.json.encode([f"{code}:{cause}" for code, cause in query.reasons]).decode()
        where(f"code || ':' || {_field('cause')} IN (SELECT value FROM json_each(?))", pairs)  # noqa: S608 - fixed names
    if query.scope is not None:
        where(
            "(service IN (SELECT value FROM json_each(?)) OR "  # noqa: S608 - fixed names
            f"(caller IN (SELECT value FROM json_each(?)) AND {_field('claimed')} <> 1))",
            msgspec.json.encode(query.scope.services).decode(),
            msgspec.json.encode(query.scope.callers).decode(),
        )
    return " AND ".join(clauses), values


def sealed_paths(connection: sqlite3.Connection, query: DecisionQuery, *, first_only: bool = False) -> list[str]:
    """Files of sealed segments that may have rows which match, oldest first."""
    where, values = _overlaps(query)
    limit = 1 if first_only else -1
    statement = f"SELECT path FROM segments WHERE {where} ORDER BY first LIMIT ?"  # noqa: S608 - only fixed names are joined
    return [path for (path,) in connection.execute(statement, [*values, limit])]


def _overlaps(query: DecisionQuery) -> tuple[str, list[int]]:
    clauses, values = ["state = 'sealed'"], list[int]()
    if query.start is not None:
        clauses.append("last_time >= ?")
        values.append(micros(query.start))
    if query.end is not None:
        clauses.append("first_time < ?")
        values.append(micros(query.end))
    if query.after:
        clauses.append("first < ?" if query.newest_first else "last > ?")
        values.append(query.after)
    return " AND ".join(clauses), values


def _field(name: str) -> str:
    return f"COALESCE(json_extract(body, '$.{name}'), '')"


def _stored(agent: str, row: Row) -> tuple[str, int, str, str, str, str, str]:
    try:
        row = msgspec.structs.replace(row, time=row.time.astimezone(UTC))
        if isinstance(row, Lost):
            row = msgspec.structs.replace(row, until=row.until.astimezone(UTC))
    except (OverflowError, ValueError) as error:
        raise InvalidInput(f"a row's time is out of range: {error}") from None
    body = msgspec.json.encode(row).decode()
    if isinstance(row, Lost):
        return agent, micros(row.time), "", row.service, "", "", body
    return agent, micros(row.time), row.caller, row.service, row.verdict, row.code, body


def _insert(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]], lost: int) -> None:
    connection.executemany(
        "INSERT INTO decisions (agent, time, caller, service, verdict, code, body) VALUES (?,?,?,?,?,?,?)", rows
    )
    if lost:
        connection.execute("UPDATE meta SET value = CAST(value AS INTEGER) + ? WHERE key = 'lost'", (lost,))


def _bring(connection: sqlite3.Connection, rows: Sequence[tuple[int, str, bytes]]) -> int:
    done = int(_meta(connection, "brought") or 0)
    fresh = [row for row in rows if row[0] > done]
    if not fresh:
        return 0
    keep = _meta(connection, "numbers") != "own"
    for number, agent, body in fresh:
        stored = _stored(agent, msgspec.json.decode(body, type=Decision))
        connection.execute(
            "INSERT INTO decisions (id, agent, time, caller, service, verdict, code, body) VALUES (?,?,?,?,?,?,?,?)",
            (number if keep else None, *stored),
        )
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('brought', ?)", (str(fresh[-1][0]),))
    return len(fresh)


def _bring_lost(connection: sqlite3.Connection, lost: Sequence[tuple[str, int]], now: datetime) -> None:
    """Totals without a time: one row for each agent, since the oldest row. Brought once, also after a crash."""
    oldest = connection.execute("SELECT MIN(time) FROM decisions").fetchone()[0]
    since = min(micros(now), micros(now) if oldest is None else oldest)
    done: dict[str, int] = msgspec.json.decode(_meta(connection, "brought_lost") or "{}")
    for agent, total in lost:
        count = total - done.get(agent, 0)
        if count <= 0:
            continue
        body = {
            "kind": "lost",
            "time": moment(since),
            "until": moment(micros(now)),
            "count": count,
            "cause": LostReason.SPOOL_FULL,
        }
        row = (agent, since, "", "", "", "", msgspec.json.encode(body).decode())
        _insert(connection, [row], count)
        done[agent] = total
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('brought_lost', ?)", (msgspec.json.encode(done).decode(),))


def _held(connection: sqlite3.Connection, agent: str, spool: str) -> int:
    row = connection.execute("SELECT sequence FROM spools WHERE agent = ? AND spool = ?", (agent, spool)).fetchone()
    return 0 if row is None else int(row[0])


def _forget_spools(connection: sqlite3.Connection, agent: str, now: int) -> None:
    """Make room for one more spool of this agent."""
    old = now - int(timedelta(days=SPOOL_DAYS).total_seconds())
    connection.execute("DELETE FROM spools WHERE agent = ? AND seen < ?", (agent, old))
    connection.execute(
        "DELETE FROM spools WHERE agent = ?1 AND spool IN "
        "(SELECT spool FROM spools WHERE agent = ?1 ORDER BY seen DESC LIMIT -1 OFFSET ?2)",
        (agent, MAX_SPOOLS - 1),
    )


def _kept_since(connection: sqlite3.Connection, now: datetime) -> datetime | None:
    given = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'decisions'").fetchone()
    if given is None or not given[0]:
        return None
    sealed = connection.execute(
        "SELECT first, last_time FROM segments WHERE state = 'sealed' ORDER BY first LIMIT 1"
    ).fetchone()
    waiting = connection.execute("SELECT id, time FROM decisions ORDER BY id LIMIT 1").fetchone()
    first = min((one for one in (sealed, waiting) if one is not None), default=None)
    if first is None:
        return now
    return None if first[0] <= 1 else datetime.fromisoformat(moment(first[1]))


def _waiting(connection: sqlite3.Connection) -> int:
    # Numbers have no gaps: they come one after the other, and go in front only.
    return int(connection.execute("SELECT COALESCE(MAX(id) - MIN(id) + 1, 0) FROM decisions").fetchone()[0])


def _waiting_of(connection: sqlite3.Connection, agent: str, most: int) -> int:
    """An agent's rows among those that wait, counted up to ``most``."""
    query = "SELECT COUNT(*) FROM (SELECT 1 FROM decisions WHERE agent = ? LIMIT ?)"
    return int(connection.execute(query, (agent, most)).fetchone()[0])


def _under_way(connection: sqlite3.Connection) -> Segment | None:
    row = connection.execute(
        "SELECT first, last, path, state, log_from, record FROM segments WHERE state IN ('planned', 'written')"
    ).fetchone()
    if row is None:
        return None
    first, last, path, state, log_from, body = row
    return Segment(first, last, path, state, log_from, msgspec.json.decode(body, type=SegmentRecord) if body else None)


def _meta(connection: sqlite3.Connection, key: str) -> str:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return "" if row is None else str(row[0])
