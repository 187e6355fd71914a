"""Entries in batches, the estate's share, listeners, groups, and size."""

import asyncio
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from eastwest.errors import FailedPrecondition, InvalidInput, LogUnavailable
from eastwest.registry.entries import KeptByEstate, SimilarEntry, UnknownEntry
from eastwest.registry.entry import Entry, InvalidEntry, Origin
from eastwest.registry.estate import EstateConflict
from eastwest.registry.groups import group_entries, group_id
from eastwest.registry.listing import EntryFilter, Match
from eastwest.registry.node import Node
from eastwest.registry.ports import Batch
from eastwest.registry.registry import Registry
from eastwest.registry.state import Change
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.testing.clock import START
from eastwest.testing.entropy import SeededEntropy
from eastwest.testing.registry import MemoryRegistryStore

TD = TrustDomain("saas.example")
AGENT = TD.id("/spire/agent/join_token/one")


def draft(path: str = "/w", *selectors: str, **fields) -> Entry:
    chosen = frozenset(Selector.parse(text) for text in selectors or ("unix:uid:1",))
    return Entry(**({"spiffe_id": TD.id(path), "parent_id": AGENT, "selectors": chosen} | fields))


def node(*selectors: str, agent=AGENT) -> Node:
    return Node(
        spiffe_id=agent,
        attestation_type="x",
        serial_current="1",
        not_after=1,
        selectors=frozenset(map(Selector.parse, selectors)),
    )


@pytest.fixture
def store():
    return MemoryRegistryStore()


@pytest.fixture
async def registry(store):
    return await Registry.open(TD, store, SeededEntropy())


@pytest.fixture
def changes(registry) -> list[Change]:
    heard: list[Change] = []
    registry.subscribe(heard.append)
    return heard


async def test_a_batch_is_answered_item_by_item(registry, changes):
    outcomes = await registry.entries.create(
        [
            draft("/a", id="mine", revision=9, created_at=9, origin=Origin.ESTATE),
            draft("/spire/x"),
            draft("/a"),
            draft("/b"),
            draft("/c", id="mine"),
        ],
        START,
    )
    made = outcomes[0].entry
    assert (made.id, made.revision, made.created_at, made.origin) == ("mine", 0, int(START.timestamp()), Origin.API)
    assert isinstance(outcomes[1].error, InvalidEntry)
    assert isinstance(outcomes[2].error, SimilarEntry)
    assert outcomes[2].entry == made
    assert outcomes[3].error is None
    assert len(outcomes[3].entry.id) == 36
    assert isinstance(outcomes[4].error, SimilarEntry)
    assert outcomes[4].entry == made
    assert [change.entries for change in changes] == [{"mine", outcomes[3].entry.id}], "stored together"


async def test_an_update_counts_only_what_changes(registry, changes):
    [made] = await registry.entries.create([draft()], START)
    edits = [
        (
            made.entry.id,
            lambda entry: replace(entry, hint="new", id="x", created_at=0, revision=77, origin=Origin.ESTATE),
        ),
        (made.entry.id, lambda entry: replace(entry, owner="group:a")),
        (made.entry.id, lambda entry: entry),
        ("absent", lambda entry: entry),
        (made.entry.id, lambda entry: replace(entry, selectors=frozenset())),
    ]
    first, second, third, absent, bad = await registry.entries.update(edits, START)
    assert first.entry == replace(made.entry, hint="new", revision=1)
    assert second.entry == third.entry == replace(first.entry, owner="group:a", revision=2)
    assert isinstance(absent.error, UnknownEntry)
    assert isinstance(bad.error, InvalidEntry)
    assert registry.entries.get(made.entry.id) == second.entry
    assert len(changes) == 2


async def test_an_edit_that_refuses_is_an_answer(registry):
    [made] = await registry.entries.create([draft()], START)

    def edit(_entry):
        raise InvalidInput("no")

    [outcome] = await registry.entries.update([(made.entry.id, edit)], START)
    assert isinstance(outcome.error, InvalidInput)


