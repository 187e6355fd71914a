"""What a registration entry may say."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from eastwest.registry.entry import MAX_SVID_TTL, Entry, InvalidEntry
from eastwest.registry.groups import group_entries, group_id, group_name
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector

TD = TrustDomain("saas.example")
GOOD = Entry(
    spiffe_id=TD.id("/prod/billing"),
    parent_id=TD.id("/spire/agent/x/1"),
    selectors=frozenset({Selector("unix", "uid:1000")}),
)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"id": "Az09._-"},
        {"parent_id": TD.id("/spire/server")},
        {"parent_id": TD.id("/some/workload")},
        {"x509_svid_ttl": MAX_SVID_TTL, "jwt_svid_ttl": 1},
        {"dns_names": ("billing", "a-1.b.example", "*.b.example", "1.example")},
        {"hint": "h" * 1024},
        {"store_svid": True},
        {"selectors": frozenset({Selector("a", "x"), Selector("b", "y:z")})},
    ],
)
def test_a_good_entry_passes(change):
    replace(GOOD, **change).check(TD)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "a/b"}, "entry id"),
        ({"id": "é"}, "entry id"),
        ({"id": "a" * 256}, "entry id"),
        ({"spiffe_id": SpiffeId.parse("spiffe://other.example/x")}, "not in the trust domain saas.example"),
        ({"parent_id": SpiffeId.parse("spiffe://other.example/x")}, "parent_id"),
        ({"spiffe_id": TD.id("")}, "no path"),
        ({"parent_id": TD.id("")}, "no path"),
        ({"spiffe_id": TD.id("/spire/agent/x")}, "lies in /spire"),
        ({"spiffe_id": TD.id("/spire")}, "lies in /spire"),
        ({"spiffe_id": TD.id("/eastwest/group/prod")}, "node group"),
        ({"parent_id": GOOD.spiffe_id}, "own parent"),
        ({"selectors": frozenset()}, "no selector"),
        ({"selectors": frozenset(Selector("a", str(n)) for n in range(101))}, "more than 100"),
        ({"selectors": frozenset({Selector("a:b", "c")})}, "not a selector"),
        ({"selectors": frozenset({Selector("a", "")})}, "not a selector"),
        ({"selectors": frozenset({Selector("", "a")})}, "not a selector"),
        ({"selectors": frozenset({Selector("a", "v" * 4096)})}, "longer than 4096"),
        ({"store_svid": True, "selectors": frozenset({Selector("a", "x"), Selector("b", "y")})}, "one type"),
        ({"x509_svid_ttl": MAX_SVID_TTL + 1}, "x509_svid_ttl"),
        ({"x509_svid_ttl": -1}, "x509_svid_ttl"),
        ({"jwt_svid_ttl": MAX_SVID_TTL + 1}, "jwt_svid_ttl"),
        ({"expires_at": -1}, "expires_at"),
        ({"dns_names": ("a", "A")}, "twice"),
        ({"dns_names": tuple(f"n{n}" for n in range(101))}, "more than 100"),
        ({"hint": "h" * 1025}, "hint"),
        ({"profile": ""}, "profile"),
        ({"profile": "../x"}, "profile"),
    ],
)
def test_a_bad_entry_is_refused_with_the_reason(change, said):
    with pytest.raises(InvalidEntry, match=said):
        replace(GOOD, **change).check(TD)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        "a..b",
        "-a",
        "a-",
        "a_b",
        "a b",
        "a\n",
        "*",
        "*.",
        "a.*.b",
        "*a.b",
        "10.0.0.1",
        "a.1",
        "ü",
        "x" * 64,
        "a." * 127 + "b",
    ],
)
def test_what_is_no_dns_name_is_refused(name):
    with pytest.raises(InvalidEntry, match="DNS name"):
        replace(GOOD, dns_names=(name,)).check(TD)


def test_an_entry_ends_at_its_time():
    end = datetime(2026, 1, 1, tzinfo=UTC)
    entry = replace(GOOD, expires_at=int(end.timestamp()))
    assert entry.is_expired(end)
    assert not entry.is_expired(datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert not GOOD.is_expired(end)


def test_content_is_all_but_id_revision_and_creation():
    assert GOOD.has_content_of(replace(GOOD, id="x", revision=3, created_at=5))
    assert not GOOD.has_content_of(replace(GOOD, owner="group:x"))


def test_a_group_is_two_node_aliases():
    entries = group_entries(TD, "prod-nodes", [Selector("join_token", "group:prod")])
    assert {entry.spiffe_id for entry in entries} == {group_id(TD, "prod-nodes")}
    assert all(entry.is_node_alias for entry in entries)
    assert {selector.value for entry in entries for selector in entry.selectors} == {"group:prod", "group:prod-nodes"}
    for entry in entries:
        entry.check(TD)
    assert group_name(entries[0].spiffe_id) == "prod-nodes"
    assert group_name(GOOD.spiffe_id) == ""


def test_a_group_named_by_its_own_token_selector_is_one_alias():
    assert len(group_entries(TD, "prod", [Selector("join_token", "group:prod")])) == 1
    assert len(group_entries(TD, "prod", [])) == 1


@pytest.mark.parametrize("name", ["", "a/b", "a b", ".", ".."])
def test_a_group_has_a_name_that_fits_an_id(name):
    with pytest.raises(MalformedSpiffeId):
        group_id(TD, name)
