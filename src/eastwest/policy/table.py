"""Compilation: an estate becomes, for each workload, the table that its sidecar enforces.

Cedar is asked, not translated. Callers that policies cannot tell apart form one class; policies whose head cannot
fit an operation or a class are left out of the slice that is asked; and equal questions are asked once.
``eastwest.policy.oracle`` answers the same questions without any of this, and tests hold the two together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from eastwest.policy.analysis import Analysis, analyse
from eastwest.policy.cedar import locate
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    Inbound,
    OperationRules,
    Outbound,
    Rule,
    Sidecar,
    TenantRules,
    TenantSource,
    Verdict,
)
from eastwest.policy.estate import Demand, Estate, ForeignWorkload, Operation, Service, Workload, content
from eastwest.policy.judge import (
    ATTAINABLE,
    NOT_PERMITTED,
    TENANT_NOT_PERMITTED,
    UNCLASSIFIED,
    Entities,
    Judge,
    Request,
    fresh_text,
)
from eastwest.policy.operations import can_be_tenant, matcher, method_of, tenant_source, wire_form
from eastwest.policy.problems import EstateInvalid, Problem, Severity, ordered
from eastwest.policy.schema import ACTION, DOMAIN, ENVIRONMENT, SERVICE, WORKLOAD

COMPILER = "eastwest-table-2"
"""Part of every version, so that a compiler that answers differently also names its answers differently."""

Outcome = Rule | TenantRules


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Counts, for people. Cells count pairs of caller and operation."""

    workloads: int
    services: int
    operations: int
    policies: int
    classes: int
    allowed: int
    by_tenant: int
    denied: int
    asked: int


class CompiledPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """One version of everything that is enforced. ``problems``: policies that failed when asked, or fit nothing."""

    version: str
    sidecars: dict[str, Sidecar]
    summary: Summary
    problems: tuple[Problem, ...] = ()


def compile_estate(estate: Estate) -> CompiledPolicy:
    """Compile; equal estates give equal tables.

    Raises ``EstateInvalid`` when a policy looks at what a table cannot hold.
    """
    policies = [analyse(policy) for policy in estate.policies]
    _refuse_uncompilable(estate, policies)
    version = hashlib.sha256(COMPILER.encode() + b"\0" + content(estate)).hexdigest()
    table = _Table(estate, policies)
    rules = {s.service: tuple(table.operation(s, o) for o in in_order(s.operations)) for s in estate.services}
    known = tuple(caller.spiffe_id for caller in estate.callers)
    reachable = _reachable(estate, rules)
    inbound: dict[str, list[Inbound]] = {}
    quantum_safe = _quantum_safe(estate)
    for service in estate.services:
        listener = _inbound(service, rules[service.service], post_quantum=service.workload in quantum_safe)
        inbound.setdefault(service.workload, []).append(listener)
    sidecars = {
        name: Sidecar(
            spiffe_id=name,
            version=version,
            known_callers=known,
            inbound=tuple(inbound.get(name, ())),
            outbound=reachable[name],
            federated_callers=_admitted(inbound.get(name, ()), estate),
        )
        for name in reachable
    }
    problems = [*table.problems.values(), *table.idle()] if estate.services else []
    return CompiledPolicy(version=version, sidecars=sidecars, summary=table.summary(rules), problems=ordered(problems))


def in_order(operations: Iterable[Operation]) -> list[Operation]:
    """Operations so that the first that matches a request is the one it belongs to (leftmost literal first)."""

    def key(operation: Operation) -> tuple[object, ...]:
        form = wire_form(matcher(operation))
        return ((), operation.name) if form is None else (form[1].precedence, operation.name)

    return sorted(operations, key=key)


@dataclass(frozen=True, slots=True)
class _Class:
    """Callers that policies cannot tell apart, asked about by their first."""

    callers: tuple[str, ...]
    texts: frozenset[str]
    policies: frozenset[int]  # whose principal line fits


@dataclass(frozen=True, slots=True)
class _Slice:
    """Policies that may apply, and what their answer depends on."""

    judge: Judge
    uses_tenant: bool
    by_operation: bool
    by_method: bool
    by_service: bool
    uses_tokens: bool
    texts: frozenset[str]


