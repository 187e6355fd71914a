from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from eastwest.ledger.record import Decision
from eastwest.ledger.rollup import Rollup
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict

START = datetime(2026, 11, 22, 10, 0, 30, tzinfo=UTC)
ALLOW = Decision(
    time=START,
    service="s",
    verdict=Verdict.ALLOW,
    code=DecisionCode.ALLOWED,
    mode=MtlsMode.STRICT,
    enforced=True,
    caller="spiffe://td.test/a",
    operation="s:a:b",
    method="GET",
    reference="r1",
)
DENY = msgspec.structs.replace(ALLOW, verdict=Verdict.DENY, code=DecisionCode.UNLISTED_OPERATION)


def later(decision: Decision, seconds: float, **more) -> Decision:
    return msgspec.structs.replace(decision, time=decision.time + timedelta(seconds=seconds), **more)


def used(**options) -> Rollup:
    """A rollup that has seen these edges."""
    rollup = Rollup(**options)
    for operation in ("s:a:b", "a", "b", "c"):
        rollup.add(msgspec.structs.replace(ALLOW, operation=operation))
    assert all(row.first for row in rollup.take(START))
    return rollup


def test_equal_allows_are_counted_by_the_minute():
    rollup = used()
    for seconds, reference in ((0, "a"), (1, "b"), (29, "c"), (30, "d")):
        rollup.add(later(ALLOW, seconds, reference=reference, trace="ab" * 16))
    assert rollup.take(START) == []
    (first,) = rollup.take(START + timedelta(seconds=30))
    assert (first.count, first.time, first.reference) == (3, datetime(2026, 11, 22, 10, 0, tzinfo=UTC), "")
    assert first.trace == ""
    (second,) = rollup.take(START, everything=True)
    assert second.count == 1
    assert rollup.take(START, everything=True) == []


def test_the_first_call_of_an_edge_is_kept_in_full_and_at_once():
    rollup = Rollup()
    for reference in "abc":
        rollup.add(msgspec.structs.replace(ALLOW, reference=reference))
    rollup.add(msgspec.structs.replace(ALLOW, caller="spiffe://td.test/b", reference="d"))
    full = rollup.take(START)
    assert [(row.reference, row.first, row.count) for row in full] == [("a", True, 1), ("d", True, 1)]
    (counted,) = rollup.take(START, everything=True)
    assert (counted.count, counted.first, counted.reference) == (2, False, "")


def test_an_edge_that_was_forgotten_is_first_again(monkeypatch):
    monkeypatch.setattr("eastwest.ledger.rollup.MAX_EDGES", 2)
    rollup = Rollup()
    for operation in "abca":
        rollup.add(msgspec.structs.replace(ALLOW, operation=operation))
    assert [row.operation for row in rollup.take(START)] == ["a", "b", "c", "a"]


def test_a_call_by_an_emergency_grant_is_kept_in_full():
    rollup = used()
    rollup.add(later(ALLOW, 1, break_glass=True, reference="x"))
    rollup.add(later(ALLOW, 1, break_glass=True, reference="y"))
    assert [row.reference for row in rollup.take(START)] == ["x", "y"]


def test_refusals_are_kept_in_full_and_at_once():
    rollup = Rollup()
    rollup.add(DENY)
    rollup.add(later(DENY, 1))
    assert rollup.take(START) == [DENY, later(DENY, 1)]


def test_a_full_table_closes_its_oldest_row_early():
    rollup = used(max_open=2)
    for operation in ("a", "a", "b", "c", "a"):
        rollup.add(msgspec.structs.replace(ALLOW, operation=operation))
    rows = rollup.take(START, everything=True)
    assert [(row.operation, row.count) for row in rows] == [("a", 2), ("b", 1), ("c", 1), ("a", 1)]
    assert rollup.lost == 0


def test_what_does_not_fit_is_counted():
    rollup = Rollup(max_ready=2)
    for _ in range(5):
        rollup.add(DENY)
    assert (len(rollup.take(START)), rollup.lost) == (2, 3)
    rollup.add(DENY)
    assert len(rollup.take(START)) == 1


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 200), st.sampled_from("abc")), max_size=60), st.integers(1, 5))
def test_nothing_is_lost_or_made_up(calls, max_open):
    rollup = Rollup(max_open=max_open)
    rows = []
    for allowed, seconds, operation in sorted(calls, key=lambda call: call[1]):
        rollup.add(later(ALLOW if allowed else DENY, seconds, operation=operation))
        rows += rollup.take(START + timedelta(seconds=seconds))
    rows += rollup.take(START, everything=True)
    for allowed in (True, False):
        for operation in "abc":
            want = sum(1 for a, _, o in calls if (a, o) == (allowed, operation))
            verdict = Verdict.ALLOW if allowed else Verdict.DENY
            assert want == sum(r.count for r in rows if (r.verdict, r.operation) == (verdict, operation))
    assert rollup.lost == 0


