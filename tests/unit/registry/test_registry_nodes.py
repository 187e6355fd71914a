"""An agent's standing, and a node's way from attestation to eviction."""

from dataclasses import replace
from datetime import timedelta

import pytest

from eastwest.errors import InvalidInput, Unavailable
from eastwest.registry.entry import Entry
from eastwest.registry.listing import Match, NodeFilter
from eastwest.registry.node import Node, Standing, Verdict, judge
from eastwest.registry.nodes import NodeBanned, NodeKnown, UnknownNode
from eastwest.registry.registry import Registry
from eastwest.registry.state import Change
from eastwest.spiffe.id import MalformedSpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.testing.clock import START
from eastwest.testing.entropy import SeededEntropy
from eastwest.testing.registry import MemoryRegistryStore

TD = TrustDomain("saas.example")
AGENT = TD.id("/spire/agent/join_token/one")
LATER = START + timedelta(hours=1)
NODE = Node(
    spiffe_id=AGENT,
    attestation_type="join_token",
    serial_current="1",
    not_after=int(LATER.timestamp()),
    selectors=frozenset({Selector("join_token", "group:prod")}),
)


@pytest.fixture
def store():
    return MemoryRegistryStore()


@pytest.fixture
async def registry(store):
    return await Registry.open(TD, store, SeededEntropy())


@pytest.mark.parametrize(
    ("node", "serial", "now", "verdict"),
    [
        (NODE, "1", START, Verdict(Standing.OK)),
        (NODE, "1", LATER, Verdict(Standing.OK)),
        (replace(NODE, serial_new="2"), "1", START, Verdict(Standing.OK)),
        (replace(NODE, serial_new="2"), "2", START, Verdict(Standing.OK, promote=True)),
        (NODE, "2", START, Verdict(Standing.AGENT_NOT_ACTIVE)),
        (NODE, "", START, Verdict(Standing.AGENT_NOT_ACTIVE)),
        (replace(NODE, serial_current=""), "", START, Verdict(Standing.AGENT_NOT_ACTIVE)),
        (None, "1", START, Verdict(Standing.AGENT_NOT_ATTESTED)),
        (None, "1", LATER + timedelta(seconds=1), Verdict(Standing.AGENT_EXPIRED)),
        (NODE, "1", LATER + timedelta(seconds=1), Verdict(Standing.AGENT_EXPIRED)),
        (replace(NODE, banned=True), "1", START, Verdict(Standing.AGENT_BANNED)),
        (replace(NODE, banned=True, serial_new="2"), "2", START, Verdict(Standing.AGENT_BANNED)),
    ],
)
def test_the_standing_of_an_agent(node, serial, now, verdict):
    assert judge(node, serial, LATER, now) == verdict


async def test_a_renewed_certificate_counts_once_it_is_used(registry):
    await registry.nodes.record_attestation(NODE)
    end = LATER + timedelta(hours=1)
    await registry.nodes.record_renewal(AGENT, "2", int(end.timestamp()))
    assert registry.judge(AGENT, "1", LATER, START) == Verdict(Standing.OK)
    assert registry.judge(AGENT, "2", end, START) == Verdict(Standing.OK, promote=True)
    await registry.nodes.promote(AGENT, "2")
    assert registry.judge(AGENT, "2", end, START) == Verdict(Standing.OK)
    assert registry.judge(AGENT, "1", LATER, START) == Verdict(Standing.AGENT_NOT_ACTIVE)
    assert registry.nodes.get(AGENT).not_after == int(end.timestamp())
    version = registry.version
    await registry.nodes.promote(AGENT, "2")
    await registry.nodes.promote(AGENT, "")
    assert registry.version == version, "promoting again changes nothing"


