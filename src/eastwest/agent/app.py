"""The agent process put together: who knows what, who waits for whom, and the order of start and end.

control ──► knowledge ──► identities ──► Workload API, SDS, ADS     on DIR/agent/agent.sock
                │             │
                └──► cache ◄──┘           own identity: renewed at half life
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from eastwest import errors
from eastwest.agent.als import AccessLogs
from eastwest.agent.attestation import Attestation, load_prover
from eastwest.agent.authorization import Authorization
from eastwest.agent.backoff import Backoff
from eastwest.agent.bootstrap import Bootstrap, explain, read_bundle
from eastwest.agent.cache import Cache
from eastwest.agent.callers import ProcessAttestor, identify
from eastwest.agent.config import Settings
from eastwest.agent.connection import Dismissed, ServerConnection
from eastwest.agent.connections import Connections
from eastwest.agent.containment import CAPABILITY, Closer
from eastwest.agent.control import ControlClient
from eastwest.agent.decisions import Decisions
from eastwest.agent.departed import Departed
from eastwest.agent.enforcement import Enforcement
from eastwest.agent.envoys import Envoys
from eastwest.agent.examining import CanaryRows, Examiner
from eastwest.agent.explaining import ADMIN_SOCKET_MODE, explain_service
from eastwest.agent.health import HealthServer
from eastwest.agent.holdings import Holdings
from eastwest.agent.identities import Identities
from eastwest.agent.jwts import JwtCache
from eastwest.agent.keyring import KeyringUnavailable, node_key
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.own import OwnIdentity, OwnSvid
from eastwest.agent.peers.finder import PeerFinder
from eastwest.agent.peers.likely import likely_identity
from eastwest.agent.proxies import Proxies, Received
from eastwest.agent.receipts import Receipts
from eastwest.agent.receipts import forget as forget_receipts
from eastwest.agent.recording import Recording
from eastwest.agent.renewal import Renewal
from eastwest.agent.sidecars import Sidecars
from eastwest.agent.spool import Spool
from eastwest.agent.spool import forget as forget_spool
from eastwest.agent.state import State
from eastwest.agent.workload_api import WorkloadApi
from eastwest.agent.xds import ConfigStreams
from eastwest.attest.workload import WorkloadAttestor, WorkloadContext
from eastwest.clock import Clock, SystemClock
from eastwest.entropy import Entropy, SystemEntropy
from eastwest.mesh.settings import Settings as MeshSettings
from eastwest.process.descriptors import raise_file_limit
from eastwest.process.files import replace_file
from eastwest.process.locked import locked
from eastwest.process.notify import notify
from eastwest.process.plugins import WORKLOAD_ATTESTORS, load_plugin
from eastwest.process.tracing import start_tracing
from eastwest.rpc.client import Untrusted
from eastwest.rpc.health import HealthService
from eastwest.rpc.service import Listener
from eastwest.spiffe.bundle import Bundle

SOCKET_MODE = 0o666
"""Anyone may connect: what a caller gets is decided by what it is."""
EGRESS_SOCKET = "egress.sock"
"""Relative, so that each sidecar's way out lies in the directory which that sidecar was started in."""
_SAVE_AFTER = 0.1  # seconds in which changes are gathered into one write of the cache

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ports:
    """What tests replace: time, randomness, and who says what a process is."""

    clock: Clock
    entropy: Entropy
    jitter: random.Random
    attestors: tuple[WorkloadAttestor, ...]

    @classmethod
    def system(cls, settings: Settings) -> Ports:
        """The machine's own, with the attestors that the settings name."""
        clock = SystemClock()
        return cls(clock, SystemEntropy(), random.SystemRandom(), workload_attestors(settings, clock))


def workload_attestors(settings: Settings, clock: Clock) -> tuple[WorkloadAttestor, ...]:
    """``unix``, and those that the settings have a table for."""
    context = WorkloadContext(clock=clock)
    tables: dict[str, Mapping[str, Any]] = {"unix": {}, **settings.workload_attestors}
    return tuple(
        load_plugin(WORKLOAD_ATTESTORS, name, table, context, f"{settings.where}: workload_attestors.{name}")
        for name, table in tables.items()
    )


