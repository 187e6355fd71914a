"""The same decision twice: straight from Cedar, and looked up in a compiled table.

``decide`` asks Cedar about the one request with all policies and the schema, without classes, slices or tables; it
is what the table must equal. ``lookup`` reads the table as an enforcement point does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eastwest.policy.analysis import analyse
from eastwest.policy.cells import caller_texts
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
    Brought,
    Entities,
    Judge,
    Request,
    fresh_text,
)
from eastwest.policy.operations import can_be_tenant, matcher, method_of, tenant_source, wire_form
from eastwest.policy.schema import cedar_entities
from eastwest.policy.table import in_order
from eastwest.policy.transaction import NoToken, Presented, Token, misuse, outcome

Decision = tuple[Verdict, DecisionCode, str, str]
"""Verdict, code, policy id ("" when none decided), operation ("" when none matched)."""
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Call:
    """One request as an enforcement point sees it: the path normalised, the caller proved (None: nothing proved).

    ``presented`` is what came as a transaction token, its signature and times judged; ``certificate`` the SHA-256 of
    the caller's certificate (lower-case hex).
    """

    caller: str | None
    service: str
    method: str
    path: str
    headers: Headers = ()
    presented: Presented = NoToken.MISSING
    certificate: str = ""


class Oracle:
    """Cedar's own answers for one estate; ``report``: as they would be if rules in report mode were enforced."""

    def __init__(self, estate: Estate, *, report: bool = False) -> None:
        policies = [analyse(policy) for policy in estate.policies if report or not policy.report]
        self._callers = {w.spiffe_id: frozenset(caller_texts(w)) for w in estate.callers}
        self._services = {s.service: s for s in estate.services}
        self._judge = Judge(policies, Entities(estate.schema, cedar_entities(estate)), checked=True)
        self._texts = {t for p in policies for t in p.texts}
        if any(p.reads_others for p in policies):
            self._texts |= {t for workload in estate.callers for t in caller_texts(workload)}
            self._texts |= {s.owner for s in estate.services}

    def decide(
        self,
        caller: str | None,
        service: str,
        method: str,
        path: str,
        headers: Headers = (),
        presented: Presented = NoToken.MISSING,
        certificate: str = "",
    ) -> Decision:
        """Decide a request (see ``Call``) in strict mode. The service must exist."""
        if caller is None:
            return _deny(DecisionCode.MTLS_REQUIRED)
        if caller not in self._callers:
            return _deny(DecisionCode.UNKNOWN_CALLER)
        called = self._services[service]
        call = Call(caller, service, method, path, headers, presented, certificate)
        for operation in in_order(called.operations):
            parameters = _parameters(operation, method, path)
            if parameters is not None:
                return self.at(operation, call, parameters)
        return _deny(DecisionCode.UNLISTED_OPERATION)

    def at(self, operation: Operation, call: Call, parameters: dict[str, str]) -> Decision:
        """Decide a call of a registered caller whose operation is known; ``parameters`` are those of its path."""
        if operation.sensitivity is None:
            return _deny(DecisionCode.UNCLASSIFIED_OPERATION, operation.name)
        called = self._services[call.service]
        texts = self._texts | self._callers[call.caller or ""] | {called.owner, method_of(operation)}
        return _Asked(self._judge, texts, called, operation, call, parameters).answer()


class _Asked:
    """One request whose operation is known."""

    def __init__(
        self,
        judge: Judge,
        texts: set[str],
        service: Service,
        operation: Operation,
        call: Call,
        parameters: dict[str, str],
    ) -> None:
        self._judge = judge
        self._texts = texts | {operation.name, service.service}
        self._service = service
        self._operation = operation
        self._call = call
        self._source = tenant_source(service, operation)
        self._parameters = parameters

    def answer(self) -> Decision:
        source = self._source
        if source is None:
            return self._told(self._rule(None), None)
        problem = self._misuse() if source.claim else None
        tenant = _tenant(source, self._parameters, self._call.headers, self._call.presented)
        if problem is None and tenant is not None:
            rule = self._rule(tenant)
            # Asking about the others only tells why it is refused.
            others = map(self._rule, self._everyone(source)) if rule == NOT_PERMITTED else ()
            return self._told(_refined(rule, others), tenant)
        rules = [self._rule(each) for each in self._everyone(source)]
        first = rules[0]
        if all(rule == first for rule in rules) and first.verdict is Verdict.DENY and first.token is None:
            # Whatever tenant it named, the answer would be this one.
            return _told(first, self._operation.name)
        return _deny(problem or DecisionCode.TENANT_MISSING, self._operation.name)

    def _everyone(self, source: TenantSource) -> list[str]:
        texts = self._texts
        return [fresh_text("any-other", texts), *sorted(t for t in texts if can_be_tenant(source, t))]

    def _told(self, rule: Rule, tenant: str | None) -> Decision:
        presented, name = self._call.presented, self._operation.name
        if rule.token is None or presented is NoToken.MISSING:
            return _told(rule, name)
        problem = self._misuse()
        if problem is not None:
            return _deny(problem, name)
        assert isinstance(presented, Token)
        if presented.tenant != (tenant or ""):
            return _deny(DecisionCode.TOKEN_WRONG_TENANT, name)
        brought = Brought(presented.approver, presented.origin)
        return _told(self._judge.rule(self._request(tenant), brought, self._texts), name)

    def _misuse(self) -> DecisionCode | None:
        call = self._call
        return misuse(
            call.presented,
            operation=self._operation.name,
            service=self._service.service,
            caller=call.caller or "",
            certificate=call.certificate,
        )

    def _rule(self, tenant: str | None) -> Rule:
        return self._judge.rules([self._request(tenant)], self._texts)[0]

    def _request(self, tenant: str | None) -> Request:
        return Request(
            caller=self._call.caller or "",
            operation=self._operation.name,
            service=self._service.service,
            method=method_of(self._operation),
            path=self._call.path,
            tenant=tenant,
            demands=self._operation.demands,
        )