async def test_a_banned_node_stays_out_until_it_is_evicted(registry):
    changes: list[Change] = []
    registry.subscribe(changes.append)
    await registry.nodes.record_attestation(replace(NODE, can_reattest=True))
    await registry.nodes.ban(AGENT)
    assert changes[-1].ended == {AGENT}
    await registry.nodes.ban(AGENT)
    assert len(changes) == 2
    for refused in (
        registry.nodes.record_attestation(NODE),
        registry.nodes.record_renewal(AGENT, "2", 1),
        registry.nodes.set_agent_version(AGENT, "1"),
    ):
        with pytest.raises(NodeBanned):
            await refused
    with pytest.raises(NodeBanned):
        registry.authorized(AGENT, START)
    await registry.nodes.evict(AGENT)
    assert changes[-1].ended == {AGENT}
    await registry.nodes.record_attestation(NODE)
    assert changes[-1].agents == {AGENT}
    assert not registry.nodes.get(AGENT).banned


async def test_evidence_that_works_once_works_once(registry):
    await registry.nodes.record_attestation(NODE)
    with pytest.raises(NodeKnown):
        registry.nodes.ensure_may_attest(AGENT)
    with pytest.raises(NodeKnown):
        await registry.nodes.record_attestation(NODE)


async def test_attesting_again_replaces_what_was_known(registry):
    await registry.nodes.record_attestation(replace(NODE, can_reattest=True))
    await registry.nodes.set_agent_version(AGENT, "9" * 200)
    await registry.nodes.record_renewal(AGENT, "2", 5)
    again = replace(NODE, can_reattest=True, serial_current="3", selectors=frozenset({Selector("a", "b")}))
    await registry.nodes.record_attestation(again)
    assert registry.nodes.get(AGENT) == replace(again, agent_version="9" * 128)


async def test_unknown_nodes_are_named_as_such(registry):
    for refused in (registry.nodes.ban(AGENT), registry.nodes.evict(AGENT), registry.nodes.promote(AGENT, "1")):
        with pytest.raises(UnknownNode, match="join_token/one"):
            await refused
    with pytest.raises(UnknownNode):
        registry.authorized(AGENT, START)
    with pytest.raises(UnknownNode):
        registry.find_authorized(AGENT, "e", START)
    assert registry.groups_of(AGENT) == ()


@pytest.mark.parametrize("bad", [TD.id("/workload"), TrustDomain("b.test").id("/spire/agent/x")])
async def test_only_agents_ids_attest(registry, bad):
    with pytest.raises(InvalidInput):
        await registry.nodes.record_attestation(replace(NODE, spiffe_id=bad))


async def test_evicting_takes_along_only_the_nodes_own_extra_identities(registry):
    await registry.nodes.record_attestation(NODE)
    tied = Entry(spiffe_id=TD.id("/extra"), parent_id=AGENT, selectors=frozenset({Selector("spiffe_id", str(AGENT))}))
    usual = replace(tied, selectors=frozenset({Selector("unix", "uid:1")}))
    await registry.entries.create([tied, usual], START)
    await registry.nodes.evict(AGENT)
    assert [entry.selectors for entry in registry.entries.list().items] == [usual.selectors]


async def test_a_store_that_fails_leaves_everything_as_it_was(registry, store):
    changes: list[Change] = []
    registry.subscribe(changes.append)
    store.fail_next = Unavailable("the disk is full")
    with pytest.raises(Unavailable):
        await registry.nodes.record_attestation(NODE)
    assert registry.nodes.get(AGENT) is None
    assert (registry.version, changes) == (0, [])
    await registry.nodes.record_attestation(NODE)
    assert registry.version == 1


