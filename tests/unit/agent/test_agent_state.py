"""The last good state: whole updates, in order, or nothing."""

import pytest
from agent_parts import BUNDLE, CA, ENTRY, SIDECAR, TD, entry, update
from hypothesis import given
from hypothesis import strategies as st

from eastwest.agent.state import MAX_TOKEN_KEYS, BadUpdate, State
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.attest.match import matching
from eastwest.pki.signer import KeyAlgorithm
from eastwest.policy.enforcement import Sidecar
from eastwest.spiffe.bundle import Bundle, X509Authority
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.testing.tokens import TokenMint

TOKEN_KEYS = control.ResourceName.KIND_TOKEN_KEYS
SHOP = Sidecar(spiffe_id="spiffe://saas.example/shop", version="v1", known_callers=())


@pytest.fixture
def held() -> State:
    return State(TD).apply(update(4, full=True, entries=(entry("a"), entry("b")), bundles=(CA.bundle,)))


def test_a_full_update_replaces_everything(held: State) -> None:
    after = held.apply(update(9, full=True, epoch="e2", entries=(entry("c"),), bundles=(CA.bundle,), sidecars=(SHOP,)))
    assert list(after.entries) == ["c"]
    assert after.sidecars == {TD.id("/shop"): SHOP}
    assert (after.epoch, after.number) == ("e2", 9)


def test_a_delta_changes_what_it_names(held: State) -> None:
    after = held.apply(update(5, entries=(entry("c"),), sidecars=(SHOP,), remove=((ENTRY, "a"),)))
    assert sorted(after.entries) == ["b", "c"]
    assert after.bundles is held.bundles
    gone = after.apply(update(6, remove=((SIDECAR, SHOP.spiffe_id),)))
    assert not gone.sidecars
    assert sorted(held.entries) == ["a", "b"]


@pytest.mark.parametrize(
    "bad",
    [
        update(6, entries=(entry("c"),)),
        update(4, entries=(entry("c"),)),
        update(5, epoch="e2", entries=(entry("c"),)),
        update(5, epoch=""),
        update(5, remove=((BUNDLE, TD.name),)),
        update(5, full=True),
        update(5, full=True, entries=(entry("c"),)),
        update(5, full=True, bundles=(Bundle(TD),)),
        update(5, bundles=(Bundle(TD, (X509Authority(b"nonsense"),)),)),
        update(5, remove=((SIDECAR, "not-an-id"),)),
    ],
    ids=range(10),
)
def test_what_cannot_be_applied_whole_is_refused(held: State, bad) -> None:
    with pytest.raises(BadUpdate):
        held.apply(bad)
    assert sorted(held.entries) == ["a", "b"]


def test_malformed_resources_are_refused(held: State) -> None:
    foreign = update(5, entries=(entry("c"),))
    foreign.upserts[0].entry.spiffe_id.trust_domain = "other.example"
    empty = update(5, entries=(entry("c"),))
    empty.upserts[0].entry.ClearField("selectors")
    sidecar = update(5, sidecars=(SHOP,))
    sidecar.upserts[0].sidecar = b'{"spiffe_id":1}'
    bare = update(5, entries=(entry("c"),))
    bare.upserts[0].ClearField("entry")
    for bad in (foreign, empty, sidecar, bare):
        with pytest.raises(BadUpdate):
            held.apply(bad)


def test_an_answer_to_our_position_may_skip_numbers(held: State) -> None:
    delta = update(8, entries=(entry("c"),))
    with pytest.raises(BadUpdate):
        held.apply(delta)
    assert held.apply(delta, resumed=True).number == 8
    with pytest.raises(BadUpdate):
        held.apply(update(4), resumed=True)


def test_federated_bundles_are_given_to_those_that_federate(held: State) -> None:
    other = TrustDomain("other.example")
    federated = entry("c", federates_with=(other,))
    after = held.apply(update(5, entries=(federated,), bundles=(Bundle(other, CA.bundle.x509_authorities),)))
    assert list(after.bundles_for([federated])) == [other, TD]
    assert list(after.bundles_for([entry("a")])) == [TD]


_selectors = st.frozensets(st.sampled_from([Selector("unix", f"uid:{n}") for n in range(5)]), min_size=1, max_size=4)
_entries = st.lists(
    st.builds(
        lambda number, selectors, hint, age: entry(
            f"e{number}", *map(str, selectors), hint=hint, created_at=age, store_svid=number % 7 == 0
        ),
        st.integers(0, 40),
        _selectors,
        st.sampled_from(["", "", "x", "y"]),
        st.integers(0, 3),
    ),
    max_size=12,
)