async def run(settings: Settings, ports: Ports | None = None, ready: Callable[[str], None] = lambda _: None) -> None:
    """Run an agent until it is told to stop (SIGTERM, SIGINT, cancellation).

    ``ready`` is called once with the line that says where it serves. Raises the error that kept it from starting or
    made it end; an agent that the server dismissed has removed its identity and cache by then.
    """
    for warning in settings.warnings:
        _log.warning("agent.settings", warning=warning)
    ports = ports or Ports.system(settings)
    settings.paths.home.mkdir(mode=0o755, parents=True, exist_ok=True)
    with locked(settings.paths.lock, "agent"):
        raise_file_limit()
        stop_tracing = start_tracing(settings.tracing, {"service.name": "eastwest-agent"}, settings.where)
        try:
            await _Agent(settings, ports, ready).run()
        finally:
            await asyncio.to_thread(stop_tracing)


class _Agent:
    def __init__(self, settings: Settings, ports: Ports, ready: Callable[[str], None]) -> None:
        self._settings = settings
        self._paths = settings.paths
        self._ports = ports
        self._ready = ready
        self._stop = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError, RuntimeError):  # not in the main thread: whoever runs us stops us
                loop.add_signal_handler(number, self._stop.set)
        serving = asyncio.ensure_future(self._serve())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not serving.done():
                serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
            _log.info("agent.stopped")

    async def _serve(self) -> None:
        ports, settings = self._ports, self._settings
        own_identity = OwnIdentity(self._paths, ports.entropy)
        given = self._given_bundle(own_identity)
        prover = load_prover(settings, given.trust_domain, ports.clock, ports.entropy)
        bootstrap = Bootstrap(settings, own_identity, ports.clock, ports.jitter, repeatable=prover.repeatable)
        own = bootstrap.stored(given.trust_domain)
        connection = ServerConnection(
            settings.host,
            settings.port,
            given.trust_domain,
            timeout=settings.server_timeout,
            may_reattest=prover.repeatable,
        )
        attestation = Attestation(prover, connection)
        try:
            if own is None or (not own.is_live(ports.clock.now()) and self._cache(own).load_state() is None):
                own = await bootstrap.attest(connection, attestation, given)
                _log.info("agent.attested", id=str(own.id), attestor=prover.name)
            cache = self._cache(own)
            kept = cache.load_state()
            knowledge = Knowledge(kept or State(own.id.trust_domain))
            roots = (kept.bundle if kept is not None else given).x509_authorities
            if not roots:
                raise errors.InvalidInput("no trust bundle is given or cached", fix="give --bundle FILE")
            connection.use([authority.der for authority in roots], own)
            try:
                await self._work(connection, attestation, own_identity, own, cache, knowledge, cached=kept is not None)
            except Dismissed:
                own_identity.forget()
                cache.forget()
                forget_receipts(self._paths.receipts)
                if not forget_spool(self._paths.spool):
                    # Nothing secret, and perhaps the last word on what happened here: told if this node joins again.
                    _log.warning("agent.spool.kept", path=str(self._paths.spool), why="decisions in it are not told")
                raise
        except errors.Error as error:
            raise explain(error, connection.target) from None
        finally:
            connection.close()

    async def _work(
        self,
        connection: ServerConnection,
        attestation: Attestation,
        own_identity: OwnIdentity,
        own: OwnSvid,
        cache: Cache,
        knowledge: Knowledge,
        *,
        cached: bool,
    ) -> None:
        ports, settings = self._ports, self._settings
        clock, jitter = ports.clock, ports.jitter
        identities = Identities(connection, knowledge, clock, jitter, limit=settings.max_identities)
        recording = Recording(knowledge)
        sidecars = Sidecars(knowledge, identities, self._mesh_settings(), clock, recording=recording)
        jwts = JwtCache(connection, clock)
        receipts = Receipts(connection, identities, self._paths.receipts, clock, Backoff(jitter, first=1.0, most=300.0))
        spool = Spool(self._paths.spool, settings.spool_bytes, clock, ports.entropy)
        decisions = Decisions(connection, clock, jitter, spool, recording.set)
        await decisions.open()
        renewal = Renewal(connection, own_identity, own, knowledge, clock, jitter, attestation)

        departed = Departed()
        connections = Connections()
        closer = Closer(knowledge, connections, sidecars.changes)
        sidecars.on_contained = closer.enforced
        if closer.problem:
            means = "those of a contained identity end by their age"
            _log.warning("agent.connections.cannot_close", why=closer.problem, means=means)

        def on_state(state: State) -> None:
            if state.bundle.x509_authorities != knowledge.state.bundle.x509_authorities:
                connection.use([authority.der for authority in state.bundle.x509_authorities], renewal.own)
            if state.bundle.jwt_authorities != knowledge.state.bundle.jwt_authorities:
                jwts.forget()
            knowledge.set(state)
            closer.follow()
            sidecars.on_state()
            identities.on_state(state)
            departed.learn(state.bundles.values(), (held.svid.chain for held in identities.everything()))

        if cached:
            restored = identities.restore(cache.load_svids())
            sidecars.on_state()
            sidecars.envoys.restore(cache.load_envoys())
            departed.learn(knowledge.state.bundles.values(), (held.svid.chain for held in identities.everything()))
            _log.info("agent.cache.restored", entries=len(knowledge.state.entries), svids=restored)
        holdings = Holdings(knowledge, identities, sidecars, renewal, clock)
        holdings.closed = lambda: closer.closed
        control = ControlClient(connection, knowledge.state, holdings, clock, jitter, on_state)
        control.capabilities |= {"report"}
        control.capabilities |= {"contain"} if closer.problem else {"contain", CAPABILITY}
        sidecars.on_enforced = control.rollout.enforced
        control.capabilities |= {"canaries", "peers"}

        def problems() -> list[str]:
            found = [] if knowledge.state.epoch else ["no state has come from the server yet"]
            if not renewal.own.is_live(clock.now()):
                found.append("the agent's own certificate has ended")
            if attestation.refused is not None:
                found.append(str(attestation.refused))
            return [*found, *decisions.problems()]

        # Asked anew each time: knowledge takes a new state with every update.
        attestor = ProcessAttestor(ports.attestors, lambda: knowledge.state.entries.values())  # noqa: PLW0108 - see above
        identified = identify(attestor.attest, knowledge, clock)
        received = Received(self._paths.spool / "proxies")
        received.open()
        peers = PeerFinder(clock, likely_identity(ports.attestors, knowledge, clock))
        logs = AccessLogs(identified, sidecars, decisions.record, departed.left, received.add, peers, connections)
        logs.mark = CanaryRows(knowledge).mark
        authorization = Authorization(identified, sidecars, connection.use_token, peers)
        authorization.contained = lambda: knowledge.state.contained
        proxies = Proxies(identified, received, decisions.confess, clock)
        listener = Listener(
            [
                WorkloadApi(knowledge, identities, jwts, attestor.attest, clock).service(),
                *ConfigStreams(sidecars, identified, sidecars.report, sidecars.taken, sidecars.envoys.ended).services(),
                *logs.services(),
                *proxies.services(),
                *authorization.services(),
                Enforcement(
                    knowledge,
                    attestor.attest,
                    clock,
                    connection.use_token,
                    decisions.record,
                    decisions.confess,
                    recording,
                ).service(),
                HealthService(problems).service(),
            ],
            implementation=settings.http2,
        )
        admin = Listener([explain_service(ports.attestors, knowledge, clock)], implementation=settings.http2)
        readings = _readings(control, identities, decisions, renewal, knowledge, sidecars, logs, peers, clock)
        failed: errors.Error | None = None
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_raise_dismissal(connection))
                    group.create_task(control.run())
                    group.create_task(identities.run())
                    group.create_task(receipts.run())
                    group.create_task(renewal.run())
                    group.create_task(decisions.run())
                    envoys = sidecars.envoys
                    group.create_task(self._keep_cache(cache, knowledge, identities, renewal, holdings, envoys))
                    group.create_task(_keep_envoys(cache, envoys))
                    group.create_task(envoys.run())
                    group.create_task(holdings.run())
                    group.create_task(Examiner(knowledge, sidecars, clock).run())
                    group.create_task(closer.run())
                    if not cached:
                        await self._first_state(control, connection.target)
                    await listener.listen_unix(self._paths.socket, SOCKET_MODE)
                    stack.push_async_callback(listener.close)
                    await admin.listen_unix(self._paths.admin_socket, ADMIN_SOCKET_MODE)
                    stack.push_async_callback(admin.close)
                    await self._serve_health(stack, HealthServer(problems, readings))
                    self._announce(renewal.own, control)
            except* errors.Error as group_of_errors:
                # Raised below: before Python 3.11.4 (Debian 12 has 3.11.2) what is raised here gets wrapped in a group.
                failed = _first_error(group_of_errors)
            finally:
                notify("STOPPING=1")
                await decisions.close()
                received.close()
                peers.close()
                await asyncio.shield(asyncio.to_thread(_save, cache, knowledge, identities))
        if failed is not None:
            raise failed

    def _given_bundle(self, own_identity: OwnIdentity) -> Bundle:
        """The bundle from the file; an agent that was here before can do without one."""
        settings = self._settings
        if settings.bundle_file is not None:
            return read_bundle(settings.bundle_file, settings.trust_domain)
        own = own_identity.load()
        if own is not None:
            return Bundle(settings.trust_domain or own.id.trust_domain)
        raise errors.InvalidInput(
            "no trust bundle is given", fix="write it with `eastwest bundle show` on the server and give --bundle FILE"
        )

    def _cache(self, own: OwnSvid) -> Cache:
        key: bytes | None = None
        try:
            key = node_key(self._ports.entropy)
        except KeyringUnavailable as error:
            _log.warning(
                "agent.cache.keyless",
                why=error.message,
                means="certificates and keys are not kept: after a restart they come when the server answers",
            )
        return Cache(self._paths.cache, own.id, key, self._ports.entropy)

    def _mesh_settings(self) -> MeshSettings:
        return MeshSettings(egress_socket=EGRESS_SOCKET)

    async def _first_state(self, control: ControlClient, target: str) -> None:
        """Wait for the first word of the server, and give up where waiting is of no use."""
        try:
            async with asyncio.timeout(self._settings.wait):
                turns = 0
                while not control.updates:
                    turns = await control.turns.beyond(turns)
                    if isinstance(control.last_error, Untrusted | errors.FailedPrecondition | errors.PermissionDenied):
                        raise control.last_error
        except TimeoutError:
            why = control.last_error.message if control.last_error is not None else "no update came"
            raise errors.Unavailable(
                f"nothing from {target} in {self._settings.wait:.0f} s, and nothing is cached: {why}",
                fix="start the server, or check --server and the network between",
            ) from None

    async def _serve_health(self, stack: AsyncExitStack, server: HealthServer) -> None:
        if self._settings.health_port is None:
            return
        await server.listen(self._settings.health_port)
        stack.push_async_callback(server.close)
        replace_file(self._paths.health_port, f"{server.port}\n".encode(), 0o644)
        stack.callback(self._paths.health_port.unlink, missing_ok=True)

    def _announce(self, own: OwnSvid, control: ControlClient) -> None:
        closed = [str(path) for path in self._paths.home.parents if not path.stat().st_mode & 0o001]
        if closed:
            _log.warning("agent.socket.unreachable", for_others_closed=closed, fix=f"chmod o+x {' '.join(closed)}")
        how = "" if control.connected else ", from cache (not connected to the server yet)"
        self._ready(f"agent ready: socket {self._paths.socket}, id {own.id}{how}")
        notify("READY=1")

    async def _keep_cache(
        self,
        cache: Cache,
        knowledge: Knowledge,
        identities: Identities,
        renewal: Renewal,
        holdings: Holdings,
        envoys: Envoys,
    ) -> None:
        """Write what changed, a moment after it did; each part only when it changed."""
        states, svids = knowledge.states.count, identities.changes.count
        while True:
            seen = knowledge.changes.count
            if cache.bind(renewal.own.id):
                states = svids = -1
                envoys.kept.bump()
            if knowledge.states.count != states and knowledge.state.epoch:
                states, state = knowledge.states.count, knowledge.state
                if await _to_disk(partial(cache.save_state, state)):
                    holdings.kept(state.bundle.sequence)
                    holdings.kept_contained(state.contained.generation)
            if identities.changes.count != svids:
                svids, everything = identities.changes.count, identities.everything()
                if await _to_disk(partial(cache.save_svids, everything)):
                    holdings.kept_svids([held.svid.chain for held in everything])
            await knowledge.changes.beyond(seen)
            await asyncio.sleep(_SAVE_AFTER)


