"""Attempts to attest are bounded by source and in all, and a site behind one address gets in."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from eastwest.errors import Exhausted
from eastwest.server.spire.admission import MAX_AT_ONCE, MAX_AT_ONCE_OF_SOURCE, MAX_SOURCES, Admission
from eastwest.testing.clock import FakeClock


async def once(admission: Admission, address: str) -> None:
    async with admission.attempt(address):
        pass


async def test_a_storm_of_fifty_from_one_address_gets_in_at_once() -> None:
    clock = FakeClock()
    admission = Admission(10, 100, clock)
    await asyncio.gather(*(once(admission, "192.0.2.1") for _ in range(50)))
    assert clock.sleeping == 0


async def test_beyond_the_burst_attempts_wait_their_turn() -> None:
    clock = FakeClock()
    admission = Admission(10, 5, clock)
    tasks = [asyncio.ensure_future(once(admission, "192.0.2.1")) for _ in range(8)]
    await asyncio.sleep(0)
    assert sum(task.done() for task in tasks) <= 5
    await clock.elapse(0.11)
    await clock.elapse(0.2)
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    # Another source does not wait for them.
    await once(admission, "192.0.2.2")


async def test_who_would_wait_long_is_refused_and_not_counted() -> None:
    clock = FakeClock()
    admission = Admission(0.1, 1, clock)
    await once(admission, "192.0.2.1")
    waits = asyncio.ensure_future(once(admission, "192.0.2.1"))
    await asyncio.sleep(0)
    for _ in range(5):
        with pytest.raises(Exhausted, match=r"192\.0\.2\.1"):
            await once(admission, "192.0.2.1")
    await clock.elapse(10.1)
    await asyncio.wait_for(waits, 5)


async def test_an_ipv6_network_is_one_source() -> None:
    admission = Admission(0.05, 1, FakeClock())  # the second attempt would wait for longer than anybody may
    for first, same, other in (
        ("2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1"),
        ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"),
        ("fe80::1%eth0", "fe80::2%eth0", "fe80:1::1"),
    ):
        await once(admission, first)
        with pytest.raises(Exhausted):
            await once(admission, same)
        await once(admission, other)


async def test_places_are_bounded_and_given_back() -> None:
    admission = Admission(10_000, 100_000, FakeClock())
    async with AsyncExitStack() as stack:
        for _ in range(MAX_AT_ONCE_OF_SOURCE):
            await stack.enter_async_context(admission.attempt("192.0.2.1"))
        with pytest.raises(Exhausted):
            await once(admission, "192.0.2.1")
        for number in range(MAX_AT_ONCE - MAX_AT_ONCE_OF_SOURCE):
            await stack.enter_async_context(admission.attempt(f"198.51.100.{number % 200}"))
        with pytest.raises(Exhausted):
            await once(admission, "203.0.113.1")
        await once(admission, "")  # not from a network
    await once(admission, "192.0.2.1")


async def test_sources_are_not_remembered_without_end() -> None:
    admission = Admission(10, 10, FakeClock())
    for number in range(MAX_SOURCES + 500):
        await once(admission, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(admission._buckets) == MAX_SOURCES


async def test_two_sources_that_hold_what_they_can_leave_room_for_a_storm_of_fifty() -> None:
    admission = Admission(10_000, 100_000, FakeClock())
    async with AsyncExitStack() as stack:
        for greedy in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
            with pytest.raises(Exhausted):
                for _ in range(MAX_AT_ONCE):
                    await stack.enter_async_context(admission.attempt(greedy))
            if greedy == "192.0.2.2":
                async with AsyncExitStack() as site:
                    for _ in range(50):
                        await site.enter_async_context(admission.attempt("198.51.100.1"))
        # However many are greedy, one that has no place yet finds one.
        for number in range(4, 10):
            with pytest.raises(Exhausted):
                for _ in range(MAX_AT_ONCE):
                    await stack.enter_async_context(admission.attempt(f"192.0.2.{number}"))
        await once(admission, "203.0.113.1")
