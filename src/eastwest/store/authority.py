"""The CA's state and the nodes' confirmations in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from eastwest.errors import Corrupt, FailedPrecondition
from eastwest.pki.rotation.state import State
from eastwest.store.database import Database

_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(State)


class StateMoved(FailedPrecondition):
    """Somebody else has changed the CA's state since it was read."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What one node has confirmed: the bundle that it and its sidecars have, and what it still holds.

    ``issuer`` is the subject key identifier (hex) above the certificate that a stock agent showed, else empty.
    """

    sequence: int
    issuer: str = ""
    tainted: int = 0
    stock: bool = False


class SqliteAuthority:
    """One state, changed only by who knows the present one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> tuple[State, int] | None:
        """The state and its revision; None where there is no CA. Raises ``Corrupt``."""
        row = await self._database.read(_newest)
        return None if row is None else (_decode(row[1]), row[0])

    async def save(self, state: State, expected: int) -> int:
        """Replace revision ``expected`` (0: none); gives the new one, durable. Raises ``StateMoved``."""
        content = _encoder.encode(state)

        def swap(connection: sqlite3.Connection) -> int:
            if expected == 0:
                changed = connection.execute("INSERT OR IGNORE INTO authority VALUES (1, 1, ?)", (content,)).rowcount
            else:
                changed = connection.execute(
                    "UPDATE authority SET revision = revision + 1, state = ? WHERE id = 1 AND revision = ?",
                    (content, expected),
                ).rowcount
            if not changed:
                raise StateMoved("the CA's state was changed by another process", fix="look at it, then try again")
            return expected + 1

        return await self._database.write(swap)

    async def confirmations(self) -> dict[str, Confirmed]:
        """What each node has confirmed, by agent ID."""

        def select(connection: sqlite3.Connection) -> list[tuple[str, int, str, int, int]]:
            return connection.execute("SELECT agent, sequence, issuer, tainted, stock FROM confirmations").fetchall()

        return {
            agent: Confirmed(sequence, issuer, tainted, bool(stock))
            for agent, sequence, issuer, tainted, stock in await self._database.read(select)
        }

    async def confirm(self, confirmed: Mapping[str, Confirmed], gone: Collection[str] = ()) -> None:
        """Keep what these nodes confirmed, and forget those that are gone."""
        rows = [(agent, c.sequence, c.issuer, c.tainted, int(c.stock)) for agent, c in confirmed.items()]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO confirmations VALUES (?, ?, ?, ?, ?)", rows)
            connection.executemany("DELETE FROM confirmations WHERE agent = ?", [(agent,) for agent in gone])

        await self._database.write(write)


def peek(path: Path) -> State | None:
    """The state in the database at ``path``, read beside a running server; None where there is none."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
            row = _newest(connection)
    except sqlite3.Error as error:
        raise FailedPrecondition(f"the CA's state cannot be read: {error}", where=str(path)) from None
    return None if row is None else _decode(row[1])


def _newest(connection: sqlite3.Connection) -> tuple[int, bytes] | None:
    row: tuple[int, bytes] | None = connection.execute("SELECT revision, state FROM authority WHERE id = 1").fetchone()
    return row


def _decode(content: bytes) -> State:
    try:
        return _decoder.decode(content)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the CA's state cannot be read: {error}", fix="restore the database from a backup") from None
