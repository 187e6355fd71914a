"""Entries for a workload's selectors."""

from dataclasses import replace

from eastwest.attest.match import matching
from eastwest.registry.entry import Entry
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector

TD = TrustDomain("saas.example")


def entry(entry_id: str, *selectors: str, **fields) -> Entry:
    return Entry(
        id=entry_id,
        spiffe_id=TD.id("/" + entry_id),
        parent_id=fields.pop("parent_id", TD.id("/spire/agent/x/1")),
        selectors=frozenset(map(Selector.parse, selectors)),
        **fields,
    )


def ids(entries, *selectors: str) -> list[str]:
    return [found.id for found in matching(entries, frozenset(map(Selector.parse, selectors)))]


def test_all_selectors_of_an_entry_must_be_there():
    entries = [entry("c", "u:1"), entry("a", "u:1", "p:x"), entry("b", "u:2")]
    assert ids(entries, "u:1", "p:x", "g:9") == ["a", "c"]
    assert ids(entries, "u:1") == ["c"]
    assert ids(entries) == []


def test_aliases_stored_svids_and_entries_without_selectors_match_nobody():
    entries = [
        entry("alias", "u:1", parent_id=TD.id("/spire/server")),
        entry("stored", "u:1", store_svid=True),
        entry("empty"),
    ]
    assert ids(entries, "u:1") == []


def test_of_a_shared_hint_the_oldest_stays_then_the_lowest_id():
    old = entry("z", "u:1", hint="h", created_at=1)
    entries = [entry("a", "u:1", hint="h", created_at=2), old, entry("m", "u:1"), entry("n", "u:1", hint="other")]
    assert ids(entries, "u:1") == ["m", "n", "z"]
    assert ids([*entries, replace(old, id="y")], "u:1") == ["m", "n", "y"]