class _Table:
    def __init__(self, estate: Estate, policies: Sequence[Analysis]) -> None:
        self._estate = estate
        self._policies = policies
        self._entities = Entities(estate)
        self._environments = {w.spiffe_id: w.environment for w in estate.workloads}
        self._all_texts = frozenset(t for w in estate.callers for t in _texts(w)).union(
            s.owner for s in estate.services
        )
        self._classes = self._make_classes()
        self._slices: dict[tuple[int, ...], _Slice] = {}
        self._outcomes: dict[object, Outcome] = {}
        self._cells: dict[object, tuple[Cell, ...]] = {}
        self._used: set[int] = set()
        self.problems: dict[str, Problem] = {}

    def operation(self, service: Service, operation: Operation) -> OperationRules:
        """The rules of one operation."""
        source = tenant_source(service, operation)
        if operation.sensitivity is None:
            return OperationRules(name=operation.name, match=matcher(operation), tenant=source, otherwise=UNCLASSIFIED)
        applying = self._applying(service, operation)
        self._used.update(applying)
        key = self._key(applying, service, operation, source)
        if key not in self._cells:
            self._cells[key] = self._make_cells(applying, service, operation, source)
        return OperationRules(
            name=operation.name,
            match=matcher(operation),
            tenant=source,
            single_use=Demand.SINGLE_USE in operation.demands,
            cells=self._cells[key],
            otherwise=NOT_PERMITTED,
        )

    def idle(self) -> Iterator[Problem]:
        """Policies whose head fits no operation, or no workload: likely a mistake in it."""
        for i, policy in enumerate(self._policies):
            line = "resource" if i not in self._used else "principal"
            if i in self._used and any(i in group.policies for group in self._classes):
                continue
            start = self._estate.position("policy", policy.policy.id)
            yield Problem(
                Severity.WARNING,
                locate(start, policy.policy.text, line),
                f"policy {policy.policy.id!r} applies to no {'operation' if line == 'resource' else 'workload'}",
                "see whether its action and resource belong together" if line == "resource" else "see its principal",
            )

    def summary(self, rules: Mapping[str, Sequence[OperationRules]]) -> Summary:
        operations = [o for group in rules.values() for o in group]
        allowed = by_tenant = 0
        for cell in (c for o in operations for c in o.cells):
            if cell.tenants is not None and cell.tenants.by_tenant:
                by_tenant += len(cell.callers)
            elif any(rule.verdict is Verdict.ALLOW for rule in _rules(cell)):
                allowed += len(cell.callers)
        total = len(operations) * len(self._estate.callers)
        return Summary(
            workloads=len(self._estate.workloads),
            services=len(self._estate.services),
            operations=len(operations),
            policies=len(self._policies),
            classes=len(self._classes),
            allowed=allowed,
            by_tenant=by_tenant,
            denied=total - allowed - by_tenant,
            asked=sum(s.judge.asked for s in self._slices.values()),
        )

    def _make_classes(self) -> list[_Class]:
        named = frozenset(name for p in self._policies for name in p.callers)
        groups: dict[object, list[Workload | ForeignWorkload]] = {}
        for workload in self._estate.callers:
            attributes = tuple(sorted((k, _normal(v)) for k, v in workload.attributes.items()))
            alone = workload.spiffe_id if workload.spiffe_id in named else ""
            key = (workload.environment, workload.domain, workload.owner, attributes, alone)
            groups.setdefault(key, []).append(workload)
        classes = []
        for members in groups.values():
            first = members[0]
            names = frozenset({(WORKLOAD, first.spiffe_id), (DOMAIN, first.domain), (ENVIRONMENT, first.environment)})
            fitting = frozenset(i for i, p in enumerate(self._policies) if p.principal.covers(names))
            classes.append(_Class(tuple(w.spiffe_id for w in members), frozenset(_texts(first)), fitting))
        return classes

    def _applying(self, service: Service, operation: Operation) -> tuple[int, ...]:
        groups = {(ACTION, operation.name)}
        if operation.sensitivity is not None:
            groups.add((ACTION, operation.sensitivity.value))
        action = frozenset(groups)
        environment = self._environments[service.workload]
        resource = frozenset({(SERVICE, service.service), (DOMAIN, service.domain), (ENVIRONMENT, environment)})
        return tuple(i for i, p in enumerate(self._policies) if p.action.covers(action) and p.resource.covers(resource))

    def _slice(self, indices: tuple[int, ...]) -> _Slice:
        known = self._slices.get(indices)
        if known is None:
            policies = [self._policies[i] for i in indices]
            others = self._all_texts if any(p.reads_others for p in policies) else frozenset()
            known = self._slices[indices] = _Slice(
                judge=Judge(policies, self._entities),
                uses_tenant=any(p.uses_tenant for p in policies),
                by_operation=any(p.uses_action or p.uses_demands for p in policies),
                by_method=any(p.uses_method for p in policies),
                by_service=any(p.names_services or p.uses_demands for p in policies),
                uses_tokens=any(p.uses_demands for p in policies),
                texts=others.union(*(p.texts for p in policies)),
            )
        return known

    def _key(
        self, indices: tuple[int, ...], service: Service, operation: Operation, source: TenantSource | None
    ) -> tuple[object, ...]:
        """All that the answers of these policies can depend on, apart from the caller."""
        part = self._slice(indices)
        return (
            indices,
            self._environments[service.workload],
            service.domain,
            service.owner,
            source if source is None else (bool(source.path), source.claim),
            operation.demands,
            operation.name if part.by_operation else "",
            method_of(operation) if part.by_method else "",
            service.service if part.by_service else "",
        )

    def _make_cells(
        self, applying: tuple[int, ...], service: Service, operation: Operation, source: TenantSource | None
    ) -> tuple[Cell, ...]:
        callers: dict[bytes, tuple[Outcome, list[str]]] = {}
        for group in self._classes:
            indices = tuple(i for i in applying if i in group.policies)
            outcome: Outcome = NOT_PERMITTED
            if indices:
                key = (group.callers[0], self._key(indices, service, operation, source))
                if key not in self._outcomes:
                    self._outcomes[key] = self._ask(self._slice(indices), group, service, operation, source)
                outcome = self._outcomes[key]
            if outcome != NOT_PERMITTED:
                entry = callers.setdefault(msgspec.json.encode(outcome, order="deterministic"), (outcome, []))
                entry[1].extend(group.callers)
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
        self, part: _Slice, group: _Class, service: Service, operation: Operation, source: TenantSource | None
    ) -> Outcome:
        method = method_of(operation)
        texts = group.texts | part.texts | {service.owner, method}
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
        rules = part.judge.rules(requests, texts)
        for each in (inner for rule in rules for inner in every_rule(rule)):
            self._note_error(each, operation)
        if source is None:
            return rules[0]
        return combine(dict(zip(tenants, rules, strict=True)), other)

    def _note_error(self, rule: Rule, operation: Operation) -> None:
        if rule.code is DecisionCode.POLICY_ERROR and rule.policy not in self.problems:
            self.problems[rule.policy] = Problem(
                Severity.ERROR,
                self._estate.position("policy", rule.policy),
                f"policy {rule.policy!r} fails when it is asked about {operation.name}",
                "a failing policy denies; look for arithmetic that overflows",
            )


