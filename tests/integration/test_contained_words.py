"""What a contained administrator has approved of counts no more: changes of policy."""

from random import Random

import pytest
from two_person_world import AUTHOR, OWNERS, WHOLE, Edited, World, base, edited, needs_second, rendered

from eastwest.errors import PermissionDenied
from eastwest.registry.containment import NOBODY, Contained


def opening() -> Edited:
    """An edit that needs a second person."""
    random, before = Random(1), Edited("base", base(), rendered(base()))
    return next(one for one in iter(lambda: edited(random), None) if needs_second(before, one, [before]))


async def approved(world: World, files: dict[str, bytes]) -> str:
    change = await world.server.changes.request(files, "an edit", world.administrator(AUTHOR))
    assert await world.second(change.id) == "approved"
    return change.id


async def test_a_change_that_somebody_contained_has_approved_of_is_withdrawn_for_good(tmp_path) -> None:
    async with World(tmp_path / "data") as world:
        await world.admin.apply_estate(rendered(base()))
        files, changes = opening().files, world.server.changes
        change = await approved(world, files)
        changes.contained = lambda: Contained(1, tuple(sorted({*OWNERS.values(), WHOLE})))
        with pytest.raises(PermissionDenied, match="must approve"):
            await world.admin.apply_estate(files, change=change)
        [word, *_] = (await changes.get(change)).approvers
        assert await changes.void(["spiffe://t.example/else"], "unix:uid:0", "c0") == 0
        assert await changes.void([word], "unix:uid:0", "c1") == 1
        found = await changes.get(change)
        assert (found.state, found.decided_by, found.decision_reason) == ("withdrawn", "unix:uid:0", "containment c1")
        changes.contained = lambda: NOBODY
        with pytest.raises(PermissionDenied, match="must approve"):
            await world.admin.apply_estate(files)
        again = await approved(world, files)
        await world.admin.apply_estate(files, change=again)
        assert world.server.estate.applied.standing.change == again


async def test_containing_whoever_must_approve_does_not_take_the_place_of_its_word(tmp_path) -> None:
    async with World(tmp_path / "data") as world:
        await world.admin.apply_estate(rendered(base()))
        world.server.changes.contained = lambda: Contained(1, tuple(sorted({*OWNERS.values(), WHOLE})))
        with pytest.raises(PermissionDenied, match="must approve"):
            await world.admin.apply_estate(opening().files)
