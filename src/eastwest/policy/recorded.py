"""A recorded call as far as its row tells: what it asked, and what it brought as a token.

A row is lossless for the rules under which it was made. What other rules would look at may be on record, follow from
what these rules answered, or be unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import msgspec

from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    Inbound,
    MtlsMode,
    OperationRules,
    Rule,
    Sidecar,
    TokenRules,
    Verdict,
)
from eastwest.policy.operations import can_be_tenant, wire_form

CUT = 256
"""Characters at which texts of a row are cut: one of this length may have had more."""
ANY_CALL = frozenset({DecisionCode.TOKEN_INVALID, DecisionCode.TOKEN_EXPIRED})
"""Refusals of a token that is none, whatever the call."""
WRONG = frozenset(
    {
        DecisionCode.TOKEN_WRONG_ACTION,
        DecisionCode.TOKEN_WRONG_RESOURCE,
        DecisionCode.TOKEN_WRONG_CALLER,
        DecisionCode.TOKEN_WRONG_KEY,
        DecisionCode.TOKEN_WRONG_TENANT,
    }
)


class Input(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All of a row that a decision can depend on; fields mean what they mean in ``eastwest.ledger.record.Decision``.

    ``counted``: one of a flood of refusals, kept without what its sender chose.
    """

    service: str
    code: DecisionCode
    caller: str = ""
    claimed: bool = False
    operation: str = ""
    method: str = ""
    path: str = ""
    tenant: str = ""
    token: bool = False
    origin: str = ""
    approver: str = ""
    cause: str = ""
    mode: MtlsMode = MtlsMode.STRICT
    enforced: bool = True
    counted: bool = False

    @classmethod
    def of(cls, decision: Any) -> Self:
        """From a row (anything with the attributes of ``eastwest.ledger.record.Decision``, which stands above)."""
        return cls(
            service=decision.service,
            code=decision.code,
            caller=decision.caller,
            claimed=decision.claimed,
            operation=decision.operation,
            method=decision.method,
            path=decision.path,
            tenant=decision.tenant,
            token=decision.token,
            origin=decision.origin,
            approver=decision.approver,
            cause=decision.cause,
            mode=decision.mode,
            enforced=decision.enforced,
            counted=decision.verdict is Verdict.DENY and not decision.reference,
        )


class Answer(msgspec.Struct, frozen=True):
    """The decision on a call; ``operation`` "" when none matched. ``enforced`` false: only reported."""

    verdict: Verdict
    code: DecisionCode
    policy: str = ""
    operation: str = ""
    enforced: bool = True

    @property
    def passes(self) -> bool:
        """Whether the call goes on."""
        return self.verdict is Verdict.ALLOW or not self.enforced


class Unsure(msgspec.Struct, frozen=True):
    """The record cannot say: why, and what holds where nothing came that is not on record (None: not even that)."""

    reason: str
    likely: Answer | None = None


class ServiceRules:
    """A service's rules, ready to be looked up."""

    def __init__(self, sidecar: Sidecar, inbound: Inbound, known: frozenset[str]) -> None:
        self.sidecar = sidecar
        self.inbound = inbound
        self.known = known
        self.enforced = inbound.mode is not MtlsMode.PERMISSIVE
        self.operations = {operation.name: operation for operation in inbound.operations}
        self.trust_domain = domain_of(sidecar.spiffe_id)
        self._cells: dict[int, dict[str, Cell]] = {}

    def cell(self, operation: OperationRules, caller: str) -> Cell | None:
        """What holds for a caller at an operation of the service."""
        found = self._cells.get(id(operation.cells))
        if found is None:
            found = {name: cell for cell in operation.cells for name in cell.callers}
            self._cells[id(operation.cells)] = found
        return found.get(caller)

    def matching(self, method: str, path: str) -> OperationRules | None:
        """The operation to which a request belongs."""
        for operation in self.inbound.operations:
            form = wire_form(operation.match)
            if form is None or (form[0] == method and form[1].match(path) is not None):
                return operation
        return None


