"""Classes, advice and error budgets."""

from datetime import UTC, datetime, timedelta

import pytest

from eastwest.ledger.failure import advice, class_of, classify
from eastwest.ledger.handshake import _OF_OURS, _OF_THE_PEER
from eastwest.ledger.record import Decision
from eastwest.ledger.slo import ALERTS, Budget, Call, Spent, concerns, failures, promql, spent
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.policy.estate import Slo, SloEdge
from eastwest.policy.failures import IDENTITY_CLASSES, FailureClass

WEB, BILLING = "spiffe://td.test/web", "billing"
MONTH = timedelta(days=30)
CAUSES = {name for *_, name in _OF_THE_PEER} | {name for _, name in _OF_OURS}


def decision(code: DecisionCode, cause: str = "") -> Decision:
    verdict = Verdict.ALLOW if code is DecisionCode.ALLOWED else Verdict.DENY
    now = datetime(2026, 11, 22, tzinfo=UTC)
    return Decision(
        time=now, service=BILLING, verdict=verdict, code=code, mode=MtlsMode.STRICT, enforced=True, cause=cause
    )


def test_every_code_has_a_class_but_the_one_that_allows():
    found = {code: class_of(decision(code)) for code in DecisionCode}
    assert found.pop(DecisionCode.ALLOWED) is None
    assert found.pop(DecisionCode.MTLS_REQUIRED) is FailureClass.NO_CERTIFICATE
    assert found.pop(DecisionCode.CERTIFICATE_REFUSED) is FailureClass.UNKNOWN_AUTHORITY
    assert found.pop(DecisionCode.SERVER_REFUSED) is FailureClass.UNKNOWN_AUTHORITY
    contained = {DecisionCode.CALLER_CONTAINED, DecisionCode.TOKEN_CONTAINED, DecisionCode.IDENTITY_CONTAINED}
    assert {found.pop(code) for code in contained} == {FailureClass.CONTAINED}
    assert set(found.values()) == {FailureClass.POLICY}


def test_every_cause_of_a_handshake_has_a_class_and_every_class_advice():
    classes = {classify(DecisionCode.CERTIFICATE_REFUSED, cause) for cause in CAUSES}
    # The rest is refined from the certificate, or comes with containment.
    assert set(FailureClass) - classes == {FailureClass.CONTAINED}
    for kind in FailureClass:
        told = advice(kind, DecisionCode.CERTIFICATE_REFUSED, "")
        assert told.what
        assert told.fix


@pytest.mark.parametrize("cause", sorted(CAUSES))
@pytest.mark.parametrize("code", [DecisionCode.CERTIFICATE_REFUSED, DecisionCode.SERVER_REFUSED])
def test_advice_for_each_cause(code, cause):
    told = advice(classify(code, cause), code, cause)
    assert told.what != told.fix
    assert not told.what.endswith(".")


def test_the_plain_denial_of_a_policy_is_not_shown_as_a_certificates_fault():
    assert advice(FailureClass.POLICY, "OPERATION_NOT_PERMITTED", "").what == "the caller proved who it is, and may not"


def test_who_knows_the_authority_knows_that_a_bundle_is_old():
    assert classify("CERTIFICATE_REFUSED", "unknown_authority:aa", {"aa"}) is FailureClass.STALE_BUNDLE
    assert classify("CERTIFICATE_REFUSED", "unknown_authority:ab", {"aa"}) is FailureClass.UNKNOWN_AUTHORITY
    assert classify("CERTIFICATE_REFUSED", "unknown_authority", {""}) is FailureClass.UNKNOWN_AUTHORITY
    told = advice(FailureClass.STALE_BUNDLE, "CERTIFICATE_REFUSED", "unknown_authority:aa")
    assert "old trust bundle" in told.what


def row(code: str, cause: str, count: int, *, caller: str = WEB, claimed: bool = True, reported: int = 0) -> dict:
    times = {"first": "2026-11-22T10:00:00Z", "last": "2026-11-22T10:01:00Z"}
    counts = {"count": count, "reported": reported, "allowed": 0, "denied": count}
    return {"service": BILLING, "caller": caller, "claimed": claimed, "code": code, "cause": cause, **counts, **times}


TOTALS = [
    row("CERTIFICATE_REFUSED", "expired", 5),
    row("CERTIFICATE_REFUSED", "unknown_authority", 7),
    row("MTLS_REQUIRED", "", 3, caller="", claimed=False, reported=2),
    row("OPERATION_NOT_PERMITTED", "", 11, claimed=False),
    row("ALLOWED", "", 1000, claimed=False),
]


def test_failures_out_of_totals():
    found = failures(TOTALS)
    assert [one.kind for one in found] == [
        FailureClass.EXPIRED,
        FailureClass.UNKNOWN_AUTHORITY,
        FailureClass.NO_CERTIFICATE,
        FailureClass.POLICY,
    ]
    assert [one.enforced for one in found] == [5, 7, 1, 11]


def test_budgets_of_a_service_a_domain_and_an_edge():
    found = failures(TOTALS)
    calls, domains = {BILLING: 1026, "other": 500}, {BILLING: "commerce", "other": "commerce", "far": "x"}
    service = Slo(name="a", service=BILLING)
    assert spent(service, found, calls, domains) == Spent(1026, 13)
    assert spent(Slo(name="b", domain="commerce", classes=(FailureClass.EXPIRED,)), found, calls, domains) == Spent(
        1526, 5
    )
    edge = Slo(name="c", edge=SloEdge(caller=WEB, service=BILLING))
    assert spent(edge, found, {"": 1011}, domains) == Spent(1016, 5), "a forger cannot spend an edge's budget"
    assert spent(Slo(name="d", service="none"), found, calls, domains).burn(99.9) == 0


def test_who_is_concerned():
    edge = Slo(name="c", edge=SloEdge(caller=WEB, service=BILLING))
    assert concerns(edge, Call(WEB, False, BILLING), None, {})
    assert not concerns(edge, Call(WEB, True, BILLING), FailureClass.UNKNOWN_AUTHORITY, {})
    assert concerns(edge, Call(WEB, True, BILLING), FailureClass.EXPIRED, {})
    assert not concerns(edge, Call("", False, BILLING), FailureClass.NO_CERTIFICATE, {})


def test_burn_rates_are_those_of_the_workbook():
    assert [round(alert.burn(MONTH), 6) for alert in ALERTS] == [14.4, 6.0, 1.0]
    assert [(promql(alert.long), promql(alert.short)) for alert in ALERTS] == [
        ("1h", "5m"),
        ("6h", "30m"),
        ("3d", "6h"),
    ]
    assert Spent(1000, 1).burn(99.9) == pytest.approx(1.0)
    budget = Budget(
        Slo(name="a", service=BILLING),
        Spent(100_000, 50),
        {ALERTS[0].long: Spent(1000, 15), ALERTS[1].long: Spent(6000, 15), ALERTS[2].long: Spent(10_000, 50)},
    )
    assert budget.left == pytest.approx(0.5)
    assert [alert.severity for alert in budget.firing] == ["page", "ticket"]


def test_a_policys_no_is_no_failure_of_identity():
    assert FailureClass.POLICY not in IDENTITY_CLASSES
    assert len(IDENTITY_CLASSES) == len(FailureClass) - 1
