"""The registry's store on SQLite: a row for each entry, node and join token."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from eastwest.errors import AlreadyExists, FailedPrecondition
from eastwest.registry.entry import Attributes, Entry, Origin
from eastwest.registry.node import JoinToken, Node
from eastwest.registry.ports import Batch, PrivilegedSvid, Snapshot
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.store.database import Database
from eastwest.store.turns import Turns

T = TypeVar("T")


class SqliteRegistryStore:
    """Serves ``eastwest.registry.ports.RegistryStore``; tables are those of migration 0002."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turns = Turns()

    async def load(self) -> Snapshot:
        return await self._database.read(_load)

    async def apply(self, batch: Batch) -> None:
        await self._database.write(lambda connection: _apply(connection, batch))

    async def save_token(self, token: JoinToken) -> None:
        row = (token.digest, token.expires_at, token.group, "" if token.alias is None else str(token.alias))

        def insert(connection: sqlite3.Connection) -> None:
            try:
                connection.execute(
                    "INSERT INTO join_tokens (digest, expires_at, node_group, alias) VALUES (?, ?, ?, ?)", row
                )
            except sqlite3.IntegrityError:
                raise AlreadyExists(
                    "this join token exists already", fix="leave the token out to have one made"
                ) from None

        await self._database.write(insert)

    async def find_token(self, digest: bytes) -> JoinToken | None:
        def find(connection: sqlite3.Connection) -> JoinToken | None:
            row = connection.execute("SELECT * FROM join_tokens WHERE digest = ?", (digest,)).fetchone()
            if row is None:
                return None
            alias = SpiffeId.parse(row[3]) if row[3] else None
            return JoinToken(digest=row[0], expires_at=row[1], group=row[2], alias=alias, used_by=row[4])

        return await self._database.read(find)

    async def drop_tokens(self, ended_by: int) -> int:
        def drop(connection: sqlite3.Connection) -> int:
            return connection.execute("DELETE FROM join_tokens WHERE expires_at <= ?", (ended_by,)).rowcount

        return await self._database.write(drop)

    async def save_svids(self, svids: Sequence[PrivilegedSvid], ended_by: int) -> None:
        rows = [(svid.serial, svid.entry_id, svid.not_after) for svid in svids]

        def save(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM privileged_svids WHERE not_after <= ?", (ended_by,))
            connection.executemany("INSERT OR REPLACE INTO privileged_svids VALUES (?, ?, ?)", rows)

        await self._database.write(save)

    async def in_turn(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._turns.run(operation)


_PUT_ENTRY = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_PUT_NODE = "INSERT OR REPLACE INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_USE_TOKEN = "UPDATE join_tokens SET used_by = ?1 WHERE digest = ?2 AND used_by IN (x'', ?1)"  # noqa: S105 - SQL


def _apply(connection: sqlite3.Connection, batch: Batch) -> None:
    advanced = connection.execute(
        "UPDATE registry_state SET version = ? WHERE id = 1 AND version = ?", (batch.version, batch.version - 1)
    )
    if advanced.rowcount != 1:
        raise FailedPrecondition(
            "another process has changed the registry", fix="run one server on this data directory, and start it again"
        )
    # Rows leave before any comes, so that entries may trade keys within one batch.
    gone = [(entry_id,) for entry_id in (*batch.drop_entries, *(entry.id for entry in batch.put_entries))]
    connection.executemany("DELETE FROM entries WHERE id = ?", gone)
    try:
        connection.executemany(_PUT_ENTRY, map(_entry_row, batch.put_entries))
    except sqlite3.IntegrityError:
        raise AlreadyExists("an entry with the same SPIFFE ID, parent and selectors is stored already") from None
    connection.executemany("DELETE FROM nodes WHERE spiffe_id = ?", [(str(gone_id),) for gone_id in batch.drop_nodes])
    connection.executemany(_PUT_NODE, map(_node_row, batch.put_nodes))
    for token in batch.use_tokens:
        if connection.execute(_USE_TOKEN, (token.used_by, token.digest)).rowcount != 1:
            raise FailedPrecondition("the join token has been used meanwhile", fix="make a new one")


def _load(connection: sqlite3.Connection) -> Snapshot:
    parts = _Parts()
    (version,) = connection.execute("SELECT version FROM registry_state").fetchone()
    entries = tuple(_entry(row, parts) for row in connection.execute("SELECT * FROM entries ORDER BY id"))
    nodes = tuple(_node(row, parts) for row in connection.execute("SELECT * FROM nodes ORDER BY spiffe_id"))
    svids = tuple(PrivilegedSvid(*row) for row in connection.execute("SELECT * FROM privileged_svids"))
    return Snapshot(entries, nodes, version, svids)


class _Parts:
    """Makes each selector, set of selectors and parent once: 100,000 entries share most of theirs."""

    def __init__(self) -> None:
        self._selectors: dict[str, Selector] = {}
        self._sets: dict[str, frozenset[Selector]] = {}
        self._ids: dict[str, SpiffeId] = {}

    def id(self, text: str) -> SpiffeId:
        found = self._ids.get(text)
        if found is None:
            found = self._ids[text] = SpiffeId.parse(text)
        return found

    def selectors(self, text: str) -> frozenset[Selector]:
        found = self._sets.get(text)
        if found is None:
            found = self._sets[text] = frozenset(map(self._selector, _texts(text)))
        return found

    def _selector(self, text: str) -> Selector:
        found = self._selectors.get(text)
        if found is None:
            found = self._selectors[text] = Selector.parse(text)
        return found


def _entry_row(entry: Entry) -> tuple[Any, ...]:
    return (
        entry.id,
        str(entry.spiffe_id),
        str(entry.parent_id),
        _selectors_text(entry.selectors),
        entry.x509_svid_ttl,
        entry.jwt_svid_ttl,
        _text(domain.name for domain in entry.federates_with),
        entry.admin,
        entry.downstream,
        entry.expires_at,
        _text(entry.dns_names),
        entry.revision,
        entry.store_svid,
        entry.hint,
        entry.created_at,
        entry.disable_x509_svid_prefetch,
        entry.jwt_svid_include_jti,
        entry.profile,
        entry.owner,
        entry.origin.value,
        entry.environment,
        entry.managed_by,
        msgspec.json.encode(dict(entry.attributes)).decode() if entry.attributes else "{}",
    )


def _entry(row: tuple[Any, ...], parts: _Parts) -> Entry:
    return Entry(
        id=row[0],
        spiffe_id=SpiffeId.parse(row[1]),
        parent_id=parts.id(row[2]),
        selectors=parts.selectors(row[3]),
        x509_svid_ttl=row[4],
        jwt_svid_ttl=row[5],
        federates_with=tuple(map(TrustDomain, _texts(row[6]))),
        admin=bool(row[7]),
        downstream=bool(row[8]),
        expires_at=row[9],
        dns_names=tuple(_texts(row[10])),
        revision=row[11],
        store_svid=bool(row[12]),
        hint=row[13],
        created_at=row[14],
        disable_x509_svid_prefetch=bool(row[15]),
        jwt_svid_include_jti=bool(row[16]),
        profile=row[17],
        owner=row[18],
        origin=Origin(row[19]),
        environment=row[20],
        managed_by=row[21],
        attributes=_attributes(row[22]) if row[22] != "{}" else (),
    )


def _node_row(node: Node) -> tuple[Any, ...]:
    return (
        str(node.spiffe_id),
        node.attestation_type,
        node.serial_current,
        node.not_after,
        node.serial_new,
        node.new_not_after,
        node.banned,
        node.can_reattest,
        _selectors_text(node.selectors),
        node.agent_version,
        node.attested_at,
        node.last_seen,
    )


def _node(row: tuple[Any, ...], parts: _Parts) -> Node:
    return Node(
        spiffe_id=SpiffeId.parse(row[0]),
        attestation_type=row[1],
        serial_current=row[2],
        not_after=row[3],
        serial_new=row[4],
        new_not_after=row[5],
        banned=bool(row[6]),
        can_reattest=bool(row[7]),
        selectors=parts.selectors(row[8]),
        agent_version=row[9],
        attested_at=row[10],
        last_seen=row[11],
    )


_decode_attributes = msgspec.json.Decoder(dict[str, str | tuple[str, ...]]).decode


def _attributes(text: str) -> Attributes:
    return tuple(sorted(_decode_attributes(text).items()))


def _selectors_text(selectors: frozenset[Selector]) -> str:
    return _text(sorted(str(selector) for selector in selectors))


def _text(texts: Iterable[str]) -> str:
    values = list(texts)
    return msgspec.json.encode(values).decode() if values else "[]"


_decode_texts = msgspec.json.Decoder(list[str]).decode


def _texts(text: str) -> list[str]:
    return _decode_texts(text) if text != "[]" else []
