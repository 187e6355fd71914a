"""What the estate in force knows of a service's callers: the half of ``eastwest.ledger.breaks`` that no row tells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date, timedelta

import msgspec

from eastwest.ledger.breaks import SEVERITY, Caller, Seen, Subject
from eastwest.policy.check import UNSEEN_CALLER
from eastwest.policy.enforcement import Cell, DecisionCode, Inbound, MtlsMode, Rule, Verdict
from eastwest.policy.estate import Estate, ForeignWorkload, Sensitivity, Service, Workload
from eastwest.policy.forms import duration
from eastwest.policy.operations import matcher, wire_form
from eastwest.policy.replay import Input, Replayer, Unsure
from eastwest.policy.table import CompiledPolicy, every_rule
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.pattern import matches

_DURATION = re.compile("([1-9][0-9]{0,5}[smhd])+")
_WORDS = {"hourly": timedelta(hours=1), "daily": timedelta(days=1), "weekly": timedelta(days=7)}
_WORDS |= {"monthly": timedelta(days=31), "yearly": timedelta(days=366)}
ATTRIBUTES = ("period", "schedule")
"""Attributes of workloads that say how often they call, as the field ``period`` does, or in a word."""


class StrictRules:
    """The policy in force as it is once the service is strict. Serves ``eastwest.ledger.breaks.Rules``."""

    def __init__(self, compiled: CompiledPolicy, service: Service) -> None:
        self._replayer = Replayer(_strict(compiled, service.service))
        self._sensitivities = {o.name: o.sensitivity.value for o in service.operations if o.sensitivity is not None}
        self._forms = [
            (method, template, operation.name)
            for operation in service.operations
            if (wire := wire_form(matcher(operation))) is not None
            for method, template in [wire]
        ]
        inbound = self._replayer.inbound(service.service)
        self._permitted: dict[str, list[str]] = {}
        for operation, callers in _permitted(inbound) if inbound is not None else ():
            for caller in callers:
                self._permitted.setdefault(caller, []).append(operation)
        self._only = service.operations[0].name if service.listen.protocol == "tcp" else ""

    def passes(self, seen: Seen) -> bool | None:
        answers = [self._passes(seen, *request) for request in _requests(seen)]
        if any(answer is False for answer in answers):
            return False
        return None if any(answer is None for answer in answers) else True

    def sensitivity(self, seen: Seen) -> str:
        names = [seen.operation or self._only]
        if not names[0]:
            names = [
                name
                for method, path in _requests(seen)
                for wanted, template, name in self._forms
                if wanted == method and template.match(path) is not None
            ]
        # Of a handshake that failed nobody knows what it was for: what its caller may do is at stake.
        names = names or self._permitted.get(seen.caller, [])
        found = [self._sensitivities[name] for name in names if name in self._sensitivities]
        return max(found, key=lambda one: SEVERITY[one], default="")

    def _passes(self, seen: Seen, method: str, path: str) -> bool | None:
        given = Input(
            service=seen.service,
            code=DecisionCode(seen.code),
            caller=seen.caller,
            claimed=seen.claimed,
            operation=seen.operation,
            method=method,
            path=path,
            tenant=seen.tenant,
            token=seen.token,
            origin=seen.origin,
            approver=seen.approver,
            cause=seen.cause,
            mode=MtlsMode(seen.mode) if seen.mode else MtlsMode.STRICT,
            enforced=seen.enforced,
        )
        answer = self._replayer.decide(given)
        return None if isinstance(answer, Unsure) else answer.passes


def subject_of(
    estate: Estate, compiled: CompiledPolicy, service: Service, nodes: Mapping[str, str], today: date
) -> Subject:
    """The service, and all who are registered and could call it."""
    inbound = next(
        (i for sidecar in compiled.sidecars.values() for i in sidecar.inbound if i.service == service.service), None
    )
    expected = set(_expected(inbound, service)) if inbound is not None else set()
    callers = {
        one.spiffe_id: Caller(
            spiffe_id=one.spiffe_id,
            owner=one.owner,
            period=period(one),
            expected=one.spiffe_id in expected and one.spiffe_id != service.workload,
            waived=_waiver(estate, service.service, one.spiffe_id, today),
        )
        for one in estate.callers
    }
    return Subject(
        service=service.service,
        port=service.listen.port,
        mode=service.listen.mtls.value,
        owner=service.owner,
        trust_domain=estate.settings.trust_domain,
        callers=callers,
        nodes=nodes,
    )


def period(workload: Workload | ForeignWorkload) -> timedelta | None:
    """How often a workload says that it calls; None where it does not."""
    if isinstance(workload, Workload) and isinstance(workload.period, str):
        return duration(workload.period)
    for name in ATTRIBUTES:
        said = workload.attributes.get(name)
        if isinstance(said, str):
            if said in _WORDS:
                return _WORDS[said]
            if _DURATION.fullmatch(said):
                return duration(said)
    return None


def _strict(compiled: CompiledPolicy, service: str) -> CompiledPolicy:
    def turned(inbound: Inbound) -> Inbound:
        mine = inbound.service == service
        return msgspec.structs.replace(inbound, mode=MtlsMode.STRICT) if mine else inbound

    sidecars = {
        name: msgspec.structs.replace(sidecar, inbound=tuple(map(turned, sidecar.inbound)))
        for name, sidecar in compiled.sidecars.items()
    }
    return msgspec.structs.replace(compiled, sidecars=sidecars)


def _requests(seen: Seen) -> Iterator[tuple[str, str]]:
    if not seen.requests:
        yield "", ""
    for request in seen.requests:
        method, _, path = request.partition(" ")
        yield method, path


def _expected(inbound: Inbound, service: Service) -> Iterator[str]:
    """Callers that a rule permits something which is not open to everybody."""
    kept = {o.name for o in service.operations if o.sensitivity not in {None, Sensitivity.OPEN}}
    for operation, callers in _permitted(inbound):
        if operation in kept:
            yield from callers


def _permitted(inbound: Inbound) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Operations and callers that a rule permits them, for some tenant or with a token at least."""
    for operation in inbound.operations:
        for cell in operation.cells:
            if any(rule.verdict is Verdict.ALLOW for rule in _rules(cell)):
                yield operation.name, cell.callers


def _rules(cell: Cell) -> Iterator[Rule]:
    tenants = cell.tenants
    rules = (cell.rule,) if tenants is None else (tenants.otherwise, *tenants.by_tenant.values())
    for rule in rules:
        if rule is not None:
            yield from every_rule(rule)


def _waiver(estate: Estate, service: str, caller: str, today: date) -> str:
    for waiver in estate.waivers:
        scope = waiver.applies_to
        covers = scope.workload is None or matches(scope.workload, SpiffeId.parse(caller))
        if scope.rule == UNSEEN_CALLER and scope.service == service and today <= waiver.until and covers:
            return waiver.waiver
    return ""
