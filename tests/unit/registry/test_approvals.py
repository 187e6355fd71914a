"""The steps of an approval: from whom, once, and until when."""

from datetime import UTC, datetime, timedelta

import pytest

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.registry.approvals import (
    Approval,
    ApprovalState,
    OwnApproval,
    check_reason,
    grant,
    refuse,
    withdraw,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CALLER, ADMIN = "spiffe://td.test/console", "unix:uid:0"
PENDING = Approval(
    id="a1",
    caller=CALLER,
    operation="billing:credits:create",
    service="billing",
    domain="shop",
    tenant="acme",
    reason="ticket",
    requested_by=CALLER,
    requested_at=int(NOW.timestamp()),
    ends=int(NOW.timestamp()) + 3600,
)


def later(seconds: int) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_granted_for_a_while() -> None:
    granted = grant(PENDING, ADMIN, " agreed ", later(10), 900)
    assert granted.state_at(later(10)) is ApprovalState.GRANTED
    assert (granted.approver, granted.decided_by, granted.decision_reason) == (ADMIN, ADMIN, "agreed")
    assert granted.ends == int(later(910).timestamp())
    assert granted.state_at(later(909)) is ApprovalState.GRANTED
    assert granted.state_at(later(910)) is ApprovalState.EXPIRED
    for step in (grant, refuse):
        more = (900,) if step is grant else ()
        with pytest.raises(FailedPrecondition, match="is granted"):
            step(granted, ADMIN, "again", later(20), *more)


def test_a_request_does_not_wait_for_ever() -> None:
    assert PENDING.state_at(later(3600)) is ApprovalState.EXPIRED
    with pytest.raises(FailedPrecondition, match="is expired"):
        grant(PENDING, ADMIN, "late", later(3600), 900)
    with pytest.raises(FailedPrecondition, match="is expired"):
        withdraw(PENDING, ADMIN, "late", later(3600))


@pytest.mark.parametrize("requested_by", [CALLER, "unix:uid:7"])
def test_neither_the_caller_nor_who_asked_grants(requested_by: str) -> None:
    approval = Approval(**{**_fields(PENDING), "requested_by": requested_by})
    for own in {CALLER, requested_by}:
        with pytest.raises(OwnApproval):
            grant(approval, own, "mine", NOW, 900)
    assert grant(approval, ADMIN, "yours", NOW, 900).approver == ADMIN


def test_what_is_withdrawn_still_says_who_granted_it() -> None:
    granted = grant(PENDING, ADMIN, "agreed", later(10), 900)
    after = withdraw(granted, "unix:uid:7", "not needed", later(20))
    assert (after.decided_by, after.decided_at, after.decision_reason) == (ADMIN, granted.decided_at, "agreed")
    assert (after.withdrawn_by, after.withdrawal_reason) == ("unix:uid:7", "not needed")
    assert after.withdrawn_at == int(later(20).timestamp())


def test_withdrawn_by_anybody_with_the_right_at_any_stage() -> None:
    granted = grant(PENDING, ADMIN, "agreed", NOW, 900)
    spent = Approval(**{**_fields(granted), "spent_at": 1})
    assert spent.state_at(NOW) is ApprovalState.SPENT
    assert spent.state_at(later(10_000)) is ApprovalState.SPENT
    for before in (PENDING, granted, spent):
        after = withdraw(before, "unix:uid:7", "no", later(5))
        assert after.state_at(later(5)) is ApprovalState.WITHDRAWN
        assert after.approver == before.approver
    refused = refuse(PENDING, ADMIN, "no", NOW)
    assert refused.state_at(later(99_999)) is ApprovalState.REFUSED
    with pytest.raises(FailedPrecondition, match="is refused"):
        withdraw(refused, ADMIN, "no", NOW)


def test_it_covers_just_what_it_says() -> None:
    assert PENDING.covers(CALLER, "billing:credits:create", "acme")
    assert not PENDING.covers(ADMIN, "billing:credits:create", "acme")
    assert not PENDING.covers(CALLER, "billing:credits:list", "acme")
    assert not PENDING.covers(CALLER, "billing:credits:create", "")


@pytest.mark.parametrize("reason", ["", "  ", "a\nb", "a\x1b[2J", "x" * 1001])
def test_a_reason_is_one_line_for_people(reason: str) -> None:
    with pytest.raises(InvalidInput):
        check_reason(reason)
    with pytest.raises(InvalidInput):
        grant(PENDING, ADMIN, reason, NOW, 900)


def _fields(approval: Approval) -> dict:
    return {name: getattr(approval, name) for name in approval.__dataclass_fields__}
