"""The two-person rule over 200 generated edits, and 150 seeds of tests/property/test_risk.py, which has a few."""

import pytest
import test_risk
from test_two_persons import walk
from two_person_world import World

EDITS, SEEDS = 200, 150


@pytest.mark.timeout(900)
async def test_two_hundred_edits(tmp_path) -> None:
    async with World(tmp_path / "data") as world:
        needed = await walk(world, 2, EDITS)
    assert EDITS // 5 < needed < EDITS


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize(
    "judge",
    [
        test_risk.test_nothing_that_is_newly_allowed_is_missed,
        test_risk.test_everything_that_is_told_can_be_called,
        test_risk.test_a_pure_narrowing_needs_nobody,
    ],
)
def test_the_judgement_is_cedars(judge, seed) -> None:
    judge(seed)
