"""Applied estates in SQLite: whole versions, the newest in force."""

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
        row = await self._database.read(_newest)
        return None if row is None else _decode(row)


def peek(path: Path) -> AppliedEstate | None:
    """The estate in force in the database at ``path``, read beside a running server; None before the first."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
            row = _newest(connection)
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
                    "SELECT version, applied_at, applied_by, files FROM estates WHERE version = ? ORDER BY id LIMIT 1",
                    (version,),
                ).fetchone()
                if row is not None:
                    found[version] = _decode(row)
    except sqlite3.Error as error:
        raise FailedPrecondition(f"the estates cannot be read: {error}", where=str(path)) from None
    return found


def _newest(connection: sqlite3.Connection) -> tuple[str, str, str, bytes] | None:
    row: tuple[str, str, str, bytes] | None = connection.execute(
        "SELECT version, applied_at, applied_by, files FROM estates ORDER BY id DESC LIMIT 1"
    ).fetchone()
    return row


def _decode(row: tuple[str, str, str, bytes]) -> AppliedEstate:
    unpacked = zlib.decompressobj().decompress(row[3], MAX_FILES)
    files = msgspec.msgpack.decode(unpacked, type=dict[str, bytes])
    return AppliedEstate(row[0], files, datetime.fromisoformat(row[1]), row[2])
