"""Revocable certificates and their CRLs in SQLite; tables are those of migration 0008."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from eastwest.issuance.register import IssuedCertificate
from eastwest.pki.revocation import Reason, Revoked
from eastwest.spiffe.id import SpiffeId
from eastwest.store.database import Database

MAX_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Registered:
    """A revocable certificate, and its revocation if there was one."""

    issued: IssuedCertificate
    revoked: Revoked | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateQuery:
    """Which certificates are wanted: empty fields admit all. ``after`` continues behind (not_after, issuer, serial)."""

    now: datetime
    serial: int | None = None
    spiffe_id: str = ""
    only_revoked: bool = False
    limit: int = 100
    after: tuple[int, str, str] | None = None


@dataclass(frozen=True, slots=True)
class StoredCrl:
    """A published CRL; its number grows from one to the next of the same issuer and shard.

    ``covers`` is the number of the last revocation in the shard when it was made.
    """

    issuer_key_id: str
    shard: str
    number: int
    next_update: datetime
    covers: int
    der: bytes = field(repr=False)


class SqliteRevocations:
    """Serves ``eastwest.issuance.register.Register``, and what revocation needs of it later."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, certificates: Sequence[IssuedCertificate]) -> None:
        rows = [_row(each) for each in certificates]
        await self._database.write(
            lambda connection: connection.executemany(
                "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL)", rows
            )
        )

    async def find(self, query: CertificateQuery) -> list[Registered]:
        """Certificates that have not ended, the first to end first."""
        return await self._database.read(lambda connection: _find(connection, query))

    async def one(self, issuer_key_id: str, serial: int) -> Registered | None:
        """One certificate, ended or not, as long as it is remembered."""

        def look(connection: sqlite3.Connection) -> Registered | None:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM certificates WHERE issuer = ? AND serial = ?",  # noqa: S608 - a constant
                (issuer_key_id, f"{serial:x}"),
            ).fetchone()
            return None if row is None else _registered(row)

        return await self._database.read(look)

    async def revoke(self, certificates: Sequence[tuple[str, int]], at: datetime, reason: Reason) -> int:
        """Mark certificates, each (issuer key id, serial), all or none; how many were not revoked before.

        A revocation is final: a certificate that is revoked keeps the time and reason it was first given.
        """
        rows = [(issuer, f"{serial:x}") for issuer, serial in certificates]

        def mark(connection: sqlite3.Connection) -> int:
            (last,) = connection.execute("SELECT coalesce(max(revision), 0) FROM certificates").fetchone()
            statement = (
                "UPDATE certificates SET revoked_at = ?, reason = ?, revision = ?"
                " WHERE issuer = ? AND serial = ? AND revoked_at IS NULL"
            )
            values = (int(at.timestamp()), reason.value, last + 1)
            return sum(connection.execute(statement, (*values, *row)).rowcount for row in rows)

        return await self._database.write(mark)

    async def revoked(self, issuer_key_id: str, shard: str, now: datetime) -> tuple[list[Revoked], int]:
        """The revoked certificates of a shard that have not ended, and the number of its last revocation."""

        def look(connection: sqlite3.Connection) -> tuple[list[Revoked], int]:
            rows = connection.execute(
                "SELECT serial, revoked_at, reason, revision FROM certificates"
                " WHERE issuer = ? AND shard = ? AND revoked_at IS NOT NULL AND not_after > ?",
                (issuer_key_id, shard, int(now.timestamp())),
            ).fetchall()
            return [_revoked(*row[:3]) for row in rows], max((row[3] for row in rows), default=0)

        return await self._database.read(look)

    async def last_revocations(self) -> dict[tuple[str, str], int]:
        """The number of the last revocation in each shard that has one."""

        def look(connection: sqlite3.Connection) -> dict[tuple[str, str], int]:
            rows = connection.execute(
                "SELECT issuer, shard, max(revision) FROM certificates WHERE revoked_at IS NOT NULL"
                " GROUP BY issuer, shard"
            )
            return {(issuer, shard): revision for issuer, shard, revision in rows}

        return await self._database.read(look)

    async def shards(self, now: datetime) -> set[tuple[str, str]]:
        """(Issuer key id, shard) of every certificate that has not ended."""

        def look(connection: sqlite3.Connection) -> set[tuple[str, str]]:
            statement = "SELECT DISTINCT issuer, shard FROM certificates WHERE not_after > ?"
            return set(connection.execute(statement, (int(now.timestamp()),)))

        return await self._database.read(look)

    async def crls(self) -> list[StoredCrl]:
        """The last CRL of every shard."""

        def look(connection: sqlite3.Connection) -> list[StoredCrl]:
            rows = connection.execute("SELECT issuer, shard, number, next_update, covers, crl FROM crls")
            return [StoredCrl(row[0], row[1], row[2], _time(row[3]), row[4], row[5]) for row in rows]

        return await self._database.read(look)

    async def save_crl(self, crl: StoredCrl) -> bool:
        """Store a CRL in place of the one before; False when one with its number or a later one is there."""
        row = (crl.issuer_key_id, crl.shard, crl.number, int(crl.next_update.timestamp()), crl.covers, crl.der)

        def save(connection: sqlite3.Connection) -> bool:
            statement = (
                "INSERT INTO crls VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (issuer, shard) DO UPDATE SET"
                " number = excluded.number, next_update = excluded.next_update, covers = excluded.covers,"
                " crl = excluded.crl"
                " WHERE excluded.number > crls.number"
            )
            return connection.execute(statement, row).rowcount == 1

        return await self._database.write(save)

    async def forget(self, ended_by: datetime) -> int:
        """Drop certificates that ended by then, and CRLs of shards without any left; how many certificates."""
        moment = int(ended_by.timestamp())

        def drop(connection: sqlite3.Connection) -> int:
            dropped = connection.execute("DELETE FROM certificates WHERE not_after <= ?", (moment,)).rowcount
            connection.execute(
                "DELETE FROM crls WHERE NOT EXISTS (SELECT 1 FROM certificates"
                " WHERE certificates.issuer = crls.issuer AND certificates.shard = crls.shard)"
            )
            return dropped

        return await self._database.write(drop)