async def test_an_update_cannot_become_similar_to_another(registry):
    a, b = await registry.entries.create([draft("/a"), draft("/b")], START)
    [outcome] = await registry.entries.update(
        [(a.entry.id, lambda entry: replace(entry, spiffe_id=TD.id("/b")))], START
    )
    assert isinstance(outcome.error, SimilarEntry)
    assert outcome.entry == b.entry
    moved, taken = await registry.entries.update(
        [
            (b.entry.id, lambda entry: replace(entry, spiffe_id=TD.id("/c"))),
            (a.entry.id, lambda entry: replace(entry, spiffe_id=TD.id("/b"))),
        ],
        START,
    )
    assert (moved.error, taken.error) == (None, None)
    [again] = await registry.entries.create([draft("/b")], START)
    assert again.entry.id == a.entry.id


async def test_deleting_twice_finds_nothing_the_second_time(registry):
    [made] = await registry.entries.create([draft()], START)
    first, second = await registry.entries.delete([made.entry.id, made.entry.id])
    assert first.error is None
    assert isinstance(second.error, UnknownEntry)
    assert registry.entries.count() == 0


async def test_the_estate_keeps_what_is_unchanged(registry, changes):
    [foreign] = await registry.entries.create([draft("/api")], START)
    plan = await registry.entries.replace_estate([draft("/a"), draft("/b")], START)
    assert len(plan.create) == 2
    ids = {entry.spiffe_id.path: entry.id for entry in plan.create}
    later = START + timedelta(days=1)
    plan = await registry.entries.replace_estate([draft("/b", hint="h"), draft("/c"), draft("/a")], later)
    assert [entry.spiffe_id.path for entry in plan.create] == ["/c"]
    [(before, after)] = plan.update
    assert (before.id, after.id, after.revision, after.created_at) == (ids["/b"], ids["/b"], 1, before.created_at)
    assert changes[-1].entries == {ids["/b"], plan.create[0].id}
    version = registry.version
    assert (await registry.entries.replace_estate([draft("/c"), draft("/b", hint="h"), draft("/a")], later)).is_empty
    assert registry.version == version
    plan = registry.entries.plan_estate([], later)
    assert len(plan.delete) == 3
    assert registry.version == version, "planning changes nothing"
    await registry.entries.replace_estate([], later)
    assert registry.entries.list().items == (foreign.entry,)


async def test_the_estate_does_not_take_over_others_entries(registry):
    [foreign] = await registry.entries.create([draft("/a")], START)
    with pytest.raises(EstateConflict, match=foreign.entry.id):
        await registry.entries.replace_estate([draft("/b"), draft("/a")], START)
    assert registry.entries.count() == 1
    with pytest.raises(InvalidEntry, match="twice"):
        await registry.entries.replace_estate([draft("/b"), draft("/b", hint="x")], START)


async def test_estate_ids_tell_selectors_apart(registry):
    # Joined without care these two sets would read the same.
    one, other = draft("/a", "u:1\0u:2"), draft("/a", "u:1", "u:2")
    plan = await registry.entries.replace_estate([one, other], START)
    assert len({entry.id for entry in plan.create}) == 2


async def test_the_estates_entries_are_changed_there_only(registry):
    plan = await registry.entries.replace_estate([draft("/a")], START)
    [deleted] = await registry.entries.delete([plan.create[0].id])
    [updated] = await registry.entries.update([(plan.create[0].id, lambda entry: replace(entry, hint="x"))], START)
    assert isinstance(deleted.error, KeptByEstate)
    assert isinstance(updated.error, KeptByEstate)
    assert registry.entries.get(plan.create[0].id) == plan.create[0]