INPUTS = tuple(
    name
    for name in Decision.__struct_fields__
    # Who stands for which call, and how it was stored, no policy can look at.
    if name not in {"time", "count", "reference", "trace", "source", "first", "node", "sensor"}
)
ANY = st.builds(
    lambda more, seconds: later(ALLOW, seconds, **more),
    st.fixed_dictionaries(
        {
            "caller": st.sampled_from(["spiffe://td.test/a", "spiffe://td.test/b", ""]),
            "operation": st.sampled_from(["s:a:b", "s:a:c", ""]),
            "tenant": st.sampled_from(["", "acme", "globex"]),
            "method": st.sampled_from(["GET", "POST"]),
            "path": st.sampled_from(["", "/x"]),
            "rules_version": st.sampled_from(["v1", "v2"]),
            "mode": st.sampled_from(MtlsMode),
            "enforced": st.booleans(),
            "token": st.booleans(),
            "transaction": st.sampled_from(["", "t1", "t2"]),
            "origin": st.sampled_from(["", "spiffe://td.test/o"]),
            "approver": st.sampled_from(["", "spiffe://td.test/h"]),
            "break_glass": st.booleans(),
            "report_code": st.sampled_from(["", "FORBIDDEN_BY_POLICY", "ALLOWED"]),
            "report_policy": st.sampled_from(["", "trial"]),
            "peer": st.sampled_from(["", "uid:33"]),
            "canary": st.booleans(),
        }
    )
    | st.fixed_dictionaries(
        {
            "verdict": st.just(Verdict.DENY),
            "code": st.sampled_from([DecisionCode.UNLISTED_OPERATION, DecisionCode.TENANT_NOT_PERMITTED]),
            "caller": st.sampled_from(["spiffe://td.test/a", ""]),
            "path": st.sampled_from(["/x", "/y", ""]),
            "tenant": st.sampled_from(["", "acme"]),
        }
    ),
    st.integers(0, 200),
)


@given(st.lists(ANY, max_size=40), st.integers(1, 8), st.booleans())
def test_rows_give_back_the_exact_multiset_of_inputs(calls, max_open, taken_often):
    """Lossless for replay: per minute, each input as often as it was decided."""

    def inputs(row: Decision) -> tuple[object, ...]:
        minute = row.time.replace(second=0, microsecond=0)
        return (minute, *(getattr(row, name) for name in INPUTS))

    rollup = Rollup(max_open=max_open)
    rows = []
    for number, call in enumerate(calls):
        rollup.add(msgspec.structs.replace(call, reference=f"r{number}"))
        if taken_often:
            rows += rollup.take(call.time)
    rows += rollup.take(START, everything=True)
    rebuilt: Counter[tuple[object, ...]] = Counter()
    for row in rows:
        rebuilt[inputs(row)] += row.count
    assert rebuilt == Counter(map(inputs, calls))
    full = {row.reference for row in rows if row.reference}
    assert all(row.count == 1 for row in rows if row.reference)
    assert {f"r{n}" for n, call in enumerate(calls) if call.verdict is Verdict.DENY or call.break_glass} <= full
    edges = {(c.caller, c.service, c.operation) for c in calls if c.verdict is Verdict.ALLOW}
    assert sorted((r.caller, r.service, r.operation) for r in rows if r.first) == sorted(edges)


def test_a_flood_of_refusals_is_kept_in_full_up_to_a_bound_and_counted_beyond():
    rollup = Rollup(full_refusals=3)
    for number in range(50):
        flood = later(DENY, number / 10, tenant=f"t{number}", reference=f"r{number}", source="10.0.0.1")
        rollup.add(flood)
    rollup.add(later(DENY, 1, code=DecisionCode.TENANT_NOT_PERMITTED))
    rows = rollup.take(START, everything=True)
    full = [row for row in rows if row.reference and row.code is DENY.code]
    assert [row.tenant for row in full] == ["t0", "t1", "t2"]
    [counted] = [row for row in rows if not row.reference]
    assert (counted.count, counted.caller, counted.tenant, counted.source) == (47, DENY.caller, "", "10.0.0.1")
    assert sum(row.count for row in rows) == 51
    rollup.add(later(DENY, 60))
    assert rollup.take(START)[0].reference == "r1"


def test_names_that_a_flood_only_claims_do_not_make_rows():
    rollup = Rollup(full_refusals=0)
    for number in range(20):
        rollup.add(later(DENY, 0, caller=f"spiffe://td.test/{number}", claimed=True))
    assert [row.count for row in rollup.take(START, everything=True)] == [20]


def test_a_name_that_was_told_in_full_keeps_its_calls_in_a_flood():
    """Three expired callers that try again at once must not become a fourth without a name."""
    rollup = Rollup(full_refusals=3)
    for number in range(30):
        rollup.add(later(DENY, 0, caller=f"spiffe://td.test/{number % 3}", claimed=True, reference="r"))
    rollup.add(later(DENY, 0, caller="spiffe://td.test/new", claimed=True, reference="r"))
    rows = rollup.take(START, everything=True)
    told = {f"spiffe://td.test/{number}": 9 for number in range(3)} | {"": 1}
    assert {row.caller: row.count for row in rows if not row.reference} == told


def test_a_flood_whose_calls_are_of_several_minutes_is_bounded_in_each():
    rollup = Rollup(full_refusals=3)
    for number in range(200):
        rollup.add(later(DENY, 60 * (number % 4), reference=f"r{number}"))
    assert sum(bool(row.reference) for row in rollup.take(START, everything=True)) == 4 * 3


def test_minutes_that_a_flood_makes_up_are_bounded_too():
    rollup = Rollup(full_refusals=3)
    rollup.add(DENY)
    for number in range(1_000):
        rollup.add(later(DENY, -60 * number, reference=f"r{number}"))
    rows = rollup.take(START, everything=True)
    assert sum(bool(row.reference) for row in rows) <= 3 * 16
    assert sum(row.count for row in rows) == 1_001


def test_a_flood_from_ever_new_addresses_is_bounded():
    rollup = Rollup(full_refusals=3)
    for number in range(100):
        rollup.add(later(DENY, 0, source=f"2001:db8::{number:x}", reference="r"))
    rows = rollup.take(START, everything=True)
    assert sum(row.count for row in rows) == 100
    assert len([row for row in rows if row.reference]) == 3
    assert sorted((row.source, row.count) for row in rows if not row.reference) == [
        ("", 94),
        ("2001:db8::3", 1),
        ("2001:db8::4", 1),
        ("2001:db8::5", 1),
    ]