def decide(
    estate: Estate,
    caller: str | None,
    service: str,
    method: str,
    path: str,
    headers: Headers = (),
    presented: Presented = NoToken.MISSING,
    certificate: str = "",
) -> Decision:
    """Decide one request (see ``Call``) straight from Cedar; for many of one estate, keep an ``Oracle``."""
    return Oracle(estate).decide(caller, service, method, path, headers, presented, certificate)


def lookup(
    sidecar: Sidecar,
    caller: str | None,
    service: str,
    method: str,
    path: str,
    headers: Headers = (),
    presented: Presented = NoToken.MISSING,
    certificate: str = "",
    *,
    report: bool = False,
) -> Decision:
    """Decide a request (see ``Call``) in strict mode from the table of the service's sidecar. It must be there.

    ``report``: as it would be decided if rules in report mode were enforced.
    """
    if caller is None:
        return _deny(DecisionCode.MTLS_REQUIRED)
    if caller not in sidecar.known_callers:
        return _deny(DecisionCode.UNKNOWN_CALLER)
    inbound = next(i for i in sidecar.inbound if i.service == service)
    call = Call(caller, service, method, path, headers, presented, certificate)
    for operation in (inbound.report or inbound.operations) if report else inbound.operations:
        form = wire_form(operation.match)
        parameters = {} if form is None else form[1].match(path) if form[0] == method else None
        if parameters is not None:
            return in_table(operation, call, parameters)
    return _deny(DecisionCode.UNLISTED_OPERATION)


def in_table(operation: OperationRules, call: Call, parameters: dict[str, str]) -> Decision:
    """Decide a call whose operation is known; ``parameters`` are those of its path."""
    cell: Cell | None = next((c for c in operation.cells if call.caller in c.callers), None)
    if cell is None:
        return _told(operation.otherwise, operation.name)
    if cell.rule is not None:
        return _with_token(cell.rule, operation, call, "")
    if cell.tenants is None or operation.tenant is None:
        raise AssertionError("a cell has a rule, or tenants at an operation that has a tenant source")
    if operation.tenant.claim and (problem := _misused(operation, call)) is not None:
        return _deny(problem, operation.name)
    tenant = _tenant(operation.tenant, parameters, call.headers, call.presented)
    if tenant is None:
        return _deny(DecisionCode.TENANT_MISSING, operation.name)
    return _with_token(cell.tenants.by_tenant.get(tenant, cell.tenants.otherwise), operation, call, tenant)


def _with_token(rule: Rule, operation: OperationRules, call: Call, tenant: str) -> Decision:
    presented = call.presented
    if rule.token is None or presented is NoToken.MISSING:
        return _told(rule, operation.name)
    problem = _misused(operation, call)
    if problem is None and isinstance(presented, Token) and presented.tenant != tenant:
        problem = DecisionCode.TOKEN_WRONG_TENANT
    if problem is not None or not isinstance(presented, Token):
        return _deny(problem or DecisionCode.TOKEN_INVALID, operation.name)
    return _told(outcome(rule.token, presented), operation.name)


def _misused(operation: OperationRules, call: Call) -> DecisionCode | None:
    return misuse(
        call.presented,
        operation=operation.name,
        service=call.service,
        caller=call.caller or "",
        certificate=call.certificate,
    )


def _parameters(operation: Operation, method: str, path: str) -> dict[str, str] | None:
    form = wire_form(matcher(operation))
    if form is None:
        return {}
    return form[1].match(path) if form[0] == method else None


def _tenant(source: TenantSource, parameters: dict[str, str], headers: Headers, presented: Presented) -> str | None:
    if source.claim:
        return presented.tenant or None if isinstance(presented, Token) else None
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
