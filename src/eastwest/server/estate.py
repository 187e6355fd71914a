"""The estate in force: from files to registered entries, profiles and what every sidecar enforces.

Invariant: a version is recorded in the log, then stored, then takes effect; a server that dies in between finishes
the job at its next start, because everything is derived again from the stored files.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import msgspec
import structlog

from eastwest.clock import Clock
from eastwest.errors import Error, FailedPrecondition, InvalidInput, NotFound
from eastwest.issuance.issuer import Issuer
from eastwest.pki.profile import Profile, ProfileConfig
from eastwest.policy.cells import Memory
from eastwest.policy.enforcement import Outbound, Sidecar, encode_sidecar
from eastwest.policy.estate import Estate, ForeignWorkload, Workload
from eastwest.policy.forms import duration
from eastwest.policy.load import load_estate
from eastwest.policy.naming import Naming
from eastwest.policy.plan import Plan, plan_files
from eastwest.policy.problems import EstateInvalid, Severity
from eastwest.policy.table import CompiledPolicy, compile_estate
from eastwest.registry.administrators import Administrator, Administrators
from eastwest.registry.entry import Entry, Origin
from eastwest.registry.estate import EstatePlan
from eastwest.registry.groups import group_entries, group_id
from eastwest.registry.registry import Registry
from eastwest.registry.rules import Rules
from eastwest.registry.state import Change
from eastwest.rpc import tracing
from eastwest.server.federation.estate import foreign_domains, intended_federation
from eastwest.server.federation.keeper import Federation
from eastwest.server.journal import Event, Journal
from eastwest.server.registration.estate_scope import check_scope
from eastwest.server.registration.known_callers import is_candidate, known_callers
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.store.estate import AppliedEstate, SqliteEstates

ANY_VERSION = "*"
MAX_FILES = 5000
MAX_BYTES = 16 * 1024 * 1024 - 64 * 1024
MAX_NAMED = 5
"""Operations that a warning names."""
TOKENS_FIX = "add [tokens] to server.toml and restart the server"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SidecarConfig:
    """One workload's compiled rules, the text that tells them apart, and the services in them."""

    token: str
    services: tuple[str, ...]
    trust_domains: tuple[TrustDomain, ...]
    """Foreign trust domains whose bundles the sidecar needs."""
    compiled: Sidecar = field(compare=False, repr=False)
    offered: Outbound | None = field(compare=False)

    @classmethod
    def of(cls, compiled: Sidecar, offered: Outbound | None) -> SidecarConfig:
        """The rules, with one more service that the workload reaches."""
        return cls(
            f"{compiled.version} {offered}",
            tuple(inbound.service for inbound in compiled.inbound),
            foreign_domains(compiled),
            compiled,
            offered,
        )

    @property
    def reached(self) -> tuple[str, ...]:
        """Services that the workload has a way to."""
        return tuple(outbound.service for outbound in _with(self.compiled, self.offered).outbound)

    def encode(self) -> bytes:
        """The rules as they travel. All workloads' together are large, so it is done for those that are sent."""
        return encode_sidecar(_with(self.compiled, self.offered))