async def test_a_group_reaches_its_nodes_in_whatever_order_things_come(registry, changes):
    group = group_id(TD, "prod-nodes")
    intended = [
        *group_entries(TD, "prod-nodes", [Selector.parse("join_token:group:prod")]),
        draft("/a", parent_id=group),
    ]
    by_name, by_selector, outsider = (TD.id(f"/spire/agent/x/{n}") for n in range(3))
    await registry.nodes.record_attestation(node("join_token:group:prod-nodes", agent=by_name))
    await registry.nodes.record_attestation(node("join_token:group:other", agent=outsider))
    await registry.entries.replace_estate(intended, START)
    assert changes[-1].agents == {by_name}
    await registry.nodes.record_attestation(node("join_token:group:prod", "x:y", agent=by_selector))
    for agent in (by_name, by_selector):
        assert [entry.spiffe_id.path for entry in registry.authorized(agent, START).entries] == ["/a"]
        assert registry.groups_of(agent) == ("prod-nodes",)
    assert registry.authorized(outsider, START).entries == ()
    alias = next(entry for entry in registry.entries.list().items if entry.is_node_alias)
    assert registry.find_authorized(by_name, alias.id, START) is None, "a group is never issued"
    await registry.entries.replace_estate([replace(entry, hint="h") for entry in intended], START)
    assert changes[-1].agents == {by_name, by_selector}
    await registry.nodes.set_selectors(by_selector, frozenset())
    assert changes[-1].agents == {by_selector}
    assert registry.authorized(by_selector, START).entries == ()


async def test_cycles_among_parents_end(registry):
    await registry.nodes.record_attestation(node())
    a, b = TD.id("/a"), TD.id("/b")
    await registry.entries.create(
        [draft("/a", parent_id=b), draft("/b", parent_id=a), draft("/a", parent_id=AGENT)], START
    )
    assert len(registry.authorized(AGENT, START).entries) == 3
    stranger = TD.id("/spire/agent/x/2")
    await registry.nodes.record_attestation(node(agent=stranger))
    for entry in registry.entries.list().items:
        assert registry.find_authorized(stranger, entry.id, START) is None


async def test_an_entry_past_its_end_is_no_longer_authorized(registry, changes):
    await registry.nodes.record_attestation(node())
    end = START + timedelta(minutes=1)
    [made] = await registry.entries.create([draft(expires_at=int(end.timestamp()))], START)
    assert registry.authorized(AGENT, START).entries == (made.entry,)
    assert registry.find_authorized(AGENT, made.entry.id, START) == made.entry
    assert registry.authorized(AGENT, end).entries == ()
    assert registry.find_authorized(AGENT, made.entry.id, end) is None
    assert registry.entries.next_end() == int(end.timestamp())
    assert await registry.entries.expire(START) == 0
    assert await registry.entries.expire(end) == 1
    assert changes[-1].agents == {AGENT}
    assert registry.entries.next_end() is None


@pytest.mark.parametrize(
    ("match", "asked", "expected"),
    [
        (Match.EXACT, "ab", {"ab"}),
        (Match.SUBSET, "ab", {"a", "ab"}),
        (Match.SUPERSET, "a", {"a", "ab", "abc"}),
        (Match.ANY, "bc", {"ab", "abc"}),
        (Match.ANY, "d", set()),
    ],
)
async def test_filters_by_sets_mean_what_spires_do(registry, match, asked, expected):
    sets = {name: tuple(f"s:{letter}" for letter in name) for name in ("a", "ab", "abc")}
    domains = {name: tuple(TrustDomain(f"{letter}.test") for letter in name) for name in sets}
    await registry.entries.create(
        [draft(f"/{name}", *selectors, federates_with=domains[name]) for name, selectors in sets.items()], START
    )
    asked_selectors = frozenset(Selector("s", letter) for letter in asked)
    asked_domains = frozenset(TrustDomain(f"{letter}.test") for letter in asked)
    for wanted in (
        EntryFilter(selectors=(asked_selectors, match)),
        EntryFilter(federates_with=(asked_domains, match)),
    ):
        assert {entry.spiffe_id.path[1:] for entry in registry.entries.list(wanted).items} == expected


