"""Applied estates in SQLite: whole versions, the newest in force, and how far their rules have come."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from eastwest.errors import FailedPrecondition
from eastwest.policy.rollout import Progress
from eastwest.registry.authorization import Authorization
from eastwest.store.database import Database

MAX_FILES = 64 * 1024 * 1024
"""Bytes of one estate, unpacked."""
_COLUMNS = "version, applied_at, applied_by, files, previous, cause, standing"
_Row = tuple[str, str, str, bytes, str, str, bytes | None]


@dataclass(frozen=True, slots=True)
class AppliedEstate:
    """One version as it was applied: its files by path, when, and by whom.

    ``previous`` was in force before; ``cause`` says why it came where nobody applied it; ``standing``: who stands
    behind it, None for versions of releases that did not keep that.
    """

    version: str
    files: dict[str, bytes]
    applied_at: datetime
    applied_by: str
    previous: str = ""
    cause: str = ""
    standing: Authorization | None = None


@dataclass(frozen=True, slots=True)
class Activation:
    """An applied version without its files."""

    version: str
    applied_at: datetime
    applied_by: str
    previous: str
    cause: str
    standing: Authorization | None


class SqliteEstates:
    """Where the server keeps the estates that it was given."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, estate: AppliedEstate, *rollouts: Progress) -> None:
        """Make ``estate`` the one in force, and what rollouts come to by it, in one; durable when this returns."""
        packed = zlib.compress(msgspec.msgpack.encode(estate.files))
        standing = msgspec.json.encode(estate.standing) if estate.standing is not None else None
        applied_at = estate.applied_at.isoformat()
        row = (estate.version, applied_at, estate.applied_by, packed, estate.previous, estate.cause, standing)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(f"INSERT INTO estates ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)  # noqa: S608 - constant
            for rollout in rollouts:
                _keep(connection, rollout)

        await self._database.write(insert)

    async def keep(self, rollout: Progress) -> None:
        """Remember how far a rollout has come; durable when this returns."""
        await self._database.write(lambda connection: _keep(connection, rollout))

    async def rollout(self) -> Progress | None:
        """The newest rollout, which may have ended."""
        found = await self.rollouts(1)
        return found[0] if found else None

    async def rollouts(self, limit: int) -> list[Progress]:
        """Rollouts, the newest first."""
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT progress FROM rollouts ORDER BY id DESC LIMIT ?", (limit,)
            ).fetchall()
        )
        return [msgspec.json.decode(row[0], type=Progress) for row in rows]

    async def versions(self, limit: int) -> list[Activation]:
        """What was ever in force, the newest first; the first of them is now."""
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT version, applied_at, applied_by, previous, cause, standing FROM estates"
                " ORDER BY id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        )
        return [Activation(r[0], datetime.fromisoformat(r[1]), r[2], r[3], r[4], _standing(r[5])) for r in rows]

    async def matching(self, prefix: str) -> list[str]:
        """Versions that begin with ``prefix``, which is hexadecimal; two are enough to know that it is ambiguous."""
        query = "SELECT DISTINCT version FROM estates WHERE substr(version, 1, ?) = ? LIMIT 2"
        rows = await self._database.read(lambda connection: connection.execute(query, (len(prefix), prefix)).fetchall())
        return [row[0] for row in rows]

    async def find(self, version: str) -> AppliedEstate | None:
        """A version as it was last applied, or None where it never was."""
        query = f"SELECT {_COLUMNS} FROM estates WHERE version = ? ORDER BY id DESC LIMIT 1"  # noqa: S608 - constant
        row: _Row | None = await self._database.read(
            lambda connection: connection.execute(query, (version,)).fetchone()
        )
        return None if row is None else _decode(row)

    async def current(self) -> AppliedEstate | None:
        """The estate in force, or None before the first."""
        row = await self._database.read(_newest)
        return None if row is None else _decode(row)


def peek(path: Path) -> AppliedEstate | None:
    """The estate in force in the database at ``path``, read beside a running server; None before the first."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
            row = _peeked(connection)
    except sqlite3.Error as error:
        raise FailedPrecondition(f"the estate cannot be read: {error}", where=str(path)) from None
    return None if row is None else _decode(row)


def peek_versions(path: Path, versions: Collection[str]) -> dict[str, AppliedEstate]:
    """Those of ``versions`` that the database at ``path`` has, read beside a running server."""
    found: dict[str, AppliedEstate] = {}
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
            for version in versions:
                row = connection.execute(
                    "SELECT version, applied_at, applied_by, files, '', '', NULL FROM estates"
                    " WHERE version = ? ORDER BY id LIMIT 1",
                    (version,),
                ).fetchone()
                if row is not None:
                    found[version] = _decode(row)
    except sqlite3.Error as error:
        raise FailedPrecondition(f"the estates cannot be read: {error}", where=str(path)) from None
    return found


def _keep(connection: sqlite3.Connection, rollout: Progress) -> None:
    """A rollout has one row, from its beginning on: that of its version and of when it began."""
    progress = msgspec.json.encode(rollout)
    newest = connection.execute("SELECT id, progress FROM rollouts ORDER BY id DESC LIMIT 1").fetchone()
    if newest is not None:
        before = msgspec.json.decode(newest[1], type=Progress)
        if (before.version, before.started) == (rollout.version, rollout.started):
            connection.execute("UPDATE rollouts SET progress = ? WHERE id = ?", (progress, newest[0]))
            return
    connection.execute("INSERT INTO rollouts (version, progress) VALUES (?, ?)", (rollout.version, progress))


def _newest(connection: sqlite3.Connection) -> _Row | None:
    row: _Row | None = connection.execute(
        f"SELECT {_COLUMNS} FROM estates ORDER BY id DESC LIMIT 1"  # noqa: S608 - constant
    ).fetchone()
    return row


def _peeked(connection: sqlite3.Connection) -> _Row | None:
    # Of columns that every release has: the database may be one that no server of this release has opened yet.
    row: _Row | None = connection.execute(
        "SELECT version, applied_at, applied_by, files, '', '', NULL FROM estates ORDER BY id DESC LIMIT 1"
    ).fetchone()
    return row


def _standing(told: bytes | None) -> Authorization | None:
    return None if told is None else msgspec.json.decode(told, type=Authorization)


def _decode(row: _Row) -> AppliedEstate:
    unpacked = zlib.decompressobj().decompress(row[3], MAX_FILES)
    files = msgspec.msgpack.decode(unpacked, type=dict[str, bytes])
    applied_at = datetime.fromisoformat(row[1])
    return AppliedEstate(row[0], files, applied_at, row[2], row[4], row[5], _standing(row[6]))
