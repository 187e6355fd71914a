"""Which identities a workload's selectors earn."""

from __future__ import annotations

from collections.abc import Iterable

from eastwest.registry.entry import Entry
from eastwest.spiffe.selector import Selector


def matching(entries: Iterable[Entry], selectors: frozenset[Selector]) -> list[Entry]:
    """The entries all of whose selectors the workload has, by id; the first is its default identity.

    Left out: node aliases, which name nodes; entries with ``store_svid``, which go to a secret store; and of
    entries that share a hint all but the oldest (then the lowest id), as SPIRE does.
    """
    found = [
        entry
        for entry in entries
        if entry.selectors <= selectors and entry.selectors and not entry.is_node_alias and not entry.store_svid
    ]
    chosen: dict[str, Entry] = {}
    for entry in found:
        rival = chosen.setdefault(entry.hint, entry)
        if (entry.created_at, entry.id) < (rival.created_at, rival.id):
            chosen[entry.hint] = entry
    kept = [entry for entry in found if not entry.hint or chosen[entry.hint] is entry]
    return sorted(kept, key=lambda entry: entry.id)
