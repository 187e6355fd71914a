"""Who may do each operation, by asking Cedar as little as possible, and nothing again that was asked before.

Callers that policies cannot tell apart form one class; policies whose head cannot fit an operation or a class are left
out of the slice that is asked; and equal questions are asked once. A ``Memory`` carries the answers from one version of
an estate to the next: each is kept under everything that it depends on, so it can be old but never wrong.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import msgspec

from eastwest.errors import InvalidInput
from eastwest.policy.analysis import Analysis, Scope
from eastwest.policy.enforcement import Cell, OperationRules, Rule, Sidecar, TenantRules, TenantSource, Verdict
from eastwest.policy.estate import Demand, Estate, ForeignWorkload, Operation, Policy, Service, Workload
from eastwest.policy.judge import (
    ATTAINABLE,
    NOT_PERMITTED,
    TENANT_NOT_PERMITTED,
    UNCLASSIFIED,
    Entities,
    Judge,
    Request,
    TooManyQuestions,
    fresh_text,
)
from eastwest.policy.operations import can_be_tenant, matcher, method_of, tenant_source
from eastwest.policy.problems import EstateInvalid, Problem, Severity
from eastwest.policy.schema import ACTION, DOMAIN, ENVIRONMENT, SERVICE, WORKLOAD, cedar_entities

Outcome = Rule | TenantRules
MAX_ASKED = 3_000_000
"""Questions about one version; one of 5,000 workloads and 10,000 operations asks some 100,000."""
MAX_REMEMBERED = 500_000
"""Answers that a memory holds before it begins anew; one of 5,000 workloads and 10,000 operations has some 100,000."""


class Memory:
    """What was found out about earlier versions. One at a time may use it: hold ``lock``."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._sidecars: dict[str, Sidecar] = {}
        self._entities: Entities | None = None
        self._said: tuple[str, str] = ("", "")
        self._world = ""
        self._policies: dict[Policy, int] = {}
        self._slices: dict[tuple[int, ...], Slice] = {}
        self._outcomes: dict[Hashable, Outcome] = {}
        self._interned: dict[bytes, Outcome] = {}
        self._classes: dict[Hashable, int] = {}
        self._cells: dict[Hashable, tuple[Cell, ...]] = {}

    def entities(self, estate: Estate) -> tuple[Entities, str]:
        """The estate's entities as Cedar holds them, and a hash of what they and the schema say."""
        said = (estate.schema, cedar_entities(estate))
        if self._entities is None or said != self._said:
            self._entities, self._said = Entities(*said), said
            self._world = hashlib.sha256("\0".join(said).encode()).hexdigest()
            self._slices.clear()  # they ask these entities
        return self._entities, self._world

    def number(self, policy: Policy) -> int:
        """A number for what the policy says, the same in every version."""
        return self._policies.setdefault(policy, len(self._policies))

    def slice(self, numbers: tuple[int, ...], policies: Sequence[Analysis], entities: Entities) -> Slice:
        """The policies with these numbers as one thing to ask."""
        if numbers not in self._slices:
            self._slices[numbers] = Slice(policies, entities)
        return self._slices[numbers]

    def classes(self, said: Hashable) -> int:
        """A number for a division of callers into classes."""
        return self._classes.setdefault(said, len(self._classes))

    def outcome(self, key: Hashable, ask: Callable[[], Outcome]) -> Outcome:
        """The answer under ``key``. Equal answers are one object."""
        found = self._outcomes.get(key)
        if found is None:
            answer = ask()
            said = msgspec.json.encode(answer, order="deterministic")
            found = self._outcomes[key] = self._interned.setdefault(said, answer)
        return found

    def cells(self, key: Hashable, make: Callable[[], tuple[Cell, ...]]) -> tuple[Cell, ...]:
        """The cells of operations that differ in nothing that ``key`` does not say."""
        found = self._cells.get(key)
        if found is None:
            found = self._cells[key] = make()
        return found

    def sidecar(self, made: Sidecar, version: Callable[[Sidecar], str]) -> Sidecar:
        """``made`` with its version, which is asked for only if the last one of this workload said something else."""
        last = self._sidecars.get(made.spiffe_id)
        if last is None or last != msgspec.structs.replace(made, version=last.version):
            last = self._sidecars[made.spiffe_id] = msgspec.structs.replace(made, version=version(made))
        return last

    def tidy(self) -> None:
        """Begin anew when too much has gathered."""
        if len(self._outcomes) + len(self._cells) + len(self._policies) > MAX_REMEMBERED:
            # Together: their numbers are in each other's keys.
            for kept in (self._policies, self._slices, self._outcomes, self._interned, self._classes, self._cells):
                kept.clear()