async def test_other_filters(registry):
    await registry.entries.create([draft("/a", hint="h"), draft("/b", downstream=True), draft("/c")], START)

    def paths(**wanted):
        return {entry.spiffe_id.path for entry in registry.entries.list(EntryFilter(**wanted)).items}

    assert paths(hint="h") == {"/a"}
    assert paths(hint="") == {"/b", "/c"}
    assert paths(downstream=True) == {"/b"}
    assert paths(spiffe_id=TD.id("/c")) == {"/c"}
    assert paths(parent_id=TD.id("/none")) == set()
    assert registry.entries.count(EntryFilter(parent_id=AGENT, downstream=False)) == 2


async def test_a_cancelled_caller_leaves_memory_and_store_agreed(registry, store, changes):
    gate = asyncio.Event()
    apply = store.apply

    async def slow(batch: Batch) -> None:
        await apply(batch)
        await gate.wait()

    store.apply = slow
    creating = asyncio.create_task(registry.entries.create([draft()], START))
    while not (await store.load()).entries:
        await asyncio.sleep(0)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    gate.set()
    [similar] = await registry.entries.create([draft()], START)
    assert isinstance(similar.error, SimilarEntry)
    assert [change.version for change in changes] == [1]


async def test_a_listener_that_fails_keeps_the_news_from_nobody(registry):
    heard: list[int] = []

    def failing(_change: Change) -> None:
        raise ValueError("mine")

    registry.subscribe(failing)
    unsubscribe = registry.subscribe(lambda change: heard.append(change.version))
    with pytest.raises(ValueError, match="mine"):
        await registry.entries.create([draft()], START)
    assert heard == [1]
    unsubscribe()
    unsubscribe()
    with pytest.raises(ValueError, match="mine"):
        await registry.entries.create([draft("/b")], START)
    assert heard == [1]


async def test_two_registries_on_one_store_do_not_write_past_each_other(registry, store):
    other = await Registry.open(TD, store, SeededEntropy(1))
    await registry.entries.create([draft()], START)
    with pytest.raises(FailedPrecondition):
        await other.entries.create([draft("/b")], START)


async def test_a_change_among_many_entries_costs_what_it_concerns(registry):
    agents = [TD.id(f"/spire/agent/x/{n}") for n in range(200)]
    for agent in agents:
        await registry.nodes.record_attestation(node(f"node:{agent.path[-1]}", agent=agent))
    many = [draft(f"/w{n}", f"unix:uid:{n}", parent_id=agents[n % 200]) for n in range(20_000)]
    await registry.entries.create(many, START)
    assert len(registry.authorized(agents[0], START).entries) == 100
    heard: list[Change] = []
    registry.subscribe(heard.append)
    started = time.process_time()
    for n in range(50):
        await registry.entries.update(
            [
                (
                    registry.entries.list(EntryFilter(spiffe_id=TD.id(f"/w{n}"))).items[0].id,
                    lambda e: replace(e, hint="x"),
                )
            ],
            START,
        )
    # The memory store copies its dictionary each time, which is nearly all of this.
    assert time.process_time() - started < 5
    assert [change.agents for change in heard] == [{agents[n]} for n in range(50)]


async def test_what_cannot_be_recorded_does_not_take_effect(registry, changes):
    recorded: list[list[tuple[str, bool]]] = []

    async def record(outcomes):
        recorded.append([(str(o.entry.spiffe_id.path), registry.entries.get(o.entry.id) is not None) for o in outcomes])

    async def refuse(_outcomes):
        raise LogUnavailable("the disk is full")

    [made] = await registry.entries.create([draft("/kept")], START, record)
    assert recorded == [[("/kept", False)]]  # before it takes effect
    del changes[:]
    for attempt in (
        registry.entries.create([draft("/other")], START, refuse),
        registry.entries.update([(made.entry.id, lambda entry: replace(entry, hint="new"))], START, refuse),
        registry.entries.delete([made.entry.id], refuse),
    ):
        with pytest.raises(LogUnavailable):
            await attempt
    assert list(registry.entries.list().items) == [made.entry]
    assert not changes
