"""The decision ledger in SQLite: rows as agents reported them, found by caller, service, verdict and code."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from eastwest.store.database import Database

MAX_PAGE = 5000
MAX_ROWS = 1_000_000


class LedgerColumns(msgspec.Struct, frozen=True):
    """The fields of a decision that the ledger can be searched by; the rest stays in the row's body."""

    time: str = ""
    caller: str = ""
    service: str = ""
    verdict: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class DecisionQuery:
    """Which rows: after a row number, at most ``limit``, and only those that equal what is not empty."""

    after: int = 0
    limit: int = 100
    caller: str = ""
    service: str = ""
    verdict: str = ""
    code: str = ""
    newest_first: bool = False


class SqliteLedger:
    """Keeps decisions and the count of those that agents lost."""

    def __init__(self, database: Database, max_rows: int = MAX_ROWS) -> None:
        """``max_rows``: the oldest rows beyond so many are deleted, so that decisions never fill the log's disk."""
        self._database = database
        self._max_rows = max_rows

    async def add(self, agent: str, decisions: Sequence[msgspec.Raw], lost: int) -> None:
        """Store reported rows (JSON objects); durable when this returns. Raises on a row that is no decision."""
        rows = []
        for raw in decisions:
            columns = msgspec.json.decode(raw, type=LedgerColumns)
            fields = (columns.time, columns.caller, columns.service, columns.verdict, columns.code)
            rows.append((agent, *fields, bytes(raw)))

        limit = self._max_rows

        def insert(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT INTO decisions (agent, time, caller, service, verdict, code, body) VALUES (?,?,?,?,?,?,?)", rows
            )
            connection.execute("DELETE FROM decisions WHERE id <= (SELECT MAX(id) FROM decisions) - ?", (limit,))
            if lost:
                connection.execute(
                    "INSERT INTO decisions_lost VALUES (?, ?) ON CONFLICT DO UPDATE SET lost = lost + excluded.lost",
                    (agent, lost),
                )

        await self._database.write(insert)

    async def list(self, query: DecisionQuery) -> list[tuple[int, str, bytes]]:
        """(row number, agent, JSON body) of matching rows."""
        filters = ["id < ?" if query.newest_first and query.after else "id > ?"]
        values: list[str | int] = [query.after]
        for name in ("caller", "service", "verdict", "code"):
            if value := getattr(query, name):
                filters.append(f"{name} = ?")
                values.append(value)
        order = "DESC" if query.newest_first else "ASC"
        where = " AND ".join(filters)
        statement = f"SELECT id, agent, body FROM decisions WHERE {where} ORDER BY id {order} LIMIT ?"  # noqa: S608 - only fixed names are joined
        values.append(min(max(query.limit, 1), MAX_PAGE))
        return await self._database.read(lambda connection: connection.execute(statement, values).fetchall())

    async def lost(self) -> int:
        """How many decisions agents had to drop, in all."""
        row = await self._database.read(
            lambda connection: connection.execute("SELECT COALESCE(SUM(lost), 0) FROM decisions_lost").fetchone()
        )
        return int(row[0])
