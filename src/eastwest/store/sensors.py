"""Spans of enforcement points in SQLite; see ``eastwest.ledger.sensors``."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from eastwest.ledger.sensors import Span
from eastwest.store.database import Database

KEEP = timedelta(days=400)
MAX_SPANS = 200_000
"""Ended ones that are kept; beyond them the oldest go."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_COLUMNS = "agent, node, spiffe_id, started, ended, why"


class SqliteSensors:
    """Where the server keeps when each point was there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open_spans(self) -> tuple[dict[int, Span], datetime | None]:
        """Spans that have not ended, by number, and when the server last looked."""

        def read(connection: sqlite3.Connection) -> tuple[dict[int, Span], datetime | None]:
            rows = connection.execute(f"SELECT id, {_COLUMNS} FROM sensor_spans WHERE ended IS NULL")  # noqa: S608 - fixed text
            found = {number: _span(row) for number, *row in rows}
            looked = connection.execute("SELECT at FROM sensor_looked").fetchone()
            return found, _time(looked[0]) if looked else None

        return await self._database.read(read)

    async def write(
        self, now: datetime, began: Sequence[Span], ended: Sequence[tuple[int, datetime, str]]
    ) -> list[int]:
        """Note what changed since the last look, and the look itself; gives the numbers of those that ``began``."""

        def store(connection: sqlite3.Connection) -> list[int]:
            numbers = []
            for span in began:
                row = (span.agent, span.node, span.spiffe_id, _number(span.start))
                cursor = connection.execute(
                    "INSERT INTO sensor_spans (agent, node, spiffe_id, started) VALUES (?, ?, ?, ?)", row
                )
                numbers.append(int(cursor.lastrowid or 0))
            connection.executemany(
                "UPDATE sensor_spans SET ended = MAX(?, started), why = ? WHERE id = ?",
                [(_number(at), why, number) for number, at, why in ended],
            )
            connection.execute("INSERT OR REPLACE INTO sensor_looked VALUES (1, ?)", (_number(now),))
            if ended:
                connection.execute("DELETE FROM sensor_spans WHERE ended < ?", (_number(now - KEEP),))
                connection.execute(
                    "DELETE FROM sensor_spans WHERE id IN (SELECT id FROM sensor_spans WHERE ended IS NOT NULL "
                    "ORDER BY ended DESC LIMIT -1 OFFSET ?)",
                    (MAX_SPANS,),
                )
            return numbers

        return await self._database.write(store)

    async def spans(self, spiffe_id: str, start: datetime, end: datetime) -> list[Span]:
        """Spans in the window of a workload's sidecars and of the agents that had them; and the last ones before."""

        def read(connection: sqlite3.Connection) -> list[Span]:
            # What ended before the window tells that a point is missing in it.
            sidecars = [
                _span(row)
                for row in connection.execute(
                    f"SELECT {_COLUMNS} FROM sensor_spans WHERE spiffe_id = ? AND started < ? ORDER BY started",  # noqa: S608 - fixed text
                    (spiffe_id, _number(end)),
                )
            ]
            agents = sorted({span.agent for span in sidecars})
            found = list(sidecars)
            for agent in agents:
                rows = connection.execute(
                    f"SELECT {_COLUMNS} FROM sensor_spans WHERE spiffe_id = '' AND agent = ? AND started < ? "  # noqa: S608 - fixed text
                    "AND (ended IS NULL OR ended > ?)",
                    (agent, _number(end), _number(start)),
                )
                found += map(_span, rows)
            return found

        return await self._database.read(read)

    async def agents(self, names: Sequence[str], start: datetime, end: datetime) -> list[Span]:
        """Spans in the window of these agents themselves: for services whose applications enforce by the SDK."""

        def read(connection: sqlite3.Connection) -> list[Span]:
            found: list[Span] = []
            for agent in names:
                rows = connection.execute(
                    f"SELECT {_COLUMNS} FROM sensor_spans WHERE spiffe_id = '' AND agent = ? AND started < ? "  # noqa: S608 - fixed text
                    "AND (ended IS NULL OR ended > ?)",
                    (agent, _number(end), _number(start)),
                )
                found += map(_span, rows)
            return found

        return await self._database.read(read)


def _span(row: Sequence[Any]) -> Span:
    agent, node, spiffe_id, started, ended, why = row
    end = None if ended is None else _time(ended)
    return Span(agent=agent, node=node, spiffe_id=spiffe_id, start=_time(started), end=end, why=why)


def _number(moment: datetime) -> int:
    return (moment - _EPOCH) // _MILLISECOND


def _time(number: int) -> datetime:
    return _EPOCH + number * _MILLISECOND
