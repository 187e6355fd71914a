"""What each local Envoy is told, made from the known state and the SVIDs at hand, and what became of it.

Serves the three ports of the config and log streams: snapshots and secrets by attested caller, the rules in force
for reading decisions, and the statuses that go back to the server.
"""

from __future__ import annotations

from base64 import standard_b64encode
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from textwrap import wrap
from typing import Any, TypeVar

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import mldsa

from eastwest import errors
from eastwest.agent.callers import Attested, NoIdentity, live_entries, served_entries
from eastwest.agent.changes import Changes
from eastwest.agent.envoys import Envoys, Given
from eastwest.agent.handshakes import Outgoing
from eastwest.agent.identities import Held, Identities
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.recording import Recording
from eastwest.agent.taint import Standing
from eastwest.agent.xds import Principal, SidecarStatus
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.clock import Clock
from eastwest.mesh import names
from eastwest.mesh.action import InForce, inbound_version
from eastwest.mesh.resources import (
    config_resources,
    required_extensions,
    sidecar_secrets,
    verifiable,
    versions_in_force,
)
from eastwest.mesh.secrets import Identity, SecretSet
from eastwest.mesh.settings import Settings
from eastwest.mesh.snapshot import Resource, Snapshot
from eastwest.policy.enforcement import Inbound, Sidecar, uses_tokens
from eastwest.registry.containment import NOBODY, Contained
from eastwest.registry.entry import Entry
from eastwest.rpc.peer import started_at
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector

MAX_VERSIONS = 10_000
MAX_SIDECARS = 900
"""Sidecars of one node in a report."""
MAX_BEHIND = 100
"""Processes with streams of secrets alone that a report names because they are behind; a server takes 1000 in all."""
MAX_NODE_ID = 256
MAX_ERROR = 512
"""Bytes of them in a report, of which a server keeps as many characters."""
T = TypeVar("T")
_MadeOf = tuple[Sidecar, Held | None, Mapping[TrustDomain, Bundle], bytes, Contained, bool]
_Snapshots = OrderedDict[tuple[str, str], tuple[_MadeOf, Snapshot]]
_Config = tuple[Sidecar, bytes, Contained, bool, list[Resource]]
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Instance:
    """One sidecar with a stream: the Envoy's process, where its way out is, and what it enforces by intention."""

    node_id: str
    pid: int
    egress: str
    sidecar: Sidecar
    given: Snapshot