async def test_nodes_are_listed_by_filter_and_page(registry):
    nodes = [
        replace(
            NODE,
            spiffe_id=TD.id(f"/spire/agent/x/{n}"),
            attestation_type="x" if n % 2 else "y",
            not_after=n,
            can_reattest=n > 2,
        )
        for n in range(5)
    ]
    for node in nodes:
        await registry.nodes.record_attestation(node)
    await registry.nodes.ban(nodes[4].spiffe_id)

    def listed(**wanted):
        page = registry.nodes.list(NodeFilter(**wanted))
        assert registry.nodes.count(NodeFilter(**wanted)) == len(page.items)
        return [int(node.spiffe_id.path[-1]) for node in page.items]

    assert listed() == [0, 1, 2, 3, 4]
    assert listed(attestation_type="x") == [1, 3]
    assert listed(banned=True) == [4]
    assert listed(can_reattest=True) == [3, 4]
    assert listed(expires_before=2) == [0, 1]
    assert listed(selectors=(NODE.selectors, Match.EXACT)) == [0, 1, 2, 3, 4]
    assert listed(selectors=(frozenset({Selector("a", "b")}), Match.ANY)) == []
    first = registry.nodes.list(page_size=3)
    rest = registry.nodes.list(page_size=3, page_token=first.next_token)
    assert [len(first.items), len(rest.items), rest.next_token] == [3, 2, ""]
    with pytest.raises(MalformedSpiffeId):
        registry.nodes.list(page_token="junk")


async def test_another_kind_of_evidence_takes_no_nodes_place(registry):
    await registry.nodes.record_attestation(replace(NODE, attestation_type="x509pop", can_reattest=True))
    registry.nodes.ensure_may_attest(AGENT, "x509pop")
    with pytest.raises(NodeKnown, match="came in by x509pop"):
        registry.nodes.ensure_may_attest(AGENT, "http_challenge")
    with pytest.raises(NodeKnown):
        await registry.nodes.record_attestation(replace(NODE, attestation_type="http_challenge"))


async def test_a_node_is_noted_as_seen_now_and_then(registry):
    await registry.nodes.record_attestation(replace(NODE, can_reattest=True))
    await registry.nodes.note_seen(AGENT, START)
    version = registry.version
    await registry.nodes.note_seen(AGENT, START + timedelta(seconds=299))
    assert registry.version == version
    await registry.nodes.note_seen(AGENT, START + timedelta(seconds=300))
    assert registry.nodes.get(AGENT).last_seen == int(START.timestamp()) + 300
    await registry.nodes.note_seen(AGENT, START)  # the clock was set back
    assert registry.nodes.get(AGENT).last_seen == int(START.timestamp())
    await registry.nodes.record_attestation(replace(NODE, can_reattest=True, serial_current="2"))
    assert registry.nodes.get(AGENT).last_seen == int(START.timestamp())
    await registry.nodes.evict(AGENT)
    await registry.nodes.note_seen(AGENT, START)
    assert registry.nodes.get(AGENT) is None


def aged(name: str, **fields) -> Node:
    return replace(NODE, spiffe_id=TD.id(f"/spire/agent/x/{name}"), not_after=100, **fields)


async def test_what_is_purged(registry):
    for node in (
        aged("token"),
        aged("again", attestation_type="x509pop", can_reattest=True),
        aged("first-use", attestation_type="http_challenge"),
        aged("banned", attestation_type="x509pop", can_reattest=True),
        replace(aged("live", can_reattest=True), not_after=200),
        aged("renewed"),
    ):
        await registry.nodes.record_attestation(node)
    await registry.nodes.ban(TD.id("/spire/agent/x/banned"))
    await registry.nodes.record_renewal(TD.id("/spire/agent/x/renewed"), "9", 300)

    def named(nodes):
        return [node.spiffe_id.path.removeprefix("/spire/agent/x/") for node in nodes]

    assert named(registry.nodes.expired(150)) == ["again", "token"]
    assert named(registry.nodes.expired(150, every_kind=True)) == ["again", "first-use", "token"]
    assert registry.nodes.expired(100) == []
    chosen = registry.nodes.expired(150)
    await registry.nodes.record_attestation(replace(chosen[0], not_after=900))
    assert named(await registry.nodes.purge(chosen)) == ["token"], "one has come back meanwhile"
    assert named(registry.nodes.list().items) == ["again", "banned", "first-use", "live", "renewed"]