async def _keep_envoys(cache: Cache, envoys: Envoys) -> None:
    while True:
        seen = envoys.kept.count
        everything = envoys.everything()
        if await _to_disk(partial(cache.save_envoys, everything)):
            envoys.saved(everything)
        await envoys.kept.beyond(seen)


async def _to_disk(save: Callable[[], None]) -> bool:
    try:
        await asyncio.to_thread(save)
    except OSError as error:
        _log.error("agent.cache.unwritable", error=str(error))
        return False
    return True


def _save(cache: Cache, knowledge: Knowledge, identities: Identities) -> None:
    if not knowledge.state.epoch:
        return
    with suppress(OSError):
        cache.save_state(knowledge.state)
        cache.save_svids(identities.everything())


async def _raise_dismissal(connection: ServerConnection) -> None:
    raise await asyncio.shield(connection.dismissal)


def _first_error(group: BaseExceptionGroup[errors.Error]) -> errors.Error:
    """The one error to tell: a dismissal before all others."""
    leaves: list[errors.Error] = []

    def collect(part: BaseException) -> None:
        if isinstance(part, BaseExceptionGroup):
            for inner in part.exceptions:
                collect(inner)
        elif isinstance(part, errors.Error):
            leaves.append(part)

    collect(group)
    return next((error for error in leaves if isinstance(error, Dismissed)), leaves[0])


