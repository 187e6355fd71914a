"""Containments in SQLite: those that hold, and those that have ended."""

from __future__ import annotations

from dataclasses import astuple, fields
from typing import Any

import msgspec

from eastwest.errors import Corrupt
from eastwest.registry.containment import Containment
from eastwest.store.database import Database

_COLUMNS = tuple(field.name for field in fields(Containment))
_PLACES = ", ".join("?" * len(_COLUMNS))


class SqliteContainments:
    """Everything is durable when a call returns."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[Containment]:
        """Every containment, oldest first. Raises ``Corrupt``."""
        statement = f"SELECT {', '.join(_COLUMNS)} FROM containments ORDER BY generation"  # noqa: S608 - fixed names
        rows = await self._database.read(lambda c: c.execute(statement).fetchall())
        try:
            return [_containment(row) for row in rows]
        except (msgspec.MsgspecError, TypeError) as error:
            raise Corrupt(f"containments cannot be read: {error}", fix="restore the database") from None

    async def save(self, containment: Containment) -> None:
        """Keep a new one, or a known one with its end."""
        values = [msgspec.json.encode(one).decode() if isinstance(one, tuple) else one for one in astuple(containment)]
        statement = f"INSERT OR REPLACE INTO containments VALUES ({_PLACES})"  # noqa: S608 - only marks
        await self._database.write(lambda c: c.execute(statement, values))


def _containment(row: tuple[Any, ...]) -> Containment:
    values = dict(zip(_COLUMNS, row, strict=True))
    return Containment(**values | {"spiffe_ids": tuple(msgspec.json.decode(values["spiffe_ids"], type=list[str]))})
