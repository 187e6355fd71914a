"""Suggested policies allow what was observed and allowed, and nothing else: random estates, random traffic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from eastwest.ledger.impact import Recorded
from eastwest.ledger.observed import Observed
from eastwest.ledger.query import micros
from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.policy.load import load_estate
from eastwest.policy.plan import plan_files
from eastwest.policy.replay import Input, Replayer
from eastwest.policy.suggest import Window, suggest_policies
from eastwest.policy.superseded import unused, without_permits
from eastwest.policy.table import compile_estate, every_rule
from eastwest.testing.calls import fingerprint, random_calls
from eastwest.testing.estates import random_estate
from eastwest.testing.recorded import Question, inbounds, recorded

NOW = datetime(2026, 11, 22, tzinfo=UTC)
WINDOW = Window(start=NOW - timedelta(days=7), end=NOW + timedelta(days=1))


def rows_of(random, made, compiled, calls):
    places = inbounds(compiled.sidecars)
    for number, call in enumerate(random_calls(random, made, calls)):
        sidecar, inbound = places[call.service]
        asked = Question.of(call, fingerprint(call.caller or ""), tcp=inbound.protocol == "tcp")
        if asked is not None:
            yield recorded(sidecar, asked, NOW, sensor=random.choice(("envoy", "sdk")), reference=f"r{number}")


def observed(estate, compiled, rows):
    found, replayer = Observed(estate), Replayer(compiled)
    for number, row in enumerate(rows):
        if row.verdict is Verdict.ALLOW:
            given, at = Input.of(row), micros(row.time)
            one = Recorded(given, row.verdict, row.policy, "", "", row.count, at, at, row.reference, number)
            found.add(one, replayer.decide(given))
    assert found.left_out() == []
    return list(found.seen())


@pytest.mark.parametrize("part", range(2))
def test_a_suggestion_allows_what_was_seen_and_nothing_else(part: int) -> None:
    permits = 0
    for seed in range(part * 5 + 5, part * 5 + 10):
        random = Random(seed)
        made = random_estate(random)
        estate = load_estate(made.files)
        compiled = compile_estate(estate)
        rows = list(rows_of(random, made, compiled, 60))
        seen = observed(estate, compiled, rows)
        suggested = suggest_policies(estate, made.files, seen, WINDOW)
        permits += len(suggested.permits)
        plan = plan_files(suggested.superseded.files, NOW.date())
        assert plan.ok, [str(p) for p in plan.problems]
        assert not suggested.superseded.kept
        assert not suggested.left_out
        after, before = Replayer(plan.compiled), Replayer(compiled)
        allowed = {(s.caller, s.operation, s.tenant) for s in seen}
        for row in rows:
            answer = after.decide(Input.of(row), before)
            if row.verdict is Verdict.ALLOW:
                assert answer.code is DecisionCode.ALLOWED, (seed, row, answer)
            else:
                # A token that nobody asks for any more is no reason to refuse what was seen without one.
                known = (row.caller, row.operation, row.tenant) in allowed
                assert known or getattr(answer, "verdict", Verdict.DENY) is Verdict.DENY, (seed, row, answer)
        assert set(allowing(plan.compiled)) <= allowed, "nothing beyond what was seen"
        for one in suggested.permits:
            assert one.owner
            assert one.coverage > 0
            assert one.confidence in {"high", "medium", "low"}
            assert one.why, "calls of one day are no strong evidence"
    assert permits > 2


def allowing(compiled):
    """Callers, operations and tenants that the table can allow."""
    for sidecar in compiled.sidecars.values():
        for operation in (o for i in sidecar.inbound for o in i.operations):
            for cell in operation.cells:
                by_tenant = {"": cell.rule}
                if cell.tenants is not None:
                    by_tenant = {"(any)": cell.tenants.otherwise, **cell.tenants.by_tenant}
                for tenant, rule in by_tenant.items():
                    if any(each.verdict is Verdict.ALLOW for each in every_rule(rule)):
                        yield from ((caller, operation.name, tenant) for caller in cell.callers)


def test_permits_that_decided_nothing_are_named_and_others_are_not() -> None:
    made = random_estate(Random(3))
    estate = load_estate(made.files)
    ids = [p.id for p in estate.policies if p.effect == "permit"]
    found = unused(estate, {ids[0]: 12})
    assert [each["policy"] for each in found] == ids[1:]
    assert all(each["where"].startswith("policies/all.cedar:") for each in found)


def test_evidence_of_every_day_without_news_and_losses_is_strong() -> None:
    random = Random(5)
    made = random_estate(random)
    estate = load_estate(made.files)
    compiled = compile_estate(estate)
    seen = observed(estate, compiled, rows_of(random, made, compiled, 60))
    days = {(s.caller, s.service, s.operation): range(10) for s in seen}
    steady = Window(start=NOW, end=NOW + timedelta(days=8), days=days)
    assert {p.confidence for p in suggest_policies(estate, made.files, seen, steady).permits} == {"high"}
    lossy = Window(start=NOW, end=NOW + timedelta(days=8), days=days, lost={"": 3})
    assert {p.confidence for p in suggest_policies(estate, made.files, seen, lossy).permits} == {"medium"}


def test_a_permit_that_reaches_other_services_too_is_left_to_them() -> None:
    """The table says nothing of the service then, and of the others what it said."""
    narrowed = 0
    for seed in range(8):
        made = random_estate(Random(seed))
        estate = load_estate(made.files)
        before = compile_estate(estate)
        service = estate.services[0].service
        for narrow in (True, False):
            found = without_permits(estate, made.files, {service}, narrow=narrow)
            ids = {policy.id for policy in load_estate(found.files).policies}
            assert ids == {policy.id for policy in estate.policies} - set(found.replaced)
            assert not (found.kept if narrow else found.narrowed)
        found = without_permits(estate, made.files, {service})
        plan = plan_files(found.files, NOW.date())
        assert plan.ok, [str(problem) for problem in plan.problems]
        assert not {name for _, name, _ in allowing(plan.compiled)} & {o.name for o in estate.services[0].operations}
        elsewhere = [each for each in allowing(before) if not each[1].startswith(f"{service}:")]
        assert elsewhere == list(allowing(plan.compiled))
        narrowed += len(found.narrowed)
    assert narrowed