def every_rule(rule: Rule) -> Iterator[Rule]:
    """The rule, and those that hold with a token."""
    yield rule
    if rule.token is not None:
        for origins in (rule.token.unapproved, rule.token.approved, *rule.token.approved_by.values()):
            yield from (origins.otherwise, *origins.by_origin.values())


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


def _refuse_uncompilable(estate: Estate, policies: Iterable[Analysis]) -> None:
    problems = [
        Problem(
            Severity.ERROR,
            locate(estate.position("policy", p.policy.id), p.policy.text, *refusal.tokens),
            f"policy {p.policy.id!r}: {refusal.message}",
            refusal.fix,
        )
        for p in policies
        for refusal in p.refusals
    ]
    if problems:
        raise EstateInvalid([*problems, *estate.notes])


def _quantum_safe(estate: Estate) -> frozenset[str]:
    """Workloads whose profile certifies ML-DSA-65 keys and no others: they speak with their like."""
    profiles = {profile.profile for profile in estate.profiles if set(profile.keys) == {"ml-dsa-65"}}
    return frozenset(workload.spiffe_id for workload in estate.workloads if workload.profile in profiles)


def _inbound(service: Service, operations: tuple[OperationRules, ...], *, post_quantum: bool) -> Inbound:
    upstream = f"unix:{service.upstream.unix}" if service.upstream.unix else f"tcp:{service.upstream.tcp}"
    return Inbound(
        service=service.service,
        address=service.listen.address,
        port=service.listen.port,
        protocol=service.listen.protocol,
        mode=service.listen.mtls,
        upstream=upstream,
        operations=operations,
        post_quantum=post_quantum,
    )


