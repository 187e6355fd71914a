"""SVIDs through their lives, on a clock that the test moves."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from agent_parts import CA, ENTRY, TD, SigningServer, entry, update
from cryptography.hazmat.primitives.serialization import load_der_private_key

from eastwest import errors
from eastwest.agent.identities import Identities
from eastwest.agent.jwts import JwtCache
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.state import State
from eastwest.pki.signer import KeyAlgorithm, algorithm_of
from eastwest.spiffe.bundle import Bundle, X509Authority
from eastwest.testing.ca import TestCA
from eastwest.testing.clock import FakeClock


class Node:
    """Identities under a server, with a clock."""

    def __init__(self, limit: int = 1000) -> None:
        self.clock = FakeClock()
        self.server = SigningServer(self.clock)
        self.knowledge = Knowledge(State(TD))
        self.identities = Identities(self.server, self.knowledge, self.clock, random.Random(1), limit=limit)

    def apply(self, made) -> None:
        self.knowledge.set(self.knowledge.state.apply(made))
        self.identities.on_state(self.knowledge.state)

    def hold(self, *names: str, **fields: object) -> None:
        number = self.knowledge.state.number + 1
        entries = tuple(entry(name, **fields) for name in names)
        self.apply(update(number, full=number == 1, entries=entries, bundles=(CA.bundle,)))

    def serial(self, name: str) -> int | None:
        held = self.identities.held(self.knowledge.state.entries[name])
        return None if held is None else held.svid.serial

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    node = Node()
    async with _running(node):
        yield node


class _running:  # noqa: N801 - reads as the verb it is
    def __init__(self, node: Node) -> None:
        self._node = node

    async def __aenter__(self) -> Node:
        self._task = asyncio.ensure_future(self._node.identities.run())
        return self._node

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_new_entries_are_signed_at_once_and_together(node: Node) -> None:
    node.hold("a", "b", "c")
    await node.settle()
    assert node.server.calls == [["a", "b", "c"]]
    assert len(node.identities) == 3


async def test_a_new_entry_does_not_wait_for_a_slow_batch(node: Node) -> None:
    node.server.hold = asyncio.Event()
    node.hold("a")
    await node.settle()
    slow, node.server.hold = node.server.hold, None
    node.hold("b")
    await node.settle()
    assert node.serial("b") is not None
    assert node.serial("a") is None
    slow.set()
    await node.settle()
    assert node.serial("a") is not None


async def test_rotation_is_at_half_life_with_jitter_and_in_batches(node: Node) -> None:
    names = [f"w{n}" for n in range(40)]
    node.hold(*names)
    await node.settle()
    await node.clock.elapse(0.44 * 3600)
    assert len(node.server.calls) == 1
    before = {name: node.serial(name) for name in names}
    await node.clock.elapse(0.12 * 3600)
    assert all(node.serial(name) not in {None, before[name]} for name in names)
    assert node.identities.rotations == 40
    assert len(node.server.calls) > 2


async def test_a_clock_that_is_set_is_noticed_and_what_is_due_shares_calls(node: Node) -> None:
    node.hold(*[f"w{n}" for n in range(40)])
    await node.settle()
    node.clock.skew(2100)
    await node.clock.elapse(31)
    assert [len(call) for call in node.server.calls] == [40, 40]


async def test_an_outage_is_ridden_out(node: Node) -> None:
    node.hold("a")
    await node.settle()
    before = node.serial("a")
    node.server.down = True
    await node.clock.elapse(3000)
    assert node.serial("a") == before
    tries = len(node.server.calls)
    assert 20 < tries < 120
    node.server.down = False
    await node.clock.elapse(45)
    assert node.serial("a") != before


async def test_what_has_ended_is_not_served(node: Node) -> None:
    node.hold("a")
    await node.settle()
    node.server.down = True
    seen = node.knowledge.changes.count
    await node.clock.elapse(3601)
    assert node.serial("a") is None
    assert node.knowledge.changes.count > seen
    node.server.down = False
    await node.clock.elapse(45)
    assert node.serial("a") is not None


async def test_one_failure_stays_alone_and_is_tried_again(node: Node) -> None:
    node.server.refused = {"b"}
    node.hold("a", "b")
    await node.settle()
    assert node.serial("a") is not None
    state = node.knowledge.state
    assert isinstance(node.identities.failure(state.entries["b"]), errors.Unavailable)
    assert node.identities.failure(state.entries["a"]) is None
    node.server.refused = set()
    await node.clock.elapse(2)
    assert node.serial("b") is not None


async def test_word_from_the_server_ends_the_waiting(node: Node) -> None:
    node.server.down = True
    node.hold("a")
    await node.clock.elapse(300)
    node.server.down = False
    node.hold("b")
    await node.settle()
    assert node.serial("a") is not None


async def test_a_removed_entry_loses_its_key_at_once(node: Node) -> None:
    node.hold("a", "b")
    await node.settle()
    node.apply(update(node.knowledge.state.number + 1, remove=((ENTRY, "a"),)))
    assert [held.entry_id for held in node.identities.everything()] == ["b"]


async def test_an_entry_removed_while_it_is_signed_gains_nothing(node: Node) -> None:
    node.server.hold = asyncio.Event()
    node.hold("a")
    await node.settle()
    node.apply(update(2, remove=((ENTRY, "a"),)))
    node.server.hold.set()
    await node.settle()
    assert node.identities.everything() == ()


async def test_a_changed_revision_is_signed_anew_and_served_meanwhile(node: Node) -> None:
    node.hold("a")
    await node.settle()
    before = node.serial("a")
    node.server.hold = asyncio.Event()
    node.hold("a", revision=1)
    await node.settle()
    assert node.serial("a") == before
    node.server.hold.set()
    await node.settle()
    assert node.serial("a") not in {None, before}


async def test_a_revision_that_changes_while_it_is_signed_is_signed_again(node: Node) -> None:
    node.server.hold = asyncio.Event()
    node.hold("a")
    await node.settle()
    node.hold("a", revision=1)
    node.server.hold.set()
    await node.settle()
    assert node.server.calls == [["a"], ["a"]]
    assert node.identities.everything()[0].revision == 1


async def test_a_certificate_that_is_not_what_was_asked_for_is_not_served(node: Node) -> None:
    node.server.ca = TestCA()
    node.hold("a")
    await node.settle()
    assert node.serial("a") is None
    assert "proves nothing" in str(node.identities.failure(node.knowledge.state.entries["a"]))


async def test_svids_of_a_root_that_goes_are_replaced(node: Node) -> None:
    node.hold("a")
    await node.settle()
    before = node.serial("a")
    new = TestCA()
    node.server.ca = new
    tainted = X509Authority(CA.root, tainted=True)
    node.apply(update(2, bundles=(Bundle(TD, (tainted, X509Authority(new.root)), sequence=2),)))
    await node.clock.elapse(0.1)
    assert node.serial("a") not in {None, before}


async def test_beyond_the_bound_svids_come_on_demand() -> None:
    node = Node(limit=2)
    async with _running(node):
        node.hold("a", "b", "c", "d")
        await node.settle()
        assert len(node.identities) == 2
        assert node.serial("d") is None
        await node.settle()
        assert node.serial("d") is not None
        node.hold("e", disable_x509_svid_prefetch=True)
        await node.settle()
        assert "e" not in {held.entry_id for held in node.identities.everything()}


async def test_kept_svids_are_restored_where_their_entry_still_is(node: Node) -> None:
    node.hold("a", "b", "c")
    await node.settle()
    kept = node.identities.everything()
    again = Node()
    again.clock = node.clock
    again.hold("a")
    again.hold("b", revision=1)
    identities = Identities(node.server, again.knowledge, node.clock, random.Random(2))
    assert identities.restore(kept) == 2
    again.identities = identities
    async with _running(again):
        await again.settle()
        assert node.server.calls[1:] == [["b"]]
        node.clock.advance(4000)
    assert Identities(node.server, again.knowledge, node.clock, random.Random(2)).restore(kept) == 0


async def test_tokens_are_shared_cached_and_outlive_an_outage() -> None:
    clock = FakeClock(CA.now)
    server = SigningServer(clock)
    tokens = JwtCache(server, clock)
    shop = entry("shop")
    server.hold = asyncio.Event()
    asking = [asyncio.ensure_future(tokens.fetch(shop, ["x"])) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()
    server.hold.set()
    done = await asyncio.gather(*asking, return_exceptions=True)
    assert len({token.token for token in done[1:]}) == 1
    assert server.jwts == 1
    server.down = True
    clock.advance(timedelta(minutes=3).total_seconds())
    assert (await tokens.fetch(shop, ["x"])).token == done[1].token
    clock.advance(timedelta(minutes=3).total_seconds())
    with pytest.raises(errors.Unavailable, match="no JWT-SVID"):
        await tokens.fetch(shop, ["x"])
    server.down = False
    assert (await tokens.fetch(shop, ["x"])).token != done[1].token
    tokens.forget()
    jwts = server.jwts
    await tokens.fetch(shop, ["x"])
    assert server.jwts == jwts + 1


async def test_a_profile_with_other_keys_changes_them_at_once(node: Node) -> None:
    node.hold("a", "b")
    await node.settle()
    before = {name: node.serial(name) for name in ("a", "b")}
    for number, keys, algorithm in (
        (2, ("ml-dsa-65", "ec-p256"), KeyAlgorithm.ML_DSA_65),
        (3, ("ec-p384",), KeyAlgorithm.EC_P384),
        (4, (), KeyAlgorithm.EC_P256),
    ):
        node.apply(update(number, entries=(entry("a"),), keys=keys))
        await node.settle()
        held = node.identities.held(node.knowledge.state.entries["a"])
        assert held is not None
        assert held.key.algorithm is algorithm
        private = load_der_private_key(held.key.pkcs8, None)
        assert algorithm_of(private.public_key()) is algorithm
        assert held.svid.serial != before["a"]
        before["a"] = held.svid.serial
        assert node.serial("b") == before["b"]
