"""The calendar of transaction tokens' keys: published before they sign, kept while a token under them may live."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.errors import Internal
from eastwest.pki.token_keys import Calendar, Ring, TokenKey, intending, settled, with_key, without

START = 1_800_000_000
LIFE = 305


def key(number: int, made_at: int, signs_from: int) -> TokenKey:
    return TokenKey(id=f"id-{number}", name=f"token-{number}", spki=b"", made_at=made_at, signs_from=signs_from)


def turn(calendar: Calendar, ring: Ring, now: int, number: int) -> Ring:
    """One look at the calendar, as the server does it."""
    if ended := calendar.ended(ring, now):
        ring = without(ring, ended)
        ring = settled(ring, [one.name for one in ended])
    if calendar.wants_key(ring, now):
        ring = with_key(intending(ring, f"token-{number}"), key(number, now, calendar.first_use(ring, now)))
    return ring


def test_the_first_key_signs_at_once() -> None:
    calendar = Calendar(1000, 100, LIFE)
    ring = turn(calendar, Ring(), START, 1)
    assert calendar.signing(ring, START) == ring.keys[0]
    assert calendar.next_change(ring) == START + 900
    assert turn(calendar, ring, START + 899, 2) == ring
    following = turn(calendar, ring, START + 900, 2)
    assert calendar.signing(following, START + 999) == ring.keys[0]
    assert calendar.signing(following, START + 1000).id == "id-2"
    assert not calendar.ended(following, START + 1000 + LIFE)
    assert calendar.ended(following, START + 1000 + LIFE + 1) == [ring.keys[0]]


@given(
    period=st.integers(2, 5000),
    lead=st.integers(0, 2500),
    looks=st.lists(st.integers(1, 3000), min_size=1, max_size=60),
)
def test_at_any_time(period: int, lead: int, looks: list[int]) -> None:
    calendar = Calendar(period, min(lead, period // 2), LIFE)
    ring, now, number = Ring(), START, 1
    published: dict[str, int] = {}
    signed_until: dict[str, int] = {}
    for pause in [0, *looks]:
        now += pause
        before = ring
        # Tokens are made between two looks too, up to this moment.
        if (signer := calendar.signing(before, now - 1)) is not None and pause:
            signed_until[signer.id] = now - 1
        ring = turn(calendar, ring, now, number)
        number += 1
        for one in ring.keys:
            published.setdefault(one.id, now)
        signer = calendar.signing(ring, now)
        assert signer is not None
        signed_until[signer.id] = now
        # All verifiers had it for the time that was promised, but for the first one ever.
        assert signer.id == "id-1" or now - published[signer.id] >= calendar.lead
        here = {one.id for one in ring.keys}
        assert all(one in here for one, last in signed_until.items() if now <= last + LIFE - 5)
        assert not ring.loose
        assert len(here) == len(ring.keys)
        following = calendar.next_change(ring)
        assert following is not None
        if following > now:
            assert turn(calendar, ring, following - 1, number) == ring


def test_a_clock_that_was_set_back_leaves_a_key_that_signs() -> None:
    calendar = Calendar(1000, 100, LIFE)
    ring = turn(calendar, Ring(), START, 1)
    assert calendar.signing(ring, START - 500) == ring.keys[0]
    assert turn(calendar, ring, START - 500, 2) == ring


def test_no_key_is_lost_sight_of() -> None:
    ring = intending(Ring(), "token-1")
    assert ring.loose == ("token-1",)
    made = with_key(ring, key(1, START, START))
    assert not made.loose
    gone = without(made, made.keys)
    assert (gone.keys, gone.loose) == ((), ("token-1",))
    assert settled(gone, ["token-1"]) == Ring()


def test_a_key_signs_longer_than_it_is_published_before() -> None:
    with pytest.raises(Internal):
        Calendar(100, 51, LIFE)
