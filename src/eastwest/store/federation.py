"""Relationships and foreign bundles in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from eastwest.errors import Corrupt, Error
from eastwest.registry.entry import Origin
from eastwest.registry.federation import EndpointProfile, EndpointStatus, Relationship, Stored
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.store.database import Database


class SqliteFederation:
    """Where the server keeps ``eastwest.registry.federation``'s state."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> Stored:
        """All of it; raises ``Corrupt`` when a row cannot be read."""
        return await self._database.read(_load)

    async def apply(
        self,
        *,
        put: Sequence[Relationship] = (),
        drop: Sequence[TrustDomain] = (),
        put_bundles: Sequence[Bundle] = (),
        drop_bundles: Sequence[TrustDomain] = (),
    ) -> None:
        """Carry out all of it or nothing."""

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "DELETE FROM federation_relationships WHERE trust_domain = ?", [(domain.name,) for domain in drop]
            )
            connection.executemany(
                "DELETE FROM federation_statuses WHERE trust_domain = ?",
                [(domain.name,) for domain in (*drop, *(one.trust_domain for one in put))],
            )
            connection.executemany(
                "DELETE FROM federated_bundles WHERE trust_domain = ?", [(domain.name,) for domain in drop_bundles]
            )
            connection.executemany(
                "INSERT OR REPLACE INTO federation_relationships VALUES (?, ?, ?, ?, ?)", [_row(one) for one in put]
            )
            connection.executemany(
                "INSERT OR REPLACE INTO federated_bundles VALUES (?, ?)",
                [(bundle.trust_domain.name, msgspec.msgpack.encode(bundle)) for bundle in put_bundles],
            )

        await self._database.write(write)

    async def statuses(self) -> dict[TrustDomain, EndpointStatus]:
        """How each endpoint fared when that was last kept; raises ``Corrupt``."""

        def select(connection: sqlite3.Connection) -> list[tuple[str, str, int, *tuple[float | None, ...]]]:
            return connection.execute(
                "SELECT trust_domain, problem, failures, tried_at, succeeded_at, failing_since FROM federation_statuses"
            ).fetchall()

        try:
            return {
                TrustDomain.parse(name): EndpointStatus(problem, failures, *map(_time, times))
                for name, problem, failures, *times in await self._database.read(select)
            }
        except (ValueError, OverflowError, Error) as error:
            raise Corrupt(f"what is stored about bundle endpoints cannot be read: {error}") from None

    async def keep_status(self, trust_domain: TrustDomain, status: EndpointStatus) -> None:
        """Keep how an endpoint fares; nothing where there is no such relationship any more."""
        times = [
            None if time is None else time.timestamp()
            for time in (status.tried_at, status.succeeded_at, status.failing_since)
        ]
        row = (trust_domain.name, status.problem, status.failures, *times, trust_domain.name)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO federation_statuses SELECT ?, ?, ?, ?, ?, ?"
                " WHERE EXISTS (SELECT 1 FROM federation_relationships WHERE trust_domain = ?)",
                row,
            )

        await self._database.write(write)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _load(connection: sqlite3.Connection) -> Stored:
    rows = connection.execute(
        "SELECT trust_domain, endpoint_url, profile, endpoint_spiffe_id, origin"
        " FROM federation_relationships ORDER BY trust_domain"
    )
    try:
        relationships = tuple(map(_relationship, rows))
        blobs = connection.execute("SELECT bundle FROM federated_bundles ORDER BY trust_domain")
        bundles = tuple(msgspec.msgpack.decode(blob, type=Bundle) for (blob,) in blobs)
    except (msgspec.MsgspecError, ValueError, Error) as error:
        raise Corrupt(f"what is stored about federation cannot be read: {error}") from None
    return Stored(relationships, bundles)


def _row(relationship: Relationship) -> tuple[str, ...]:
    endpoint = relationship.endpoint_spiffe_id
    return (
        relationship.trust_domain.name,
        relationship.endpoint_url,
        relationship.profile.value,
        "" if endpoint is None else str(endpoint),
        relationship.origin.value,
    )


def _relationship(row: tuple[str, ...]) -> Relationship:
    return Relationship(
        trust_domain=TrustDomain.parse(row[0]),
        endpoint_url=row[1],
        profile=EndpointProfile(row[2]),
        endpoint_spiffe_id=SpiffeId.parse(row[3]) if row[3] else None,
        origin=Origin(row[4]),
    )
