"""Opening the authority of a data directory: keys, log, journal and CA state, in that order.

The running server does it, and so do `eastwest ca export-csr` and `import` where no server can run yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from eastwest import __version__
from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.errors import FailedPrecondition
from eastwest.log.note import NoteKey
from eastwest.log.tiles import CHECKPOINT_PATH
from eastwest.pki.rotation.state import Kind, Stage
from eastwest.pki.signer import KeyAlgorithm, KeyStore
from eastwest.pki.upstream import UpstreamAuthority, UpstreamContext
from eastwest.process.files import make_private
from eastwest.process.plugins import UPSTREAM_AUTHORITIES, load_plugin
from eastwest.server.ca.authority import Lifetimes, Maker, log_name, open_key_store
from eastwest.server.ca.rotation import AuthorityKeeper
from eastwest.server.config import ServerConfig
from eastwest.server.journal import Event, Journal
from eastwest.server.log.fork import refuse_forked
from eastwest.server.log.keys import check_first_key, open_second_key, write_vkey
from eastwest.store.authority import SqliteAuthority
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog


@dataclass(frozen=True, slots=True)
class Opened:
    """What signs and records; ``stack`` that was given closes it."""

    database: Database
    store: SqliteAuthority
    log: SqliteLog
    journal: Journal
    keeper: AuthorityKeeper
    keys: KeyStore
    log_lacks: str = ""
    """Why the log has no ML-DSA-44 key; "" when it has one."""


async def open_authority(config: ServerConfig, clock: Clock, entropy: Entropy, stack: AsyncExitStack) -> Opened:
    """Open it; the caller holds the data directory's lock. Raises the error that says what is missing or damaged."""
    database = Database.open(config.paths.database, trust_domain=config.trust_domain.name, clock=clock)
    stack.push_async_callback(database.close)
    store = SqliteAuthority(database)
    found = await store.load()
    if found is None:
        if (config.paths.log / CHECKPOINT_PATH).exists():
            raise FailedPrecondition(
                "the database is gone or empty, and the log's public files are here",
                where=str(config.paths.database),
                fix="restore its newest copy; see docs/how-to/recover-the-log.md, 'The database was rolled back'",
            )
        raise FailedPrecondition("the trust domain has no CA", fix="run `eastwest server init` on a new directory")
    keys = open_key_store(config)
    refuse_forked(config.paths)
    log_signer = keys.load(found[0].log_key)
    origin = log_name(config.trust_domain)
    await check_first_key(database, config.paths, NoteKey.of(origin, log_signer), found[0].log_key)
    second = await asyncio.to_thread(open_second_key, keys, config.paths, origin)
    log = await SqliteLog.open(
        database,
        config.paths.log,
        origin=origin,
        signer=log_signer,
        clock=clock,
        second=second.signer,
        mark=config.log_mark,
    )
    stack.push_async_callback(log.close)
    journal = Journal(log, clock)
    upstream, depth = open_upstream(config, clock), config.file.downstream_depth
    algorithm = KeyAlgorithm(config.file.ca_key)
    maker = Maker(config.trust_domain, keys, clock, entropy, Lifetimes.of(config), upstream, depth, algorithm)
    keeper = await AuthorityKeeper.open(store, maker, journal, clock)
    added = [_key_added(config, key) for key in log.keys[1:]]
    if log.size == 0:
        await _begin(config, keeper, journal, log.key.vkey, added)
    elif second.is_new:
        await journal.record_all(added)
    for key in log.keys[1:]:
        write_vkey(config.paths, key)
    return Opened(database, store, log, journal, keeper, keys, second.lacking)


def open_upstream(config: ServerConfig, clock: Clock) -> UpstreamAuthority | None:
    """The upstream authority that the configuration names; None: the root is the trust domain's own."""
    name = config.file.upstream
    if not name:
        return None
    directory = config.paths.home / "upstream" / name
    make_private(directory)
    context = UpstreamContext(trust_domain=config.trust_domain, clock=clock, directory=str(directory))
    where = f"{config.paths.config}: upstreams.{name}"
    upstream: UpstreamAuthority = load_plugin(
        UPSTREAM_AUTHORITIES, name, config.file.upstreams.get(name, {}), context, where
    )
    return upstream


def _key_added(config: ServerConfig, key: NoteKey) -> Event:
    actor = f"{config.trust_domain.uri}/spire/server"
    return Event("log.key_added", actor, key.name, {"vkey": key.vkey, "algorithm": "ml-dsa-44"})


async def _begin(
    config: ServerConfig, keeper: AuthorityKeeper, journal: Journal, vkey: str, added: Sequence[Event]
) -> None:
    """The first records: the log itself, and what `init` made."""
    actor = f"{config.trust_domain.uri}/spire/server"
    opened = {"origin": log_name(config.trust_domain), "vkey": vkey, "build": __version__}
    events = [Event("log.opened", actor, keeper.subject, opened), *added]
    state = keeper.state
    for root in state.roots:
        what = "ca.activated" if root.stage is Stage.ACTIVE else "ca.prepared"
        events.append(keeper.event(what, actor, Kind.X509, root, sequence=state.sequence))
        events += [keeper.event("ca.activated", actor, Kind.ISSUING, ca) for ca in root.issuing]
    events += [keeper.event("ca.activated", actor, Kind.JWT, key, sequence=state.sequence) for key in state.jwt]
    await journal.record_all(events)