def _reachable(estate: Estate, rules: Mapping[str, Sequence[OperationRules]]) -> dict[str, tuple[Outbound, ...]]:
    """Other workloads' services in the caller's environment, and those elsewhere that a policy allows.

    A caller without permission is sent to the service too: it is the service that refuses, and records it.
    """
    environments = {w.spiffe_id: w.environment for w in estate.workloads}
    quantum_safe = _quantum_safe(estate)
    by_environment: dict[str, dict[str, Outbound]] = {}
    by_caller: dict[str, dict[str, Outbound]] = {}
    for service in estate.services:
        listen = service.listen
        default = f"[{listen.address}]:{listen.port}" if ":" in listen.address else f"{listen.address}:{listen.port}"
        outbound = Outbound(
            service=service.service,
            spiffe_id=service.workload,
            endpoints=service.endpoints or (default,),
            protocol=listen.protocol,
            post_quantum=service.workload in quantum_safe,
        )
        by_environment.setdefault(environments[service.workload], {})[service.service] = outbound
        for cell in (c for o in rules[service.service] for c in o.cells if _allows(c)):
            for caller in cell.callers:
                if environments.get(caller, environments[service.workload]) != environments[service.workload]:
                    by_caller.setdefault(caller, {})[service.service] = outbound
    for foreign in (service for one in estate.settings.federation for service in one.services):
        by_environment.setdefault(foreign.environment, {})[foreign.service] = Outbound(
            service=foreign.service,
            spiffe_id=foreign.workload,
            endpoints=foreign.endpoints,
            protocol=foreign.protocol,
        )
    return {
        name: tuple(
            outbound
            for _, outbound in sorted({**by_environment.get(here, {}), **by_caller.get(name, {})}.items())
            if outbound.spiffe_id != name
        )
        for name, here in environments.items()
    }


def _admitted(inbound: Iterable[Inbound], estate: Estate) -> tuple[str, ...]:
    """Foreign trust domains of which some caller is allowed something here, or would be with what is demanded.

    The bundles of no others are trusted at the door.
    """
    cells = [c for i in inbound for o in i.operations for c in o.cells]
    callers = {caller for cell in cells if any(r.code in ATTAINABLE for r in _rules(cell)) for caller in cell.callers}
    return tuple(
        sorted(
            one.trust_domain
            for one in estate.settings.federation
            if any(workload.spiffe_id in callers for workload in one.workloads)
        )
    )


def _allows(cell: Cell) -> bool:
    return any(part.verdict is Verdict.ALLOW for rule in _rules(cell) for part in every_rule(rule))


def _rules(cell: Cell) -> Sequence[Rule]:
    if cell.rule is not None:
        return (cell.rule,)
    return () if cell.tenants is None else (cell.tenants.otherwise, *cell.tenants.by_tenant.values())


def _normal(value: str | tuple[str, ...]) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else tuple(sorted(set(value)))


def _texts(workload: Workload | ForeignWorkload) -> list[str]:
    texts = [workload.owner]
    for value in workload.attributes.values():
        texts += [value] if isinstance(value, str) else value
    return texts
