"""Spans of enforcement points, kept as their streams come and go, over the ends of servers too."""

from datetime import timedelta

import pytest

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.ledger.sensors import AGENT, PROCESS, STREAM, Span, gaps
from eastwest.server.control import SILENT, AgentStream
from eastwest.server.mtls.sensors import GRACE, SensorHistory
from eastwest.spiffe.id import SpiffeId
from eastwest.store.database import Database
from eastwest.store.sensors import MAX_SPANS, SqliteSensors
from eastwest.testing.clock import FakeClock

AGENT_ID = SpiffeId.parse("spiffe://td.test/spire/agent/x/1")
SHOP = "spiffe://td.test/shop"
HOUR = timedelta(hours=1)


class Hub:
    """What the history reads of the control hub."""

    def __init__(self) -> None:
        self.streams: dict[SpiffeId, AgentStream] = {}

    def connect(self, *nodes: str) -> None:
        stream = self.streams.setdefault(AGENT_ID, AgentStream(AGENT_ID))
        stream.session = object()
        stream.sidecars = {node: status(node) for node in nodes}

    def disconnect(self) -> None:
        stream = self.streams[AGENT_ID]
        stream.session = None
        for each in stream.sidecars.values():
            each.connected = False


def status(node: str, *, connected: bool = True, runs: bool = True) -> pb.SidecarStatus:
    return pb.SidecarStatus(node_id=node, spiffe_id=SHOP, connected=connected, bundle_sequence=3 if runs else 0)


@pytest.fixture
async def world(tmp_path):
    """(clock, hub, store, a function that makes the history of a server that starts)."""
    clock = FakeClock()
    database = Database.open(tmp_path / "db", trust_domain="td.test", clock=clock)
    store, hub = SqliteSensors(database), Hub()

    async def started() -> SensorHistory:
        made = SensorHistory(store, hub, clock)
        await made.load()
        return made

    yield clock, hub, store, started
    await database.close()


async def spans(store, clock):
    found = await store.spans(SHOP, clock.now() - timedelta(days=30), clock.now() + HOUR)
    return [(one.node, one.why, one.end is None) for one in found if one.node]


async def test_an_agent_that_is_away_for_an_hour_leaves_a_gap(world):
    clock, hub, store, started = world
    history = await started()
    begun = clock.now()
    hub.connect("s1")
    await history.look()
    clock.advance(3600)
    await history.look()
    hub.disconnect()
    clock.advance(3600)
    await history.look()
    hub.connect("s1")
    await history.look()
    assert await spans(store, clock) == [("s1", AGENT, False), ("s1", "", True)]
    found = gaps(await store.spans(SHOP, begun, clock.now()), begun, clock.now())
    assert ("s1", HOUR) in [(gap.node, gap.length) for gap in found]


async def test_an_agent_that_hangs_is_away_though_it_is_connected(world):
    """Its kernel answers for it, and nobody reads what its sidecars write."""
    clock, hub, store, started = world
    history = await started()
    hub.connect("s1")
    stream = hub.streams[AGENT_ID]
    stream.heard_at = clock.monotonic()
    await history.look()
    clock.advance(SILENT + 1)
    await history.look()
    assert await spans(store, clock) == [("s1", "", True)], "an older one, which cannot say so, is taken to be well"
    stream.capabilities = frozenset({"alive"})
    await history.look()
    assert await spans(store, clock) == [("s1", AGENT, False)]
    stream.heard_at = clock.monotonic()
    await history.look()
    assert await spans(store, clock) == [("s1", AGENT, False), ("s1", "", True)]


async def test_a_sidecar_that_lost_its_stream_is_told_from_one_that_ended(world):
    clock, hub, store, started = world
    history = await started()
    hub.connect("s1", "s2")
    await history.look()
    hub.streams[AGENT_ID].sidecars = {
        "s1": status("s1", connected=False),
        "s2": status("s2", connected=False, runs=False),
    }
    clock.advance(60)
    await history.look()
    assert sorted(await spans(store, clock)) == [("s1", STREAM, False), ("s2", PROCESS, False)]
    # It turns out later that it had ended.
    hub.streams[AGENT_ID].sidecars = {}
    await history.look()
    assert sorted(await spans(store, clock)) == [("s1", PROCESS, False), ("s2", PROCESS, False)]


async def test_a_server_that_was_away_ends_nothing_that_comes_back(world):
    clock, hub, store, started = world
    history = await started()
    hub.connect("s1")
    await history.look()
    hub.streams.clear()
    clock.advance(600)
    again = await started()
    await again.look()
    assert await spans(store, clock) == [("s1", "", True)]
    hub.connect("s1")
    await again.look()
    clock.advance(GRACE + 1)
    await again.look()
    assert await spans(store, clock) == [("s1", "", True)]


async def test_what_has_not_come_back_yet_does_not_count_as_there(world):
    """A server that has just started must not vouch for an agent that ended while it was away."""
    clock, hub, store, started = world

    async def kept() -> list[Span]:
        return await store.spans(SHOP, clock.now() - timedelta(days=30), clock.now() + HOUR)

    history = await started()
    hub.connect("a")
    await history.look()
    clock.advance(3600)
    await history.look()
    assert history.known(await kept()) == await kept()
    seen = clock.now()
    hub.disconnect()
    clock.advance(5)
    history = await started()
    await history.look()
    clock.advance(5)
    known = history.known(await kept())
    assert {(span.node, span.end, span.why) for span in known} == {("", seen, AGENT), ("a", seen, AGENT)}
    assert gaps(known, seen - HOUR, clock.now()), "though it is shorter than what is tolerated"
    hub.connect("a")
    assert not gaps(history.known(await kept()), seen - HOUR, clock.now())


async def test_and_ends_what_does_not_when_it_was_last_seen(world):
    clock, hub, store, started = world
    history = await started()
    hub.connect("s1")
    await history.look()
    clock.advance(60)
    await history.look()
    seen = clock.now()
    hub.streams.clear()
    clock.advance(600)
    again = await started()
    await again.look()
    clock.advance(GRACE + 1)
    await again.look()
    [span] = [one for one in await store.spans(SHOP, seen - HOUR, clock.now()) if one.node]
    assert span.why == AGENT
    assert span.end == seen


async def test_what_is_kept_is_bounded(world, monkeypatch):
    clock, hub, store, started = world
    assert MAX_SPANS == 200_000
    monkeypatch.setattr("eastwest.store.sensors.MAX_SPANS", 4)
    history = await started()
    for _ in range(5):
        hub.connect("s1")
        await history.look()
        hub.disconnect()
        clock.advance(120)
        await history.look()
    found = await store.spans(SHOP, clock.now() - HOUR, clock.now() + HOUR)
    assert len(found) <= 4