class Sidecars:
    """Config and secrets for local Envoys. ``changes`` counts what the server should hear about them."""

    def __init__(
        self,
        knowledge: Knowledge,
        identities: Identities,
        settings: Settings,
        clock: Clock,
        started: Callable[[int], int] = started_at,
        recording: Recording | None = None,
    ) -> None:
        self.changes = Changes()
        self.envoys = Envoys(clock, self.changes, started)
        self.on_enforced: Callable[[str, str], None] = lambda _spiffe_id, _version: None
        """Hears of each sidecar that has come to acknowledge all of another version."""
        self.on_contained: Callable[[int, Sidecar, int], None] = lambda _pid, _sidecar, _generation: None
        """Hears which generation of containments a process enforces by a workload's rules, when that is another.

        0: its stream has ended.
        """
        self._knowledge = knowledge
        self._identities = identities
        self._settings = settings
        self._clock = clock
        self._recording = recording or Recording(knowledge)
        self._config: OrderedDict[tuple[str, str], _Config] = OrderedDict()
        self._snapshots: _Snapshots = OrderedDict()
        self._undemanding: _Snapshots = OrderedDict()  # the last that any Envoy can take
        self._noted: dict[SpiffeId, tuple[Sidecar, str]] = {}
        self._pem: dict[str, tuple[Held, Identity]] = {}
        self._roots: dict[str, tuple[Bundle, bytes]] = {}
        self._quantum_safe: dict[str, tuple[Bundle, bytes]] = {}
        self._in_force: OrderedDict[str, InForce] = OrderedDict()
        self._hashes: dict[str, tuple[Inbound, str]] = {}  # of the rules that were asked for last, by service
        self._problems: dict[str, str] = {}
        self._statuses: OrderedDict[tuple[str, int], control.SidecarStatus] = OrderedDict()
        self._connected_at: dict[tuple[str, int], datetime] = {}
        self._egress: dict[tuple[str, int], str] = {}
        self._examined: dict[tuple[str, int], tuple[str, bytes]] = {}

    def on_state(self) -> None:
        """Remember what each service's rules stand for, before any Envoy can report by them."""
        state = self._knowledge.state
        for spiffe_id, sidecar in state.sidecars.items():
            policy_version = state.policy_version_of(spiffe_id)
            if (sidecar, policy_version) != self._noted.get(spiffe_id):
                refusing = self._recording.refusing(sidecar)
                for each in (refusing, sidecar) if refusing is not sidecar else (sidecar,):
                    for version, rules in versions_in_force(each, policy_version).items():
                        self._in_force[version] = rules
                        self._in_force.move_to_end(version)
        self._hashes.clear()
        self._noted = {each: (sidecar, state.policy_version_of(each)) for each, sidecar in state.sidecars.items()}
        while len(self._in_force) > MAX_VERSIONS:
            self._in_force.popitem(last=False)

    async def snapshots(self, principal: Principal) -> AsyncIterator[Snapshot]:
        """Config of the caller's workload; ends with its last entry."""
        egress = principal.egress_socket if isinstance(principal, Attested) else ""
        # Sockets of TCP services lie beside the one for HTTP.
        beside = egress.rpartition("/")[0]
        settings = (
            replace(self._settings, egress_socket=egress, tcp_egress_directory=beside) if egress else self._settings
        )
        async for snapshot in self._watch(principal, lambda entries: self._snapshot(entries, settings)):
            yield snapshot

    async def secrets(self, principal: Principal) -> AsyncIterator[SecretSet]:
        """All SVIDs and bundles of the caller, for any Envoy."""
        async for secrets in self._watch(principal, self._secrets, served_entries):
            yield secrets

    def current(self, principal: Principal, service: str) -> InForce | None:
        """What ``service`` of the caller's workload enforces now."""
        for sidecar in self._sidecars(principal.spiffe_ids):
            for inbound in sidecar.inbound:
                if inbound.service == service:
                    return self._in_force.get(self._version_of(inbound))
        return None

    def _version_of(self, inbound: Inbound) -> str:
        known = self._hashes.get(inbound.service)
        if known is None or known[0] is not inbound:
            known = self._hashes[inbound.service] = (inbound, inbound_version(inbound))
        return known[1]

    def outgoing(self, principal: Principal, service: str) -> Outgoing | None:
        """Who of the caller's workload calls ``service``; None where its sidecar has no way there."""
        for sidecar in self._sidecars(principal.spiffe_ids):
            if any(outbound.service == service for outbound in sidecar.outbound):
                version = self._knowledge.state.policy_version_of(SpiffeId.parse(sidecar.spiffe_id))
                return Outgoing(sidecar.spiffe_id, version or sidecar.version)
        return None

    def version(self, version: str) -> InForce | None:
        """What a version of a service's rules stands for."""
        return self._in_force.get(version)

    def report(self, status: SidecarStatus) -> None:
        """Take how far one sidecar has come. Raises ``Exhausted`` where there is no room for one more."""
        session = status.session
        key = (session.node_id, status.principal.pid)
        if not session.node_id:
            return
        sidecar = next(self._sidecars(status.principal.spiffe_ids), None)
        spiffe_id = sidecar.spiffe_id if sidecar is not None else status.principal.spiffe_ids[0]
        if status.connected:
            self.envoys.admit(*key, spiffe_id)
        elif not self.envoys.is_open(*key):
            return  # refused, or another stream of the same Envoy was the last
        refusal = session.refusals[-1] if session.refusals else None
        now = self._clock.now()
        connected_at = self._connected_at.setdefault(key, now)
        told = control.SidecarStatus(
            node_id=session.node_id,
            spiffe_id=spiffe_id,
            acknowledged_version=session.version_acked,
            error=f"{', '.join(refusal.names)}: {refusal.message}" if refusal else "",
            connected_at=int(connected_at.timestamp()),
            connected=status.connected,
            contained=session.contained_acked,
        )
        principal = status.principal
        self._egress[key] = principal.egress_socket if isinstance(principal, Attested) else ""
        self.envoys.told(*key, spiffe_id, session.secrets_acked)
        if not status.connected:
            self._connected_at.pop(key, None)
            self._egress.pop(key, None)
            self._examined.pop(key, None)
            self.envoys.left(*key)
            if sidecar is not None:
                self.on_contained(status.principal.pid, sidecar, 0)
        before = self._statuses.get(key)
        if before == told:
            return
        if told.acknowledged_version and (before is None or before.acknowledged_version != told.acknowledged_version):
            self.on_enforced(spiffe_id, told.acknowledged_version)
        news = before is None or not before.connected or before.contained != told.contained
        if sidecar is not None and told.connected and told.contained and news:
            self.on_contained(status.principal.pid, sidecar, told.contained)
        if told.connected and key not in self._statuses:
            for other in [k for k, s in self._statuses.items() if k[0] == key[0] and not s.connected]:
                del self._statuses[other]
        self._statuses[key] = told
        self._statuses.move_to_end(key)
        while len(self._statuses) > MAX_SIDECARS:
            # Never one that has a stream: of these there are no more.
            del self._statuses[next(k for k, s in self._statuses.items() if not s.connected)]
        self.changes.bump()

    def statuses(self) -> Sequence[control.SidecarStatus]:
        """What the server is told of the sidecars of this node, those included that are away and still run."""
        intended = {str(spiffe_id): s.version for spiffe_id, s in self._knowledge.state.sidecars.items()}
        told: list[control.SidecarStatus] = []
        others: list[control.SidecarStatus] = []  # that have left and said nothing which counts
        for key, kept in {**self._remembered(), **self._statuses}.items():
            status = control.SidecarStatus()
            status.CopyFrom(kept)
            status.node_id = _cut(kept.node_id, MAX_NODE_ID)
            status.intended_version = intended.get(kept.spiffe_id, "")
            status.error = _cut(kept.error or self._problems.get(kept.spiffe_id, ""), MAX_ERROR)
            given = self.envoys.given(*key)
            if given is not None and (kept.connected or self._is_registered(kept.spiffe_id)):
                status.bundle_sequence = given.sequence if self.envoys.counts(*key) else 0
                status.tainted = self._is_tainted(given)
            status.examined_run, status.examination = self._examined.get(key, ("", b""))
            (told if kept.connected or given is not None else others).append(status)
        return (told + others)[:MAX_SIDECARS]

    def instances(self) -> list[Instance]:
        """The sidecars of this node that have a stream, and what each was given last."""
        found = []
        for (node_id, pid), egress in self._egress.items():
            spiffe_id = self._statuses[node_id, pid].spiffe_id
            kept = self._snapshots.get((spiffe_id, egress or self._settings.egress_socket))
            sidecar = self._knowledge.state.sidecars.get(SpiffeId.parse(spiffe_id))
            if kept is not None and sidecar is not None:
                found.append(Instance(node_id, pid, egress, sidecar, kept[1]))
        return found

    def examined(self, node_id: str, pid: int, run: str, examination: bytes) -> None:
        """Tell the server what was found at one of them in a verify run (JSON of ``Examination``)."""
        if (node_id, pid) in self._egress:
            self._examined[node_id, pid] = run, examination
            self.changes.bump()

    def behind(self, sequence: int) -> tuple[Sequence[control.SidecarStatus], int]:
        """Processes with streams of secrets alone that stand at an older bundle, those furthest behind first.

        And the oldest that any stands at which is not among them; ``sequence`` where there is none.
        """
        standing: dict[tuple[str, int], int] = {}
        for envoy in self.envoys.secrets_alone():
            if self._is_registered(envoy.spiffe_id):
                at = envoy.sequence if self.envoys.counts(envoy.node_id, envoy.pid) else 0
                standing[envoy.spiffe_id, envoy.pid] = min(at, standing.get((envoy.spiffe_id, envoy.pid), at))
        old = sorted((at, spiffe_id, pid) for (spiffe_id, pid), at in standing.items() if at < sequence)
        named = [
            control.SidecarStatus(
                node_id=f"pid {pid}, secrets alone", spiffe_id=spiffe_id, connected=True, bundle_sequence=at
            )
            for at, spiffe_id, pid in old[:MAX_BEHIND]
        ]
        return named, min((at for at, _, _ in old[MAX_BEHIND:]), default=sequence)

    def taken(self, stream: object, principal: Principal, marker: object) -> None:
        """Take how far a stream of secrets alone has come."""
        self.envoys.taken(stream, principal.pid, principal.spiffe_ids[0], marker)

    @property
    def tainted(self) -> int:
        """How many Envoys still show what stems from a tainted authority."""
        shown = sum(status.tainted for status in self.statuses())
        return shown + sum(self._is_tainted(given) for given in self._secrets_alone())

    def _remembered(self) -> dict[tuple[str, int], control.SidecarStatus]:
        """Those that have not come back since this agent started."""
        return {
            (envoy.node_id, envoy.pid): control.SidecarStatus(node_id=envoy.node_id, spiffe_id=envoy.spiffe_id)
            for envoy, connected in self.envoys.sidecars()
            if not connected and self._is_registered(envoy.spiffe_id)
        }

    def _secrets_alone(self) -> Iterator[Given]:
        return (envoy.given for envoy in self.envoys.secrets_alone() if self._is_registered(envoy.spiffe_id))

    def _is_registered(self, spiffe_id: str) -> bool:
        """Whether an Envoy that is away may come back: nobody waits for one whose entry is gone."""
        return self._knowledge.state.has_entry(spiffe_id)

    def _is_tainted(self, given: Given) -> bool:
        ground, now = self._knowledge.ground, self._clock.now()
        return not ground.is_clean and any(ground.standing(chain, now) is not Standing.FINE for chain in given.chains)

    async def _watch(
        self,
        principal: Principal,
        view: Callable[[tuple[Entry, ...]], T | None],
        entries_of: Callable[[Knowledge, frozenset[Selector], Clock], tuple[Entry, ...]] = live_entries,
    ) -> AsyncIterator[T]:
        assert isinstance(principal, Attested)
        last: T | None = None
        while True:
            seen = self._knowledge.changes.count
            try:
                newest = view(entries_of(self._knowledge, principal.selectors, self._clock))
            except NoIdentity:
                return
            if newest is not None and newest != last:
                last = newest
                yield newest
                continue
            await self._knowledge.changes.beyond(seen)

    def _snapshot(self, entries: tuple[Entry, ...], settings: Settings) -> Snapshot | None:
        """The config for the first entry that has one; an empty one where no service is registered; None: not yet."""
        state = self._knowledge.state
        for entry in entries:
            sidecar = state.sidecars.get(entry.spiffe_id)
            if sidecar is None:
                continue
            sidecar = self._recording.now(sidecar)
            contained = state.contained
            # Who is contained itself gets rules that close everything, and neither certificate nor key.
            held = None if sidecar.spiffe_id in contained else self._identities.held(entry)
            key = (sidecar.spiffe_id, settings.egress_socket)
            if held is None and sidecar.spiffe_id not in contained:
                return self._denying(key, settings, contained)
            token_keys = state.token_keys if any(map(uses_tokens, sidecar.inbound)) else b""
            canaries = state.canaries.count_at(self._clock.now())
            made_of = (sidecar, held, state.bundles, token_keys, contained, canaries)
            kept = self._snapshots.get(key)
            if kept is not None and _is_same(made_of, kept[0]):
                return kept[1]
            try:
                bundles, quantum_safe = self._bundles(), self._post_quantum()
                usable, lost = verifiable(sidecar, bundles, quantum_safe)
                identity = self._identity(held) if held is not None else None
                secrets = sidecar_secrets(usable, identity, bundles, quantum_safe)
                rules = self._resources(usable, settings, token_keys, contained, canaries=canaries)
                resources = [*rules, *secrets.resources()]
                given = Given(state.bundle.sequence, (held.svid.chain,) if held is not None else ())
                snapshot = Snapshot.of(sidecar.version, resources, given, contained.generation)
                if held is not None:
                    snapshot.check()
                requires = required_extensions(sidecar)
                if requires:
                    self._denying(key, settings, contained, self._undemanding)
                    undemanding = self._undemanding.get(key)
                    instead = undemanding[1] if undemanding is not None else None
                    snapshot = replace(snapshot, requires=requires, instead=instead)
            except errors.Error as error:
                # The Envoy keeps the last good config, and the server hears why.
                self._note(sidecar, str(error))
                return self._denying(key, settings, contained)
            self._note(sidecar, f"no bundle verifies the servers of {', '.join(lost)}" if lost else "")
            for known in (self._snapshots,) if requires else (self._snapshots, self._undemanding):
                known[key] = (made_of, snapshot)
                _bound(known)
            return snapshot
        return Snapshot.of("", (), Given(state.bundle.sequence), state.contained.generation)

    def _denying(
        self, key: tuple[str, str], settings: Settings, contained: Contained, among: _Snapshots | None = None
    ) -> Snapshot | None:
        """The last good config of ``among`` with the newest containments: a deny does not wait until new rules fit.

        None where there is none, or it has them.
        """
        among = self._snapshots if among is None else among
        kept = among.get(key)
        if kept is None or kept[1].contained == contained.generation:
            return None
        (sidecar, held, bundles, token_keys, _, canaries), last = kept
        usable, _ = verifiable(sidecar, self._bundles(), self._post_quantum())
        rules = config_resources(usable, settings, token_keys, contained, canaries=canaries)
        secrets = [one for one in last.of_type(names.SECRET).values() if one.name not in contained]
        made = Snapshot.of(last.version, [*rules, *secrets], last.marker, contained.generation)
        snapshot = replace(made, requires=last.requires)
        among[key] = ((sidecar, held, bundles, token_keys, contained, canaries), snapshot)
        return snapshot

    def _note(self, sidecar: Sidecar, problem: str) -> None:
        """Remember what keeps a sidecar from all that it should have ("": nothing), and tell of a change."""
        if self._problems.get(sidecar.spiffe_id, "") == problem:
            return
        if problem:
            self._problems[sidecar.spiffe_id] = problem
            _log.error("agent.sidecar.unbuildable", spiffe_id=sidecar.spiffe_id, error=problem)
        else:
            del self._problems[sidecar.spiffe_id]
        self.changes.bump()

    def _secrets(self, entries: tuple[Entry, ...]) -> SecretSet | None:
        held = [one for entry in entries if (one := self._identities.held(entry)) is not None]
        if not held:
            return None
        state = self._knowledge.state
        roots = self._bundles()
        return SecretSet(
            identities=tuple(self._identity(one) for one in held),
            trust_domain=state.trust_domain.name,
            bundles={domain.name: roots[domain.name] for domain in state.bundles_for(entries)},
            marker=Given(state.bundle.sequence, tuple(one.svid.chain for one in held)),
        )

    def _sidecars(self, spiffe_ids: Sequence[str]) -> Iterator[Sidecar]:
        sidecars = self._knowledge.state.sidecars
        for spiffe_id in spiffe_ids:
            sidecar = sidecars.get(SpiffeId.parse(spiffe_id))
            if sidecar is not None:
                yield sidecar

    def _resources(
        self,
        sidecar: Sidecar,
        settings: Settings,
        token_keys: bytes,
        contained: Contained = NOBODY,
        *,
        canaries: bool = False,
    ) -> list[Resource]:
        key = (sidecar.spiffe_id, settings.egress_socket)
        kept = self._config.get(key)
        made_of = (token_keys, contained, canaries)
        if kept is None or kept[0] is not sidecar or kept[1:4] != made_of:
            rules = config_resources(sidecar, settings, token_keys, contained, canaries=canaries)
            kept = (sidecar, token_keys, contained, canaries, rules)
            self._config[key] = kept
            _bound(self._config)
        return kept[4]

    def _identity(self, held: Held) -> Identity:
        kept = self._pem.get(held.entry_id)
        if kept is None or kept[0] is not held:
            chain = b"".join(_pem("CERTIFICATE", der) for der in held.svid.chain)
            kept = (held, Identity(str(held.svid.id), chain, _pem("PRIVATE KEY", held.key.pkcs8)))
            self._pem[held.entry_id] = kept
        return kept[1]

    def _bundles(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for domain, bundle in self._knowledge.state.bundles.items():
            kept = self._roots.get(domain.name)
            if kept is None or kept[0] is not bundle:
                kept = (bundle, b"".join(_pem("CERTIFICATE", root.der) for root in bundle.x509_authorities))
                self._roots[domain.name] = kept
            found[domain.name] = kept[1]
        return found

    def _post_quantum(self) -> dict[str, bytes]:
        """By trust domain, its ML-DSA-65 roots; without those that have none."""
        found: dict[str, bytes] = {}
        for domain, bundle in self._knowledge.state.bundles.items():
            kept = self._quantum_safe.get(domain.name)
            if kept is None or kept[0] is not bundle:
                roots = (root.der for root in bundle.x509_authorities if _is_post_quantum(root.der))
                kept = (bundle, b"".join(_pem("CERTIFICATE", der) for der in roots))
                self._quantum_safe[domain.name] = kept
            if kept[1]:
                found[domain.name] = kept[1]
        return found


def _is_same(now: _MadeOf, then: _MadeOf) -> bool:
    is_same = all(one is other for one, other in zip(now[:3], then[:3], strict=True))
    return is_same and now[3] == then[3] and now[4] is then[4] and now[5] == then[5]


def _is_post_quantum(root: bytes) -> bool:
    try:
        return isinstance(x509.load_der_x509_certificate(root).public_key(), mldsa.MLDSA65PublicKey)
    except (ValueError, UnsupportedAlgorithm):
        return False  # of a kind that others may know


def _cut(text: str, size: int) -> str:
    """As much of a text as ``size`` bytes hold: characters may have four, and a report is bounded in bytes."""
    return text if len(text) * 4 <= size else text.encode()[:size].decode(errors="ignore")


def _bound(kept: OrderedDict[Any, Any]) -> None:
    while len(kept) > MAX_SIDECARS:
        kept.popitem(last=False)


def _pem(label: str, der: bytes) -> bytes:
    body = "\n".join(wrap(standard_b64encode(der).decode(), 64))
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n".encode()
