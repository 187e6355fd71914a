"""The hot half of the ledger: each report once, bounded, and rows of the release before taken over."""

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from eastwest.clock import SystemClock
from eastwest.errors import Exhausted, InvalidInput
from eastwest.ledger.query import DecisionQuery
from eastwest.ledger.record import Decision, Lost, LostReason
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.store.database import Database
from eastwest.store.ledger import MAX_SPOOLS, MIN_SHARE, SqliteLedger
from eastwest.testing import FakeClock
from eastwest.testing.ledgers import decision

DAY = 86_400


async def opened(path, **options) -> SqliteLedger:
    path.mkdir(exist_ok=True)
    return await SqliteLedger.open(path, trust_domain="td.test", clock=options.pop("clock", SystemClock()), **options)


@pytest.fixture
async def ledger(tmp_path):
    made = await opened(tmp_path / "ledger")
    yield made
    await made.close()


async def numbers(ledger, **query) -> list[int]:
    return [row["row"] for row in await ledger.search(DecisionQuery(**query))]


async def test_a_report_that_comes_again_is_acknowledged_and_not_stored_again(ledger):
    lost = Lost(time=decision().time, until=decision().time, count=3, cause=LostReason.DISK)
    assert await ledger.add("a", "s1", 1, [decision(1), lost]) == 1
    assert await ledger.add("a", "s1", 1, [decision(1), lost]) == 1
    assert await ledger.add("a", "s1", 4, [decision(2)]) == 4, "several frames may come as one"
    assert await ledger.add("a", "s1", 2, [decision(9)]) == 4
    assert await ledger.add("b", "s1", 1, [decision(3)]) == 1, "another agent's spool is another"
    assert await ledger.add("a", "s2", 1, [decision(4)]) == 1, "and so is another spool"
    assert await numbers(ledger) == [1, 2, 3, 4, 5]
    assert await ledger.lost() == 3


async def test_the_same_report_twice_at_the_same_time_is_stored_once(ledger):
    held = await asyncio.gather(*(ledger.add("a", "s", 1, [decision(n)]) for n in range(20)))
    assert (held, await numbers(ledger)) == ([1] * 20, [1])


async def test_what_is_held_survives_a_restart(tmp_path):
    first = await opened(tmp_path / "ledger")
    await first.add("a", "s", 7, [decision()])
    identity = first.identity
    await first.close()
    again = await opened(tmp_path / "ledger")
    assert (await again.add("a", "s", 7, [decision()]), await numbers(again)) == (7, [1])
    assert again.identity == identity
    assert len(identity) == 32
    await again.close()


async def test_too_many_rows_that_wait_are_refused_and_nothing_of_them_stored(tmp_path):
    ledger = await opened(tmp_path / "ledger", max_rows=3)
    await ledger.add("a", "s", 1, [decision(1), decision(2)])
    with pytest.raises(Exhausted, match="wait to be sealed"):
        await ledger.add("a", "s", 2, [decision(3), decision(4)])
    assert await ledger.add("a", "s", 2, [decision(3)]) == 2
    assert await numbers(ledger) == [1, 2, 3], "numbers have no gaps"
    await ledger.close()


async def test_a_time_that_no_clock_shows_is_refused(ledger):
    early = decision().time.replace(year=1, month=1, day=1, hour=0).replace(tzinfo=_zone(5))
    with pytest.raises(InvalidInput, match="out of range"):
        await ledger.add("a", "s", 1, [msgspec.structs.replace(decision(), time=early)])
    late = datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)
    await ledger.add("a", "s", 1, [msgspec.structs.replace(decision(), time=late)])
    assert (await ledger.search(DecisionQuery()))[0]["time"] == "9999-12-31T23:59:59.999999Z"


async def test_spools_are_forgotten_by_age_and_number_the_current_ones_never(tmp_path, monkeypatch):
    monkeypatch.setattr("eastwest.store.ledger.MAX_SPOOLS", 3)
    assert MAX_SPOOLS > 1000
    clock = FakeClock()
    ledger = await opened(tmp_path / "ledger", clock=clock)
    for number in range(5):
        await ledger.add("a", f"s{number}", 1, [decision()])
        clock.advance(1)
    assert await ledger.add("a", "s2", 1, [decision()]) == 1
    assert len(await numbers(ledger)) == 5, "the last three are remembered"
    clock.advance(91 * DAY)
    await ledger.add("a", "s4", 2, [decision()])
    await ledger.add("a", "s9", 1, [decision()])
    spools = await ledger._database.read(lambda c: c.execute("SELECT spool FROM spools ORDER BY spool").fetchall())
    assert spools == [("s4",), ("s9",)]
    await ledger.close()


