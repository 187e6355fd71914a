"""One call decided from the table, as an Envoy of ours would: who, what, for which tenant, with which token.

Pure but for its arguments. Whether a token that counts once was used before is state, which the caller asks for
afterwards where ``Decision.once`` is set (``use_once``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from eastwest.errors import Error
from eastwest.issuance.presented import read
from eastwest.mesh.replies import REQUEST_REFUSED
from eastwest.policy.enforcement import (
    DecisionCode,
    Inbound,
    MtlsMode,
    OperationRules,
    Recording,
    Verdict,
    uses_tokens,
)
from eastwest.policy.normalise import Headers, Refused, Request, normalise
from eastwest.policy.operations import can_be_tenant, wire_form
from eastwest.policy.oracle import lookup
from eastwest.policy.transaction import HEADER, NoToken, Presented, Token
from eastwest.sdk.peers import Peer
from eastwest.sdk.source import Rules

UseToken = Callable[[str, int, str, str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What an application may know of the call, "" for what there is not."""

    principal: str
    operation: str = ""
    tenant: str = ""
    transaction: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What became of a call. ``code`` is a ``DecisionCode``, or ``REQUEST_REFUSED`` with its ``reason``.

    ``principal`` "" when the peer proved nothing; ``token`` only where the decision looked at one and found it genuine.
    """

    verdict: Verdict
    code: str
    service: str
    policy: str = ""
    operation: str = ""
    tenant: str = ""
    principal: str = ""
    method: str = ""
    reason: str = ""
    enforced: bool = True
    once: bool = False
    token: Token | None = field(default=None, repr=False)
    request: Request | None = field(default=None, repr=False)
    cause: str = ""  # why a certificate did not verify, as sidecars name it
    report_code: str = ""  # what rules in report mode would have said, where that differs: a ``DecisionCode``
    report_policy: str = ""

    @property
    def passes(self) -> bool:
        """Whether the call goes on: it is allowed, or its refusal is only reported."""
        return self.verdict is Verdict.ALLOW or not self.enforced

    @property
    def call(self) -> CallInfo:
        """What the application is told."""
        return CallInfo(self.principal, self.operation, self.tenant, self.transaction)

    @property
    def transaction(self) -> str:
        """The transaction that the call belongs to, by its token; "" without one."""
        return self.token.transaction if self.token is not None else ""


OnDecision = Callable[[Decision], None]


def decide(
    rules: Rules | None,
    service: str,
    peer: Peer | None,
    method: str,
    target: str,
    headers: Headers,
    now: datetime,
    *,
    http_version: str = "1.1",
    tls: bool = True,
    records: bool = True,
) -> Decision:
    """Decide a call of ``service``: ``target`` and ``headers`` as they came (``eastwest.policy.normalise``).

    Without rules, or without any for ``service``, nothing passes: ``CHECK_UNAVAILABLE``. ``records``: whether the
    decision will be recorded; where not, and the service requires it, nothing passes either: ``RECORD_UNAVAILABLE``.
    """
    request = normalise(method, target, headers, http_version=http_version, tls=tls)
    principal = str(peer.id) if peer is not None else ""
    if isinstance(request, Refused):
        return _denied(service, principal, REQUEST_REFUSED, method=method, reason=request.reason)
    inbound = rules.inbound(service) if rules is not None else None
    if rules is None or rules.sidecar is None or inbound is None:
        code = DecisionCode.CHECK_UNAVAILABLE
        return _denied(service, principal, code, method=method, reason="there are no rules for this service here")
    # Verifying a token is what costs most here: it is not done for strangers, but that a contained name may be in it.
    looks = uses_tokens(inbound) and (bool(rules.contained) or principal in rules.sidecar.known_callers)
    presented = present(request.headers, rules, now) if looks else NoToken.MISSING
    if (cut_off := _contained(rules, inbound, principal, presented)) is not None:
        return _denied(service, principal, cut_off, method=request.method, reason="")
    certificate = peer.certificate if peer is not None else ""
    question = (principal or None, service, request.method, request.matched, request.headers, presented, certificate)
    verdict, code, policy, name = lookup(rules.sidecar, *question)
    report = lookup(rules.sidecar, *question, report=True) if inbound.report else (verdict, code, policy, name)
    report_code, report_policy = (report[1], report[2]) if report[1] is not code else ("", "")
    if verdict is Verdict.ALLOW and not records and inbound.recording is Recording.REQUIRED:
        verdict, code, policy = Verdict.DENY, DecisionCode.RECORD_UNAVAILABLE, ""
    operation = next((o for o in inbound.operations if o.name == name), None)
    tenant = _tenant(operation, request, presented) if operation is not None else ""
    same = [o for o in (*inbound.operations, *inbound.report) if o.name == name]
    by_token = isinstance(presented, Token) and any(_looks(o, principal, tenant) for o in same)
    used = by_token and operation is not None and _looks(operation, principal, tenant)
    enforced = inbound.mode is not MtlsMode.PERMISSIVE
    allowed = verdict is Verdict.ALLOW
    return Decision(
        verdict=verdict,
        code=code,
        service=service,
        policy=policy,
        operation=name,
        tenant=tenant,
        principal=principal,
        method=request.method,
        enforced=enforced,
        once=allowed and enforced and used and operation is not None and operation.single_use,
        token=presented if by_token and isinstance(presented, Token) else None,
        request=request,
        report_code=report_code,
        report_policy=report_policy,
    )


async def use_once(decision: Decision, use_token: UseToken) -> Decision:
    """The decision once its token has been used up, where it counts once: ``TOKEN_USED``, ``CHECK_UNAVAILABLE``."""
    token = decision.token
    if not decision.once or token is None:
        return decision
    try:
        usable = await use_token(token.id, token.expires, token.approval, decision.operation)
    except (Error, TimeoutError):
        return replace(decision, verdict=Verdict.DENY, code=DecisionCode.CHECK_UNAVAILABLE)
    return decision if usable else replace(decision, verdict=Verdict.DENY, code=DecisionCode.TOKEN_USED)


def present(headers: Headers, rules: Rules, now: datetime) -> Presented:
    """The token that a request brings. Two of them, or a text that is none, are ``INVALID``."""
    brought = [value for name, value in headers if name == HEADER]
    if not brought:
        return NoToken.MISSING
    if len(brought) > 1:
        return NoToken.INVALID
    return read(brought[0], rules.token_keys, rules.trust_domain.uri, now)


def _contained(rules: Rules, inbound: Inbound, principal: str, presented: Presented) -> DecisionCode | None:
    """Why the call is refused whatever the rules say, in every mode (``eastwest.mesh.contained``)."""
    contained = rules.contained
    if not contained or rules.sidecar is None:
        return None
    if rules.sidecar.spiffe_id in contained:
        return DecisionCode.IDENTITY_CONTAINED
    if principal in contained:
        return DecisionCode.CALLER_CONTAINED
    if isinstance(presented, Token) and uses_tokens(inbound):
        named = (presented.caller, presented.origin, presented.approver)
        return DecisionCode.TOKEN_CONTAINED if any(one in contained for one in named) else None
    return None


def _denied(service: str, principal: str, code: str, *, method: str, reason: str) -> Decision:
    return Decision(verdict=Verdict.DENY, code=code, service=service, principal=principal, method=method, reason=reason)


def _tenant(operation: OperationRules, request: Request, presented: Presented) -> str:
    """The tenant that the request names where its operation is per tenant, for the record."""
    source = operation.tenant
    if source is None:
        return ""
    if source.claim:
        return presented.tenant if isinstance(presented, Token) else ""
    if source.path:
        form = wire_form(operation.match)
        return (form[1].match(request.path) or {}).get(source.path, "") if form is not None else ""
    value = ",".join(value for name, value in request.headers if name == source.header)
    return value if can_be_tenant(source, value) else ""


def _looks(operation: OperationRules, caller: str, tenant: str) -> bool:
    """Whether a token makes a difference to this caller's call."""
    cell = next((cell for cell in operation.cells if caller in cell.callers), None)
    if cell is None:
        return False
    if cell.tenants is None:
        return cell.rule is not None and cell.rule.token is not None
    if operation.tenant is not None and operation.tenant.claim:
        return True
    return cell.tenants.by_tenant.get(tenant, cell.tenants.otherwise).token is not None
