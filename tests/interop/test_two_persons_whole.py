"""The two-person rule over 200 generated edits; tests/integration/test_two_persons.py has some of them."""

import pytest
from test_two_persons import walk
from two_person_world import World

EDITS = 200


@pytest.mark.timeout(900)
async def test_two_hundred_edits(tmp_path) -> None:
    async with World(tmp_path / "data") as world:
        needed = await walk(world, 2, EDITS)
    assert EDITS // 5 < needed < EDITS
