"""Compilation: an estate becomes, for each workload, the table that its sidecar enforces.

Cedar is asked, not translated (``eastwest.policy.cells``). ``eastwest.policy.oracle`` answers the same questions
without classes, slices and memory, and tests hold the two together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from eastwest.policy.analysis import Analysis, analyse
from eastwest.policy.cedar import locate
from eastwest.policy.cells import Cells, Memory
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    Inbound,
    OperationRules,
    Outbound,
    Rule,
    Sidecar,
    Verdict,
    encode_sidecar,
)
from eastwest.policy.estate import Estate, Operation, Service, content
from eastwest.policy.judge import ATTAINABLE
from eastwest.policy.operations import matcher, wire_form
from eastwest.policy.problems import EstateInvalid, Problem, Severity, ordered

COMPILER = "eastwest-table-1"
"""Part of every version, so that a compiler that answers differently also names its answers differently."""
Rules = Mapping[str, tuple[OperationRules, ...]]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Counts, for people.

    The four before ``asked`` count pairs of caller and operation: ``allowed`` for whatever tenant with nothing that
    has to be brought, ``by_tenant`` so for some tenants only, ``with_token`` with a token or an approval only.
    """

    workloads: int
    services: int
    operations: int
    policies: int
    callers: int
    classes: int
    allowed: int
    by_tenant: int
    with_token: int
    denied: int
    asked: int
    report: int = 0  # of the policies those in report mode


class CompiledPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """One version of everything that is enforced. ``problems``: policies that failed when asked, or fit nothing."""

    version: str
    sidecars: dict[str, Sidecar]
    summary: Summary
    problems: tuple[Problem, ...] = ()


def compile_estate(estate: Estate, memory: Memory | None = None) -> CompiledPolicy:
    """Compile; equal estates give equal tables, whatever is in ``memory``, which makes it faster.

    Raises ``EstateInvalid`` when a policy looks at what a table cannot hold.
    """
    policies = [analyse(policy) for policy in estate.policies]
    _refuse_uncompilable(estate, policies)
    memory = memory or Memory()
    with memory.lock:
        return _compile(estate, policies, memory)


def _compile(estate: Estate, policies: Sequence[Analysis], memory: Memory) -> CompiledPolicy:
    enforced = [p for p in policies if not p.policy.report]
    cells = every = Cells(estate, enforced, memory)
    rules = {s.service: tuple(cells.operation(s, o) for o in in_order(s.operations)) for s in estate.services}
    report: Rules = {}
    if len(enforced) < len(policies):
        every = Cells(estate, policies, memory)
        report = _report(estate, rules, every)
    compiled = CompiledPolicy(
        version=hashlib.sha256(COMPILER.encode() + b"\0" + content(estate)).hexdigest(),
        sidecars=_sidecars(estate, rules, report, memory),
        summary=_summary(estate, rules, cells),
        problems=ordered([*_failing(estate, [*rules.values(), *report.values()]), *_idle(estate, every)]),
    )
    memory.tidy()
    return compiled


def _report(estate: Estate, rules: Rules, every: Cells) -> Rules:
    """What services would enforce with the rules in report mode too, where that is something else."""
    found = {s.service: tuple(every.operation(s, o) for o in in_order(s.operations)) for s in estate.services}
    return {service: operations for service, operations in found.items() if operations != rules[service]}


def in_order(operations: Iterable[Operation]) -> list[Operation]:
    """Operations so that the first that matches a request is the one it belongs to (leftmost literal first)."""

    def key(operation: Operation) -> tuple[object, ...]:
        form = wire_form(matcher(operation))
        return ((), operation.name) if form is None else (form[1].precedence, operation.name)

    return sorted(operations, key=key)


def every_rule(rule: Rule) -> Iterator[Rule]:
    """The rule, and those that hold with a token."""
    yield rule
    if rule.token is not None:
        for origins in (rule.token.unapproved, rule.token.approved, *rule.token.approved_by.values()):
            yield from (origins.otherwise, *origins.by_origin.values())


def _sidecars(estate: Estate, rules: Rules, report: Rules, memory: Memory) -> dict[str, Sidecar]:
    known = tuple(caller.spiffe_id for caller in estate.callers)
    reachable = _reachable(estate, rules)
    inbound: dict[str, list[Inbound]] = {}
    quantum_safe = _quantum_safe(estate)
    for service in estate.services:
        listener = _inbound(
            service,
            rules[service.service],
            report.get(service.service, ()),
            post_quantum=service.workload in quantum_safe,
        )
        inbound.setdefault(service.workload, []).append(listener)
    return {
        name: memory.sidecar(
            Sidecar(
                spiffe_id=name,
                version="",
                known_callers=known if name in inbound else (),
                inbound=tuple(inbound.get(name, ())),
                outbound=outbound,
                federated_callers=_admitted(inbound[name], estate) if name in inbound else (),
            ),
            _sidecar_version,
        )
        for name, outbound in reachable.items()
    }


def _sidecar_version(sidecar: Sidecar) -> str:
    return hashlib.sha256(COMPILER.encode() + b"\0" + encode_sidecar(sidecar)).hexdigest()