class EstateKeeper:
    """Holds the estate in force and puts new ones in force."""

    def __init__(
        self,
        trust_domain: TrustDomain,
        store: SqliteEstates,
        registry: Registry,
        issuer: Issuer,
        journal: Journal,
        clock: Clock,
        administrators: Administrators,
    ) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._registry = registry
        self._issuer = issuer
        self._journal = journal
        self._clock = clock
        self._administrators = administrators
        self._registered: tuple[ForeignWorkload, ...] = ()
        self._candidates: dict[str, Entry] = {}
        self._callers_changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._estate: Estate | None = None
        self._compiled: CompiledPolicy | None = None
        self._memory = Memory()
        self.failing: list[str] = []
        """Policies that fail when they are asked: what they are about is refused."""
        self.applied: AppliedEstate | None = None
        self._offered: Outbound | None = None
        self.enforced: Mapping[str, Sidecar] = {}
        self.sidecars: Mapping[SpiffeId, SidecarConfig] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.on_activation: Callable[[], object] = lambda: None
        """Called once another estate is in force."""
        self.federation: Federation | None = None
        self.on_environments: Callable[[Collection[str], str], Awaitable[None]] | None = None
        self.without_ca: Callable[[Collection[str]], Sequence[str]] = lambda _environments: ()
        self.rollout = ""
        """The ``traceparent`` of the last change that was applied here, for agents to go on with; "": none is kept."""
        self.makes_tokens = True
        """Whether callers can get transaction tokens here."""

    @property
    def version(self) -> str:
        """The content hash of the policy in force, or "" before the first."""
        return self._compiled.version if self._compiled else ""

    @property
    def intended(self) -> Estate | None:
        """The estate in force, or None before the first."""
        return self._estate

    def domain_of(self, service: str) -> str:
        """The domain of a service of the estate in force, or ``""``."""
        services = self._estate.services if self._estate is not None else ()
        return next((one.domain for one in services if one.service == service), "")

    def offer(self, outbound: Outbound) -> None:
        """Let every workload reach a service of this server by name, from now on."""
        self._offered = outbound
        self._tell_sidecars()

    async def load(self) -> None:
        """Bring back what was in force; call once at start."""
        applied = await self._store.current()
        if applied is None:
            return
        estate, compiled = await asyncio.to_thread(_compile, applied.files, self._memory)
        await self._put_in_force(applied, estate, compiled)

    async def apply(self, files: dict[str, bytes], expected: str, administrator: Administrator) -> dict[str, Any]:
        """Check, record, store and put in force; returns the plan that was carried out.

        Raises ``EstateInvalid`` with every problem, ``NotAllowed`` when the administrator oversteps, or
        ``FailedPrecondition`` when another version than ``expected`` (``*``: any) is in force.
        """
        with tracing.span("estate.apply", files=len(files)) as span:
            applied = await self._apply(files, expected, administrator)
            span.set_attribute("eastwest.version", self.version)
            return applied

    async def _apply(self, files: dict[str, bytes], expected: str, administrator: Administrator) -> dict[str, Any]:
        actor = administrator.name
        async with self._turn:
            if expected not in {ANY_VERSION, self.version}:
                raise FailedPrecondition(
                    f"version {self.version[:12] or '(none)'} is in force, not {expected[:12] or '(none)'}",
                    fix="plan again, then apply",
                )
            now = self._clock.now()
            plan, estate, compiled, registered = await self._planned(files, now)
            self._check_scope(administrator, estate, files)
            await self._record(compiled, estate, files, actor)
            applied = AppliedEstate(compiled.version, files, now, actor)
            await self._store.save(applied)
            self.rollout = tracing.traceparent()
            await self._put_in_force(applied, estate, compiled)
            told = {"foreign_entries": dict(registered.foreign), "warnings": self._warnings(estate)}
            return plan.to_dict() | told

    async def plan(
        self, files: dict[str, bytes], administrator: Administrator
    ) -> tuple[EstatePlan, str, Sequence[str]]:
        """What applying would do to registrations, why this administrator may not ("": may), what would be left to do.

        Nothing changes.
        """
        _, estate, _, registered = await self._planned(files, self._clock.now())
        warnings = self._warnings(estate)
        try:
            self._check_scope(administrator, estate, files)
        except Error as error:
            return registered, str(error), warnings
        return registered, "", warnings

    def warnings(self) -> Sequence[str]:
        """What of the estate in force nobody can reach as this server is set up."""
        return self._unreachable(self._estate) if self._estate is not None else ()

    def _warnings(self, estate: Estate) -> Sequence[str]:
        return [*self.without_ca([one.name for one in estate.settings.environments]), *self._unreachable(estate)]

    def _unreachable(self, estate: Estate) -> Sequence[str]:
        return [] if self.makes_tokens else [f"{found} ({TOKENS_FIX})" for found in out_of_reach(estate)]

    async def _planned(self, files: dict[str, bytes], now: datetime) -> tuple[Plan, Estate, CompiledPolicy, EstatePlan]:
        if len(files) > MAX_FILES or sum(map(len, files.values())) > MAX_BYTES:
            raise InvalidInput(f"an estate has at most {MAX_FILES} files and {MAX_BYTES} bytes")
        plan = await asyncio.to_thread(plan_files, files, now.date(), self._compiled, self._memory)
        estate, compiled = plan.estate, plan.compiled
        if not plan.ok or estate is None or compiled is None:
            raise EstateInvalid(plan.errors)
        if estate.settings.trust_domain != self._trust_domain.name:
            raise FailedPrecondition(
                f"the estate is of {estate.settings.trust_domain}, this server of {self._trust_domain}",
                where="estate.yaml",
                fix="apply it to its own server",
            )
        if self.federation is not None:
            self.federation.check_estate(intended_federation(estate))
        # Names were judged with the plan, with the environment and domain that each workload declares.
        rules = Rules(self._registry.entries.rules.selectors)
        intended = registrations(estate, self._trust_domain)
        return plan, estate, compiled, self._registry.entries.plan_estate(intended, now, rules)

    def _check_scope(self, administrator: Administrator, estate: Estate, files: Mapping[str, bytes]) -> None:
        before = self.applied.files if self.applied is not None else {}
        trust_domain = self._trust_domain
        check_scope(
            administrator, self._estate, estate, (before, files), lambda workload: _registration(workload, trust_domain)
        )

    def environment_of_group(self, name: str) -> str:
        """The environment of a node group of the estate in force, or ``""``."""
        groups = self._estate.settings.node_groups if self._estate else ()
        return next((group.environment for group in groups if group.name == name), "")

    def check_group(self, name: str) -> None:
        """Raise ``NotFound`` when the estate in force has no such node group."""
        groups = [group.name for group in self._estate.settings.node_groups] if self._estate else []
        if name not in groups:
            known = ", ".join(sorted(groups)) or "none; apply an estate first"
            raise NotFound(f"the estate has no node group {name!r}", fix=f"known: {known}")

    async def _record(self, compiled: CompiledPolicy, estate: Estate, files: Mapping[str, bytes], actor: str) -> None:
        modes = _modes(estate)
        facts = {
            "version": compiled.version,
            "previous": self.version,
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
            "modes": modes,
        }
        before = _modes(self._estate) if self._estate is not None else {}
        changed = sorted(name for name in modes.keys() | before.keys() if modes.get(name) != before.get(name))
        # The first estate's modes are all in policy.activated; from then on each change has an entry of its own.
        events = [
            Event(
                "mode.changed",
                actor,
                name,
                {"version": compiled.version, "mode": modes.get(name, ""), "previous": before.get(name, "")},
            )
            for name in (changed if before else ())
        ]
        await self._journal.record_all([Event("policy.activated", actor, self._trust_domain.uri, facts), *events])

    async def _put_in_force(self, applied: AppliedEstate, estate: Estate, compiled: CompiledPolicy) -> None:
        if self.on_environments is not None:
            # Before anything asks for a certificate of theirs.
            await self.on_environments([one.name for one in estate.settings.environments], applied.applied_by)
        naming = Naming.of(estate.settings, estate.waivers, estate.services)
        self._registry.entries.rules = replace(self._registry.entries.rules, naming=naming)
        self._administrators.replace(estate.settings.administrators)
        profiles = [_profile(profile) for profile in estate.profiles]
        self._issuer.replace(profiles=profiles, policy_version=compiled.version)
        await self._registry.entries.replace_estate(registrations(estate, self._trust_domain), self._clock.now())
        if self.federation is not None:
            await self.federation.replace_estate(intended_federation(estate), applied.applied_by)
        self._estate, self._compiled, self.applied = estate, compiled, applied
        # Looked for among all entries only here: from now on each change says which entries it is about.
        self._candidates = {entry.id: entry for entry in self._registry.entries.list().items if is_candidate(entry)}
        self._registered = self._known_callers()
        await self._compile_sidecars()
        self.on_activation()

    async def _compile_sidecars(self) -> None:
        """Give every sidecar its rules, with the callers that were registered by API."""
        estate, compiled = self._estate, self._compiled
        assert estate is not None
        assert compiled is not None
        if self._registered:
            whole = msgspec.structs.replace(estate, registered=self._registered)
            compiled = await asyncio.to_thread(compile_estate, whole, self._memory)
        self.enforced = compiled.sidecars
        self._alarm(compiled)
        self._tell_sidecars()

    def _alarm(self, compiled: CompiledPolicy) -> None:
        """A policy that fails when it is asked denies, and somebody must hear of it.

        No estate with one is applied; callers that are registered by API bring facts that nobody has asked about yet.
        """
        errors = (problem for problem in compiled.problems if problem.severity is Severity.ERROR)
        failing = [f"{problem.where}: {problem.message}" for problem in errors]
        for problem in failing:
            if problem not in self.failing:
                _log.error("estate.failing", problem=problem, means="what it is about is refused: POLICY_ERROR")
        self.failing = failing

    def _tell_sidecars(self) -> None:
        sidecars = {}
        for name, sidecar in self.enforced.items():
            spiffe_id = SpiffeId.parse(name)
            config = self.sidecars.get(spiffe_id)
            if config is None or config.compiled is not sidecar or config.offered != self._offered:
                config = SidecarConfig.of(sidecar, self._offered)
            sidecars[spiffe_id] = config
        self.sidecars = sidecars
        self.on_change()

    def _known_callers(self) -> tuple[ForeignWorkload, ...]:
        naming = self._registry.entries.rules.naming
        if self._estate is None or naming is None:
            return ()
        return known_callers(self._candidates.values(), self._estate, naming)

    def registry_changed(self, change: Change) -> None:
        """Look again at callers registered by API, when a change is about any (``keep_callers`` does it)."""
        for entry_id in change.entries:
            entry = self._registry.entries.get(entry_id)
            if entry is not None and is_candidate(entry):
                self._candidates[entry_id] = entry
            elif self._candidates.pop(entry_id, None) is None:
                continue
            self._callers_changed.set()

    async def keep_callers(self) -> None:
        """Compile anew, for ever, whenever the callers known to policies have changed; bursts become one."""
        while True:
            await self._callers_changed.wait()
            self._callers_changed.clear()
            async with self._turn:
                callers = self._known_callers()
                if callers != self._registered:
                    self._registered = callers
                    await self._compile_sidecars()