_COLUMNS = (
    "issuer, serial, spiffe_id, profile, shard, not_before, not_after, node, entry_id, certificate, revoked_at, reason"
)


def _find(connection: sqlite3.Connection, query: CertificateQuery) -> list[Registered]:
    wanted = ["not_after > ?"]
    parameters: list[Any] = [int(query.now.timestamp())]
    if query.serial is not None:
        wanted.append("serial = ?")
        parameters.append(f"{query.serial:x}")
    if query.spiffe_id:
        wanted.append("spiffe_id = ?")
        parameters.append(query.spiffe_id)
    if query.only_revoked:
        wanted.append("revoked_at IS NOT NULL")
    if query.after is not None:
        wanted.append("(not_after, issuer, serial) > (?, ?, ?)")
        parameters += query.after
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM certificates WHERE {' AND '.join(wanted)}"  # noqa: S608 - constants, values are bound
        " ORDER BY not_after, issuer, serial LIMIT ?",
        (*parameters, min(max(query.limit, 1), MAX_ROWS)),
    )
    return [_registered(row) for row in rows]


def _row(issued: IssuedCertificate) -> tuple[Any, ...]:
    return (
        issued.issuer_key_id,
        f"{issued.serial:x}",
        str(issued.spiffe_id),
        issued.profile,
        issued.shard,
        int(issued.not_before.timestamp()),
        int(issued.not_after.timestamp()),
        issued.node,
        issued.entry_id,
        issued.der,
    )


def _registered(row: Sequence[Any]) -> Registered:
    issued = IssuedCertificate(
        issuer_key_id=row[0],
        serial=int(row[1], 16),
        spiffe_id=SpiffeId.parse(row[2]),
        profile=row[3],
        shard=row[4],
        not_before=_time(row[5]),
        not_after=_time(row[6]),
        node=row[7],
        entry_id=row[8],
        der=row[9],
    )
    return Registered(issued, None if row[10] is None else _revoked(row[1], row[10], row[11]))


def _revoked(serial: str, revoked_at: int, reason: str) -> Revoked:
    return Revoked(int(serial, 16), _time(revoked_at), Reason(reason))


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
