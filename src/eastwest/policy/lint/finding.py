"""One finding, and what rules look at."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from eastwest.policy.analysis import Analysis, analyse
from eastwest.policy.enforcement import OperationRules
from eastwest.policy.estate import (
    Environment,
    Estate,
    Policy,
    Sensitivity,
)
from eastwest.policy.lint.held import Caller, Held, Holding, what_holds
from eastwest.policy.lint.newcomers import Entrants, ToCome, entrants, to_come
from eastwest.policy.lint.rules import CATALOGUE, Level
from eastwest.policy.problems import Position
from eastwest.policy.reach import Way, ways
from eastwest.policy.table import CompiledPolicy

CHANGING = frozenset({Sensitivity.MUTATE, Sensitivity.CONTROL})
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Registration:
    """A registration that a server holds, from files or by API."""

    spiffe_id: str
    parent: str
    selectors: tuple[str, ...]
    managed_by: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found. ``subjects``: what it is about, most important first; waivers are held against them.

    ``pairs``: some callers and operations that the table really allows by what is found. ``waiver``: the name of the
    one that excuses it.
    """

    rule: str
    level: Level
    where: Position
    message: str
    fix: str
    policy: str = ""
    service: str = ""
    workloads: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    waiver: str = field(default="", compare=False)
    reason: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.where}: {self.level}: {self.message} [{self.rule}] ({self.fix})"


class Ground:
    """An estate and its table, as rules look at them. What is costly is found out once, when first asked for."""

    def __init__(
        self,
        estate: Estate,
        compiled: CompiledPolicy,
        today: dt.date,
        registrations: Iterable[Registration] = (),
    ) -> None:
        self.estate = estate
        self.today = today
        self.registrations = tuple(registrations)
        self._compiled = compiled
        self._allowed: dict[tuple[int, bool], Mapping[str, Way]] = {}

    @cached_property
    def held(self) -> Held:
        """Which policies hold where."""
        return what_holds(self.estate)

    @cached_property
    def analyses(self) -> tuple[Analysis, ...]:
        """Policies that decide something."""
        return tuple(analyse(policy) for policy in self.estate.policies if not policy.report)

    @cached_property
    def effective(self) -> Mapping[str, tuple[Holding, ...]]:
        """Where each permit holds and the call is allowed, by policy."""
        found: dict[str, list[Holding]] = {}
        for holding in self.held.holdings:
            if holding.allowed:
                for name in holding.permits:
                    found.setdefault(name, []).append(holding)
        return {name: tuple(holdings) for name, holdings in found.items()}

    @cached_property
    def entrants(self) -> Mapping[str, Entrants]:
        """What permits let callers do that nobody has named, by policy."""
        return entrants(self.estate, self.analyses)

    @cached_property
    def to_come(self) -> ToCome:
        """Which permits hold for operations and services that there may be."""
        return to_come(self.estate, self.analyses, self.effective)

    @cached_property
    def environments(self) -> Mapping[str, Environment]:
        """By name."""
        return {environment.name: environment for environment in self.estate.settings.environments}

    @cached_property
    def environment_of(self) -> Mapping[str, str]:
        """Of each service: that of its workload."""
        by_workload = {workload.spiffe_id: workload.environment for workload in self.estate.workloads}
        return {service.service: by_workload[service.workload] for service in self.estate.services}

    def is_production(self, environment: str) -> bool:
        """Whether an environment is; False for one that is not there."""
        found = self.environments.get(environment)
        return found is not None and found.is_production

    @cached_property
    def rules(self) -> Mapping[str, OperationRules]:
        """The table by operation."""
        inbound = (i for sidecar in self._compiled.sidecars.values() for i in sidecar.inbound)
        return {operation.name: operation for i in inbound for operation in i.operations}

    @cached_property
    def callers(self) -> Mapping[str, Caller]:
        """By SPIFFE ID."""
        return {caller.spiffe_id: caller for caller in self.estate.callers}

    def allowed(self, operation: str) -> Mapping[str, Way]:
        """Who is allowed an operation, by the freest way."""
        rules = self.rules[operation]
        # Operations share their cells.
        key = (id(rules.cells), rules.tenant is not None and rules.tenant.claim)
        if key not in self._allowed:
            found: dict[str, Way] = {}
            for cell in rules.cells:
                made = ways(rules, cell)
                if made:
                    found.update(dict.fromkeys(cell.callers, made[0]))
            self._allowed[key] = found
        return self._allowed[key]

    @cached_property
    def population(self) -> Mapping[str, int]:
        """Callers of each environment."""
        return Counter(caller.environment for caller in self.estate.callers)

    def finding(
        self,
        rule: str,
        where: Position,
        message: str,
        *,
        fix: str = "",
        level: Level | None = None,
        policy: str = "",
        service: str = "",
        workloads: Iterable[str] = (),
        pairs: Iterable[tuple[str, str]] = (),
    ) -> Finding:
        """A finding of ``rule``, with the rule's own level and fix unless others are given."""
        said = CATALOGUE[rule]
        return Finding(
            rule, level or said.level, where, message, fix or said.fix, policy, service, tuple(workloads), tuple(pairs)
        )

    def at_policy(self, policy: Policy) -> Position:
        """Where it is written."""
        return self.estate.position("policy", policy.id)


def counted(things: Collection[object], noun: str) -> str:
    """How many: ``1 caller``, ``2 callers``."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def some(names: Iterable[str], shown: int = SHOWN) -> str:
    """The first few of the names and how many more there are."""
    sorted_names = sorted(set(names))
    head = ", ".join(sorted_names[:shown])
    more = len(sorted_names) - shown
    return f"{head} and {more} more" if more > 0 else head
