"""Changes that wait for somebody's word, in SQLite; everything is durable when a call returns."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Mapping

import msgspec

from eastwest.errors import Corrupt, FailedPrecondition
from eastwest.registry.changes import Change, ChangeState
from eastwest.store.database import Database
from eastwest.store.estate import MAX_FILES

KEPT_SECONDS = 90 * 86_400
"""For how long a change stays listed after its end; the log has it for ever."""
MAX_PAGE = 1000


class ChangeMoved(FailedPrecondition):
    """The change is no longer as it was read."""


class SqliteChanges:
    """Where the server keeps requested changes, with the files that they would put in force."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, change: Change, files: Mapping[str, bytes], now: int) -> None:
        """Keep a new one; those that ended long ago are forgotten."""
        packed = zlib.compress(msgspec.msgpack.encode(dict(files)))
        row = (change.id, change.requested_at, change.ends, change.state, change.version, _encode(change), packed)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM changes WHERE ends < ?", (now - KEPT_SECONDS,))
            connection.execute("INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?)", row)

        await self._database.write(insert)

    async def replace(self, before: Change, after: Change) -> None:
        """Keep ``after``; raises ``ChangeMoved`` where something else than ``before`` is stored by now."""
        row = (after.ends, after.state, _encode(after), before.id, _encode(before))

        def update(connection: sqlite3.Connection) -> None:
            statement = "UPDATE changes SET ends = ?, state = ?, change = ? WHERE id = ? AND change = ?"
            if connection.execute(statement, row).rowcount != 1:
                raise ChangeMoved(f"change {before.id} was changed meanwhile", fix="look at it again")

        await self._database.write(update)

    async def find(self, change_id: str) -> Change | None:
        """One change by its id."""
        found = await self._changes("id = ?", (change_id,), 1)
        return found[0] if found else None

    async def waiting(self, version: str = "") -> list[Change]:
        """Those that are stored as pending or approved (of one version), newest first."""
        states = (ChangeState.PENDING, ChangeState.APPROVED)
        if version:
            return await self._changes("version = ? AND state IN (?, ?)", (version, *states), MAX_PAGE)
        return await self._changes("state IN (?, ?)", states, MAX_PAGE)

    async def listed(self, limit: int) -> list[Change]:
        """Changes, newest first."""
        return await self._changes("1", (), limit)

    async def files(self, change_id: str) -> dict[str, bytes]:
        """The files that a change would put in force; none where there is no such change."""
        query = "SELECT files FROM changes WHERE id = ?"
        row = await self._database.read(lambda connection: connection.execute(query, (change_id,)).fetchone())
        if row is None:
            return {}
        unpacked = zlib.decompressobj().decompress(row[0], MAX_FILES)
        return msgspec.msgpack.decode(unpacked, type=dict[str, bytes])

    async def _changes(self, where: str, values: tuple[object, ...], limit: int) -> list[Change]:
        query = f"SELECT change FROM changes WHERE {where} ORDER BY requested_at DESC, id LIMIT ?"  # noqa: S608 - constants
        bound = (*values, min(max(limit, 1), MAX_PAGE))
        rows = await self._database.read(lambda connection: connection.execute(query, bound).fetchall())
        try:
            return [msgspec.json.decode(row[0], type=Change) for row in rows]
        except msgspec.MsgspecError as error:
            raise Corrupt(f"a stored change cannot be read: {error}", fix="restore the database") from None


def _encode(change: Change) -> bytes:
    return msgspec.json.encode(change, order="deterministic")