def out_of_reach(estate: Estate) -> list[str]:
    """What nobody can call where no transaction tokens are made, in one sentence; nothing when all can."""
    claimed = {one.service for one in estate.services if one.tenant is not None and one.tenant.claim}
    wanting = [
        operation.name
        for service in estate.services
        for operation in service.operations
        if operation.demands or service.service in claimed
    ]
    if not wanting:
        return []
    rest = [f"{len(wanting) - MAX_NAMED} more"] if len(wanting) > MAX_NAMED else []
    shown = ", ".join([*wanting[:MAX_NAMED], *rest])
    return [f"nobody can call {shown}: transaction tokens are demanded, and this server makes none"]


def _modes(estate: Estate) -> dict[str, str]:
    return {service.service: service.listen.mtls.value for service in estate.services}


def _with(sidecar: Sidecar, offered: Outbound | None) -> Sidecar:
    """The sidecar with one more service that it reaches."""
    if offered is None:
        return sidecar
    others = [one for one in sidecar.outbound if one.service != offered.service]
    outbound = sorted((*others, offered), key=lambda one: one.service)
    return msgspec.structs.replace(sidecar, outbound=tuple(outbound))


def registrations(estate: Estate, trust_domain: TrustDomain) -> list[Entry]:
    """The registration entries that an estate intends."""
    entries = []
    for group in estate.settings.node_groups:
        selectors = [Selector.parse(text) for text in group.selectors]
        entries += group_entries(trust_domain, group.name, selectors)
    return entries + [_registration(workload, trust_domain) for workload in estate.workloads]


def _registration(workload: Workload, trust_domain: TrustDomain) -> Entry:
    group = workload.node.removeprefix("group:")
    parent = group_id(trust_domain, group) if group != workload.node else SpiffeId.parse(workload.node)
    return Entry(
        spiffe_id=SpiffeId.parse(workload.spiffe_id),
        parent_id=parent,
        selectors=frozenset(Selector.parse(text) for text in workload.selectors),
        x509_svid_ttl=int(duration(workload.ttl).total_seconds()) if workload.ttl else 0,
        federates_with=tuple(sorted(map(TrustDomain.parse, workload.federates_with))),
        dns_names=workload.dns_names,
        hint=workload.hint,
        profile=workload.profile,
        owner=workload.owner,
        origin=Origin.ESTATE,
        environment=workload.environment,
        attributes=tuple(sorted(workload.attributes.items())),
    )


def _profile(profile: Any) -> Profile:
    return Profile.from_config(msgspec.convert(msgspec.to_builtins(profile), ProfileConfig))


def _compile(files: Mapping[str, bytes], memory: Memory) -> tuple[Estate, CompiledPolicy]:
    estate = load_estate(files)
    return estate, compile_estate(estate, memory)
