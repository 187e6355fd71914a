"""Approvals: one caller may do one operation for one tenant, for a short time, because somebody answers for it.

    pending → granted → (expired | spent | withdrawn)
       └→ refused | withdrawn | expired

Who may grant is two questions: the administrator's right and domains (``eastwest.registry.administrators``), and here,
that it is neither the caller itself nor who asked. Steps give new values; storing and recording them is the shell's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from eastwest.errors import FailedPrecondition, InvalidInput, PermissionDenied

MAX_REASON = 1000
"""Characters."""


class ApprovalState(enum.StrEnum):
    """Where an approval stands. ``expired`` and ``spent`` follow from the others and the time."""

    PENDING = "pending"
    GRANTED = "granted"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"
    SPENT = "spent"


class OwnApproval(PermissionDenied):
    """Nobody decides about what itself has asked for, or is to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One approval. Times are Unix seconds, 0 where something has not happened.

    ``ends``: of the request while it is pending, of what was granted after that. ``state`` is as it was stored: ask
    ``state_at``. Who granted it, when and why stays when it is withdrawn.
    """

    id: str
    caller: str  # SPIFFE ID of the workload
    operation: str
    service: str
    domain: str  # of the service
    tenant: str  # "" where the operation is not per tenant
    reason: str
    requested_by: str
    requested_at: int
    ends: int
    state: ApprovalState = ApprovalState.PENDING
    decided_by: str = ""
    decided_at: int = 0
    decision_reason: str = ""
    approver: str = ""
    spent_at: int = 0
    withdrawn_by: str = ""
    withdrawn_at: int = 0
    withdrawal_reason: str = ""

    def state_at(self, now: datetime) -> ApprovalState:
        """Where it stands."""
        if self.state is ApprovalState.GRANTED and self.spent_at:
            return ApprovalState.SPENT
        if self.state in {ApprovalState.PENDING, ApprovalState.GRANTED} and now.timestamp() >= self.ends:
            return ApprovalState.EXPIRED
        return self.state

    def covers(self, caller: str, operation: str, tenant: str) -> bool:
        """Whether it is about just this."""
        return (self.caller, self.operation, self.tenant) == (caller, operation, tenant)


def check_reason(reason: str) -> str:
    """The reason, trimmed; raises ``InvalidInput`` unless it is one line, printable, and not too long."""
    text = reason.strip()
    if not text or len(text) > MAX_REASON or not text.isprintable():
        raise InvalidInput(
            f"a reason has 1 to {MAX_REASON} printable characters on one line", fix="say why, for those who look later"
        )
    return text


def grant(approval: Approval, approver: str, reason: str, now: datetime, life: int) -> Approval:
    """Granted by ``approver`` from ``now`` on, for ``life`` seconds."""
    _check_undecided(approval, now)
    if approver in {approval.caller, approval.requested_by}:
        raise OwnApproval(
            f"{approver} has asked for approval {approval.id} and may not grant it",
            fix="have another administrator grant it",
        )
    ends = int((now + timedelta(seconds=life)).timestamp())
    decided = _decided(approval, ApprovalState.GRANTED, approver, reason, now)
    return replace(decided, approver=approver, ends=ends)


def refuse(approval: Approval, administrator: str, reason: str, now: datetime) -> Approval:
    """Refused by ``administrator``."""
    _check_undecided(approval, now)
    return _decided(approval, ApprovalState.REFUSED, administrator, reason, now)


def withdraw(approval: Approval, administrator: str, reason: str, now: datetime) -> Approval:
    """Ended by ``administrator``, whether it waits, was granted, or was spent: its token may still be unused."""
    standing = approval.state_at(now)
    if standing not in {ApprovalState.PENDING, ApprovalState.GRANTED, ApprovalState.SPENT}:
        raise FailedPrecondition(
            f"approval {approval.id} is {standing}", fix="only what waits or was granted can be withdrawn"
        )
    return replace(
        approval,
        state=ApprovalState.WITHDRAWN,
        withdrawn_by=administrator,
        withdrawn_at=int(now.timestamp()),
        withdrawal_reason=check_reason(reason),
    )


def _check_undecided(approval: Approval, now: datetime) -> None:
    standing = approval.state_at(now)
    if standing is not ApprovalState.PENDING:
        raise FailedPrecondition(f"approval {approval.id} is {standing}", fix="have it requested again")


def _decided(approval: Approval, state: ApprovalState, who: str, reason: str, now: datetime) -> Approval:
    return replace(
        approval,
        state=state,
        decided_by=who,
        decided_at=int(now.timestamp()),
        decision_reason=check_reason(reason),
    )
