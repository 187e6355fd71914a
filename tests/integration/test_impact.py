"""Impact reports of random traffic in a real ledger equal what Cedar says of every single call, before and after."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from random import Random

import msgspec
import pytest

from eastwest.clock import SystemClock
from eastwest.errors import Error
from eastwest.ledger.impact import KINDS, sealed
from eastwest.ledger.query import DecisionQuery, Scope
from eastwest.ledger.record import Lost, LostReason
from eastwest.ledger.rollup import Rollup
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import Oracle
from eastwest.policy.replay import Answer
from eastwest.policy.table import compile_estate
from eastwest.server.config import LedgerSettings
from eastwest.server.journal import Journal
from eastwest.server.ledger.keeper import Ledger
from eastwest.store.ledger_replay import Job, Replay
from eastwest.testing.calls import fingerprint, random_calls
from eastwest.testing.estates import SHAPES, random_estate
from eastwest.testing.log import MemoryLog
from eastwest.testing.recorded import Question, inbounds, random_edit, recorded

BEGIN = datetime(2026, 11, 22, 8, tzinfo=UTC)
CALLS = 120
SEEN = 20
"""A seed of an estate that allows something."""


async def keep(directory, rows, lost=()):
    """Rows as an agent hands them in: rolled up, in reports; three quarters of them sealed, the rest hot."""
    clock, log = SystemClock(), MemoryLog()
    ledger = await Ledger.open(
        directory,
        trust_domain="t.example",
        settings=LedgerSettings(),
        max_rows=100_000,
        log=log,
        journal=Journal(log, clock),
        clock=clock,
    )
    try:
        for sequence, part in enumerate((rows[: len(rows) * 3 // 4], rows[len(rows) * 3 // 4 :])):
            rollup = Rollup()
            for row in part:
                rollup.add(row)
            kept = rollup.take(BEGIN, everything=True)
            await ledger.add(
                "spiffe://t.example/spire/agent/a", "s", sequence + 1, [*kept, *(lost if sequence else ())]
            )
            if not sequence:
                await ledger.sealer.seal(100_000)
    finally:
        await ledger.close()


def answers(files, rows):
    """Cedar's answers to the calls, as the services' modes make them."""
    estate = load_estate(files)
    places, oracle = inbounds(compile_estate(estate).sidecars), Oracle(estate)
    found = []
    for asked, row in rows:
        if asked.service not in places:
            found.append(None)
            continue
        verdict, code, policy, name = oracle.decide(*asked.arguments)
        inbound = places[asked.service][1]
        enforced = inbound.mode is MtlsMode.STRICT
        operation = next((o for o in inbound.operations if o.name == name), None)
        if row.code is DecisionCode.TOKEN_USED and verdict is Verdict.ALLOW and operation.single_use and enforced:
            verdict, code, policy = Verdict.DENY, DecisionCode.TOKEN_USED, ""
        found.append(Answer(verdict, code, policy, name, enforced))
    return found


def traffic(random, made):
    places = inbounds(compile_estate(load_estate(made.files)).sidecars)
    for number, call in enumerate(random_calls(random, made, CALLS)):
        sidecar, inbound = places[call.service]
        asked = Question.of(call, fingerprint(call.caller or ""), tcp=inbound.protocol == "tcp")
        if asked is not None:
            time = BEGIN + timedelta(seconds=number)
            sensor = random.choice(("envoy", "sdk"))
            yield (
                asked,
                recorded(sidecar, asked, time, sensor=sensor, reference=f"r{number}", used=random.random() < 0.3),
            )


@pytest.mark.parametrize("seed", range(2))
async def test_a_report_is_the_difference_that_cedar_sees_call_by_call(tmp_path, seed) -> None:
    random = Random(seed)
    made = random_estate(random)
    rows = list(traffic(random, made))
    ledger = tmp_path / "ledger"
    lost = Lost(time=BEGIN, until=BEGIN + timedelta(minutes=1), count=7, cause=LostReason.SPOOL_FULL)
    await keep(ledger, [row for _, row in rows], [lost])
    before = answers(made.files, rows)
    compared = 0
    while compared < 2:
        files = random_edit(random, made.files)
        try:
            after = answers(files, rows)
        except Error:
            continue
        compared += 1
        job = Job(task="impact", directory=str(ledger), query=DecisionQuery(), files=files, before=made.files)
        report = Replay(job).run()
        assert report["calls"] == len(rows), "every call is in the report's window"
        assert report["lost"] == 7
        assert report["hash"] == sealed(report)["hash"]
        assert report["deviating"] == 0
        check(report, rows, before, after)


def check(report, rows, before, after) -> None:
    unsure = {(r["caller"], r["service"], r["operation"], r["tenant"]) for r in report["unsure"]}
    wanted: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    vague: Counter = Counter()
    for (_, row), was, becomes in zip(rows, before, after, strict=True):
        name = row.operation or (becomes.operation if becomes is not None else "")
        key = (row.caller, row.service, name, row.tenant)
        if key in unsure or (row.caller, row.service, row.operation, row.tenant) in unsure or becomes is None:
            vague[key] += 1
            continue
        kind = ""
        if was.passes != becomes.passes:
            kind = "newly_allowed" if becomes.passes else "newly_denied"
        elif was.verdict is not becomes.verdict and was.passes:
            kind = "reported_denied" if becomes.verdict is Verdict.DENY else "reported_allowed"
        if kind:
            wanted[kind][key] += 1
    for kind in ("newly_allowed", "newly_denied", "reported_denied", "reported_allowed"):
        found: Counter = Counter()
        for r in report[kind]:
            key = (r["caller"], r["service"], r["operation"], r["tenant"])
            assert r["owner"]
            assert r["samples"]
            if key not in unsure and key not in vague:
                found[key] += r["count"]
        assert found == Counter({k: n for k, n in wanted[kind].items() if k not in vague}), kind
    assert report["totals"]["unsure"] <= sum(1 for _, row in rows) * 0.5


async def test_switching_to_strict_counts_what_was_let_through(tmp_path) -> None:
    random = Random(7)
    made = random_estate(random, shapes=SHAPES)
    loose = {
        name: text.replace(b'"mtls": "strict"', b'"mtls": "permissive", "until": "2099-01-01"')
        for name, text in made.files.items()
    }
    rows = list(traffic(random, type(made)(loose, made.callers, made.routes, made.policies)))
    assert not any(row.enforced for _, row in rows)
    await keep(tmp_path / "ledger", [row for _, row in rows])
    job = Job(task="impact", directory=str(tmp_path / "ledger"), query=DecisionQuery(), files=made.files, before=loose)
    report = Replay(job).run()
    denied = sum(1 for _, row in rows if row.verdict is Verdict.DENY)
    assert report["totals"]["newly_denied"] + report["totals"]["unsure"] == denied > 0
    assert report["totals"]["unsure"] < denied / 4
    assert report["totals"]["newly_allowed"] == 0
    codes = {row["code"] for row in report["newly_denied"]}
    assert {"UNLISTED_OPERATION", "OPERATION_NOT_PERMITTED"} <= codes


async def test_without_an_estate_to_compare_with_what_was_recorded_is(tmp_path) -> None:
    random = Random(8)
    made = random_estate(random, shapes=SHAPES)
    rows = list(traffic(random, made))
    await keep(tmp_path / "ledger", [row for _, row in rows])
    job = Job(task="impact", directory=str(tmp_path / "ledger"), query=DecisionQuery(), files=made.files)
    report = Replay(job).run()
    assert report["before"] == ""
    assert sum(report["totals"].values()) == report["totals"]["unsure"], "on its own rules nothing differs"
    assert report["covered"] > 0.9


async def test_an_unsealed_row_and_a_canary(tmp_path) -> None:
    random = Random(9)
    made = random_estate(random, shapes=SHAPES)
    rows = [row for _, row in traffic(random, made)]
    canaries = [msgspec.structs.replace(row, canary=True) for row in rows[:50]]
    await keep(tmp_path / "ledger", [*canaries, *rows[50:]])
    job = Job(
        task="impact", directory=str(tmp_path / "ledger"), query=DecisionQuery(), files=made.files, before=made.files
    )
    report = Replay(job).run()
    assert Replay(job).run() == report, "the same data and policies give the same report"
    assert report["calls"] == len(rows) - 50, "canaries' calls are nobody's"
    assert len(report["data"]["segments"]) == 1
    assert report["data"]["unsealed"]
    assert report["totals"] == dict.fromkeys(KINDS, 0)


async def test_who_may_see_one_service_gets_a_report_and_suggestions_about_that_one(tmp_path) -> None:
    random = Random(SEEN)
    made = random_estate(random, shapes=SHAPES[:3])
    rows = [row for _, row in traffic(random, made)]
    lost = Lost(time=BEGIN, until=BEGIN + timedelta(minutes=1), count=7, cause=LostReason.SPOOL_FULL)
    await keep(tmp_path / "ledger", rows, [lost])
    files = {name: text for name, text in made.files.items() if name != "policies/all.cedar"}
    [(service, _)] = Counter(row.service for row in rows if row.verdict is Verdict.ALLOW).most_common(1)
    query = DecisionQuery(scope=Scope(services=(service,)))
    job = Job(task="impact", directory=str(tmp_path / "ledger"), query=query, files=files, before=made.files)
    report = Replay(job).run()
    assert report["window"]["limited"]
    assert report["lost"] == 0, "what was lost is of all services together"
    assert report["calls"] == sum(row.service == service for row in rows) > 0
    seen = {row["service"] for kind in KINDS for row in report[kind]}
    assert seen == {service}
    found = Replay(msgspec.structs.replace(job, task="suggest")).run()
    assert {each["service"] for each in found["suggestions"]} == {service}
    assert found["totals"]["newly_denied"] == 0
