"""Transaction tokens: the one place that makes them; how they are read again is ``eastwest.issuance.presented``.

A token is made only where it could let a call through, by the same table that enforcement points obey: for one
workload with one certificate, one operation of one service, one tenant. ``eastwest.policy.transaction`` has what it
says; asking for it over HTTP is ``eastwest.server.tokens``. Times, randomness and keys come in as arguments.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from eastwest.entropy import Entropy, random_hex, random_uuid
from eastwest.errors import PermissionDenied
from eastwest.pki.compact import draft, signature_length
from eastwest.pki.jwt import UnsignedJwt
from eastwest.pki.signer import Signer
from eastwest.pki.token_signer import TokenSigner
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    OperationRules,
    Rule,
    Sidecar,
    TokenRules,
    Verdict,
)
from eastwest.policy.operations import can_be_tenant
from eastwest.policy.problems import suggest_id
from eastwest.policy.transaction import (
    MAX_LIFE,
    MAX_TOKEN,
    TYPE,
    Token,
    claims,
    outcome,
)

DEFAULT_LIFE = 120
"""Seconds."""
MAX_CHAIN = 16
"""Workloads in one transaction, one after the other."""


class TokenRefused(PermissionDenied):
    """No token is made. ``error`` is the name that OAuth has for it (RFC 6749, 5.2; RFC 8693, 2.2.2), ``reason`` ours:
    a decision code where a call would be refused by it, else a code of ``eastwest.errors``.
    """

    def __init__(self, error: str, reason: str, message: str, *, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.error = error
        self.reason = reason


class ApprovalNeeded(TokenRefused):
    """A token would do with an approval."""

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__("approval_required", DecisionCode.APPROVAL_REQUIRED, message, fix=fix)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: its SPIFFE ID, and SHA-256 of the certificate that it proved it with (lower-case hex)."""

    spiffe_id: str
    certificate: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What for; ``tenant`` "" where the operation is not per tenant."""

    operation: str
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Approval:
    """An approval that was granted and covers what is wanted, until ``ends``."""

    id: str
    approver: str
    ends: datetime


@dataclass(frozen=True, slots=True)
class Target:
    """An operation as enforcement points know it, its service, and the SPIFFE ID of the workload that serves it."""

    service: str
    workload: str
    rules: OperationRules


class Targets:
    """Every operation of the policy in force, by name; ``beside``: what some enforcement points have instead."""

    def __init__(self, sidecars: Iterable[Sidecar], beside: Targets | None = None) -> None:
        self.beside = beside
        self._targets: dict[str, Target] = {}
        self._workloads: dict[str, str] = {}
        self._callers: frozenset[str] = frozenset()
        for sidecar in sidecars:
            if not self._callers:  # all sidecars are told of the same
                self._callers = frozenset(sidecar.known_callers)
            for inbound in sidecar.inbound:
                self._workloads[inbound.service] = sidecar.spiffe_id
                for rules in inbound.operations:
                    self._targets[rules.name] = Target(inbound.service, sidecar.spiffe_id, rules)

    def knows(self, spiffe_id: str) -> bool:
        """Whether a workload is registered as a caller."""
        return spiffe_id in self._callers

    def like_operation(self, name: str) -> str:
        """The operation whose name is closest to a misspelt one, or ``""``."""
        return next(iter(difflib.get_close_matches(name[:200], self._targets, n=1, cutoff=0.7)), "")

    def like_caller(self, spiffe_id: str) -> str:
        """A question about the caller that a misspelt ID may mean, or ``""``."""
        return suggest_id(spiffe_id, self._callers, otherwise="")

    def operation(self, name: str) -> Target | None:
        """The operation of that name."""
        return self._targets.get(name)

    def workload_of(self, service: str) -> str:
        """The SPIFFE ID of the workload that serves it, or ``""``."""
        return self._workloads.get(service, "")


@dataclass(frozen=True, slots=True)
class Permit:
    """That a token may be made, and what of it follows from the table."""

    target: Target
    tenant: str
    origin: str
    approval: Approval | None


def permit(
    targets: Targets, caller: str, wanted: Wanted, incoming: Token | None = None, approval: Approval | None = None
) -> Permit:
    """Whether ``caller`` may have a token for what is wanted; raises ``TokenRefused``, or ``ApprovalNeeded``.

    ``incoming`` is the token that the caller itself was called with, when it goes on with that transaction.
    """
    if not targets.knows(caller):
        raise TokenRefused(
            "invalid_client",
            DecisionCode.UNKNOWN_CALLER,
            f"{caller} is not registered in the estate",
            fix="register the workload and apply",
        )
    target = _target(targets, wanted)
    if incoming is not None:
        _check_chain(targets, caller, target, wanted, incoming)
    origin = incoming.origin if incoming is not None else caller
    rule = _rule(target.rules, caller, wanted.tenant)
    if rule.token is not None:
        _check_outcome(rule.token, caller, wanted, origin, approval)
    elif rule.verdict is not Verdict.ALLOW:
        raise _no_help(caller, wanted, rule)
    return Permit(target, wanted.tenant, origin, approval)


def approvable(targets: Targets, caller: str, wanted: Wanted) -> Target:
    """The operation, if an approval would let ``caller`` do it, whoever began the transaction; raises ``TokenRefused``.

    A tenant must be named where the operation is per tenant.
    """
    if not targets.knows(caller):
        raise TokenRefused(
            "invalid_client",
            DecisionCode.UNKNOWN_CALLER,
            f"{caller[:300]} is not registered in the estate",
            fix=targets.like_caller(caller) or "register the workload and apply",
        )
    target = _target(targets, wanted)
    rule = _rule(target.rules, caller, wanted.tenant)
    if rule.token is None:
        raise _no_help(caller, wanted, rule)
    approved = (rule.token.approved, *rule.token.approved_by.values())
    if not any(_allows(one) for origins in approved for one in (origins.otherwise, *origins.by_origin.values())):
        raise _no_help(caller, wanted, rule)
    return target


def accepts_approver(targets: Targets, caller: str, wanted: Wanted, approver: str) -> bool:
    """Whether a policy lets ``caller`` do it with an approval of just this approver."""
    target = targets.operation(wanted.operation)
    rule = None if target is None else _rule(target.rules, caller, wanted.tenant)
    if rule is None or rule.token is None:
        return False
    origins = rule.token.approved_by.get(approver, rule.token.approved)
    return any(_allows(one) for one in (origins.otherwise, *origins.by_origin.values()))


def mint(
    granted: Permit,
    caller: Caller,
    incoming: Token | None,
    signer: Signer | TokenSigner,
    issuer: str,
    now: datetime,
    entropy: Entropy,
    life: int = DEFAULT_LIFE,
) -> tuple[Token, UnsignedJwt]:
    """The token as a value, and as a JWT to be signed by ``signer``.

    ``issuer`` is the trust domain (``spiffe://...``). It lives ``life`` seconds, no longer than its approval, and no
    longer than ``MAX_LIFE`` after its transaction began; raises ``TokenRefused`` when that has passed.
    """
    begun = _begun(incoming, now)
    ends = min(int((now + timedelta(seconds=life)).timestamp()), begun + MAX_LIFE)
    if ends <= now.timestamp():
        raise TokenRefused(
            "invalid_request",
            DecisionCode.TOKEN_EXPIRED,
            f"the transaction began more than {MAX_LIFE} seconds ago",
            fix="begin a transaction of your own, without subject_token",
        )
    if granted.approval is not None:
        ends = min(ends, int(granted.approval.ends.timestamp()))
    token = Token(
        id=random_hex(entropy),
        transaction=incoming.transaction if incoming is not None else random_uuid(entropy),
        caller=caller.spiffe_id,
        certificate=caller.certificate,
        action=granted.target.rules.name,
        resource=granted.target.service,
        origin=granted.origin,
        expires=ends,
        tenant=granted.tenant,
        approval=granted.approval.id if granted.approval is not None else "",
        approver=granted.approval.approver if granted.approval is not None else "",
        chain=(*incoming.chain, caller.spiffe_id) if incoming is not None else (caller.spiffe_id,),
        begun=begun,
        transaction_tenant=_tenant_of(incoming) or granted.tenant,
    )
    unsigned = draft(signer, TYPE, claims(token, issuer, int(now.timestamp())))
    if len(unsigned.message) + 1 + signature_length(signer) > MAX_TOKEN:
        raise TokenRefused("invalid_request", "EXHAUSTED", f"the token would have more than {MAX_TOKEN} bytes")
    return token, unsigned


def _begun(incoming: Token | None, now: datetime) -> int:
    """When the transaction began, in Unix seconds."""
    if incoming is None:
        return int(now.timestamp())
    return incoming.begun or incoming.expires - MAX_LIFE  # it cannot be longer ago than that


def _tenant_of(incoming: Token | None) -> str:
    """The tenant that the transaction was about first, or ``""``: hops without a tenant leave it as it is."""
    return "" if incoming is None else incoming.transaction_tenant or incoming.tenant


def _check_chain(targets: Targets, caller: str, target: Target, wanted: Wanted, incoming: Token) -> None:
    if targets.workload_of(incoming.resource) != caller:
        raise TokenRefused(
            "invalid_request",
            DecisionCode.TOKEN_WRONG_RESOURCE,
            f"the transaction token that came was made for a call to {incoming.resource}, which is not {caller}",
            fix="go on only with transactions that you were called in",
        )
    if target.workload == caller:
        raise TokenRefused(
            "invalid_request",
            "INVALID_INPUT",
            f"{target.service} is served by {caller} itself: nobody goes on with a transaction to itself",
            fix="go on with the transaction that you were called in",
        )
    tenant = _tenant_of(incoming)
    if tenant and wanted.tenant and tenant != wanted.tenant:
        raise TokenRefused(
            "invalid_scope",
            DecisionCode.TOKEN_WRONG_TENANT,
            "the transaction is of another tenant",
            fix="begin a transaction of your own, without subject_token",
        )
    if len(incoming.chain) >= MAX_CHAIN:
        raise TokenRefused("invalid_request", "EXHAUSTED", f"the transaction has {MAX_CHAIN} workloads already")


def _target(targets: Targets, wanted: Wanted) -> Target:
    target = targets.operation(wanted.operation)
    if target is None:
        like = targets.like_operation(wanted.operation)
        raise TokenRefused(
            "invalid_scope",
            DecisionCode.UNLISTED_OPERATION,
            f"no service has the operation {wanted.operation[:200]!r}",
            fix=f"did you mean {like!r}?"
            if like
            else "scope is the name of one operation, such as billing:invoices:read",
        )
    _check_tenant(target.rules, wanted)
    return target


def _check_outcome(rules: TokenRules, caller: str, wanted: Wanted, origin: str, approval: Approval | None) -> None:
    approver = approval.approver if approval is not None else ""
    rule = outcome(rules, _probe(caller, origin, approver))
    if _allows(rule):
        return
    approved = (rules.approved, *rules.approved_by.values())
    if any(_allows(origins.by_origin.get(origin, origins.otherwise)) for origins in approved):
        if approver:
            raise TokenRefused(
                "access_denied",
                DecisionCode.APPROVAL_REQUIRED,
                f"no policy accepts an approval of {wanted.operation} by {approver}",
                fix="have it approved by somebody whom the policy names",
            )
        raise ApprovalNeeded(f"{wanted.operation} needs an approval")
    begun = (rules.unapproved, *approved)
    if any(_allows(one) for origins in begun for one in (origins.otherwise, *origins.by_origin.values())):
        raise TokenRefused(
            "invalid_scope",
            rule.code,
            f"{caller} may do {wanted.operation}{_for_tenant(wanted)} only in a transaction that another workload"
            " began",
            fix="give the token of the call that this one goes on from: subject_token",
        )
    raise _no_help(caller, wanted, rule)


def _no_help(caller: str, wanted: Wanted, rule: Rule) -> TokenRefused:
    where = _for_tenant(wanted)
    return TokenRefused(
        "invalid_scope",
        rule.code if rule.verdict is Verdict.DENY else DecisionCode.ALLOWED,
        f"{caller} may not do {wanted.operation}{where}, whatever token it brings"
        if rule.verdict is Verdict.DENY
        else f"{caller} may do {wanted.operation}{where} without that",
    )


def _for_tenant(wanted: Wanted) -> str:
    return f" for tenant {wanted.tenant}" if wanted.tenant else ""


def _probe(caller: str, origin: str, approver: str) -> Token:
    """As much of a token as an outcome depends on."""
    return Token(
        id="",
        transaction="",
        caller=caller,
        certificate="",
        action="",
        resource="",
        origin=origin,
        expires=0,
        approver=approver,
    )


def _rule(rules: OperationRules, caller: str, tenant: str) -> Rule:
    cell: Cell | None = next((cell for cell in rules.cells if caller in cell.callers), None)
    if cell is None:
        return rules.otherwise
    if cell.tenants is not None:
        return cell.tenants.by_tenant.get(tenant, cell.tenants.otherwise)
    return cell.rule or rules.otherwise


def _allows(rule: Rule) -> bool:
    return rule.verdict is Verdict.ALLOW


def _check_tenant(rules: OperationRules, wanted: Wanted) -> None:
    if rules.tenant is None:
        if wanted.tenant:
            raise TokenRefused(
                "invalid_request", "INVALID_INPUT", f"{wanted.operation} is not per tenant", fix="name no tenant"
            )
        return
    if not wanted.tenant:
        raise TokenRefused(
            "invalid_request", DecisionCode.TENANT_MISSING, f"{wanted.operation} is per tenant", fix="name the tenant"
        )
    if not can_be_tenant(rules.tenant, wanted.tenant):
        raise TokenRefused(
            "invalid_request", "INVALID_INPUT", f"{wanted.tenant[:80]!r} is not a tenant that a request can name"
        )
