"""What nodes say of the trust bundle, what counts, and what is remembered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.entropy import SystemEntropy
from eastwest.pki.confirmation import MAX_NAMED, Holder, NotConfirmed, require_confirmed, require_released
from eastwest.registry.node import Node
from eastwest.registry.registry import Registry
from eastwest.server.ca.confirmations import STOCK_SILENCE, Confirmations
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.store.authority import SqliteAuthority
from eastwest.store.database import Database
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import FakeClock
from eastwest.testing.registry import MemoryRegistryStore

TD = TrustDomain("saas.example")
A, B = TD.id("/spire/agent/x/a"), TD.id("/spire/agent/x/b")


class World:
    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.newest = 5
        self.connected: set[SpiffeId] = set()
        self._path = path

    async def open(self) -> None:
        self.database = Database.open(self._path, trust_domain=TD.name, clock=self.clock)
        self.registry = await Registry.open(TD, MemoryRegistryStore(), SystemEntropy())
        for agent in (A, B):
            await self.attest(agent)
        self.said = Confirmations(
            SqliteAuthority(self.database), self.registry, self.clock, lambda: self.newest, self.connected.__contains__
        )
        await self.said.load()

    async def attest(self, agent: SpiffeId, hours: int = 1) -> None:
        not_after = int(self.clock.now().timestamp()) + hours * 3600
        await self.registry.nodes.record_attestation(
            Node(spiffe_id=agent, attestation_type="x", serial_current="1", not_after=not_after, can_reattest=True)
        )

    def holder(self, agent: SpiffeId) -> Holder:
        return next(holder for holder in self.said.holders() if holder.agent == str(agent))

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.said.keep())
        try:
            yield
            await asyncio.sleep(0)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "server.db")
    await made.open()
    yield made
    await made.database.close()


def sidecar(name: str, sequence: int, *, connected: bool = True) -> control.SidecarStatus:
    return control.SidecarStatus(
        node_id=name, spiffe_id=f"spiffe://saas.example/{name}", bundle_sequence=sequence, connected=connected
    )


def test_of_all_that_a_node_stands_for_the_least_counts(world: World) -> None:
    said = world.said
    assert world.holder(A).sequence == 0
    said.acknowledged(A, control.Ack(bundle_sequence=5))
    assert world.holder(A).sequence == 5
    said.acknowledged(A, control.Ack(bundle_sequence=5, sidecars=[sidecar("one", 5), sidecar("two", 4)]))
    assert world.holder(A).sequence == 4
    assert world.holder(A).waiting == ("spiffe://saas.example/two (two)",)
    # One that is away says what it stood at while it runs, and nothing once its process has ended.
    said.acknowledged(A, control.Ack(bundle_sequence=5, sidecars=[sidecar("away", 1, connected=False)]))
    assert world.holder(A).sequence == 1
    assert world.holder(A).waiting == ("spiffe://saas.example/away (away)",)
    said.acknowledged(A, control.Ack(bundle_sequence=5, sidecars=[sidecar("gone", 0, connected=False)]))
    assert world.holder(A).sequence == 5
    assert world.holder(B).sequence == 0


def test_a_number_that_was_never_given_out_confirms_nothing(world: World) -> None:
    world.said.acknowledged(A, control.Ack(bundle_sequence=99))
    assert world.holder(A).sequence == 0


def test_a_stock_agent_confirms_by_fetching(world: World) -> None:
    ca = TestCA()
    certificate = ca.svid("/spire/agent/x/a")[0].chain[0]
    world.said.fetched(A, certificate)
    holder = world.holder(A)
    assert (holder.sequence, holder.stock, holder.connected) == (5, True, True)
    assert holder.issuer == ca.authority.key_id
    world.clock.advance(STOCK_SILENCE + 1)
    assert not world.holder(A).connected
    # One of ours says it itself, whatever else it fetches.
    world.connected.add(B)
    world.said.fetched(B, certificate)
    assert world.holder(B).sequence == 0


async def test_who_may_no_longer_act_does_not_count(world: World) -> None:
    assert len(world.said.holders()) == 2
    await world.registry.nodes.ban(A)
    assert [holder.agent for holder in world.said.holders()] == [str(B)]
    world.clock.advance(3601)
    assert world.said.holders() == []


async def test_what_was_said_outlives_a_restart_and_an_evicted_node_is_forgotten(world: World) -> None:
    async with world.keeping():
        world.said.acknowledged(A, control.Ack(bundle_sequence=5, tainted_svids=3))
        world.said.acknowledged(B, control.Ack(bundle_sequence=4))
        await stored(world, {str(A): 5, str(B): 4})
        await world.registry.nodes.evict(B)
        world.said.acknowledged(A, control.Ack(bundle_sequence=5, tainted_svids=2))
        await stored(world, {str(A): 5}, tainted=2)
    await world.database.close()
    await world.open()
    assert world.holder(A).sequence == 5
    assert world.holder(A).tainted == 2
    assert world.holder(B).sequence == 0


async def stored(world: World, wanted: dict[str, int], *, tainted: int | None = None) -> None:
    """Until the sequences are stored, and of tainted certificates so many in all, where that is asked for."""
    store = SqliteAuthority(world.database)
    async with asyncio.timeout(10):
        while True:
            said = await store.confirmations()
            if {agent: one.sequence for agent, one in said.items()} == wanted and (
                tainted is None or sum(one.tainted for one in said.values()) == tainted
            ):
                return
            await asyncio.sleep(0.01)


def test_a_refusal_names_some_and_counts_the_rest() -> None:
    many = [Holder(agent=f"spiffe://td/a{number}", sequence=1, not_after=0) for number in range(MAX_NAMED + 3)]
    with pytest.raises(NotConfirmed, match="8 live nodes have not confirmed") as raised:
        require_confirmed(many, 2, "the root x")
    assert "and 3 more" in str(raised.value)
    assert str(raised.value).count("spiffe://td/a") == MAX_NAMED
    require_confirmed(many, 1, "the root x")
    stock = Holder(agent="spiffe://td/s", sequence=9, not_after=0, stock=True, issuer="aa")
    with pytest.raises(NotConfirmed):
        require_released([stock], 9, {"aa"}, "x509 r")
    require_released([stock], 9, {"bb"}, "x509 r")