def _readings(
    control: ControlClient,
    identities: Identities,
    decisions: Decisions,
    renewal: Renewal,
    knowledge: Knowledge,
    sidecars: Sidecars,
    logs: AccessLogs,
    peers: PeerFinder,
    clock: Clock,
) -> Callable[[], Mapping[str, float]]:
    def read() -> Mapping[str, float]:
        now = clock.now()
        own = (renewal.own.not_after - now).total_seconds()
        first = min((held.svid.not_after for held in identities.everything()), default=None)
        spool = decisions.status
        return {
            "eastwest_agent_connected": float(control.connected),
            "eastwest_agent_updates_total": float(control.updates),
            "eastwest_agent_state_number": float(knowledge.state.number),
            "eastwest_agent_entries": float(len(knowledge.state.entries)),
            "eastwest_agent_x509_svids": float(len(identities)),
            "eastwest_agent_x509_rotations_total": float(identities.rotations),
            "eastwest_agent_x509_failures_total": float(identities.failures),
            "eastwest_agent_x509_svid_seconds": own if first is None else (first - now).total_seconds(),
            "eastwest_agent_own_svid_seconds": own,
            "eastwest_agent_sidecars": float(sum(status.connected for status in sidecars.statuses())),
            "eastwest_agent_log_entries_total": float(logs.counters.entries),
            "eastwest_agent_plaintext_connections_total": float(peers.counters.asked),
            "eastwest_agent_plaintext_named_total": float(peers.counters.named),
            "eastwest_agent_decisions_total": float(decisions.reported),
            "eastwest_agent_decisions_lost_total": float(decisions.lost),
            "eastwest_agent_spool_bytes": float(spool.used),
            "eastwest_agent_spool_limit_bytes": float(spool.limit),
            "eastwest_agent_spool_decisions": float(spool.waiting),
            "eastwest_agent_spool_failing": float(bool(spool.problem)),
        }

    return read