class Slice:
    """Policies that may apply, and what their answer depends on."""

    def __init__(self, policies: Sequence[Analysis], entities: Entities) -> None:
        self.policies = policies
        self._entities = entities
        self.uses_tenant = any(p.uses_tenant for p in policies)
        self.uses_tokens = any(p.uses_demands for p in policies)
        self.by_operation = self.uses_tokens or any(p.uses_action for p in policies)
        self.by_method = any(p.uses_method for p in policies)
        self.by_service = self.uses_tokens or any(p.names_services for p in policies)
        self.reads_others = any(p.reads_others for p in policies)
        self.of_service = frozenset[str]().union(*(p.of_service for p in policies))
        self.by_world = any(p.names_entities for p in policies)
        self.texts = frozenset[str]().union(*(p.texts for p in policies))

    @cached_property
    def judge(self) -> Judge:
        """Many slices are only looked at, never asked."""
        return Judge(self.policies, self._entities)


@dataclass(frozen=True, slots=True)
class _Class:
    """Callers that policies cannot tell apart, asked about by their first."""

    callers: tuple[str, ...]
    said: Hashable  # all that is known of each
    texts: frozenset[str]
    policies: int  # whose principal line fits, one bit each


@dataclass(slots=True)
class _Heads:
    """For one line of the policies' heads: which of them it lets through, one bit each."""

    always: int = 0
    named: dict[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, scopes: Iterable[Scope]) -> _Heads:
        heads = cls()
        for i, scope in enumerate(scopes):
            if scope.never:
                continue
            if scope.among is None:
                heads.always |= 1 << i
            for name in scope.among or ():
                heads.named[name] = heads.named.get(name, 0) | 1 << i
        return heads

    def covering(self, *names: tuple[str, str]) -> int:
        """The policies whose line covers an entity, given as its own name and those of its groups."""
        found = self.always
        for name in names:
            found |= self.named.get(name, 0)
        return found


