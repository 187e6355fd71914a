"""The registry against a model that knows no index: closures by plain recursion, and no change that goes untold."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from eastwest.registry.entries import KeptByEstate, SimilarEntry, UnknownEntry
from eastwest.registry.entry import Entry, InvalidEntry, Origin
from eastwest.registry.estate import EstateConflict
from eastwest.registry.listing import EntryFilter, Match
from eastwest.registry.node import Node
from eastwest.registry.registry import Registry
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.testing.entropy import SeededEntropy
from eastwest.testing.registry import MemoryRegistryStore

TD = TrustDomain("t.test")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORKLOADS = [TD.id(f"/w{n}") for n in range(5)]
AGENTS = [TD.id(f"/spire/agent/x/{n}") for n in range(4)]
SERVER = TD.id("/spire/server")
SELECTORS = [Selector("s", str(n)) for n in range(4)]

selector_sets = st.frozensets(st.sampled_from(SELECTORS), min_size=1, max_size=3)
drafts = st.builds(
    Entry,
    spiffe_id=st.sampled_from(WORKLOADS),
    parent_id=st.sampled_from([*AGENTS, *WORKLOADS, SERVER, SERVER]),
    selectors=selector_sets,
    hint=st.sampled_from(["", "h"]),
    expires_at=st.sampled_from([0, 0, 0, int(NOW.timestamp()) + 10]),
)


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = MemoryRegistryStore()
        self.entries: dict[str, Entry] = {}
        self.nodes: dict[object, Node] = {}
        self.told: set[object] = set()
        self.told_entries: set[str] = set()
        self.heard = 0
        self.before = {}

    def teardown(self):
        self.runner.close()

    @initialize()
    def open(self):
        self.registry = self.run(Registry.open(TD, self.store, SeededEntropy()))
        self.registry.subscribe(self.hear)

    def run(self, operation):
        return self.runner.run(operation)

    def hear(self, change):
        assert change.version == self.registry.version, "listeners hear of what is visible"
        assert change.version == self.heard + 1, "and of every change, in order"
        self.heard = change.version
        self.told |= change.agents | change.ended
        self.told_entries |= change.entries

    # Changes, each mirrored in the model.

    @rule(items=st.lists(drafts, max_size=4))
    def create(self, items):
        for draft, outcome in zip(items, self.run(self.registry.entries.create(items, NOW)), strict=True):
            similar = self.similar(draft)
            if draft.spiffe_id == draft.parent_id:
                assert isinstance(outcome.error, InvalidEntry)
            elif similar:
                assert isinstance(outcome.error, SimilarEntry)
                assert outcome.entry == similar[0]
            else:
                assert outcome.error is None
                self.entries[outcome.entry.id] = outcome.entry

    @rule(data=st.data(), draft=drafts)
    def update(self, data, draft):
        target = data.draw(st.sampled_from([*sorted(self.entries), "absent"]))

        def edit(entry):
            return replace(draft, id="ignored", revision=99)

        [outcome] = self.run(self.registry.entries.update([(target, edit)], NOW))
        kept = self.entries.get(target)
        if kept is None:
            assert isinstance(outcome.error, UnknownEntry)
        elif kept.origin is Origin.ESTATE:
            assert isinstance(outcome.error, KeptByEstate)
        elif outcome.error is None:
            assert outcome.entry.id == target
            assert outcome.entry.revision == kept.revision + (not outcome.entry.has_content_of(kept))
            self.entries[target] = outcome.entry
        else:
            assert draft.spiffe_id == draft.parent_id or [e for e in self.similar(draft) if e.id != target]

    @rule(data=st.data())
    def delete(self, data):
        targets = data.draw(st.lists(st.sampled_from([*sorted(self.entries), "absent"]), max_size=3))
        for target, outcome in zip(targets, self.run(self.registry.entries.delete(targets)), strict=True):
            kept = self.entries.get(target)
            if kept is None:
                assert isinstance(outcome.error, UnknownEntry)
            elif kept.origin is Origin.ESTATE:
                assert isinstance(outcome.error, KeptByEstate)
            else:
                assert outcome.error is None
                del self.entries[target]

    @rule(items=st.lists(drafts, max_size=4, unique_by=lambda entry: entry.key))
    def replace_estate(self, items):
        before = dict(self.entries)
        foreign = {entry.key for entry in before.values() if entry.origin is Origin.API}
        try:
            self.run(self.registry.entries.replace_estate(items, NOW))
        except InvalidEntry:
            assert any(item.spiffe_id == item.parent_id for item in items)
            return
        except EstateConflict:
            assert any(item.key in foreign for item in items)
            return
        after = {entry.id: entry for entry in self.registry.entries.list().items}
        assert {i: e for i, e in after.items() if e.origin is Origin.API} == {
            i: e for i, e in before.items() if e.origin is Origin.API
        }
        estate = {entry.key: entry for entry in after.values() if entry.origin is Origin.ESTATE}
        assert set(estate) == {item.key for item in items}
        for item in items:
            assert estate[item.key].has_content_of(replace(item, origin=Origin.ESTATE, managed_by="estate"))
            old = before.get(estate[item.key].id)
            if old is not None:
                assert estate[item.key].revision == old.revision + (not old.has_content_of(estate[item.key]))
        self.entries = after

    @rule(agent=st.sampled_from(AGENTS), selectors=st.frozensets(st.sampled_from(SELECTORS)))
    def attest(self, agent, selectors):
        node = Node(
            spiffe_id=agent,
            attestation_type="x",
            serial_current="1",
            not_after=1,
            can_reattest=True,
            selectors=selectors,
        )
        if agent in self.nodes and self.nodes[agent].banned:
            return
        self.run(self.registry.nodes.record_attestation(node))
        self.nodes[agent] = node

    @rule(agent=st.sampled_from(AGENTS))
    def ban(self, agent):
        if agent in self.nodes:
            self.run(self.registry.nodes.ban(agent))
            self.nodes[agent] = replace(self.nodes[agent], banned=True)

    @rule(agent=st.sampled_from(AGENTS))
    def evict(self, agent):
        if agent in self.nodes:
            self.run(self.registry.nodes.evict(agent))
            del self.nodes[agent]

    @rule()
    def expire(self):
        self.run(self.registry.entries.expire(datetime.fromtimestamp(NOW.timestamp() + 10, UTC)))
        self.entries = {i: e for i, e in self.entries.items() if not e.expires_at}

    @rule()
    def restart(self):
        self.registry = self.run(Registry.open(TD, self.store, SeededEntropy(self.heard + 1)))
        self.registry.subscribe(self.hear)

    # What must hold after each of them.

    @invariant()
    def closures_are_those_of_plain_recursion(self):
        if not hasattr(self, "registry"):
            return
        now = {agent: self.closure(agent) for agent in self.nodes if not self.nodes[agent].banned}
        for agent, expected in now.items():
            authorized = self.registry.authorized(agent, NOW)
            assert list(authorized.entries) == [expected[entry_id] for entry_id in sorted(expected)]
            assert authorized.version == self.heard
            for entry_id in self.entries:
                assert self.registry.find_authorized(agent, entry_id, NOW) == expected.get(entry_id)
        # Whoever holds something else than before must have been told.
        changed = {agent for agent in {*self.before, *now} if self.before.get(agent) != now.get(agent)}
        assert changed <= self.told
        self.before = now
        self.told = set()

    @invariant()
    def lists_are_whole(self):
        if not hasattr(self, "registry"):
            return
        entries = self.registry.entries
        everything = [self.entries[entry_id] for entry_id in sorted(self.entries)]
        assert list(entries.list().items) == everything
        paged, token = [], ""
        while True:
            page = entries.list(page_size=2, page_token=token)
            paged += page.items
            token = page.next_token
            if not token:
                break
        assert paged == everything
        assert entries.next_end() == min((e.expires_at for e in everything if e.expires_at), default=None)
        for wanted in (
            EntryFilter(spiffe_id=WORKLOADS[0]),
            EntryFilter(parent_id=SERVER, hint="h"),
            EntryFilter(selectors=(frozenset(SELECTORS[:2]), Match.SUBSET)),
        ):
            assert list(entries.list(wanted).items) == [entry for entry in everything if wanted.admits(entry)]

    def similar(self, draft):
        return [entry for entry in self.entries.values() if entry.key == draft.key]

    def closure(self, agent):
        node = self.nodes[agent]
        found: dict[str, Entry] = {}

        def descend(parent):
            for entry in self.entries.values():
                if entry.parent_id == parent and entry.id not in found:
                    found[entry.id] = entry
                    descend(entry.spiffe_id)

        descend(agent)
        for alias in list(self.entries.values()):
            if alias.parent_id == SERVER and alias.selectors <= node.selectors:
                descend(alias.spiffe_id)
        return found


RegistryMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRegistry = RegistryMachine.TestCase
