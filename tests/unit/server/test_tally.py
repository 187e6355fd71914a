"""Counted events: nothing is uncounted, and no flood of them floods the log."""

import asyncio

import pytest

from eastwest.errors import LogUnavailable
from eastwest.log.entry import decode
from eastwest.server.journal import Journal
from eastwest.server.tally import AT_ONCE, PER_ACTOR, Tally
from eastwest.testing import FakeClock
from eastwest.testing.log import Failure, MemoryLog

FACTS = {
    "code": "NOT_FOUND",
    "reason": "not_found",
    "door": "spire-api",
    "caller_kind": "agent",
    "entry_id": "",
    "policy_version": "v",
}


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def log():
    return MemoryLog()


@pytest.fixture
def tally(log, clock):
    return Tally(Journal(log, clock), clock)


async def told(log):
    return [decode(raw).body | {"kind": decode(raw).kind} for raw in await log.entries(0, log.size)]


def deny(tally, actor="a", **changes):
    tally.note("issuance.denied", actor=actor, **{**FACTS, **changes})


async def test_equal_refusals_of_a_minute_are_one_entry(tally, log, clock):
    for _ in range(500):
        deny(tally, subject="spiffe://x/y")
        clock.advance(0.1)
    await tally.flush(early=False)
    assert log.size == 0
    clock.advance(15)
    await tally.flush(early=False)
    [entry] = await told(log)
    assert (entry["count"], entry["actor"], entry["subject"]) == (500, "a", "spiffe://x/y")
    assert entry["first"] < entry["last"]


async def test_one_actor_cannot_fill_the_log(tally, log):
    for number in range(10_000):
        deny(tally, subject=f"spiffe://x/{number}", entry_id=str(number))
    deny(tally, actor="b", subject="spiffe://x/z")
    await tally.flush()
    found = await told(log)
    assert len(found) == PER_ACTOR + 2
    assert sum(entry["count"] for entry in found) == 10_001
    assert [entry["count"] for entry in found if entry["actor"] == "b"] == [1]
    [rest] = [entry for entry in found if entry["actor"] == "a" and not entry["subject"]]
    assert (rest["entry_id"], rest["code"]) == ("", "NOT_FOUND")


async def test_many_actors_cannot_either(tally, log):
    for number in range(5_000):
        deny(tally, actor=f"actor-{number}")
        tally.note("node.attestation_refused", actor="", subject="", sample=f"10.0.0.{number}", code="X", reason="y")
    await tally.flush()
    found = await told(log)
    assert len(found) <= AT_ONCE + 2
    assert sum(entry["count"] for entry in found) == 10_000
    assert max(len(entry.get("addresses", ())) for entry in found) == 8


async def test_an_administrator_is_told_at_once_and_then_once_in_fifteen_minutes(tally, log, clock):
    for _ in range(10):
        await tally.tell("admin.login", actor="unix:uid:0", subject="/a/First", door="socket")
        await tally.tell("admin.login", actor="unix:uid:0", subject="/a/Second", door="socket")
    assert [(e["subject"], e["count"]) for e in await told(log)] == [("/a/First", 1)]
    await tally.flush()
    assert log.size == 1
    clock.advance(900)
    await tally.flush(early=False)
    assert [(e["subject"], e["count"]) for e in await told(log)] == [("/a/First", 1), ("/a/Second", 19)]


async def test_what_cannot_be_recorded_stays_counted(tally, log):
    deny(tally)
    log.fail_next(Failure.REFUSED)
    with pytest.raises(LogUnavailable):
        await tally.flush()
    deny(tally)
    await tally.flush()
    assert [entry["count"] for entry in await told(log)] == [2]


async def test_an_unwritable_log_keeps_no_administrator_out(tally, log):
    log.fail_next(Failure.REFUSED)
    await tally.tell("admin.login", actor="unix:uid:0", subject="/a/B", door="socket")
    assert log.size == 0
    await tally.tell("admin.login", actor="unix:uid:0", subject="/a/B", door="socket")
    assert [entry["count"] for entry in await told(log)] == [2]


async def test_it_runs_by_itself(tally, log):
    running = asyncio.create_task(tally.run())
    tally.note("admin.refused", actor="spiffe://x/y", subject="/a/B", door="port")
    async with asyncio.timeout(5):
        while log.size == 0:
            await asyncio.sleep(0)
    running.cancel()
    assert [entry["kind"] for entry in await told(log)] == ["admin.refused"]