class Cells:
    """Fills the table of one estate."""

    def __init__(self, estate: Estate, policies: Sequence[Analysis], memory: Memory) -> None:
        self._estate = estate
        self._policies = policies
        self._memory = memory
        self._numbers = [memory.number(p.policy) for p in policies]
        self._entities, self._world = memory.entities(estate)
        self._environments = {w.spiffe_id: w.environment for w in estate.workloads}
        self._actions = _Heads.of(p.action for p in policies)
        self._resources = _Heads.of(p.resource for p in policies)
        self._classes = self._make_classes()
        self._division = memory.classes(tuple((group.said, group.callers) for group in self._classes))
        self._slices: dict[int, tuple[tuple[int, ...], Slice]] = {}
        self._used = 0
        self.asked = 0

    @property
    def classes(self) -> int:
        """How many kinds of callers there are."""
        return len(self._classes)

    def operation(self, service: Service, operation: Operation) -> OperationRules:
        """The rules of one operation."""
        source = tenant_source(service, operation)
        if operation.sensitivity is None:
            return OperationRules(name=operation.name, match=matcher(operation), tenant=source, otherwise=UNCLASSIFIED)
        applying = self._applying(service, operation)
        self._used |= applying
        key = (self._division, self._key(applying, service, operation, source))
        return OperationRules(
            name=operation.name,
            match=matcher(operation),
            tenant=source,
            single_use=Demand.SINGLE_USE in operation.demands,
            cells=self._memory.cells(key, lambda: self._make_cells(applying, service, operation, source)),
            otherwise=NOT_PERMITTED,
        )

    def idle(self) -> list[tuple[Analysis, str]]:
        """Policies whose head fits no operation or no workload, with the line of the head that is to blame."""
        admitted = 0
        for group in self._classes:
            admitted |= group.policies
        found = []
        for i, policy in enumerate(self._policies):
            if not self._used >> i & 1:
                found.append((policy, "resource"))
            elif not admitted >> i & 1:
                found.append((policy, "principal"))
        return found

    @cached_property
    def _all_texts(self) -> frozenset[str]:
        said = frozenset(text for caller in self._estate.callers for text in caller_texts(caller))
        return said.union(service.owner for service in self._estate.services)

    def _make_classes(self) -> list[_Class]:
        named = frozenset(name for p in self._policies for name in p.callers)
        principals = _Heads.of(p.principal for p in self._policies)
        groups: dict[Hashable, list[Workload | ForeignWorkload]] = {}
        for workload in self._estate.callers:
            attributes = tuple(sorted((k, _normal(v)) for k, v in workload.attributes.items()))
            alone = workload.spiffe_id if workload.spiffe_id in named else ""
            key = (workload.environment, workload.domain, workload.owner, attributes, alone)
            groups.setdefault(key, []).append(workload)
        classes = []
        for said, members in groups.items():
            first = members[0]
            names = ((WORKLOAD, first.spiffe_id), (DOMAIN, first.domain), (ENVIRONMENT, first.environment))
            callers = tuple(w.spiffe_id for w in members)
            classes.append(_Class(callers, said, frozenset(caller_texts(first)), principals.covering(*names)))
        return classes

    def _applying(self, service: Service, operation: Operation) -> int:
        groups = [(ACTION, operation.name)]
        if operation.sensitivity is not None:
            groups.append((ACTION, operation.sensitivity.value))
        environment = self._environments[service.workload]
        resource = ((SERVICE, service.service), (DOMAIN, service.domain), (ENVIRONMENT, environment))
        return self._actions.covering(*groups) & self._resources.covering(*resource)

    def _slice(self, chosen: int) -> tuple[tuple[int, ...], Slice]:
        known = self._slices.get(chosen)
        if known is None:
            indices = _bits(chosen)
            numbers = tuple(self._numbers[i] for i in indices)
            part = self._memory.slice(numbers, [self._policies[i] for i in indices], self._entities)
            known = self._slices[chosen] = numbers, part
        return known

    def _key(self, chosen: int, service: Service, operation: Operation, source: TenantSource | None) -> Hashable:
        """All that the answers of these policies can depend on, apart from the caller."""
        numbers, part = self._slice(chosen)
        return (
            numbers,
            self._environments[service.workload] if "environment" in part.of_service else "",
            service.domain if "domain" in part.of_service else "",
            service.owner if "owner" in part.of_service else "",
            source if source is None else (bool(source.path), source.claim),
            operation.demands,
            (operation.name, operation.sensitivity) if part.by_operation else "",
            method_of(operation) if part.by_method else "",
            service.service if part.by_service else "",
            self._world if part.by_world else "",
        )

    def _make_cells(
        self, applying: int, service: Service, operation: Operation, source: TenantSource | None
    ) -> tuple[Cell, ...]:
        callers: dict[int, tuple[Outcome, list[str]]] = {}
        keys: dict[int, Hashable] = {}
        for group in self._classes:
            chosen = applying & group.policies
            if not chosen:
                continue
            if chosen not in keys:
                keys[chosen] = self._key(chosen, service, operation, source)
            ask = partial(self._ask, chosen, group, service, operation, source)
            outcome = self._memory.outcome((group.said, keys[chosen]), ask)
            if outcome != NOT_PERMITTED:
                callers.setdefault(id(outcome), (outcome, []))[1].extend(group.callers)
        cells = [
            Cell(
                callers=tuple(sorted(names)),
                rule=outcome if isinstance(outcome, Rule) else None,
                tenants=outcome if isinstance(outcome, TenantRules) else None,
            )
            for outcome, names in callers.values()
        ]
        return tuple(sorted(cells, key=lambda cell: cell.callers))

    def _ask(
        self, chosen: int, group: _Class, service: Service, operation: Operation, source: TenantSource | None
    ) -> Outcome:
        part = self._slice(chosen)[1]
        method = method_of(operation)
        texts = group.texts | part.texts | {service.owner, method}
        if part.reads_others:
            texts |= self._all_texts
        if part.uses_tokens:
            # A token says these as well.
            texts |= {operation.name, service.service}
        other = fresh_text("any-other", texts)
        tenants: list[str | None] = [None]
        if source is not None:
            named = sorted(t for t in texts if can_be_tenant(source, t)) if part.uses_tenant else []
            tenants = [other, *named]
        requests = [
            Request(
                caller=group.callers[0],
                operation=operation.name,
                service=service.service,
                method=method,
                path="/",
                tenant=tenant,
                demands=operation.demands,
            )
            for tenant in tenants
        ]
        before = part.judge.asked
        try:
            rules = part.judge.rules(requests, texts)
        except TooManyQuestions as error:
            raise self._too_many(part, operation, error) from None
        self.asked += part.judge.asked - before
        if self.asked > MAX_ASKED:
            whole = InvalidInput(
                f"the policies tell so many cases apart that more than {MAX_ASKED:,} questions would have to be asked",
                fix="name fewer approvers, origins and tenants in policies that fit many operations",
            )
            raise self._too_many(part, operation, whole)
        if source is None:
            return rules[0]
        return combine(dict(zip(tenants, rules, strict=True)), other)

    def _too_many(self, part: Slice, operation: Operation, error: InvalidInput) -> EstateInvalid:
        """The error where the policy stands that names most."""
        worst = max(part.policies, key=lambda policy: len(policy.texts)).policy.id
        where = self._estate.position("policy", worst)
        message = f"policy {worst!r} with others at {operation.name}: {error.message}"
        return EstateInvalid([Problem(Severity.ERROR, where, message, error.fix)])


