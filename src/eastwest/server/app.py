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
from dataclasses import replace
from datetime import date, datetime
from typing import Any

import structlog

from eastwest import __version__
from eastwest.attest.node import NodeAttestor, NodeContext
from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.errors import Error, FailedPrecondition, LogUnavailable
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import Instance
from eastwest.pki.hierarchy import Authority
from eastwest.pki.rotation.state import Kind, Root, Source
from eastwest.policy.trials import trials
from eastwest.process.csr_workers import CsrWorkers
from eastwest.process.descriptors import raise_file_limit
from eastwest.process.files import replace_file
from eastwest.process.locked import locked
from eastwest.process.logs import LEVEL
from eastwest.process.memory import loading
from eastwest.process.notify import notify
from eastwest.process.plugins import NODE_ATTESTORS, WORKLOAD_ATTESTORS, installed, load_plugin
from eastwest.process.signing import ThreadSigningPool
from eastwest.process.tracing import start_tracing
from eastwest.registry.administrators import Administrators
from eastwest.registry.registry import Registry
from eastwest.registry.rules import Rules
from eastwest.registry.state import Change
from eastwest.rpc.health import HealthService
from eastwest.rpc.service import MAX_MESSAGE, SMALL_MESSAGE, Listener, Servable
from eastwest.server.admin import AdminService
from eastwest.server.agents import control_service
from eastwest.server.ca.authority import DEFAULT, write_public
from eastwest.server.ca.confirmations import Confirmations
from eastwest.server.ca.files import CaFiles
from eastwest.server.ca.opening import open_authority
from eastwest.server.ca.own_issuers import OwnIssuers
from eastwest.server.ca.rotator import Rotator
from eastwest.server.ca.service import CaService
from eastwest.server.ca.sharing import share_socket
from eastwest.server.ca.upstream import UpstreamWatch
from eastwest.server.changes.parts import TwoPersons
from eastwest.server.changes.service import ChangeService
from eastwest.server.config import LedgerSettings, ServerConfig
from eastwest.server.containment.keeper import Containments
from eastwest.server.containment.parts import assemble
from eastwest.server.control import ControlHub
from eastwest.server.estate import EstateKeeper
from eastwest.server.explain import Explanations
from eastwest.server.export.feeder import Feeder, failing_exports, open_feeders
from eastwest.server.failures import FailureMeter
from eastwest.server.federation.admin import federation_service
from eastwest.server.federation.keeper import Federation
from eastwest.server.federation.poll import BundlePoller
from eastwest.server.federation.serve import endpoint_trust, listen_bundle_endpoint, publish_wait
from eastwest.server.gate import Gate, PortGate, SocketGate, standing
from eastwest.server.http import HealthServer
from eastwest.server.identity import ServerIdentity
from eastwest.server.impact.service import Impacts, ImpactService
from eastwest.server.ledger.keeper import Ledger
from eastwest.server.loaded import config_loaded
from eastwest.server.log.world import listen_log, open_witnesses
from eastwest.server.log_indexer import LogIndexer
from eastwest.server.log_retention import Retention
from eastwest.server.measuring import Authorities, Measuring
from eastwest.server.mtls.reports import Reports
from eastwest.server.mtls.sensors import SensorHistory
from eastwest.server.mtls.service import MtlsService
from eastwest.server.public.endpoints import Revocable, listen_oidc, public_addresses
from eastwest.server.public.https import CertificateFiles
from eastwest.server.receipts import Receipts
from eastwest.server.registration.purge import keep_purging
from eastwest.server.rollout.keeper import RolloutKeeper
from eastwest.server.rollout.service import RolloutService
from eastwest.server.spire.admission import Admission
from eastwest.server.spire.agent import AgentService
from eastwest.server.spire.bundle import bundle_service
from eastwest.server.spire.debug import debug_service
from eastwest.server.spire.entry import EntryService
from eastwest.server.spire.federated_bundle import FederatedBundles
from eastwest.server.spire.localauthority import LocalAuthority
from eastwest.server.spire.logger import logger_service
from eastwest.server.spire.svid import SvidService
from eastwest.server.spire.trustdomain import TrustDomainService
from eastwest.server.tally import Tally
from eastwest.server.telemetry import FederationMetrics, Metrics
from eastwest.server.tokens.parts import Around, TokenService
from eastwest.server.traced import TracedRecorder
from eastwest.server.verification.keeper import Verification
from eastwest.server.verification.service import verification_service
from eastwest.server.view import AgentView
from eastwest.spiffe.bundle import Bundle, JwtAuthority
from eastwest.spiffe.selector_schema import WELL_KNOWN, SelectorSchemas
from eastwest.store.containment import SqliteContainments
from eastwest.store.estate import SqliteEstates
from eastwest.store.federation import SqliteFederation
from eastwest.store.log_files import LogDirectory
from eastwest.store.registry import SqliteRegistryStore
from eastwest.store.sensors import SqliteSensors

