"""Numbered, forward-only schema changes: ``migrations/NNNN_name.sql`` beside this file.

Each file runs in one transaction together with the row that says it ran. There is no way back: a
database of a newer program is refused, not downgraded.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources

from eastwest.errors import FailedPrecondition, Internal

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_SCHEMA_VERSION = """
CREATE TABLE IF NOT EXISTS schema_version (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    applied_at TEXT NOT NULL
) STRICT
"""


@dataclass(frozen=True, slots=True, order=True)
class Migration:
    """One step of the schema: its number, its name and the SQL that does it."""

    version: int
    name: str
    sql: str


def known_migrations() -> tuple[Migration, ...]:
    """The steps shipped with this program, in order."""
    found: dict[int, Migration] = {}
    for file in (resources.files("eastwest.store") / "migrations").iterdir():
        match = _FILE.fullmatch(file.name)
        if not match:
            continue
        step = Migration(int(match[1]), match[2], file.read_text(encoding="utf-8"))
        if step.version in found:
            raise Internal(f"two migrations have the number {step.version:04}")
        found[step.version] = step
    return tuple(found[version] for version in sorted(found))


def check_not_newer(connection: sqlite3.Connection, known: Sequence[Migration]) -> None:
    """Raise ``FailedPrecondition`` if a newer program has changed this database."""
    newest = max((step.version for step in known), default=0)
    unknown = sorted(applied_versions(connection) - {step.version for step in known})
    if unknown:
        raise FailedPrecondition(
            f"the database has schema version {unknown[-1]:04}, this program knows up to {newest:04}",
            fix="run the newer eastwest that wrote it, or restore a copy from before the upgrade",
        )


def migrate(connection: sqlite3.Connection, known: Sequence[Migration], now: datetime) -> None:
    """Run what has not run yet; a step that fails leaves the database as it was before that step."""
    connection.execute(_SCHEMA_VERSION)
    done = applied_versions(connection)
    for step in sorted(known):
        if step.version in done:
            continue
        record = f"INSERT INTO schema_version VALUES ({step.version}, '{step.name}', '{now.isoformat()}')"  # noqa: S608
        try:
            connection.executescript(f"BEGIN IMMEDIATE;\n{step.sql}\n;{record};\nCOMMIT;")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def applied_versions(connection: sqlite3.Connection) -> set[int]:
    """The numbers of the steps this database has seen; empty for a new file."""
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'"
    if connection.execute(query).fetchone() is None:
        return set()
    return {version for (version,) in connection.execute("SELECT version FROM schema_version")}
