"""Transaction tokens in SQLite: the keys' calendar, approvals, and which single-use tokens were used."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import astuple, fields
from typing import Any

import msgspec

from eastwest.errors import Corrupt, FailedPrecondition
from eastwest.pki.token_keys import Ring
from eastwest.registry.approvals import Approval, ApprovalState
from eastwest.store.database import Database

KEPT_SECONDS = 90 * 86_400
"""For how long an approval stays listed after its end; the log has it for ever."""
MAX_PAGE = 1000
_COLUMNS = tuple(field.name for field in fields(Approval))
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM approvals"  # noqa: S608 - fixed names
_PLACES = ", ".join("?" * len(_COLUMNS))


class ApprovalMoved(FailedPrecondition):
    """The approval is no longer as it was read."""


class SqliteTokens:
    """Serves the token service; everything is durable when a call returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ring(self) -> Ring:
        """The keys as they were stored last. Raises ``Corrupt``."""
        row = await self._database.read(lambda c: c.execute("SELECT state FROM token_ring").fetchone())
        try:
            return Ring() if row is None else msgspec.json.decode(row[0], type=Ring)
        except msgspec.MsgspecError as error:
            raise Corrupt(f"the token keys' state cannot be read: {error}", fix="restore the database") from None

    async def save_ring(self, ring: Ring) -> None:
        """Keep the keys' state."""
        content = msgspec.json.encode(ring)
        await self._database.write(lambda c: c.execute("INSERT OR REPLACE INTO token_ring VALUES (1, ?)", (content,)))

    async def use(self, service: str, token_id: str, ends: int, approval: str, now: int) -> bool:
        """Note that a token is used at a service; false where it was before, or its approval was withdrawn or refused.

        What ended before ``now`` is forgotten: nobody accepts it any more.
        """

        def insert(connection: sqlite3.Connection) -> bool:
            connection.execute("DELETE FROM used_tokens WHERE ends < ?", (now,))
            if approval and not _stands(connection, approval):
                return False
            row = (service, token_id, ends)
            return connection.execute("INSERT OR IGNORE INTO used_tokens VALUES (?, ?, ?)", row).rowcount == 1

        return await self._database.write(insert)

    async def add_approval(self, approval: Approval, now: int) -> None:
        """Keep a new one; those that ended long ago are forgotten."""

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM approvals WHERE ends < ?", (now - KEPT_SECONDS,))
            connection.execute(f"INSERT INTO approvals VALUES ({_PLACES})", astuple(approval))  # noqa: S608 - only marks

        await self._database.write(insert)

    async def change_approval(self, before: Approval, after: Approval) -> None:
        """Replace ``before``; raises ``ApprovalMoved`` where something else is stored by now."""
        assignments = ", ".join(f"{name} = ?" for name in _COLUMNS)
        statement = f"UPDATE approvals SET {assignments} WHERE id = ? AND state = ? AND spent_at = ?"  # noqa: S608 - fixed names
        values = (*astuple(after), before.id, before.state, before.spent_at)

        def update(connection: sqlite3.Connection) -> None:
            if connection.execute(statement, values).rowcount != 1:
                raise ApprovalMoved(f"approval {before.id} was changed meanwhile", fix="look at it again")

        await self._database.write(update)

    async def spend(self, approval: str, now: int) -> bool:
        """Take a granted approval for its one token; false where that was done before, or it no longer stands."""

        def update(connection: sqlite3.Connection) -> bool:
            done = connection.execute(
                "UPDATE approvals SET spent_at = ? WHERE id = ? AND state = ? AND spent_at = 0 AND ends > ?",
                (now, approval, ApprovalState.GRANTED, now),
            )
            return done.rowcount == 1

        return await self._database.write(update)

    async def approval(self, approval_id: str) -> Approval | None:
        """One approval by its id."""
        rows = await self._approvals("id = ?", [approval_id], 1)
        return rows[0] if rows else None

    async def live(self, caller: str, now: int) -> list[Approval]:
        """What of a caller is pending or granted, newest first."""
        return await self._approvals(
            "caller = ? AND state IN (?, ?) AND ends > ?",
            [caller, ApprovalState.PENDING, ApprovalState.GRANTED, now],
            MAX_PAGE,
        )

    async def live_of(self, names: Collection[str], now: int) -> list[Approval]:
        """What is pending or granted that any of these are to use, asked for or granted; at most ``MAX_PAGE``."""
        marks = ", ".join("?" * len(names))
        whose = f"(caller IN ({marks}) OR approver IN ({marks}) OR requested_by IN ({marks}))"
        values = [*names, *names, *names, ApprovalState.PENDING, ApprovalState.GRANTED, now]
        return await self._approvals(f"{whose} AND state IN (?, ?) AND ends > ?", values, MAX_PAGE)

    async def approvals(self, caller: str, limit: int) -> list[Approval]:
        """Approvals of a caller ("": of all), newest first."""
        return await self._approvals("caller = ?" if caller else "1", [caller] if caller else [], limit)

    async def _approvals(self, where: str, values: list[Any], limit: int) -> list[Approval]:
        statement = f"{_SELECT} WHERE {where} ORDER BY requested_at DESC, id LIMIT ?"
        bound = [*values, min(max(limit, 1), MAX_PAGE)]
        rows = await self._database.read(lambda c: c.execute(statement, bound).fetchall())
        return [_approval(row) for row in rows]


def _approval(row: tuple[Any, ...]) -> Approval:
    values = dict(zip(_COLUMNS, row, strict=True))
    return Approval(**{**values, "state": ApprovalState(values["state"])})


def _stands(connection: sqlite3.Connection, approval: str) -> bool:
    row = connection.execute("SELECT state FROM approvals WHERE id = ?", (approval,)).fetchone()
    return row is not None and row[0] == ApprovalState.GRANTED
