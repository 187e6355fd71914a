"""The rules in force, as sidecars get them: of the newest version, and while it rolls out of the one before as well.

Both know the callers that were registered by API, each by its own estate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
import structlog

from eastwest.policy.cells import Memory
from eastwest.policy.emergency import Newly, marked
from eastwest.policy.enforcement import Outbound, Sidecar
from eastwest.policy.estate import Estate, ForeignWorkload
from eastwest.policy.naming import Naming
from eastwest.policy.problems import Severity
from eastwest.policy.rollout import Progress, ring_of, rings_of
from eastwest.policy.table import CompiledPolicy, compile_estate
from eastwest.registry.entry import Entry
from eastwest.server.registration.known_callers import is_candidate, known_callers
from eastwest.server.sidecar_configs import Configs, SidecarConfig, configs
from eastwest.spiffe.id import SpiffeId

_log = structlog.get_logger()


class Given(NamedTuple):
    """What one enforcement point is to enforce, and the version that it is a part of."""

    config: SidecarConfig
    version: str


class Table:
    """One version's rules. ``compiled`` is of its files alone; ``whole`` knows callers registered by API too."""

    def __init__(self, estate: Estate, compiled: CompiledPolicy, memory: Memory) -> None:
        self.estate = estate
        self.compiled = compiled
        self.whole = compiled
        self.configs: Configs = {}
        self.memory = memory
        """Of earlier compilations; one of its own where two tables are in force, since answers differ."""
        self.emergency: Newly = {}
        """What holds by break-glass alone."""
        self._naming = Naming.of(estate.settings, estate.waivers, estate.services)
        self._registered: tuple[ForeignWorkload, ...] = ()
        self._domains = {workload.spiffe_id: workload.domain for workload in estate.workloads}

    @property
    def version(self) -> str:
        """The content hash of the files."""
        return self.compiled.version

    def domain_of(self, spiffe_id: SpiffeId) -> str | None:
        """The domain of a workload, or None where the estate has none of this name."""
        return self._domains.get(str(spiffe_id))

    @property
    def registered(self) -> tuple[ForeignWorkload, ...]:
        """Callers that no file names and that entries registered by API make known."""
        return self._registered

    async def follow(self, candidates: Iterable[Entry]) -> bool:
        """Take the callers that entries registered by API make known; whether that changed anything."""
        registered = known_callers(candidates, self.estate, self._naming)
        if registered == self._registered:
            return False
        self._registered = registered
        self.whole = self.compiled
        if registered:
            whole = msgspec.structs.replace(self.estate, registered=registered)
            self.whole = await asyncio.to_thread(compile_estate, whole, self.memory)
        return True

    def tell(self, offered: Outbound | None) -> None:
        """Make what is sent to sidecars."""
        self.configs = configs(marked(self.whole.sidecars, self.emergency), offered, self.configs)


