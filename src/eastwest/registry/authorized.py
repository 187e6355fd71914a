"""Which entries an agent may issue, and which agents a change concerns.

An agent reaches the entries whose parent is its own ID or the SPIFFE ID of a node alias that it belongs to;
then those whose parent is the SPIFFE ID of an entry already reached, and so on. ``closure`` walks down that
graph from one agent, ``holders`` walks up it from entries, ``reaches`` asks about one pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from eastwest.registry.entry import Entry
from eastwest.registry.index import Index
from eastwest.registry.node import Node
from eastwest.spiffe.id import SpiffeId


@dataclass(frozen=True, slots=True)
class Authorized:
    """All that one agent may issue, by entry id in rising order, as of a version of the registry.

    It is the whole truth: an agent drops what is missing.
    """

    entries: tuple[Entry, ...]
    version: int


def closure(index: Index, node: Node) -> list[Entry]:
    """Every entry that ``node`` reaches, by id; node aliases themselves are never among them."""
    found: dict[str, Entry] = {}
    visited = {node.spiffe_id}
    visited.update(alias.spiffe_id for alias in index.aliases_of(node))
    pending = list(visited)
    while pending:
        for entry in index.children(pending.pop()):
            found[entry.id] = entry
            if entry.spiffe_id not in visited:
                visited.add(entry.spiffe_id)
                pending.append(entry.spiffe_id)
    return [found[entry_id] for entry_id in sorted(found)]


def holders(index: Index, entries: Iterable[Entry]) -> set[SpiffeId]:
    """Every known node that reaches at least one of ``entries``, or belongs to one that is a node alias.

    The entries need not be in the index: their parents decide. Cost grows with what lies above them, not
    with the size of the registry.
    """
    nodes: set[SpiffeId] = set()
    visited: set[SpiffeId] = set()
    pending = list(entries)
    while pending:
        entry = pending.pop()
        if entry.is_node_alias:
            nodes |= index.nodes_with(entry.selectors)
        elif entry.parent_id not in visited:
            visited.add(entry.parent_id)
            if entry.parent_id in index.nodes:
                nodes.add(entry.parent_id)
            pending.extend(index.named(entry.parent_id))
    return nodes


def reaches(index: Index, node: Node, entry: Entry) -> bool:
    """Whether ``entry`` is in the closure of ``node``; cheaper than making the closure."""
    if entry.is_node_alias:
        return False
    visited: set[SpiffeId] = set()
    pending = [entry]
    while pending:
        current = pending.pop()
        if current.is_node_alias:
            if current.selectors <= node.selectors:
                return True
        elif current.parent_id == node.spiffe_id:
            return True
        elif current.parent_id not in visited:
            visited.add(current.parent_id)
            pending.extend(index.named(current.parent_id))
    return False
