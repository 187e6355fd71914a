"""The same decision twice: straight from Cedar, and looked up in a compiled table.

``decide`` asks Cedar about the one request with all policies and the schema, without classes, slices or tables; it
is what the table must equal. ``lookup`` reads the table as an enforcement point does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from eastwest.policy.analysis import analyse
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    OperationRules,
    Rule,
    Sidecar,
    TenantSource,
    Verdict,
)
from eastwest.policy.estate import Estate, Operation, Service
from eastwest.policy.judge import (
    ATTAINABLE,
    NOT_PERMITTED,
    TENANT_NOT_PERMITTED,
    Entities,
    Judge,
    Request,
    demand_texts,
)
from eastwest.policy.operations import can_be_tenant, matcher, method_of, tenant_source, wire_form
from eastwest.policy.table import fresh_text, in_order

Decision = tuple[Verdict, DecisionCode, str, str]
"""Verdict, code, policy id ("" when none decided), operation ("" when none matched)."""
Headers = Sequence[tuple[str, str]]


class Oracle:
    """Cedar's own answers for one estate."""

    def __init__(self, estate: Estate) -> None:
        policies = [analyse(policy) for policy in estate.policies]
        self._callers = {w.spiffe_id for w in estate.callers}
        self._services = {s.service: s for s in estate.services}
        self._judge = Judge(policies, Entities(estate), demand_texts(policies), checked=True)
        texts = {t for p in policies for t in p.texts}
        for workload in estate.callers:
            texts.add(workload.owner)
            for value in workload.attributes.values():
                texts.update([value] if isinstance(value, str) else value)
        texts |= {s.owner for s in estate.services}
        self._texts = texts | {method_of(o) for s in estate.services for o in s.operations}

    def decide(self, caller: str | None, service: str, method: str, path: str, headers: Headers = ()) -> Decision:
        """Decide a request in strict mode; ``caller`` None when it proved nothing. The service must exist."""
        if caller is None:
            return _deny(DecisionCode.MTLS_REQUIRED)
        if caller not in self._callers:
            return _deny(DecisionCode.UNKNOWN_CALLER)
        called = self._services[service]
        for operation in in_order(called.operations):
            parameters = _parameters(operation, method, path)
            if parameters is not None:
                return self._operation(caller, called, operation, path, parameters, headers)
        return _deny(DecisionCode.UNLISTED_OPERATION)

    def _operation(
        self,
        caller: str,
        service: Service,
        operation: Operation,
        path: str,
        parameters: dict[str, str],
        headers: Headers,
    ) -> Decision:
        def ask(tenant: str | None) -> Rule:
            request = Request(
                caller=caller,
                operation=operation.name,
                service=service.service,
                method=method_of(operation),
                path=path,
                tenant=tenant,
                demands=operation.demands,
            )
            return self._judge.rules([request])[0]

        source = tenant_source(service, operation)
        if source is None:
            return _told(ask(None), operation.name)
        tenant = _tenant(source, parameters, headers)
        everyone = [fresh_text(self._texts), *sorted(t for t in self._texts if can_be_tenant(source, t))]
        if tenant is None:
            rules = {ask(t) for t in everyone}
            only = rules.pop()
            if rules or only.verdict is Verdict.ALLOW:
                return _deny(DecisionCode.TENANT_MISSING, operation.name)
            # Whatever tenant it named, the answer would be this one.
            return _told(_refined(only, [only]), operation.name)
        rule = ask(tenant)
        if rule == NOT_PERMITTED:
            rule = _refined(rule, map(ask, everyone))
        return _told(rule, operation.name)


def decide(estate: Estate, caller: str | None, service: str, method: str, path: str, headers: Headers = ()) -> Decision:
    """Decide one request straight from Cedar; for many of one estate, keep an ``Oracle``."""
    return Oracle(estate).decide(caller, service, method, path, headers)


def lookup(
    sidecar: Sidecar, caller: str | None, service: str, method: str, path: str, headers: Headers = ()
) -> Decision:
    """Decide a request in strict mode from the table of the service's sidecar. The service must be there."""
    if caller is None:
        return _deny(DecisionCode.MTLS_REQUIRED)
    if caller not in sidecar.known_callers:
        return _deny(DecisionCode.UNKNOWN_CALLER)
    inbound = next(i for i in sidecar.inbound if i.service == service)
    for operation in inbound.operations:
        form = wire_form(operation.match)
        parameters = {} if form is None else form[1].match(path) if form[0] == method else None
        if parameters is not None:
            return _in_table(operation, caller, parameters, headers)
    return _deny(DecisionCode.UNLISTED_OPERATION)


def _in_table(operation: OperationRules, caller: str, parameters: dict[str, str], headers: Headers) -> Decision:
    cell: Cell | None = next((c for c in operation.cells if caller in c.callers), None)
    if cell is None:
        return _told(operation.otherwise, operation.name)
    if cell.rule is not None:
        return _told(cell.rule, operation.name)
    if cell.tenants is None or operation.tenant is None:
        raise AssertionError("a cell has a rule, or tenants at an operation that has a tenant source")
    tenant = _tenant(operation.tenant, parameters, headers)
    if tenant is None:
        return _deny(DecisionCode.TENANT_MISSING, operation.name)
    return _told(cell.tenants.by_tenant.get(tenant, cell.tenants.otherwise), operation.name)


def _parameters(operation: Operation, method: str, path: str) -> dict[str, str] | None:
    form = wire_form(matcher(operation))
    if form is None:
        return {}
    return form[1].match(path) if form[0] == method else None


def _tenant(source: TenantSource, parameters: dict[str, str], headers: Headers) -> str | None:
    if source.path:
        return parameters[source.path]
    # Repeated headers reach the matcher joined by a comma, which is no tenant.
    value = ",".join(value for name, value in headers if name.lower() == source.header)
    return value if can_be_tenant(source, value) else None


def _refined(rule: Rule, others: Iterable[Rule]) -> Rule:
    if rule == NOT_PERMITTED and any(other.code in ATTAINABLE for other in others):
        return TENANT_NOT_PERMITTED
    return rule


def _told(rule: Rule, operation: str) -> Decision:
    return rule.verdict, rule.code, rule.policy, operation


def _deny(code: DecisionCode, operation: str = "") -> Decision:
    return Verdict.DENY, code, "", operation