def _zone(hours):
    return datetime.now(UTC).astimezone().tzinfo.__class__(timedelta(hours=hours))


def old_row(number) -> bytes:
    """A row as the release before stored it: without a kind."""
    body = {
        "time": f"2026-11-22T10:00:{number:02}Z",
        "service": "s",
        "verdict": "allow",
        "code": "ALLOWED",
        "mode": "strict",
        "enforced": True,
        "count": number,
    }
    return msgspec.json.encode(body)


@pytest.fixture
async def before(tmp_path):
    database = Database.open(tmp_path / "server.db", trust_domain="td.test", clock=SystemClock())
    yield database
    await database.close()


def keep_old(numbers, lost=0):
    def store(connection):
        for number in numbers:
            connection.execute(
                "INSERT INTO decisions (agent, time, caller, service, verdict, code, body) VALUES (?,?,?,?,?,?,?)",
                ("agent", "", "", "s", "allow", "ALLOWED", old_row(number)),
            )
        if lost:
            connection.execute("INSERT OR REPLACE INTO decisions_lost VALUES ('agent', ?)", (lost,))

    return store


async def test_rows_of_the_release_before_are_taken_over_with_their_numbers(ledger, before):
    await before.write(keep_old(range(1, 8), lost=5))
    await before.write(lambda c: c.execute("DELETE FROM decisions WHERE id <= 2"))
    assert await ledger.take_over(before, batch=2) == 5
    rows = await ledger.search(DecisionQuery(kind="decision"))
    assert [(row["row"], row["count"]) for row in rows] == [(n, n) for n in range(3, 8)]
    assert await ledger.lost() == 5
    assert await ledger.take_over(before) == 0
    assert await before.read(lambda c: c.execute("SELECT COUNT(*) FROM decisions").fetchone()) == (0,)
    await ledger.add("a", "s", 1, [decision()])
    # After a step back to the old release and forth again.
    await before.write(keep_old([9], lost=2))
    assert await ledger.take_over(before) == 1
    assert [row["row"] for row in await ledger.search(DecisionQuery(kind="decision"))] == [3, 4, 5, 6, 7, 9, 10]


async def test_taking_over_goes_on_where_it_was_interrupted(ledger, before):
    await before.write(keep_old(range(1, 6)))
    rows = await before.read(lambda c: c.execute("SELECT id, agent, body FROM decisions LIMIT 3").fetchall())
    from eastwest.store.ledger import _bring

    # Brought, and not deleted there: the process ended in between.
    await ledger._database.write(lambda c: _bring(c, rows))
    assert await ledger.take_over(before) == 2
    assert await numbers(ledger) == [1, 2, 3, 4, 5]


async def test_a_row_keeps_every_field_that_it_came_with(ledger):
    full = Decision(
        time=datetime(2026, 11, 22, 10, 0, 0, 1, tzinfo=_zone(3)),
        verdict=Verdict.DENY,
        code=DecisionCode.TENANT_MISSING,
        mode=MtlsMode.PERMISSIVE,
        enforced=False,
        claimed=True,
        count=2**32,
        token=True,
        first=True,
        break_glass=True,
        sensor="agent",
        **{
            name: f"{name} \N{SNOWMAN}"
            for name in Decision.__struct_fields__
            if Decision.__annotations__[name] == "str"
        },
    )
    await ledger.add("a", "s", 1, [full])
    [found] = await ledger.search(DecisionQuery())
    del found["row"], found["agent"]
    assert msgspec.convert(found, Decision) == full
    assert found["time"] == "2026-11-22T07:00:00.000001Z"


async def test_one_agent_that_floods_leaves_room_for_the_others(tmp_path):
    ledger = await opened(tmp_path / "ledger", max_rows=4 * MIN_SHARE)
    flood = [decision(1)] * MIN_SHARE
    for sequence in (1, 2):
        await ledger.add("flooding", "s", sequence, flood)
    await ledger.add("other", "s", 1, [decision(2)])
    with pytest.raises(Exhausted, match="of this agent alone"):
        await ledger.add("flooding", "s", 3, [decision(3)])
    assert await ledger.add("other", "s", 2, [decision(4)]) == 2
    await ledger.close()