SOCKET_MODE = 0o600
_log = structlog.get_logger()


class Server:
    """One running authority. Make it with ``start``; ``run`` waits for the end; leaving the stack stops it."""

    def __init__(self, config: ServerConfig, clock: Clock, entropy: Entropy) -> None:
        self._config = config
        self._clock = clock
        self._entropy = entropy
        self._tasks: list[asyncio.Task[None]] = []
        self.feeders: list[Feeder] = []
        self._problems: dict[str, str] = {}
        self._pairs: dict[str, CertificateFiles | None] = {}
        self._log_failed_at: datetime | None = None
        self._started = clock.monotonic()
        self._admission = Admission(config.file.attest_rate, config.file.attest_burst, clock)
        self.metrics = Metrics()

    async def start(self, stack: AsyncExitStack) -> None:
        """Start everything; what was started is stopped when ``stack`` unwinds, also after a failure here."""
        config = self._config
        paths = config.paths
        stack.enter_context(locked(paths.lock, "server"))
        opened = await open_authority(config, self._clock, self._entropy, stack)
        database, self.log, self.journal, self.ca = opened.database, opened.log, opened.journal, opened.keeper
        upstream = self.ca.maker.upstream
        if self.ca.signing is None and upstream is not None:
            await self.ca.prepare(Kind.X509, f"{config.trust_domain.uri}/spire/server")
        if self.ca.signing is None:
            raise FailedPrecondition(
                "the trust domain has no issuing CA yet",
                fix=f"eastwest ca export-csr --data {paths.data}, have it signed, then eastwest ca import",
            )
        self._check_clock(self.ca.signing.authorities[DEFAULT])
        self.tally = Tally(self.journal, self._clock)
        await self._record_settings()
        self.trust = self.ca.trust
        self._log_lacks = opened.log_lacks
        self.witnesses = open_witnesses(config, self.log, self.journal, self._clock, self.metrics.registry)
        self.metrics.log_size.set_function(lambda: self.log.size)
        for path in self.log.repaired:
            _log.warning("log.file_restored", path=path)
        self.revocable = Revocable(config, database, self.journal, self.ca, self._clock)
        automatic = config.file.ca_rotation == "auto"
        self.upstream = (
            UpstreamWatch(self.ca, upstream, self._clock, automatic=automatic, lasting=self._is_lasting)
            if upstream is not None
            else None
        )
        pool = ThreadSigningPool()
        stack.callback(pool.close)
        checks = None
        if config.file.csr_workers:
            checks = CsrWorkers(config.file.csr_workers)
            stack.push_async_callback(checks.close)
            checks.start()
        self.issuer = Issuer(
            authorities=self.ca.signing.authorities,
            post_quantum=self.ca.signing.post_quantum,
            jwt_key=self.ca.signing.jwt_key,
            recorder=TracedRecorder(self.log),
            clock=self._clock,
            entropy=self._entropy,
            pool=pool,
            checks=checks,
            instance=Instance(name="server-1", build=__version__),
            jwt_issuer=config.file.jwt_issuer or None,
            revocation=self.revocable.urls,
            register=self.revocable.store,
        )
        self.containments = Containments(SqliteContainments(database), self.journal, self._clock, self._entropy)
        await self.containments.load()
        self.issuer.refuse = self.containments.check
        self.registry = await Registry.open(config.trust_domain, SqliteRegistryStore(database), self._entropy)
        self.registry.entries.rules = Rules(_selector_schemas(config))
        self.administrators = Administrators()
        self.ledger = await Ledger.open(
            paths.ledger,
            trust_domain=config.trust_domain.name,
            settings=config.file.ledger or LedgerSettings(),
            max_rows=config.file.ledger_max_rows,
            log=self.log,
            journal=self.journal,
            clock=self._clock,
            old=database,
        )
        stack.push_async_callback(self.ledger.close)
        self.estates = SqliteEstates(database)
        self.estate = EstateKeeper(
            config.trust_domain,
            self.estates,
            self.registry,
            self.issuer,
            self.journal,
            self._clock,
            self.administrators,
        )
        ledger_settings = config.file.ledger or LedgerSettings()
        self.impacts = Impacts(self.estate, paths.ledger, paths.database, memory_mb=ledger_settings.query_mib)
        self.federation = await Federation.open(
            config.trust_domain, SqliteFederation(database), self.journal, self._clock
        )
        self.metrics.registry.register(FederationMetrics(self.federation.ages))
        self.ca.publish_wait = lambda kind: publish_wait(config, self.federation, kind)
        self.estate.federation = self.federation
        self.registry.entries.rules = replace(self.registry.entries.rules, federates=self.federation.knows)
        self.estate.on_environments = self.ca.want
        self.estate.without_ca = self.ca.without_ca
        self.estate.makes_tokens = config.file.tokens is not None
        parts = TwoPersons(self.estate, self.estates, self.registry, database, self.journal, self._clock, self._entropy)
        self.changes, self.emergency = parts.changes, parts.emergency
        self.changes.impact = self.impacts.breaks
        self.metrics.break_glass.set_function(lambda: self.emergency.until is not None)
        await self.estate.load()
        if config.file.post_quantum:
            await self.ca.offer_post_quantum(f"{config.trust_domain.uri}/spire/server")
        self.issuer.replace(
            authorities=self.ca.signing.authorities,
            post_quantum=self.ca.signing.post_quantum,
            awaiting=self.ca.environments,
        )
        self.view = AgentView(
            self.registry,
            self.estate,
            lambda: self.bundle,
            lambda: self.federation.bundles,
            self._clock,
            lambda: self.trust.tainted_issuing,
            lambda: self.issuer.profiles,
        )
        limit = config.file.clock_skew_limit
        noted = self.registry.nodes.set_agent_version
        self.hub = ControlHub(self.view.of, self._clock, self._entropy, self.metrics, limit, noted)
        self.view.capabilities = self.hub.capabilities
        self.verification = Verification(
            config.trust_domain,
            self.hub,
            self.view,
            self.estate,
            SqliteEstates(database),
            self.issuer,
            self.journal,
            self._clock,
            self._entropy,
            lambda: [root.der for root in self.bundle.x509_authorities],
            self.metrics,
        )
        self.view.canaries = self.verification.canaries
        around = Around(
            config,
            database,
            opened.keys,
            self.estate,
            self.view,
            self.journal,
            self._clock,
            self._entropy,
            pool,
            lambda name: standing(name, self.administrators, self.registry, self._clock.now()),
            lambda: self.containments.contained,
        )
        self.tokens = await TokenService.open(around, self.hub.wake)
        self.confirmations = Confirmations(
            opened.store, self.registry, self._clock, lambda: self.bundle.sequence, self.hub.serves
        )
        await self.confirmations.load()
        self.hub.on_ack = self.confirmations.acknowledged
        self.ca.holders = self.confirmations.holders
        self.trust.subscribe(lambda _bundle: self.hub.wake())
        self.view.contained = lambda: self.containments.contained
        self.containment_api = assemble(
            self.containments,
            paths,
            self.hub,
            self.registry,
            lambda: self.estate.intended,
            self.ledger,
            self.log,
            self.tokens.approvals if self.tokens is not None else None,
            self.changes,
            self.metrics,
            self._clock,
        )
        stack.push_async_callback(self.containments.stop)
        self.registry.subscribe(self._registry_changed)
        self.registry.subscribe(self.estate.registry_changed)
        self.estate.on_change = self.hub.wake
        self.hub.rollout = lambda: self.estate.rollout
        spans = SqliteSensors(database)
        self.sensors = SensorHistory(spans, self.hub, self._clock)
        await self.sensors.load()
        self.mtls = Reports(self.estate, self.ledger, spans, self.sensors, self.hub, self._clock)
        self.estate.warn = self.mtls.warnings
        self.rollouts = RolloutKeeper(
            self.estate,
            self.hub,
            self.view,
            self.ledger.search,
            self._clock,
            config.trust_domain.uri,
            f"{config.trust_domain.uri}/spire/server",
        )
        self.estate.breaks = self.impacts.breaks
        self._measure_rollouts()
        self.federation.subscribe(self.hub.wake)
        self.poller = BundlePoller(self.federation, endpoint_trust(config), self._clock, self._entropy)
        # With our issuing CAs: SPIRE's own test client, for one, shows its leaf alone.
        self.identity = ServerIdentity(
            self.issuer, lambda: (*self.trust.roots, *self.ca.state.issuing_certificates()), self._clock
        )
        await self.identity.renew()
        self.rotator = Rotator(self.ca, self._clock, automatic=automatic)
        self.confirmations.changed = self.rotator.changed
        self.ca.on_change = self._authority_changed
        await asyncio.to_thread(write_public, paths.certificates, self.ca.state)
        self.receipts = Receipts(self.log, paths.log_index, self.journal)
        stack.callback(self.receipts.close)
        await self._listen(stack)
        stack.push_async_callback(self._stop_tasks)
        self._spawn(self.identity.keep(), "identity")
        self._spawn(self.log.run(self._log_failed, config.file.checkpoint_interval), "log")
        indexer = LogIndexer(paths.log_index, LogDirectory(paths.log), lambda: self.log.checkpoint)
        self.log.on_published.append(indexer.wake)
        self.log.on_published.append(self.receipts.wake)
        indexer.on_grown.append(self.receipts.wake)
        self._spawn(indexer.run(), "log index")
        if config.file.log is not None and config.file.log.keep_entries_days:
            days, domain = config.file.log.keep_entries_days, config.trust_domain.uri
            retention = Retention(self.log, LogDirectory(paths.log), self.journal, self._clock, days, domain)
            self._spawn(retention.run(), "log retention")
        if self.witnesses is not None:
            self._spawn(self.witnesses.run(), "witnesses")
        self._spawn(self._expire_entries(), "expiry")
        self._spawn(self.tally.run(), "tally")
        stack.push_async_callback(self._tell_rest)
        self._spawn(self.estate.keep_callers(), "callers")
        self._spawn(self.rollouts.run(), "rollout")
        self._spawn(self.emergency.run(), "break-glass")
        self._spawn(self.ledger.run(), "ledger")
        self._spawn(self.sensors.run(), "sensors")
        await self._export(stack)
        if config.file.node_purge_after:
            purging = keep_purging(self.registry, self.journal, self._clock, config.file.node_purge_after)
            self._spawn(purging, "node purge")
        self._spawn(self.rotator.run(), "rotation")
        if self.upstream is not None:
            self._spawn(self.upstream.run(), "upstream")
        self._spawn(self.confirmations.keep(), "confirmations")
        if config.file.verify_interval:
            ports = config.file.verify_allow_ports
            self._spawn(self.verification.run_by_itself(config.file.verify_interval, ports), "verification")
        self._spawn(self.poller.run(), "federation")
        await self.log.flush()

    def _meter(self) -> FailureMeter:
        """Begin to measure what can be read only now that everything is there."""
        measuring = Measuring(self.metrics, self._clock)
        measuring.control(self.hub)
        measuring.log(lambda: self.log.published_at)
        measuring.certificates(lambda: self.ca.state, lambda: self.identity.expires_at)
        self._spawn(measuring.keep(self.ledger.waiting), "measuring")
        meter = FailureMeter(self.metrics, lambda: self.estate.intended, Authorities(lambda: self.ca.state))
        meter.follow()

        def activated() -> None:
            self.metrics.activations.inc()
            self.emergency.activated()
            meter.follow()

        self.estate.on_activation = activated
        return meter

    def _rollout_service(self, gate: Gate) -> Servable:
        rollout = RolloutService(self.estate, self.estates, self.rollouts, self.hub, self.view, gate)
        rollout.verified = self.verification.last
        return rollout.service()

    def _measure_rollouts(self) -> None:
        """Have gauges follow the rollout, and what watches it told of each step."""

        def follow() -> None:
            progress = self.estate.tables.progress
            under_way = progress if progress is not None and progress.is_open else None
            self.metrics.rollout_open.set(under_way is not None)
            self.metrics.rollout_ring.set(under_way.ring if under_way is not None else -1)
            self.metrics.rollout_paused.set(under_way is not None and under_way.paused)
            self.rollouts.changed()

        self.estate.on_rollout = follow
        self.estate.on_rollout_end = lambda ended: self.metrics.rollout_ended.labels(ended.state.value).inc()
        follow()

    async def _export(self, stack: AsyncExitStack) -> None:
        """Begin to hand decisions on."""
        self.feeders = open_feeders(self._config, self.ledger, self._clock, self._entropy, self.metrics)
        for feeder in self.feeders:
            stack.push_async_callback(feeder.close)
            self._spawn(feeder.run(), f"export {feeder.name}")

    async def _listen(self, stack: AsyncExitStack) -> None:
        config, paths = self._config, self._config.paths
        assert self.identity.tls is not None
        issuers = OwnIssuers(lambda: self.ca.state)
        port_gate = PortGate(self.registry, self.administrators, self._clock, issuers, self.tally)
        port_gate.refuse = self.containments.check
        await self.containments.void_again()
        socket_gate = SocketGate(self.administrators, self.tally)
        if self.tokens is not None:
            self.tokens.count(self.metrics.token_requests)
            self.tokens.listen(self.identity, stack, self._spawn)
        view, meter = self.view, self._meter()
        control = control_service(
            self.hub,
            self.ledger,
            self.metrics,
            port_gate,
            view.services,
            view.calls,
            meter.took,
            self.rollouts.watch,
        )
        remote, admin = (
            AdminService(self.registry, self.estate, self.hub, self.ledger, self.log, self.journal, self._clock, gate)
            for gate in (port_gate, socket_gate)
        )
        agents = Listener([*self._spire(port_gate), *control, remote.service()], implementation=config.file.http2)
        await agents.listen_tcp(config.file.agent_address, config.file.agent_port, self.identity.tls.listening)
        stack.push_async_callback(agents.close)
        health = HealthServer(self.metrics.registry, self.problems, self.warnings)
        health_port = health.bind(config.file.health_address, config.file.health_port)
        self._spawn(health.run(), "health")
        stack.callback(health.stop)
        remote.agent_address = admin.agent_address = f"{config.file.agent_address}:{agents.port}"
        remote.before_flush = admin.before_flush = self.tally.flush
        remote.health_address = admin.health_address = f"{config.file.health_address}:{health_port}"
        log_levels = logger_service(LEVEL, self.journal, f"{config.trust_domain.uri}/spire/server", socket_gate)
        files = CaFiles(self.ca, self._clock, self._entropy)
        authority = CaService(self.ca, files, socket_gate, config.file.ca_rotation)
        local = Listener(
            [
                *self._spire(socket_gate),
                admin.service(),
                log_levels,
                authority.service(),
                LocalAuthority(self.ca, socket_gate).service(),
                debug_service(self.registry, lambda: self.identity.chain, self._uptime, socket_gate),
                self.revocable.service(socket_gate),
            ],
            implementation=config.file.http2,
        )
        await local.listen_unix(paths.admin_socket, SOCKET_MODE)
        stack.push_async_callback(local.close)
        share_socket(paths, config.file.admin_socket_group)
        replace_file(paths.agent_port, f"{agents.port}\n".encode(), 0o644)
        replace_file(paths.health_port, f"{health_port}\n".encode(), 0o644)
        stack.callback(paths.agent_port.unlink, missing_ok=True)
        stack.callback(paths.health_port.unlink, missing_ok=True)
        self.agent_address, self.health_address = admin.agent_address, admin.health_address
        oidc = listen_oidc(config, lambda: self.bundle, self._clock, stack, self._spawn)
        await self.revocable.listen(stack, self._spawn)
        endpoint = listen_bundle_endpoint(config, lambda: self.bundle, self.identity, stack, self._spawn)
        log = listen_log(config, self.log, stack, self._spawn)
        self._pairs = {"oidc": oidc, "bundle_endpoint": endpoint, "log": log}

    def _spire(self, gate: Gate) -> list[Servable]:
        context = NodeContext(
            trust_domain=self._config.trust_domain,
            clock=self._clock,
            entropy=self._entropy,
            tokens=self.registry.tokens,
            bundle=lambda: self.bundle,
        )
        attestors = _node_attestors(self._config, context)
        ttl = self._config.file.agent_svid_ttl
        agent = AgentService(
            self.registry, self.issuer, attestors, self.journal, self._clock, ttl, gate, self._admission, self.tally
        )
        jwt_ttl = self._config.file.jwt_svid_ttl
        svid = SvidService(self.registry, self.issuer, self.hub, self._clock, self.metrics, jwt_ttl, gate, self.tally)
        entry = EntryService(self.registry, self.journal, self._clock, gate, lambda: self.ca.state.taints)
        return [
            agent.service(),
            svid.service(),
            entry.service(),
            bundle_service(
                lambda: self.bundle,
                FederatedBundles(self.federation, self.registry, self.journal, self._clock, gate),
                gate,
                limit=MAX_MESSAGE if isinstance(gate, SocketGate) else SMALL_MESSAGE,
                on_fetch=self.confirmations.fetched,
                publish=self._publish_jwt,
                append=self.ca.append,
            ),
            TrustDomainService(self.federation, self.poller, gate).service(),
            federation_service(self.federation, gate),
            ImpactService(self.impacts, self.estate, gate).service(),
            Explanations(
                self.estate, self._files_of, self.ledger.search, gate, lambda: self.containments.contained
            ).service(),
            ChangeService(self.changes, gate).service(),
            verification_service(self.verification, gate),
            self.receipts.service(gate),
            MtlsService(self.mtls, self.estate, self.journal, self._clock, gate).service(),
            self._rollout_service(gate),
            self.containment_api.service(gate),
            HealthService(self.problems).service(),
            *(self.tokens.services(gate) if self.tokens is not None else ()),
        ]

    def warnings(self) -> list[str]:
        """What people should see to although the server can issue."""
        now = self._clock.now()
        pairs = ((name, files.complaint(now)) for name, files in self._pairs.items() if files is not None)
        broken = [f"the certificate of {name} is not fit for use: {told}" for name, told in pairs if told]
        waiting = self.ca.without_ca(self.ca.environments)
        keys = [self.tokens.keys.problem] if self.tokens is not None and self.tokens.keys.problem else []
        log = [self._log_lacks] if self._log_lacks else []
        log += self.witnesses.warnings() if self.witnesses is not None else []
        others = [
            *self.federation.warnings(),
            *broken,
            *log,
            *keys,
            *self.estate.failing,
            *self.estate.warnings(),
            *self._overdue(now.date()),
            *self.ledger.warnings(),
            *self.verification.warnings(),
            *self.rollouts.warnings(),
            *self.emergency.warnings(),
            *failing_exports(self.feeders),
        ]
        return sorted([*self.ca.problems.values(), *waiting, *others])

    async def _files_of(self, version: str) -> dict[str, bytes] | None:
        """The files of an applied version."""
        applied = await self.estates.find(version)
        return applied.files if applied is not None else None

    def _overdue(self, today: date) -> list[str]:
        """What was meant to be enforced by now."""
        estate = self.estate.intended
        found = trials(estate, today) if estate is not None else ()
        return [f"{trial.where}: {trial.sentence}" for trial in found if trial.overdue]

    async def _publish_jwt(self, key: JwtAuthority, actor: str) -> Bundle:
        """Make the JWT key of a server below this one known, here and above."""
        if self.upstream is not None:
            return await self.upstream.publish(key, actor)
        return await self.ca.adopt(jwt=[key], actor=actor, source=Source.EXTERNAL)

    async def _is_lasting(self, root: Root) -> bool:
        """Whether something below an old root may live that no node says it holds: devices' certificates, CAs below."""
        now = self._clock.now()
        if self._config.file.downstream_depth and any(ca.not_after > now.timestamp() for ca in root.issuing):
            return True
        issuers = {issuer for issuer, _shard in await self.revocable.store.shards(now)}
        return any(ca.id in issuers for ca in root.issuing)

    def problems(self) -> list[str]:
        """Why the server cannot issue now; empty when it can."""
        if self._log_failed_at is not None and self.log.published_at and self.log.published_at > self._log_failed_at:
            self._problems.pop("log", None)
        witnessing = self.witnesses.problems() if self.witnesses is not None else []
        return sorted([*self._problems.values(), *witnessing])

    def _check_clock(self, authority: Authority) -> None:
        now = self._clock.now()
        if now < authority.not_before:
            raise FailedPrecondition(
                f"the clock says {now:%Y-%m-%d %H:%M:%S}Z, before the issuing CA began", fix="set the clock"
            )
        if now >= authority.not_after:
            raise FailedPrecondition(
                f"the issuing CA ended at {authority.not_after:%Y-%m-%d %H:%M:%S}Z",
                fix="set the clock; for a CA that has really ended see docs/how-to/rotate-the-ca.md",
            )

    @property
    def bundle(self) -> Bundle:
        """The own trust domain's bundle as it is now."""
        return self.trust.bundle

    async def _authority_changed(self) -> None:
        """What a change of the CA sets off: sign with the new keys, show a certificate that chains to them."""
        signing = self.ca.signing
        assert signing is not None
        self.issuer.replace(
            authorities=signing.authorities,
            post_quantum=signing.post_quantum,
            jwt_key=signing.jwt_key,
            awaiting=self.ca.environments,
        )
        await asyncio.to_thread(write_public, self._config.paths.certificates, self.ca.state)
        await self.identity.follow()
        self.rotator.changed.set()

    async def _record_settings(self) -> None:
        """A server whose disk is full must start all the same, to say so."""
        try:
            text = await asyncio.to_thread(self._config.paths.config.read_bytes)
            await self.journal.record_all([config_loaded(self._config, text)])
        except (LogUnavailable, OSError) as error:
            _log.warning("log.settings_not_recorded", error=str(error))

    async def _tell_rest(self) -> None:
        """At the end: what was counted and would have been told later."""
        with suppress(Error):
            await self.tally.flush()

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
    """Run until SIGTERM or SIGINT; once ready, ``announce`` gets a line and one more for each public address.

    systemd is told too.
    """
    raise_file_limit()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        attributes = {"service.name": "eastwest-server", "eastwest.trust_domain": config.trust_domain.name}
        stop_tracing = start_tracing(config.file.tracing, attributes, f"{config.paths.config}: tracing")
        stack.push_async_callback(asyncio.to_thread, stop_tracing)
        server = Server(config, clock, entropy)
        with loading():
            await server.start(stack)
        announce(
            f"server ready: trust domain {config.trust_domain}, agents at {server.agent_address}, "
            f"admin socket {config.paths.admin_socket}, health http://{server.health_address}/ready"
        )
        for line in public_addresses(config):
            announce(f"  {line}")
        notify("READY=1")
        await stop.wait()


def _selector_schemas(config: ServerConfig) -> SelectorSchemas:
    """What is known here of selectors: well-known types, those of installed attestors, and those that are declared."""
    plugins = (*installed(NODE_ATTESTORS), *installed(WORKLOAD_ATTESTORS))
    return WELL_KNOWN.with_types([*plugins, *config.file.selector_types])


def _node_attestors(config: ServerConfig, context: NodeContext) -> Mapping[str, NodeAttestor]:
    """``join_token``, and those that the configuration has a table for."""
    tables: dict[str, Mapping[str, Any]] = {"join_token": {}, **config.file.node_attestors}
    return {
        name: load_plugin(NODE_ATTESTORS, name, table, context, f"{config.paths.config}: node_attestors.{name}")
        for name, table in tables.items()
    }