class Tables:
    """Which table holds for whom. Nothing is in force before ``replace``."""

    def __init__(self) -> None:
        self.newest: Table | None = None
        self.earlier: Table | None = None
        """What enforcement points keep that the rollout has not reached; None while there is none."""
        self.progress: Progress | None = None
        """The newest rollout, which may have ended."""
        self.failing: list[str] = []
        """Policies that fail when they are asked: what they are about is refused."""
        self.offered: Outbound | None = None
        self._candidates: dict[str, Entry] = {}

    @property
    def enforced(self) -> Mapping[str, Sidecar]:
        """The newest version's rules."""
        return self.newest.whole.sidecars if self.newest is not None else {}

    @property
    def all(self) -> tuple[Table, ...]:
        """Those that hold anywhere, the newest first."""
        return tuple(table for table in (self.newest, self.earlier) if table is not None)

    def ring_of(self, agent: SpiffeId, spiffe_id: SpiffeId) -> int:
        """The ring of an enforcement point in the newest rollout; 0 where there was none."""
        if self.progress is None:
            return 0
        domains = (table.domain_of(spiffe_id) for table in self.all)
        domain = next((domain for domain in domains if domain is not None), "")
        return ring_of(self.progress.plan, str(agent), str(spiffe_id), domain)

    def has_reached(self, agent: SpiffeId, spiffe_id: SpiffeId) -> bool:
        """Whether the newest rules hold there."""
        if self.earlier is None or self.progress is None:
            return True
        return self.progress.has_reached(self.ring_of(agent, spiffe_id))

    def given(self, agent: SpiffeId, spiffe_id: SpiffeId, *, last: bool = False) -> Given | None:
        """What an enforcement point is to enforce. ``last``: it belongs to the last ring, whatever its name.

        A workload that the version before does not know has nothing to keep, and gets the newest rules at once.
        """
        if self.newest is None:
            return None
        newest, earlier = self.newest.configs.get(spiffe_id), self.earlier
        reached = self.progress is None or not last or self.progress.has_reached(len(self.progress.plan.rings))
        if earlier is not None and not (reached and self.has_reached(agent, spiffe_id)):
            before = earlier.configs.get(spiffe_id)
            if before is not None:
                return Given(before, earlier.version)
        return Given(newest, self.newest.version) if newest is not None else None

    def holding(self) -> tuple[Mapping[str, Sidecar], Mapping[str, Sidecar]]:
        """Each workload's rules by SPIFFE ID, as its points have them; beside them the rules before, where the rollout
        may have reached some of its points and not others.
        """
        holding, beside = dict(self.enforced), dict[str, Sidecar]()
        if self.earlier is None or self.progress is None:
            return holding, beside
        for name, sidecar in self.earlier.whole.sidecars.items():
            domain = next((found for table in self.all if (found := table.domain_of(SpiffeId.parse(name)))), "")
            reached = {self.progress.has_reached(ring) for ring in rings_of(self.progress.plan, domain)}
            if name in holding and False in reached:
                (beside if True in reached else holding)[name] = sidecar
        return holding, beside

    async def replace(
        self, newest: Table, earlier: Table | None, progress: Progress | None, entries: Iterable[Entry]
    ) -> None:
        """Put tables in force. ``entries`` are all there are, looked through only here."""
        self._candidates = {entry.id: entry for entry in entries if is_candidate(entry)}
        for table in (newest, earlier):
            if table is not None:
                await table.follow(self._candidates.values())
        self.newest, self.earlier, self.progress = newest, earlier, progress
        self.tell()

    def known(self, estate: Estate) -> tuple[ForeignWorkload, ...]:
        """The callers that entries registered by API would make known under an estate."""
        naming = Naming.of(estate.settings, estate.waivers, estate.services)
        return known_callers(self._candidates.values(), estate, naming)

    def take(self, entry_id: str, entry: Entry | None) -> bool:
        """Note an entry that was changed, or None for one that is gone; whether it may matter to anybody's rules."""
        if entry is not None and is_candidate(entry):
            self._candidates[entry_id] = entry
            return True
        return self._candidates.pop(entry_id, None) is not None

    async def follow(self) -> bool:
        """Look again at callers registered by API; whether any table changed."""
        changed = [await table.follow(self._candidates.values()) for table in self.all]
        if any(changed):
            self.tell()
        return any(changed)

    def tell(self) -> None:
        """Make what is sent to sidecars, and say which policies fail."""
        for table in self.all:
            table.tell(self.offered)
        self._alarm()

    def _alarm(self) -> None:
        """A policy that fails when it is asked denies, and somebody must hear of it.

        No estate with one is applied; callers that are registered by API bring facts that nobody has asked about yet.
        """
        problems = (problem for table in self.all for problem in table.whole.problems)
        errors = (problem for problem in problems if problem.severity is Severity.ERROR)
        failing = list(dict.fromkeys(f"{problem.where}: {problem.message}" for problem in errors))
        for problem in failing:
            if problem not in self.failing:
                _log.error("estate.failing", problem=problem, means="what it is about is refused: POLICY_ERROR")
        self.failing = failing


def differ(before: Table, after: Table) -> bool:
    """Whether any workload of both has other rules."""
    old, new = before.compiled.sidecars, after.compiled.sidecars
    return any(name in new and new[name].version != sidecar.version for name, sidecar in old.items())
