"""The authority process: everything made, started and stopped, in order.

    lock → database → log → keys → issuer → registry → estate → own identity → listeners → ready

What starts later may use what started before; stopping goes backwards. The log comes first because nothing may
happen that it cannot record.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from typing import Any

import structlog

from eastwest import __version__
from eastwest.attest.node import NodeAttestor, NodeContext
from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.errors import FailedPrecondition
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import Instance
from eastwest.process.files import replace_file
from eastwest.process.locked import locked
from eastwest.process.notify import notify
from eastwest.process.plugins import NODE_ATTESTORS, load_plugin
from eastwest.registry.registry import Registry
from eastwest.registry.state import Change
from eastwest.rpc.health import HealthService
from eastwest.rpc.service import Listener, Servable
from eastwest.server.admin import AdminService
from eastwest.server.agents import control_service
from eastwest.server.authority import Loaded, load_authority, log_name, open_key_store
from eastwest.server.config import ServerConfig
from eastwest.server.control import ControlHub
from eastwest.server.estate import EstateKeeper
from eastwest.server.gate import Gate, PortGate, SocketGate
from eastwest.server.http import HealthServer
from eastwest.server.identity import ServerIdentity
from eastwest.server.journal import Event, Journal
from eastwest.server.spire.agent import AgentService
from eastwest.server.spire.bundle import bundle_service
from eastwest.server.spire.debug import debug_service
from eastwest.server.spire.entry import EntryService
from eastwest.server.spire.svid import SvidService
from eastwest.server.telemetry import Metrics
from eastwest.server.view import AgentView
from eastwest.store.database import Database
from eastwest.store.estate import SqliteEstates
from eastwest.store.ledger import SqliteLedger
from eastwest.store.log import SqliteLog
from eastwest.store.registry import SqliteRegistryStore

SOCKET_MODE = 0o600
_log = structlog.get_logger()


class Server:
    """One running authority. Make it with ``start``; ``run`` waits for the end; leaving the stack stops it."""

    def __init__(self, config: ServerConfig, clock: Clock, entropy: Entropy) -> None:
        self._config = config
        self._clock = clock
        self._entropy = entropy
        self._tasks: list[asyncio.Task[None]] = []
        self._problems: dict[str, str] = {}
        self._log_failed_at: datetime | None = None
        self._started = clock.monotonic()
        self.metrics = Metrics()

    async def start(self, stack: AsyncExitStack) -> None:
        """Start everything; what was started is stopped when ``stack`` unwinds, also after a failure here."""
        config = self._config
        paths = config.paths
        stack.enter_context(locked(paths.lock, "server"))
        database = Database.open(paths.database, trust_domain=config.trust_domain.name, clock=self._clock)
        stack.push_async_callback(database.close)
        loaded = load_authority(open_key_store(config), paths.certificates, config.trust_domain)
        self._check_clock(loaded)
        self.log = await SqliteLog.open(
            database, paths.log, origin=log_name(config.trust_domain), signer=loaded.log_signer, clock=self._clock
        )
        stack.push_async_callback(self.log.close)
        self.metrics.log_size.set_function(lambda: self.log.size)
        for path in self.log.repaired:
            _log.warning("log.file_restored", path=path)
        self.journal = Journal(self.log, self._clock)
        if self.log.size == 0:
            await self._open_log(loaded)
        self.issuer = Issuer(
            authority=loaded.authority,
            jwt_key=loaded.jwt_key,
            recorder=self.log,
            clock=self._clock,
            entropy=self._entropy,
            instance=Instance(name="server-1", build=__version__),
            jwt_issuer=config.file.jwt_issuer or None,
        )
        self.registry = await Registry.open(config.trust_domain, SqliteRegistryStore(database), self._entropy)
        self.ledger = SqliteLedger(database, config.file.ledger_max_rows)
        self.estate = EstateKeeper(
            config.trust_domain, SqliteEstates(database), self.registry, self.issuer, self.journal, self._clock
        )
        await self.estate.load()
        self.bundle = loaded.bundle
        self.view = AgentView(self.registry, self.estate, lambda: self.bundle, self._clock)
        limit = config.file.clock_skew_limit
        noted = self.registry.nodes.set_agent_version
        self.hub = ControlHub(self.view.of, self._clock, self._entropy, self.metrics, limit, noted)
        self.registry.subscribe(self._registry_changed)
        self.estate.on_change = self.hub.wake
        self.identity = ServerIdentity(self.issuer, self._clock)
        await self.identity.renew()
        await self._listen(stack)
        stack.push_async_callback(self._stop_tasks)
        self._spawn(self.identity.keep(), "identity")
        self._spawn(self.log.run(self._log_failed, config.file.checkpoint_interval), "log")
        self._spawn(self._expire_entries(), "expiry")
        await self.log.flush()

    async def _listen(self, stack: AsyncExitStack) -> None:
        config, paths = self._config, self._config.paths
        assert self.identity.tls is not None
        port_gate, socket_gate = PortGate(self.registry, self._clock), SocketGate()
        control = control_service(self.hub, self.ledger, self.metrics, port_gate, self.view.services)
        agents = Listener([*self._spire(port_gate), control])
        await agents.listen_tcp(config.file.agent_address, config.file.agent_port, self.identity.tls.listening)
        stack.push_async_callback(agents.close)
        health = HealthServer(self.metrics.registry, self.problems)
        health_port = health.bind(config.file.health_address, config.file.health_port)
        self._spawn(health.run(), "health")
        stack.callback(health.stop)
        admin = AdminService(
            self.registry, self.estate, self.hub, self.ledger, self.log, self.journal, self._clock, socket_gate
        )
        admin.agent_address = f"{config.file.agent_address}:{agents.port}"
        admin.health_address = f"{config.file.health_address}:{health_port}"
        local = Listener([*self._spire(socket_gate), admin.service()])
        await local.listen_unix(paths.admin_socket, SOCKET_MODE)
        stack.push_async_callback(local.close)
        replace_file(paths.agent_port, f"{agents.port}\n".encode(), 0o644)
        replace_file(paths.health_port, f"{health_port}\n".encode(), 0o644)
        stack.callback(paths.agent_port.unlink, missing_ok=True)
        stack.callback(paths.health_port.unlink, missing_ok=True)
        self.agent_address, self.health_address = admin.agent_address, admin.health_address

    def _spire(self, gate: Gate) -> list[Servable]:
        context = NodeContext(
            trust_domain=self._config.trust_domain,
            clock=self._clock,
            entropy=self._entropy,
            tokens=self.registry.tokens,
        )
        attestors = _node_attestors(self._config, context)
        ttl = self._config.file.agent_svid_ttl
        agent = AgentService(self.registry, self.issuer, attestors, self.journal, self._clock, ttl, gate)
        jwt_ttl = self._config.file.jwt_svid_ttl
        svid = SvidService(self.registry, self.issuer, self.hub, self._clock, self.metrics, jwt_ttl, gate)
        entry = EntryService(self.registry, self.journal, self._clock, gate)
        return [
            agent.service(),
            svid.service(),
            entry.service(),
            bundle_service(lambda: self.bundle, gate),
            debug_service(self.registry, lambda: self.identity.chain, self._uptime, gate),
            HealthService(self.problems).service(),
        ]

    def problems(self) -> list[str]:
        """Why the server cannot issue now; empty when it can."""
        if self._log_failed_at is not None and self.log.published_at and self.log.published_at > self._log_failed_at:
            self._problems.pop("log", None)
        return sorted(self._problems.values())

    async def _open_log(self, loaded: Loaded) -> None:
        actor = f"{self._config.trust_domain.uri}/spire/server"
        subject = self._config.trust_domain.uri
        opened = {"origin": log_name(self._config.trust_domain), "vkey": loaded.log_key.vkey, "build": __version__}
        created = {
            "authority_key_id": loaded.authority.key_id,
            "jwt_key_id": loaded.jwt_key.key_id,
            "not_after": loaded.authority.not_after,
        }
        await self.journal.record_all(
            [Event("log.opened", actor, subject, opened), Event("ca.activated", actor, subject, created)]
        )

    def _check_clock(self, loaded: Loaded) -> None:
        now = self._clock.now()
        if now < loaded.authority.not_before:
            raise FailedPrecondition(
                f"the clock says {now:%Y-%m-%d %H:%M:%S}Z, before the issuing CA began", fix="set the clock"
            )
        if now >= loaded.authority.not_after:
            raise FailedPrecondition(
                f"the issuing CA ended at {loaded.authority.not_after:%Y-%m-%d %H:%M:%S}Z",
                fix="set the clock; a CA that has really ended needs a new data directory",
            )

    def _registry_changed(self, change: Change) -> None:
        for agent in change.ended:
            if stream := self.hub.streams.get(agent):
                stream.wake.set()
        self.hub.wake(change.agents)

    def _log_failed(self, error: Exception) -> None:
        self._log_failed_at = self._clock.now()
        self._problems["log"] = f"the log cannot be published: {error}"
        _log.error("log.publish_failed", error=str(error))

    async def _expire_entries(self) -> None:
        changed = asyncio.Event()
        self.registry.subscribe(lambda _change: changed.set())
        while True:
            end = self.registry.entries.next_end()
            wait = 3600.0 if end is None else max(0.0, end - self._clock.now().timestamp())
            with suppress(TimeoutError):
                async with asyncio.timeout(min(wait, 3600.0)):
                    await changed.wait()
            changed.clear()
            await self.registry.entries.expire(self._clock.now())

    def _uptime(self) -> float:
        return self._clock.monotonic() - self._started

    def _spawn(self, work: Any, name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._problems[task.get_name()] = f"{task.get_name()} stopped: {error}"
            _log.error("task.failed", task=task.get_name(), error=str(error))

    async def _stop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def run_server(config: ServerConfig, clock: Clock, entropy: Entropy, announce: Callable[[str], None]) -> None:
    """Run until SIGTERM or SIGINT; ``announce`` gets one line when the server is ready, and systemd is told."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        server = Server(config, clock, entropy)
        await server.start(stack)
        announce(
            f"server ready: trust domain {config.trust_domain}, agents at {server.agent_address}, "
            f"admin socket {config.paths.admin_socket}, health http://{server.health_address}/ready"
        )
        notify("READY=1")
        await stop.wait()


def _node_attestors(config: ServerConfig, context: NodeContext) -> Mapping[str, NodeAttestor]:
    """``join_token``, and those that the configuration has a table for."""
    tables: dict[str, Mapping[str, Any]] = {"join_token": {}, **config.file.node_attestors}
    return {
        name: load_plugin(NODE_ATTESTORS, name, table, context, f"{config.paths.config}: node_attestors.{name}")
        for name, table in tables.items()
    }
