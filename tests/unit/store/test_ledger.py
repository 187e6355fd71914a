"""The decision ledger in SQLite."""

import msgspec
import pytest

from eastwest.clock import SystemClock
from eastwest.store.database import Database
from eastwest.store.ledger import DecisionQuery, SqliteLedger


@pytest.fixture
async def database(tmp_path):
    opened = Database.open(tmp_path / "server.db", trust_domain="td.test", clock=SystemClock())
    yield opened
    await opened.close()


def row(number: int, **more) -> msgspec.Raw:
    body = {"time": f"2026-11-22T10:00:{number:02}Z", "service": "s", "verdict": "deny", "code": "X"} | more
    return msgspec.Raw(msgspec.json.encode(body))


async def test_rows_are_found_by_what_they_say_and_paged(database):
    ledger = SqliteLedger(database)
    await ledger.add("agent", [row(n, caller=f"c{n % 2}") for n in range(6)], 3)
    found = await ledger.list(DecisionQuery(caller="c1", limit=2))
    assert [number for number, _, _ in found] == [2, 4]
    assert [n for n, _, _ in await ledger.list(DecisionQuery(caller="c1", after=4))] == [6]
    newest = await ledger.list(DecisionQuery(newest_first=True, limit=2))
    assert [n for n, _, _ in newest] == [6, 5]
    assert await ledger.lost() == 3


async def test_the_oldest_rows_make_room(database):
    ledger = SqliteLedger(database, max_rows=10)
    for start in range(0, 30, 5):
        await ledger.add("agent", [row(n) for n in range(start, start + 5)], 0)
    kept = await ledger.list(DecisionQuery(limit=100))
    assert [number for number, _, _ in kept] == list(range(21, 31))
