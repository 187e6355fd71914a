"""Whatever happens in whatever order, a rollout goes forward ring by ring, or ends; and points keep their rings."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eastwest.errors import FailedPrecondition
from eastwest.policy.estate import Ring, Rollout
from eastwest.policy.rollout import EVERYWHERE, Progress, State, ring_of, share_of

NAMES = st.text("abcdefghij", min_size=1, max_size=6)
RINGS = st.lists(
    st.one_of(
        st.builds(Ring, name=NAMES, domains=st.lists(NAMES, min_size=1, max_size=3).map(tuple)),
        st.builds(Ring, name=NAMES, share=st.integers(1, 100)),
    ),
    max_size=4,
).map(tuple)
PLANS = st.builds(
    Rollout, rings=RINGS, soak=st.sampled_from(("1s", "10m")), advance=st.sampled_from(("manual", "automatic"))
)
STEPS = st.lists(
    st.tuples(st.sampled_from(("acknowledged", "tick", "promote", "pause", "resume")), st.floats(0, 2_000)), max_size=40
)


def begun(plan: Rollout) -> Progress:
    return Progress(version="new", previous="old", plan=plan, started=0.0, since=0.0)


@given(PLANS, STEPS)
def test_rings_come_in_order_and_nobody_is_left_out_or_taken_back(plan, steps):
    progress, now = begun(plan), 0.0
    for name, passed in steps:
        now += passed
        before = progress
        try:
            progress = getattr(progress, name)(now)
        except FailedPrecondition:
            # Only what has ended, or stands, refuses a step of somebody's.
            assert not before.is_open or (name == "promote" and before.paused)
            continue
        assert before.ring <= progress.ring <= before.ring + 1
        assert {r for r in range(len(plan.rings) + 1) if before.has_reached(r)} <= {
            r for r in range(len(plan.rings) + 1) if progress.has_reached(r)
        }
        if progress.state is State.FINISHED and before.is_open:
            assert before.is_last
            assert name in {"tick", "promote"}
        if name == "tick" and progress != before:
            # By itself it goes on only after a ring has acknowledged and was watched for as long as it must be.
            assert before.state is State.SOAKING
            assert not before.paused
            assert now - before.since >= before.soak
            assert before.is_last or plan.advance == "automatic"
        assert msgspec.json.decode(msgspec.json.encode(progress), type=Progress) == progress
    assert progress.is_open or progress.has_reached(len(plan.rings))


@given(PLANS, STEPS, st.sampled_from((State.BRAKED, State.ROLLED_BACK, State.REPLACED)))
def test_what_ended_reaches_nobody_and_goes_nowhere(plan, steps, end):
    progress = begun(plan).end(end, "why", 1.0)
    assert not any(progress.has_reached(ring) for ring in range(len(plan.rings) + 1))
    for name, at in steps:
        if name in {"acknowledged", "tick"}:
            assert getattr(progress, name)(at) == progress
        else:
            with pytest.raises(FailedPrecondition):
                getattr(progress, name)(at)
    with pytest.raises(FailedPrecondition):
        progress.end(State.BRAKED, "again", 2.0)


@given(PLANS, NAMES, NAMES, NAMES)
def test_a_point_is_in_the_first_ring_that_names_it(plan, agent, workload, domain):
    ring = ring_of(plan, agent, workload, domain)
    named = [
        domain in one.domains if one.share is None else share_of(agent, workload) < one.share for one in plan.rings
    ]
    assert ring == (named.index(True) if any(named) else len(plan.rings))
    assert begun(plan).names[-1] == EVERYWHERE


def test_shares_are_spread_evenly_and_stay():
    counts = [0] * 100
    for agent in range(100):
        for workload in range(100):
            counts[share_of(f"spiffe://td.test/agent/{agent}", f"spiffe://td.test/w/{workload}")] += 1
    assert sum(counts) == 10_000
    assert max(counts) < 160  # six standard deviations above 100
    assert min(counts) > 40
    # Written down, since a point that changed its ring with a release would get rules out of turn.
    assert share_of("spiffe://td.test/spire/agent/a", "spiffe://td.test/prod/shop/web") == 45
