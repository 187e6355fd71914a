"""Rules in report mode: what is written, what is enforced, what is told, and when it should have ended."""

from __future__ import annotations

import datetime as dt

import pytest

from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.policy.exports.formats import FORMATS
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import lookup
from eastwest.policy.plan import plan_files
from eastwest.policy.problems import EstateInvalid, Severity
from eastwest.policy.render import render
from eastwest.policy.table import compile_estate
from eastwest.policy.trials import trials
from eastwest.sdk.decide import Decision
from eastwest.sdk.recording import told

TODAY = dt.date(2026, 11, 22)
CONSOLE = "spiffe://saas.example/prod/platform/console"
NOTIFICATION = "spiffe://saas.example/prod/messaging/notification"
HEAD = '@id("trial") @owner("group:commerce") @reason("a trial")'
MODE = '@mode("report") @until("2026-12-31")'
FORBID = 'forbid (principal, action == Action::"billing:invoices:list", resource);'
PERMIT = f'permit (principal == Workload::"{NOTIFICATION}", action == Action::"billing:invoices:list", resource);'


def trial(edited, body: str, mode: str = MODE) -> dict[str, bytes]:
    return edited("policies/trial.cedar", None, f"{HEAD} {mode}\n{body}\n")


def asked(files: dict[str, bytes], caller: str, *, report: bool) -> tuple[Verdict, DecisionCode, str]:
    compiled = compile_estate(load_estate(files))
    sidecar = next(s for s in compiled.sidecars.values() if any(i.service == "billing" for i in s.inbound))
    return lookup(sidecar, caller, "billing", "GET", "/api/v2/tenants/acme/invoices", report=report)[:3]


def test_a_forbid_on_trial_refuses_nothing_and_says_what_it_would(example, edited) -> None:
    storefront = "spiffe://saas.example/prod/commerce/storefront"
    files = trial(edited, FORBID)
    before = asked(example, storefront, report=False)
    assert before[0] is Verdict.ALLOW
    assert asked(files, storefront, report=False) == before
    assert asked(files, storefront, report=True) == (Verdict.DENY, DecisionCode.FORBIDDEN_BY_POLICY, "trial")
    enforced = asked(trial(edited, FORBID, ""), storefront, report=False)
    assert enforced == asked(files, storefront, report=True), "the trial ends as it said"


def test_a_permit_on_trial_gives_nothing_and_says_what_it_would(example, edited) -> None:
    files = trial(edited, PERMIT)
    assert asked(files, NOTIFICATION, report=False) == asked(example, NOTIFICATION, report=False)
    assert asked(files, NOTIFICATION, report=False)[0] is Verdict.DENY
    assert asked(files, NOTIFICATION, report=True) == (Verdict.ALLOW, DecisionCode.ALLOWED, "trial")


def test_services_whose_answers_stay_have_no_second_table(edited) -> None:
    compiled = compile_estate(load_estate(trial(edited, FORBID)))
    reporting = [i.service for s in compiled.sidecars.values() for i in s.inbound if i.report]
    assert reporting == ["billing"]
    assert compiled.summary.report == 1


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ('@mode("report")', "needs an end date"),
        ('@mode("report") @until("soon")', "'soon' is not a date"),
        ('@mode("report") @until("2027-02-30")', "'2027-02-30' is not a date"),
        ('@mode("report") @until("20270131")', "'20270131' is not a date"),
        ('@mode("shadow") @until("2027-01-31")', "@mode('shadow') says nothing"),
        ('@until("2027-01-31")', "@until without a mode"),
    ],
)
def test_a_mode_that_says_nothing_is_a_mistake(edited, mode: str, message: str) -> None:
    with pytest.raises(EstateInvalid) as caught:
        load_estate(trial(edited, FORBID, mode))
    [problem] = [p for p in caught.value.problems if p.severity is Severity.ERROR]
    assert message in problem.message
    assert (problem.where.file, problem.where.line) == ("policies/trial.cedar", 1)
    assert problem.fix


def test_plan_tells_of_rules_on_trial_and_of_dates_that_have_passed(edited) -> None:
    files = trial(edited, FORBID)
    plan = plan_files(files, TODAY)
    [note] = [p for p in plan.problems if "'trial'" in p.message]
    assert note.severity is Severity.NOTE
    assert "only reports until 2026-12-31" in note.message
    assert "answers of billing" in note.message
    assert "(1 in report mode)" in render(plan)
    late = plan_files(files, dt.date(2027, 1, 1))
    [warning] = [p for p in late.problems if "'trial'" in p.message]
    assert warning.severity is Severity.WARNING
    assert "has passed" in warning.message
    assert late.ok, "nothing changes by itself on that day"
    assert late.version == plan.version


def test_what_is_not_enforced_yet_is_listed_with_its_date(edited) -> None:
    estate = load_estate(trial(edited, FORBID))
    found = trials(estate, TODAY)
    assert [(t.kind, t.name, t.overdue, t.sentence) for t in found] == [
        ("service", "notification", False, ""),
        ("policy", "trial", False, ""),
    ]
    assert found[1].where.startswith("policies/trial.cedar:1:")
    late = trials(estate, dt.date(2027, 6, 1))
    assert all(t.overdue and str(t.until) in t.sentence for t in late)


def test_permissive_needs_an_end_but_what_was_applied_without_is_still_read(edited) -> None:
    files = edited("services/notification.yaml", ", until: 2027-03-31", "")
    [error] = plan_files(files, TODAY).errors
    assert "permissive without an end" in error.message
    assert "until" in error.fix
    assert error.where.file == "services/notification.yaml"
    [found] = [t for t in trials(load_estate(files), TODAY) if t.overdue]
    assert "without an end" in found.sentence


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_exports_leave_them_out_and_say_so(example, edited, form: str) -> None:
    files = trial(edited, FORBID)
    plain = FORMATS[form](compile_estate(load_estate(example)), ()).files
    exported = FORMATS[form](compile_estate(load_estate(files)), ()).files
    assert all("1 policy is left out" in text for text in exported.values() if text.startswith(("#", "---")))
    assert any("1 policy is left out" in text for text in exported.values())
    for name, text in exported.items():
        kept = [line for line in text.splitlines() if not line.startswith("#") and "version" not in line]
        assert kept == [line for line in plain[name].splitlines() if not line.startswith("#") and "version" not in line]


def test_what_an_application_decided_is_recorded_with_it() -> None:
    decision = Decision(
        verdict=Verdict.ALLOW,
        code=DecisionCode.ALLOWED,
        service="billing",
        report_code=DecisionCode.FORBIDDEN_BY_POLICY,
        report_policy="p" * 999,
    )
    said = told(decision, dt.datetime(2026, 11, 22, tzinfo=dt.UTC))
    assert (said.report_code, said.report_policy) == ("FORBIDDEN_BY_POLICY", "p" * 256)
