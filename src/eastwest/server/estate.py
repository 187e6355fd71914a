"""The estate in force: from files to registered entries, profiles and what every sidecar enforces.

Invariant: a version is recorded in the log, then stored, then takes effect; a server that dies in between finishes
the job at its next start, because everything is derived again from the stored files, how far a rollout has come
included. Registrations and profiles take effect at once; rules may go ring by ring (``eastwest.policy.rollout``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec

from eastwest.clock import Clock
from eastwest.errors import Error, FailedPrecondition, InvalidInput, NotFound
from eastwest.issuance.issuer import Issuer
from eastwest.policy.cells import Memory
from eastwest.policy.emergency import Newly
from eastwest.policy.enforcement import Outbound, Sidecar
from eastwest.policy.estate import Estate
from eastwest.policy.load import load_estate
from eastwest.policy.naming import Naming
from eastwest.policy.plan import Plan, plan_files
from eastwest.policy.problems import EstateInvalid
from eastwest.policy.rollout import Break, Progress, State
from eastwest.policy.table import CompiledPolicy, compile_estate
from eastwest.registry.administrators import Administrator, Administrators
from eastwest.registry.authorization import Authorization, BreakGlass
from eastwest.registry.estate import EstatePlan
from eastwest.registry.registry import Registry
from eastwest.registry.rules import Rules
from eastwest.registry.state import Change
from eastwest.rpc import tracing
from eastwest.server.activation import (
    Wish,
    activation_events,
    authorize_all,
    check_breaks,
    rollout_event,
    rollout_facts,
)
from eastwest.server.federation.estate import intended_federation
from eastwest.server.federation.keeper import Federation
from eastwest.server.journal import Event, Journal
from eastwest.server.reach import TOKENS_FIX, out_of_reach
from eastwest.server.registration.estate_entries import profile_of, registration, registrations
from eastwest.server.registration.estate_scope import check_scope
from eastwest.server.sidecar_configs import Configs
from eastwest.server.tables import Table, Tables, differ
from eastwest.spiffe.id import TrustDomain
from eastwest.store.estate import AppliedEstate, SqliteEstates

ANY_VERSION = "*"
MAX_FILES = 5000
MAX_BYTES = 16 * 1024 * 1024 - 64 * 1024
MIN_PREFIX = 6
"""Hexadecimal digits that name a version."""

Authorize = Callable[[Plan, Estate, Administrator, str, BreakGlass | None], Awaitable[Authorization]]
"""Given a plan, its estate, who applies it, the change that it carries out ("" for none) and why approvals are skipped.