def combine(rules: Mapping[str | None, Rule], other: str) -> Outcome:
    """One caller's outcomes by tenant as a rule for all tenants or a table; ``other`` stands for the rest.

    An outcome that allows is always a table, because it needs a request that names its tenant.
    """
    attainable = any(rule.code in ATTAINABLE for rule in rules.values())
    told = {
        tenant: TENANT_NOT_PERMITTED if attainable and rule == NOT_PERMITTED else rule for tenant, rule in rules.items()
    }
    otherwise = told[other]
    exceptions = {t: rule for t, rule in sorted(told.items(), key=lambda i: i[0] or "") if t and rule != otherwise}
    if not exceptions and otherwise.verdict is Verdict.DENY and otherwise.token is None:
        return otherwise
    return TenantRules(by_tenant=exceptions, otherwise=otherwise)


def _bits(chosen: int) -> list[int]:
    found = []
    while chosen:
        low = chosen & -chosen
        found.append(low.bit_length() - 1)
        chosen ^= low
    return found


def _normal(value: str | tuple[str, ...]) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else tuple(sorted(set(value)))


def caller_texts(workload: Workload | ForeignWorkload) -> list[str]:
    """What the owner and the attributes of a caller say."""
    texts = [workload.owner]
    for value in workload.attributes.values():
        texts += [value] if isinstance(value, str) else value
    return texts