def _summary(estate: Estate, rules: Rules, cells: Cells) -> Summary:
    operations = [operation for group in rules.values() for operation in group]
    allowed = by_tenant = with_token = 0
    for operation, cell in ((o, c) for o in operations for c in o.cells):
        needs_token = operation.tenant is not None and operation.tenant.claim
        plain = {rule.verdict is Verdict.ALLOW and not needs_token for rule in _rules(cell)}
        if plain == {True}:
            allowed += len(cell.callers)
        elif True in plain:
            by_tenant += len(cell.callers)
        elif _allows(cell):
            with_token += len(cell.callers)
    return Summary(
        workloads=len(estate.workloads),
        services=len(estate.services),
        operations=len(operations),
        policies=len(estate.policies),
        callers=len(estate.callers),
        classes=cells.classes,
        allowed=allowed,
        by_tenant=by_tenant,
        with_token=with_token,
        denied=len(operations) * len(estate.callers) - allowed - by_tenant - with_token,
        asked=cells.asked,
        report=sum(policy.report for policy in estate.policies),
    )


def _failing(estate: Estate, rules: Iterable[Sequence[OperationRules]]) -> Iterator[Problem]:
    """Policies that could not answer."""
    found: dict[str, str] = {}
    seen: set[int] = set()
    for operation in (o for group in rules for o in group):
        if id(operation.cells) in seen:
            continue
        seen.add(id(operation.cells))
        rules_of = (rule for cell in operation.cells for rule in _rules(cell))
        for rule in (inner for outer in rules_of for inner in every_rule(outer)):
            if rule.code is DecisionCode.POLICY_ERROR:
                found.setdefault(rule.policy, operation.name)
    for policy, name in found.items():
        yield Problem(
            Severity.ERROR,
            estate.position("policy", policy),
            f"policy {policy!r} fails when it is asked about {name}",
            "a failing policy denies; look for arithmetic that overflows",
        )


def _idle(estate: Estate, cells: Cells) -> Iterator[Problem]:
    """Policies whose head fits no operation, or no workload: likely a mistake in it."""
    for policy, line in cells.idle() if estate.services else ():
        start = estate.position("policy", policy.policy.id)
        yield Problem(
            Severity.WARNING,
            locate(start, policy.policy.text, line),
            f"policy {policy.policy.id!r} applies to no {'operation' if line == 'resource' else 'workload'}",
            "see whether its action and resource belong together" if line == "resource" else "see its principal",
        )


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


def _inbound(
    service: Service,
    operations: tuple[OperationRules, ...],
    report: tuple[OperationRules, ...],
    *,
    post_quantum: bool,
) -> Inbound:
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
        recording=service.recording,
        report=report,
    )


def _reachable(estate: Estate, rules: Mapping[str, Sequence[OperationRules]]) -> dict[str, tuple[Outbound, ...]]:
    """Other workloads' services in the caller's environment, and those elsewhere that a policy allows.

    A caller without permission is sent to the service too: it is the service that refuses, and records it.
    """
    environments = {w.spiffe_id: w.environment for w in estate.workloads}
    quantum_safe = _quantum_safe(estate)
    by_environment: dict[str, dict[str, Outbound]] = {}
    by_caller: dict[str, dict[str, Outbound]] = {}
    allowing: dict[int, bool] = {}
    strangers: dict[tuple[int, str], list[str]] = {}
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
        here = environments[service.workload]
        by_environment.setdefault(here, {})[service.service] = outbound
        # Operations share their cells, by the thousand callers each: what a cell says of an environment is found once.
        for cell in (c for o in rules[service.service] for c in o.cells):
            if id(cell) not in allowing:
                allowing[id(cell)] = _allows(cell)
            if not allowing[id(cell)]:
                continue
            key = id(cell), here
            if key not in strangers:
                strangers[key] = [caller for caller in cell.callers if environments.get(caller, here) != here]
            for caller in strangers[key]:
                by_caller.setdefault(caller, {})[service.service] = outbound
    for foreign in (service for one in estate.settings.federation for service in one.services):
        by_environment.setdefault(foreign.environment, {})[foreign.service] = Outbound(
            service=foreign.service,
            spiffe_id=foreign.workload,
            endpoints=foreign.endpoints,
            protocol=foreign.protocol,
        )
    shared = {name: _in_order(found) for name, found in by_environment.items()}
    called = {outbound.spiffe_id for found in shared.values() for outbound in found}
    reachable: dict[str, tuple[Outbound, ...]] = {}
    for name, here in environments.items():
        others = shared.get(here, ())
        if name in by_caller:
            others = _in_order({**by_environment.get(here, {}), **by_caller[name]})
        reachable[name] = tuple(o for o in others if o.spiffe_id != name) if name in called else others
    return reachable


def _in_order(found: Mapping[str, Outbound]) -> tuple[Outbound, ...]:
    return tuple(outbound for _, outbound in sorted(found.items()))


def _admitted(inbound: Iterable[Inbound], estate: Estate) -> tuple[str, ...]:
    """Foreign trust domains of which some caller is allowed something here, or would be with what is demanded.

    The bundles of no others are trusted at the door.
    """
    cells = [c for i in inbound for o in i.operations for c in o.cells]
    if not estate.settings.federation:
        return ()
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
