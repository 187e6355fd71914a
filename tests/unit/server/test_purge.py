"""Nodes that stay away are forgotten in time, each recorded before."""

import asyncio

import pytest

from eastwest.errors import LogUnavailable
from eastwest.log.entry import decode
from eastwest.registry.node import Node
from eastwest.registry.registry import Registry
from eastwest.server.journal import Journal
from eastwest.server.registration.purge import BATCH, DAY, INTERVAL, keep_purging, purge
from eastwest.spiffe.id import TrustDomain
from eastwest.testing.clock import FakeClock
from eastwest.testing.entropy import SeededEntropy
from eastwest.testing.registry import MemoryRegistryStore

TD = TrustDomain("saas.example")


class Recorder:
    """Keeps what is recorded, and how many nodes there were then."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.down = False
        self.registry: Registry | None = None
        self.counts: list[int] = []

    async def append(self, entries):
        if self.down:
            raise LogUnavailable("the disk is full")
        self.entries += entries
        self.counts.append(self.registry.nodes.count())
        return range(len(entries))


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
async def registry(recorder):
    recorder.registry = await Registry.open(TD, MemoryRegistryStore(), SeededEntropy())
    return recorder.registry


async def add(registry: Registry, clock: FakeClock, name: str, life: int) -> None:
    node = Node(
        spiffe_id=TD.id(f"/spire/agent/x509pop/{name}"),
        attestation_type="x509pop",
        serial_current="1",
        not_after=int(clock.now().timestamp()) + life,
        can_reattest=True,
    )
    await registry.nodes.record_attestation(node)


async def test_each_is_recorded_and_then_forgotten(registry, recorder):
    clock = FakeClock()
    for name, life in (("old", -31 * DAY), ("fresh", -29 * DAY), ("live", 60)):
        await add(registry, clock, name, life)
    assert await purge(registry, Journal(recorder, clock), clock, 30) == 1
    [entry] = map(decode, recorder.entries)
    assert (entry.kind, entry.body["subject"]) == ("node.purged", "spiffe://saas.example/spire/agent/x509pop/old")
    assert entry.body["actor"] == "spiffe://saas.example/spire/server"
    assert recorder.counts == [3], "before the effect"
    assert registry.nodes.count() == 2
    assert await purge(registry, Journal(recorder, clock), clock, 30) == 0


async def test_many_go_in_batches(registry, recorder):
    clock = FakeClock()
    for number in range(BATCH + 3):
        await add(registry, clock, str(number), -2 * DAY)
    assert await purge(registry, Journal(recorder, clock), clock, 1) == BATCH + 3
    assert len(recorder.counts) == 2


async def test_without_a_log_nothing_is_forgotten_until_there_is_one(registry, recorder):
    clock = FakeClock()
    await add(registry, clock, "old", -2 * DAY)
    recorder.down = True
    purging = asyncio.ensure_future(keep_purging(registry, Journal(recorder, clock), clock, 1))
    await clock.elapse(1)
    assert registry.nodes.count() == 1
    recorder.down = False
    await clock.elapse(INTERVAL)
    assert registry.nodes.count() == 0
    purging.cancel()
