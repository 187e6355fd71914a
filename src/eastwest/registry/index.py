"""Entries and nodes in memory, with the look-ups that make every question cheaper than a scan."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from eastwest.registry.entry import Entry, Key
from eastwest.registry.node import Node
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.selector import Selector


class _Sortable(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


K = TypeVar("K", bound=_Sortable)
V = TypeVar("V")

# Up to here a change is merged into the sorted list in place; beyond, the list is sorted again when next read.
_IN_PLACE = 64


class SortedMap(Generic[K, V]):
    """A dictionary that can be read in the order of its keys from any point on, for paging."""

    def __init__(self) -> None:
        self._values: dict[K, V] = {}
        self._order: list[K] | None = []
        self._changes = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __getitem__(self, key: K) -> V:
        return self._values[key]

    def get(self, key: K) -> V | None:
        return self._values.get(key)

    def values(self) -> Collection[V]:
        return self._values.values()

    def put(self, key: K, value: V) -> None:
        if key not in self._values and self._reorders():
            bisect.insort(self._sorted(), key)
        self._values[key] = value

    def drop(self, key: K) -> V:
        if self._reorders():
            order = self._sorted()
            del order[bisect.bisect_left(order, key)]
        return self._values.pop(key)

    def after(self, key: K | None) -> Iterator[V]:
        """Values whose keys follow ``key``, or all of them, in the order of keys."""
        self._changes = 0
        order = self._sorted()
        start = 0 if key is None else bisect.bisect_right(order, key)
        for position in range(start, len(order)):
            yield self._values[order[position]]

    def _reorders(self) -> bool:
        if self._order is None:
            return False
        self._changes += 1
        if self._changes > _IN_PLACE:
            self._order = None
        return self._order is not None

    def _sorted(self) -> list[K]:
        if self._order is None:
            self._order = sorted(self._values)
        return self._order


class Index:
    """All entries and nodes. It checks nothing and knows nothing of closures (``eastwest.registry.authorized``)."""

    def __init__(self) -> None:
        self.entries: SortedMap[str, Entry] = SortedMap()
        self.nodes: SortedMap[SpiffeId, Node] = SortedMap()
        self._by_key: dict[Key, str] = {}
        self._by_parent: dict[SpiffeId, dict[str, Entry]] = {}
        self._by_spiffe_id: dict[SpiffeId, dict[str, Entry]] = {}
        self._aliases: dict[Selector, dict[str, Entry]] = {}
        self._nodes_by_selector: dict[Selector, set[SpiffeId]] = {}
        self._ends: dict[str, int] = {}

    def put_entry(self, entry: Entry) -> None:
        """Add an entry, or replace the one with its id."""
        if entry.id in self.entries:
            self.drop_entry(entry.id)
        self.entries.put(entry.id, entry)
        self._by_key[entry.key] = entry.id
        self._by_parent.setdefault(entry.parent_id, {})[entry.id] = entry
        self._by_spiffe_id.setdefault(entry.spiffe_id, {})[entry.id] = entry
        if entry.is_node_alias:
            self._aliases.setdefault(_anchor(entry), {})[entry.id] = entry
        if entry.expires_at:
            self._ends[entry.id] = entry.expires_at

    def drop_entry(self, entry_id: str) -> None:
        """Remove an entry that is there."""
        entry = self.entries.drop(entry_id)
        # Within a batch another entry may have taken over the key already.
        if self._by_key.get(entry.key) == entry_id:
            del self._by_key[entry.key]
        _discard(self._by_parent, entry.parent_id, entry_id)
        _discard(self._by_spiffe_id, entry.spiffe_id, entry_id)
        if entry.is_node_alias:
            _discard(self._aliases, _anchor(entry), entry_id)
        self._ends.pop(entry_id, None)

    def put_node(self, node: Node) -> None:
        """Add a node, or replace the one with its ID."""
        if node.spiffe_id in self.nodes:
            self.drop_node(node.spiffe_id)
        self.nodes.put(node.spiffe_id, node)
        for selector in node.selectors:
            self._nodes_by_selector.setdefault(selector, set()).add(node.spiffe_id)

    def drop_node(self, spiffe_id: SpiffeId) -> None:
        """Remove a node that is there."""
        for selector in self.nodes.drop(spiffe_id).selectors:
            holders = self._nodes_by_selector[selector]
            holders.discard(spiffe_id)
            if not holders:
                del self._nodes_by_selector[selector]

    def similar(self, key: Key) -> Entry | None:
        """The entry with this SPIFFE ID, parent and selectors."""
        entry_id = self._by_key.get(key)
        return None if entry_id is None else self.entries[entry_id]

    def children(self, parent_id: SpiffeId) -> Collection[Entry]:
        """Entries whose parent this is."""
        return self._by_parent.get(parent_id, _NONE).values()

    def named(self, spiffe_id: SpiffeId) -> Collection[Entry]:
        """Entries that give this SPIFFE ID."""
        return self._by_spiffe_id.get(spiffe_id, _NONE).values()

    def aliases_of(self, node: Node) -> Iterator[Entry]:
        """Node aliases whose selectors the node has."""
        for selector in node.selectors:
            for alias in self._aliases.get(selector, _NONE).values():
                if alias.selectors <= node.selectors:
                    yield alias

    def nodes_with(self, selectors: Iterable[Selector]) -> set[SpiffeId]:
        """Nodes that have all of these selectors (at least one must be given)."""
        postings = sorted((self._nodes_by_selector.get(selector, _NOBODY) for selector in selectors), key=len)
        return set.intersection(*postings)

    def ends(self) -> Mapping[str, int]:
        """Ids of the entries that end, and when (Unix seconds)."""
        return self._ends


_NONE: dict[str, Entry] = {}
_NOBODY: set[SpiffeId] = set()


def _anchor(alias: Entry) -> Selector:
    # Each alias is filed under one of its selectors; which one does not matter, so long as it is always the same.
    return min(alias.selectors)


def _discard(table: dict[K, dict[str, Entry]], key: K, entry_id: str) -> None:
    held = table[key]
    del held[entry_id]
    if not held:
        del table[key]