@given(_entries, _selectors)
def test_the_index_finds_what_a_scan_finds(entries, selectors) -> None:
    state = State(TD).apply(update(1, full=True, entries=tuple(entries), bundles=(CA.bundle,)))
    expected = matching(state.entries.values(), selectors)
    assert list(state.matching(selectors)) == expected
    assert list(state.matching(selectors)) == expected


@given(_entries, _entries, st.lists(st.integers(0, 40), max_size=5))
def test_deltas_lead_where_the_full_state_does(first, second, gone) -> None:
    removed = tuple((ENTRY, f"e{number}") for number in gone if f"e{number}" not in {each.id for each in second})
    start = State(TD).apply(update(1, full=True, entries=tuple(first), bundles=(CA.bundle,)))
    after = start.apply(update(2, entries=tuple(second), remove=removed))
    whole = State(TD).apply(after.to_update())
    assert whole == after


def test_tainted_issuing_cas_come_stay_and_go(held: State) -> None:
    name = control.ResourceName(kind=control.ResourceName.KIND_TAINTED, name=held.trust_domain.name)
    told = update(held.number + 1)
    told.upserts.add(name=name, tainted=control.Tainted(subject_key_ids=[b"one", b"two"]))
    tainted = held.apply(told)
    assert tainted.tainted == {b"one", b"two"}
    later = tainted.apply(update(tainted.number + 1))
    assert later.tainted == {b"one", b"two"}
    # What the cache keeps says it too.
    assert State(held.trust_domain).apply(later.to_update()).tainted == later.tainted
    gone = update(later.number + 1)
    gone.removals.append(name)
    assert later.apply(gone).tainted == frozenset()


def test_the_first_key_type_that_is_known_is_made(held: State) -> None:
    after = held.apply(update(5, entries=(entry("a"),), keys=("falcon", "ml-dsa-65", "ec-p256")))
    wanted = {name: after.key_algorithm(each) for name, each in after.entries.items()}
    assert wanted == {"a": KeyAlgorithm.ML_DSA_65, "b": KeyAlgorithm.EC_P256}
    again = State(TD).apply(after.to_update())
    assert again.keys == after.keys
    unknown = after.apply(update(6, entries=(entry("a"),), keys=("falcon",)))
    assert unknown.key_algorithm(entry("a")) is KeyAlgorithm.EC_P256
    # What the server says nothing about any more, or takes away, leaves nothing behind.
    assert after.apply(update(6, entries=(entry("a"),))).keys == {}
    assert after.apply(update(6, remove=((ENTRY, "a"),))).keys == {}
    assert after.apply(update(6, entries=(entry("b"),))).keys == after.keys


def with_token_keys(number: int, document: bytes, *, full: bool = False) -> control.Update:
    made = update(number, full=full, bundles=(CA.bundle,) if full else ())
    made.upserts.add(name=control.ResourceName(kind=TOKEN_KEYS, name=TD.name), token_keys=document)
    return made


def test_token_keys_come_change_and_go(held: State) -> None:
    assert held.token_keys == b""
    mint = TokenMint(TD.uri)
    first = held.apply(with_token_keys(5, mint.key_set))
    assert first.token_keys == mint.key_set
    mint.rotate()
    second = first.apply(with_token_keys(6, mint.key_set))
    assert second.token_keys == mint.key_set
    # What is not about them leaves them; the cache has them too.
    kept = second.apply(update(7, entries=(entry("c"),)))
    assert kept.token_keys == mint.key_set
    assert State(TD).apply(kept.to_update()) == kept
    assert kept.apply(update(8, remove=((TOKEN_KEYS, TD.name),))).token_keys == b""
    assert kept.apply(update(9, full=True, bundles=(CA.bundle,))).token_keys == b""
    assert State(TD).apply(with_token_keys(1, mint.key_set, full=True)).token_keys == mint.key_set


@pytest.mark.parametrize(
    "document",
    [b"", b"no JSON", b"[]", b"{}", b'{"keys":[1]}', b'{"keys":[]}' + b" " * MAX_TOKEN_KEYS, b"\xff"],
    ids=range(7),
)
def test_what_is_no_key_set_is_refused(held: State, document: bytes) -> None:
    with pytest.raises(BadUpdate):
        held.apply(with_token_keys(5, document))
