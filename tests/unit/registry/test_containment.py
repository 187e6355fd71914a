"""Containments as values: who is cut off now, by which list, and what nobody can be cut off by."""

import pytest

from eastwest.errors import AlreadyExists, FailedPrecondition, InvalidInput, NotFound
from eastwest.registry.containment import MAX_CONTAINED, NOBODY, containable, end, holding, in_force, start

A, B = "spiffe://td.test/a", "spiffe://td.test/b"


def begun(known, *names, containment_id="one", reason="leaked"):
    return start(
        known,
        containment_id=containment_id,
        spiffe_ids=names,
        selector="x",
        reason=reason,
        actor="unix:uid:0",
        now=7,
        evidence="00",
    )


def test_nobody_is_contained_at_first():
    assert in_force([]) == NOBODY
    assert not NOBODY
    assert A not in NOBODY


def test_each_change_is_a_newer_list():
    one = begun([], A)
    two = begun([one], A, B, containment_id="two")
    assert in_force([one, two]).generation == 2
    assert in_force([one, two]).spiffe_ids == (A, B)
    ended = end([one, two], "two", reason="rebuilt", actor="unix:uid:1", now=9)
    left = in_force([one, ended])
    assert (left.generation, left.spiffe_ids) == (3, (A,)), "what another containment holds stays"
    assert (ended.ended_by, ended.ended_at, ended.end_reason, ended.is_active) == ("unix:uid:1", 9, "rebuilt", False)
    # Generations go on after an end: a point never takes an older list for a newer one.
    assert begun([one, ended], B, containment_id="three").generation == 4


def test_what_is_refused():
    one = begun([], A)
    with pytest.raises(AlreadyExists, match="is contained already"):
        begun([one], A)
    with pytest.raises(InvalidInput):
        begun([], A, reason=" ")
    with pytest.raises(InvalidInput, match="is no SPIFFE ID"):
        begun([], "notify")
    with pytest.raises(InvalidInput, match="a node's or the server's own identity"):
        begun([], "spiffe://td.test/spire/agent/x")
    with pytest.raises(NotFound, match="nobody is meant"):
        begun([])
    with pytest.raises(InvalidInput, match="more than 1000"):
        containable(f"{A}/{number}" for number in range(MAX_CONTAINED + 1))
    with pytest.raises(InvalidInput, match="at most 1000"):
        begun([one], *(f"{A}/{number}" for number in range(MAX_CONTAINED)), containment_id="two")
    with pytest.raises(NotFound):
        end([one], "two", reason="x", actor="me", now=9)
    ended = end([one], "one", reason="x", actor="me", now=9)
    with pytest.raises(FailedPrecondition, match="has ended"):
        end([ended], "one", reason="x", actor="me", now=9)


def test_release_by_identity_lets_out_nobody_else():
    one, two = begun([], A), begun([], A, B, containment_id="two")
    assert holding([one], A) is one
    with pytest.raises(FailedPrecondition, match=r"held by two \(of 2\)"):
        holding([two], A)
    with pytest.raises(FailedPrecondition, match="one"):
        holding([one, two], A)
    with pytest.raises(NotFound, match="is not contained"):
        holding([one], B)
