"""JWT keys of other servers of the trust domain in the CA's state."""

import pytest
from msgspec.structs import replace

from eastwest.errors import AlreadyExists, FailedPrecondition, InvalidInput
from eastwest.pki.rotation import additions, lifecycle
from eastwest.pki.rotation.state import KEPT_AFTER_END, JwtKey, Kind, Revoked, Stage, State, bundle_of, dated
from eastwest.spiffe.bundle import JwtAuthority
from eastwest.spiffe.id import TrustDomain

NOW = 1_800_000_000
DOMAIN = TrustDomain.parse("td.test")
OWN = JwtKey(id="own", key="jwt-1", spki=b"own", not_before=NOW, not_after=NOW + 100, stage=Stage.ACTIVE)


def theirs(key_id="theirs", spki=b"spki", end=NOW + 3600):
    return JwtAuthority(spki, key_id, end)


def test_a_published_key_is_in_a_newer_bundle_and_never_signs():
    before = State(sequence=5, jwt=(OWN,))
    after = additions.publish_jwt(before, theirs(), NOW)
    bundle = bundle_of(after, DOMAIN)
    assert bundle.sequence == 6
    assert theirs() in bundle.jwt_authorities
    assert after.active_jwt == OWN
    assert list(after.key_names()) == ["jwt-1"]


def test_publishing_again_changes_nothing():
    state = additions.publish_jwt(State(jwt=(OWN,)), theirs(), NOW)
    assert additions.publish_jwt(state, theirs(), NOW) is state


@pytest.mark.parametrize("key_id", ["theirs", "own"])
def test_a_kid_is_not_taken_over(key_id):
    state = additions.publish_jwt(State(jwt=(OWN,)), theirs(), NOW)
    with pytest.raises(AlreadyExists, match=key_id):
        additions.publish_jwt(state, theirs(key_id, b"another"), NOW)


@pytest.mark.parametrize(
    "authority",
    [theirs(""), theirs("x" * 257), theirs("a\nb"), theirs(end=NOW), theirs(end=NOW + 401 * 24 * 3600), theirs(end=-1)],
)
def test_a_key_that_is_out_of_bounds_is_refused(authority):
    with pytest.raises(InvalidInput):
        additions.publish_jwt(State(), authority, NOW)


def test_their_number_is_bounded():
    state = State()
    for number in range(additions.MAX_FOREIGN_JWT):
        state = additions.publish_jwt(state, theirs(f"kid-{number}"), NOW)
    with pytest.raises(FailedPrecondition, match="already"):
        additions.publish_jwt(state, theirs("one more"), NOW)


def test_an_ended_key_goes_and_leaves_no_key_to_destroy():
    state = additions.publish_jwt(State(jwt=(replace(OWN, not_after=NOW + 10**9),)), theirs(), NOW)
    pruned = lifecycle.prune(state, NOW + 3600 + KEPT_AFTER_END + 1)
    assert [key.id for key in pruned.jwt] == ["own"]
    assert pruned.loose == ()
    assert pruned.sequence == state.sequence + 1


def test_a_revoked_key_is_remembered_to_its_end_and_not_taken_again():
    state = additions.publish_jwt(State(jwt=(OWN,)), theirs(), NOW)
    state = lifecycle.revoke(lifecycle.taint(state, Kind.JWT, "theirs"), Kind.JWT, "theirs")
    assert additions.publish_jwt(state, theirs(), NOW, upstream=True) is state
    later = NOW + 3600 + KEPT_AFTER_END
    assert dated(state, state, later).revoked == state.revoked
    assert dated(state, state, later + 1).revoked == ()


def test_the_number_of_revoked_keys_is_bounded_and_those_that_end_first_go():
    known = tuple(Revoked(kind=Kind.JWT, id=f"k{n}", not_after=NOW + n) for n in range(lifecycle.MAX_REVOKED))
    state = additions.publish_jwt(State(jwt=(OWN,), revoked=known), theirs(), NOW)
    state = lifecycle.revoke(lifecycle.taint(state, Kind.JWT, "theirs"), Kind.JWT, "theirs")
    assert len(state.revoked) == lifecycle.MAX_REVOKED
    assert state.is_revoked(Kind.JWT, "theirs")
    assert not state.is_revoked(Kind.JWT, "k0")