Raises what the one who applies is told where the version lacks an approval."""
Breaks = Callable[[Mapping[str, bytes]], Awaitable[tuple[Sequence[Break], str]]]
"""Which recorded calls the estate of these files would newly refuse, and the hash of the report that says so."""
Warn = Callable[[Estate | None, Estate], Awaitable[Sequence[str]]]
"""What people should know of a change from one estate (None: none yet) to another, a sentence each."""


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
        self._callers_changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._memory = Memory()
        self.tables = Tables()
        self.applied: AppliedEstate | None = None
        self.authorize: Authorize = authorize_all
        self.breaks: Breaks | None = None
        self.emergency: Callable[[AppliedEstate, Table], Awaitable[Newly]] | None = None
        """What a version opens by break-glass alone, to be marked in its table."""
        self.on_change: Callable[[], None] = lambda: None
        self.on_activation: Callable[[], object] = lambda: None
        """Called once another estate is in force."""
        self.on_rollout: Callable[[], object] = lambda: None
        """Called once a rollout has begun, gone on or ended."""
        self.on_rollout_end: Callable[[Progress], object] = lambda _progress: None
        self.federation: Federation | None = None
        self.on_environments: Callable[[Collection[str], str], Awaitable[None]] | None = None
        self.without_ca: Callable[[Collection[str]], Sequence[str]] = lambda _environments: ()
        self.rollout = ""
        """The ``traceparent`` of the last change that was applied here, for agents to go on with; "": none is kept."""
        self.warn: Warn = _nothing_to_warn
        """Asked what people should know of an estate before it is put in force."""
        self.makes_tokens = True
        """Whether callers can get transaction tokens here."""

    @property
    def version(self) -> str:
        """The content hash of the policy in force, or "" before the first. Rings not reached have the one before."""
        return self.tables.newest.version if self.tables.newest else ""

    @property
    def intended(self) -> Estate | None:
        """The estate in force, or None before the first."""
        return self.tables.newest.estate if self.tables.newest else None

    @property
    def compiled(self) -> CompiledPolicy | None:
        """Its table, without the callers that were registered by API."""
        return self.tables.newest.compiled if self.tables.newest else None

    @property
    def enforced(self) -> Mapping[str, Sidecar]:
        """What every workload enforces once its rules are everywhere."""
        return self.tables.enforced

    @property
    def sidecars(self) -> Configs:
        """The same as it is sent; for one agent see ``Tables.given``."""
        return self.tables.newest.configs if self.tables.newest else {}

    @property
    def failing(self) -> list[str]:
        """Policies that fail when they are asked: what they are about is refused."""
        return self.tables.failing

    def domain_of(self, service: str) -> str:
        """The domain of a service of the estate in force, or ``""``."""
        services = self.intended.services if self.intended is not None else ()
        return next((one.domain for one in services if one.service == service), "")

    def offer(self, outbound: Outbound) -> None:
        """Let every workload reach a service of this server by name, from now on."""
        self.tables.offered = outbound
        self.tables.tell()
        self.on_change()

    async def load(self) -> None:
        """Bring back what was in force; call once at start."""
        applied = await self._store.current()
        if applied is None:
            return
        table = await self._table(applied)
        progress = await self._store.rollout()
        earlier = None
        if progress is not None and progress.is_open and progress.version == applied.version:
            before = await self._store.find(progress.previous)
            earlier = await self._table(before, Memory()) if before is not None else None
        await self._put_in_force(applied, table, earlier, progress)

    async def apply(
        self, files: dict[str, bytes], expected: str, administrator: Administrator, wish: Wish | None = None
    ) -> dict[str, Any]:
        """Check, record, store and put in force; returns the plan that was carried out.

        Raises ``EstateInvalid`` with every problem, ``NotAllowed`` when the administrator oversteps, or
        ``FailedPrecondition`` when another version than ``expected`` (``*``: any) is in force, another one rolls out,
        or recorded calls would be refused ring by ring and nobody said that they may be.
        """
        with tracing.span("estate.apply", files=len(files)) as span:
            async with self._turn:
                applied = await self._apply(files, expected, administrator, wish or Wish())
            span.set_attribute("eastwest.version", self.version)
            return applied

    async def _apply(
        self, files: dict[str, bytes], expected: str, administrator: Administrator, wish: Wish
    ) -> dict[str, Any]:
        if expected not in {ANY_VERSION, self.version}:
            raise FailedPrecondition(
                f"version {self.version[:12] or '(none)'} is in force, not {expected[:12] or '(none)'}",
                fix="plan again, then apply",
            )
        now = self._clock.now()
        plan, estate, compiled, registered = await self._planned(files, now)
        self._check_scope(administrator, estate, files)
        # The change is judged before the record is: nobody waits for a replay of what they may not do.
        standing = await self.authorize(plan, estate, administrator, wish.change, wish.break_glass)
        table = Table(estate, compiled, self._memory)
        at_once = wish.break_glass is not None or bool(wish.cause)
        earlier, begun, ended, evidence = await self._rings(table, files, administrator, wish, at_once=at_once)
        if evidence:
            # A replay takes its time, in which a word may have been taken back.
            standing = await self.authorize(plan, estate, administrator, wish.change, wish.break_glass)
        if evidence and not standing.evidence:
            standing = msgspec.structs.replace(standing, evidence=evidence)
        warnings = [*self._warnings(estate), *await self.warn(self.intended, estate)]
        applied = AppliedEstate(compiled.version, files, now, administrator.name, self.version, wish.cause, standing)
        await self._activate(applied, table, earlier, begun, ended)
        told = {"foreign_entries": dict(registered.foreign), "warnings": warnings}
        return plan.to_dict() | told | {"rollout": rollout_facts(begun) if begun is not None else None}

    async def _rings(
        self, table: Table, files: Mapping[str, bytes], administrator: Administrator, wish: Wish, *, at_once: bool
    ) -> tuple[Table | None, Progress | None, Progress | None, str]:
        """The table that points keep at first, the rollout that begins, the one that ends, and what was looked at."""
        before, under_way, now = self.tables.newest, self.tables.progress, self._clock.now().timestamp()
        under_way = under_way if under_way is not None and under_way.is_open else None
        if under_way is not None and under_way.version == table.version:
            return self.tables.earlier, under_way, None, ""  # the same again changes nothing
        if under_way is not None and not at_once:
            raise FailedPrecondition(
                f"version {under_way.version[:12]} rolls out over {under_way.previous[:12]}, now at {under_way.name}",
                fix="eastwest policy promote until it is finished, or eastwest policy rollback, then apply",
            )
        if under_way is not None:
            return None, None, under_way.end(State.REPLACED, wish.cause or "break-glass", now), ""
        plan = table.estate.settings.rollout
        if before is None or plan is None or at_once or not differ(before, table):
            return None, None, None, ""
        breaks, evidence = await self.breaks(files) if self.breaks is not None else ((), "")
        check_breaks(breaks, accepted=wish.accept_breaks)
        before.memory = Memory()
        progress = Progress(
            version=table.version,
            previous=before.version,
            plan=plan,
            started=now,
            since=now,
            by=administrator.name,
            breaks=tuple(breaks),
        )
        return before, progress, None, evidence

    async def restore(
        self,
        version: str,
        actor: str,
        cause: str,
        *events: Event,
        state: State = State.REPLACED,
        reason: str = "",
        only: Progress | None = None,
    ) -> None:
        """Put a version in force again, everywhere and at once, and end a rollout that is under way as ``state``.

        Asks nobody: for what must not wait. ``events`` go into the log with it; ``reason`` is kept with the rollout.
        A version whose rollout break-glass has cut short comes back as far as it had come, paused.
        ``only``: nothing happens unless this very rollout is under way. Raises ``NotFound`` for a version that never
        was in force.
        """
        async with self._turn:
            here = self.tables.progress
            if only is None or (here is not None and here.is_open and here.started == only.started):
                await self._restore(version, actor, cause, events, state, reason or cause)

    async def _restore(
        self, version: str, actor: str, cause: str, events: Sequence[Event], state: State, reason: str
    ) -> None:
        found = await self._store.find(version)
        if found is None:
            raise NotFound(f"version {version[:64]} was never in force here", fix="see eastwest policy versions")
        known = [table for table in self.tables.all if table.version == version]
        table = known[0] if known else await self._table(found)
        table.memory = self._memory
        now, ended = self._clock.now(), self.tables.progress
        if ended is not None:
            ended = ended.end(state, reason, now.timestamp()) if ended.is_open else None
        earlier, begun = None, self.cut_short(found)
        if begun is not None and (before := await self._store.find(begun.previous)) is not None:
            earlier, begun = await self._table(before, Memory()), begun.reopened(now.timestamp())
            paused = rollout_event("paused", begun, actor, self._trust_domain.uri, paused="yes")
            events = (*events, paused)
        applied = replace(found, applied_at=now, applied_by=actor, previous=self.version, cause=cause)
        await self._activate(applied, table, earlier, begun, ended, *events)

    def cut_short(self, found: AppliedEstate) -> Progress | None:
        """The rollout of this version, where it was under way when the break-glass began that is in force."""
        progress, standing = self.tables.progress, self.applied.standing if self.applied is not None else None
        if progress is None or standing is None or not standing.break_glass:
            return None
        # Put in force since then without a rollout, it is everywhere.
        cut = progress.state is State.REPLACED and found.applied_at.timestamp() <= progress.since
        return progress if cut and progress.version == found.version else None

    async def _activate(
        self,
        applied: AppliedEstate,
        table: Table,
        earlier: Table | None,
        begun: Progress | None,
        ended: Progress | None,
        *events: Event,
    ) -> None:
        """Record, store, put in force."""
        subject, actor = self._trust_domain.uri, applied.applied_by
        more = list(events)
        if ended is not None and ended.state in {State.REPLACED, State.ROLLED_BACK}:
            more.append(rollout_event("rolled_back", ended, actor, subject, to=applied.version))
        here = self.tables.progress
        if begun is not None and (here is None or begun.started != here.started):
            facts = {"rings": list(begun.names), "breaks": len(begun.breaks)}
            more.append(rollout_event("started", begun, actor, subject, **facts))
        await self._journal.record_all(activation_events(applied, table.estate, self.intended, subject, *more))
        kept = [progress for progress in (ended, begun) if progress is not None]
        await self._store.save(applied, *kept)
        self.rollout = tracing.traceparent()
        await self._put_in_force(applied, table, earlier, begun or ended or self.tables.progress)
        if ended is not None:
            self.on_rollout_end(ended)

    async def advance(self, step: Callable[[Progress], Progress], actor: str, kind: str, **facts: object) -> Progress:
        """Take the rollout one step on, recorded as ``rollout.KIND`` ("": not at all) unless nothing changes by it.

        Raises ``FailedPrecondition`` where none is under way.
        """
        async with self._turn:
            before = self.tables.progress
            if before is None:
                raise FailedPrecondition("nothing rolls out", fix="see eastwest policy versions")
            after = step(before)
            if after == before:
                return before
            kind = "finished" if after.state is State.FINISHED else kind
            if kind:
                subject = self._trust_domain.uri
                await self._journal.record_all([rollout_event(kind, after, actor, subject, **facts)])
            await self._store.keep(after)
            self.tables.progress = after
            if not after.is_open:
                self.tables.earlier = None
                self.on_rollout_end(after)
            self.on_change()
            self.on_rollout()
            return after

    async def find_version(self, prefix: str) -> AppliedEstate:
        """The version that begins with these hexadecimal digits. Raises ``NotFound`` for none, or several."""
        matching = await self._store.matching(prefix) if len(prefix) >= MIN_PREFIX else []
        found = await self._store.find(matching[0]) if len(matching) == 1 else None
        if found is None:
            what = "several versions begin" if matching else "no version begins"
            raise NotFound(
                f"{what} with {prefix[:64]!r}",
                fix=f"give at least {MIN_PREFIX} digits of one of eastwest policy versions",
            )
        return found

    async def plan(
        self, files: dict[str, bytes], administrator: Administrator
    ) -> tuple[EstatePlan, str, Sequence[str]]:
        """What applying would do to registrations, why this administrator may not ("": may), what would be left to do.

        Nothing changes.
        """
        _, estate, _, registered = await self._planned(files, self._clock.now())
        warnings = [*self._warnings(estate), *await self.warn(self.intended, estate)]
        try:
            self._check_scope(administrator, estate, files)
        except Error as error:
            return registered, str(error), warnings
        return registered, "", warnings

    async def preview(self, files: dict[str, bytes]) -> Plan:
        """The plan of putting files in force; raises as ``apply`` does."""
        plan, _, _, _ = await self._planned(files, self._clock.now())
        return plan

    def warnings(self) -> Sequence[str]:
        """What of the estate in force nobody can reach as this server is set up."""
        return self._unreachable(self.intended) if self.intended is not None else ()

    def _warnings(self, estate: Estate) -> Sequence[str]:
        return [*self.without_ca([one.name for one in estate.settings.environments]), *self._unreachable(estate)]

    def _unreachable(self, estate: Estate) -> Sequence[str]:
        return [] if self.makes_tokens else [f"{found} ({TOKENS_FIX})" for found in out_of_reach(estate)]

    async def _planned(self, files: dict[str, bytes], now: datetime) -> tuple[Plan, Estate, CompiledPolicy, EstatePlan]:
        if len(files) > MAX_FILES or sum(map(len, files.values())) > MAX_BYTES:
            raise InvalidInput(f"an estate has at most {MAX_FILES} files and {MAX_BYTES} bytes")
        plan = await asyncio.to_thread(plan_files, files, now.date(), self.compiled, self._memory)
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
            administrator, self.intended, estate, (before, files), lambda workload: registration(workload, trust_domain)
        )

    def environment_of_group(self, name: str) -> str:
        """The environment of a node group of the estate in force, or ``""``."""
        groups = self.intended.settings.node_groups if self.intended else ()
        return next((group.environment for group in groups if group.name == name), "")

    def check_group(self, name: str) -> None:
        """Raise ``NotFound`` when the estate in force has no such node group."""
        groups = [group.name for group in self.intended.settings.node_groups] if self.intended else []
        if name not in groups:
            known = ", ".join(sorted(groups)) or "none; apply an estate first"
            raise NotFound(f"the estate has no node group {name!r}", fix=f"known: {known}")

    async def _put_in_force(
        self, applied: AppliedEstate, table: Table, earlier: Table | None, progress: Progress | None
    ) -> None:
        estate = table.estate
        if self.on_environments is not None:
            # Before anything asks for a certificate of theirs.
            await self.on_environments([one.name for one in estate.settings.environments], applied.applied_by)
        naming = Naming.of(estate.settings, estate.waivers, estate.services)
        self._registry.entries.rules = replace(self._registry.entries.rules, naming=naming)
        self._administrators.replace(estate.settings.administrators)
        profiles = [profile_of(profile) for profile in estate.profiles]
        self._issuer.replace(profiles=profiles, policy_version=table.version)
        await self._registry.entries.replace_estate(registrations(estate, self._trust_domain), self._clock.now())
        if self.federation is not None:
            await self.federation.replace_estate(intended_federation(estate), applied.applied_by)
        self.applied = applied
        if self.emergency is not None:
            table.emergency = await self.emergency(applied, table)
        # Looked for among all entries only here: from now on each change says which entries it is about.
        await self.tables.replace(table, earlier, progress, self._registry.entries.list().items)
        self.on_change()
        self.on_activation()
        self.on_rollout()

    async def _table(self, applied: AppliedEstate, memory: Memory | None = None) -> Table:
        memory = memory or self._memory
        estate, compiled = await asyncio.to_thread(_compile, applied.files, memory)
        return Table(estate, compiled, memory)

    def registry_changed(self, change: Change) -> None:
        """Look again at callers registered by API, when a change is about any (``keep_callers`` does it)."""
        taken = [self.tables.take(entry_id, self._registry.entries.get(entry_id)) for entry_id in change.entries]
        if any(taken):
            self._callers_changed.set()

    async def keep_callers(self) -> None:
        """Compile anew, for ever, whenever the callers known to policies have changed; bursts become one."""
        while True:
            await self._callers_changed.wait()
            self._callers_changed.clear()
            async with self._turn:
                if await self.tables.follow():
                    self.on_change()


async def _nothing_to_warn(_before: Estate | None, _after: Estate) -> Sequence[str]:
    return ()


def _compile(files: Mapping[str, bytes], memory: Memory) -> tuple[Estate, CompiledPolicy]:
    estate = load_estate(files)
    return estate, compile_estate(estate, memory)