@dataclass(frozen=True, slots=True)
class Good:
    """A token that counted for the recorded call; None: the record does not say."""

    tenant: str
    origin: str | None
    approver: str | None


ANYBODY = "\0"
"""Stands for every approver that no policy names."""
MISSING = object()
UNKNOWN = object()
Brought = Any  # MISSING, UNKNOWN, a DecisionCode for which it was refused, or Good


class RecordedToken:
    """What a recorded call brought, told from its row and the rules of its service at that time."""

    def __init__(self, was: ServiceRules, given: Input) -> None:
        self._was = was
        self._given = given

    def brought(self) -> Brought:
        """What the call brought as a token, as far as the record tells."""
        given, was = self._given, self._was
        if given.counted:
            return UNKNOWN
        if given.code in ANY_CALL or given.code in WRONG:
            return given.code
        operation = was.operations.get(given.operation)
        if operation is None or given.code is DecisionCode.RECORD_UNAVAILABLE or not self._looked(operation):
            return UNKNOWN
        if not given.token:
            return MISSING
        origin = None if len(given.origin) >= CUT else given.origin
        # A sidecar does not tell who approved where a token was refused.
        told = given.approver or given.code is not DecisionCode.TOKEN_USED
        approver = given.approver if told and len(given.approver) < CUT else None
        tenant = given.tenant if operation.tenant is not None else ""
        return Good(tenant, origin, approver)

    def _looked(self, operation: OperationRules) -> bool:
        """Whether the recorded decision looked at a token."""
        given = self._given
        cell = self._was.cell(operation, given.caller)
        if cell is None:
            return False
        if cell.tenants is None:
            return cell.rule is not None and cell.rule.token is not None
        source = operation.tenant
        if source is None or source.claim:
            return source is not None
        if given.code is DecisionCode.TENANT_MISSING or not can_be_tenant(source, given.tenant):
            return False
        return cell.tenants.by_tenant.get(given.tenant, cell.tenants.otherwise).token is not None

    def outcomes(self, rule: Rule, brought: Good) -> set[Rule]:
        """What may hold with a token that counts."""
        if rule.token is None:
            raise AssertionError("asked only where a token makes a difference")
        approvers = [brought.approver] if brought.approver is not None else self._approvers(rule.token, brought)
        found: set[Rule] = set()
        for approver in approvers:
            found |= _rules(rule.token, approver, brought.origin)
        return found

    def _approvers(self, rules: TokenRules, brought: Good) -> list[str]:
        """Who may have approved a call of which that is not on record: all under whom it came to be what it was."""
        recorded = self._recorded_rule()
        known = recorded.token if recorded is not None else None
        names = {"", ANYBODY, *rules.approved_by, *(known.approved_by if known is not None else ())}
        if known is None or self._given.code not in {DecisionCode.TOKEN_USED, DecisionCode.CHECK_UNAVAILABLE}:
            return sorted(names)
        return sorted(
            name for name in names if any(r.verdict is Verdict.ALLOW for r in _rules(known, name, brought.origin))
        )

    def _recorded_rule(self) -> Rule | None:
        """The rule that decided when the call was recorded, where one did."""
        operation = self._was.operations.get(self._given.operation)
        cell = self._was.cell(operation, self._given.caller) if operation is not None else None
        if cell is None or cell.tenants is None:
            return None if cell is None else cell.rule
        return cell.tenants.by_tenant.get(self._given.tenant, cell.tenants.otherwise)


def _rules(rules: TokenRules, approver: str, origin: str | None) -> set[Rule]:
    """What holds with a token; ``origin`` None: whatever it may be."""
    origins = rules.approved_by.get(approver, rules.approved) if approver else rules.unapproved
    if origin is None:
        return {*origins.by_origin.values(), origins.otherwise}
    return {origins.by_origin.get(origin, origins.otherwise)}


def domain_of(spiffe_id: str) -> str:
    """The trust domain of a SPIFFE ID."""
    return spiffe_id.removeprefix("spiffe://").partition("/")[0]
