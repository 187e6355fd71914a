from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from eastwest.testing import FakeClock, SeededEntropy
from eastwest.testing.clock import START


async def test_time_stands_still_until_it_is_moved():
    clock = FakeClock()
    assert clock.now() == START
    before = clock.monotonic()
    clock.advance(90)
    assert clock.now() == START + timedelta(seconds=90)
    assert clock.monotonic() == before + 90
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


async def test_sleepers_wake_in_order_when_their_time_comes():
    clock, woken = FakeClock(), []

    async def sleeper(name, seconds):
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.create_task(sleeper(name, seconds)) for name, seconds in (("b", 2), ("a", 1), ("c", 3))]
    await asyncio.sleep(0)
    assert clock.sleeping == 3
    clock.advance(2)
    await asyncio.sleep(0)
    assert woken == ["a", "b"]
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    clock.advance(10)
    assert (woken, clock.sleeping) == (["a", "b"], 0)


async def test_elapse_runs_what_repeats():
    clock, ticks = FakeClock(), []

    async def ticker():
        while True:
            await clock.sleep(10)
            ticks.append(clock.now())

    task = asyncio.create_task(ticker())
    await clock.elapse(35)
    assert ticks == [START + timedelta(seconds=seconds) for seconds in (10, 20, 30)]
    assert clock.now() == START + timedelta(seconds=35)
    task.cancel()


async def test_a_skewed_wall_clock_wakes_nobody():
    clock = FakeClock()
    before = clock.monotonic()
    clock.skew(-3600)
    assert clock.now() == START - timedelta(hours=1)
    assert clock.monotonic() == before


async def test_sleeping_for_nothing_lets_others_run():
    ran = []

    async def other():
        ran.append(True)

    task = asyncio.ensure_future(other())
    await FakeClock().sleep(0)
    assert ran
    await task


def test_entropy_repeats_by_seed():
    first = SeededEntropy(1)
    taken = first.token_bytes(10) + first.token_bytes(50)
    assert SeededEntropy(1).token_bytes(60) == taken
    assert SeededEntropy(2).token_bytes(60) != taken
