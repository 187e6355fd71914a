"""Applied estates in SQLite: whole versions, the newest in force."""

from __future__ import annotations

import sqlite3
import zlib
from dataclasses import dataclass
from datetime import datetime

import msgspec

from eastwest.store.database import Database

MAX_FILES = 64 * 1024 * 1024
"""Bytes of one estate, unpacked."""


@dataclass(frozen=True, slots=True)
class AppliedEstate:
    """One version as it was applied: its files by path, when, and by whom."""

    version: str
    files: dict[str, bytes]
    applied_at: datetime
    applied_by: str


class SqliteEstates:
    """Where the server keeps the estates that it was given."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, estate: AppliedEstate) -> None:
        """Make ``estate`` the one in force; durable when this returns."""
        packed = zlib.compress(msgspec.msgpack.encode(estate.files))
        row = (estate.version, estate.applied_at.isoformat(), estate.applied_by, packed)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO estates (version, applied_at, applied_by, files) VALUES (?, ?, ?, ?)", row)

        await self._database.write(insert)

    async def current(self) -> AppliedEstate | None:
        """The estate in force, or None before the first."""

        def newest(connection: sqlite3.Connection) -> tuple[str, str, str, bytes] | None:
            row: tuple[str, str, str, bytes] | None = connection.execute(
                "SELECT version, applied_at, applied_by, files FROM estates ORDER BY id DESC LIMIT 1"
            ).fetchone()
            return row

        row = await self._database.read(newest)
        if row is None:
            return None
        unpacked = zlib.decompressobj().decompress(row[3], MAX_FILES)
        files = msgspec.msgpack.decode(unpacked, type=dict[str, bytes])
        return AppliedEstate(row[0], files, datetime.fromisoformat(row[1]), row[2])
