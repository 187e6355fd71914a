"""Generated edits: the server asks for a second person exactly where one is needed; the author alone never passes."""

from random import Random

import pytest
from two_person_world import AUTHOR, Edited, World, base, edited, needs_second, rendered

from eastwest.errors import Error, PermissionDenied

SOME = 14


async def walk(world, seed, count):
    """Edit after edit from one version to the next; gives how many needed a second person."""
    random = Random(seed)
    before = Edited("base", base(), rendered(base()))
    await world.admin.apply_estate(before.files)
    needed, past = 0, []
    for number in range(count):
        after = edited(random)
        past.append(before)
        why = needs_second(before, after, past)
        told = (number, before.name, after.name, why)
        refusal = await attempt(world, after)
        assert bool(why) == ("must approve" in refusal), (told, refusal)
        if why:
            needed += 1
            await second(world, after, told)
        standing = world.server.estate.applied.standing
        assert standing.author == AUTHOR
        assert not standing.approvals_missing, told
        assert bool(standing.approvers) == bool(why), told
        assert AUTHOR not in standing.approvers
        before = after
    return needed


async def attempt(world, after):
    """The author applies on its own word; gives the refusal."""
    try:
        await world.admin.apply_estate(after.files)
    except PermissionDenied as error:
        return str(error)
    return ""


async def second(world, after, told):
    """The author asks, cannot approve of it itself, and applies once others have."""
    change = await world.server.changes.request(after.files, "an edit", world.administrator(AUTHOR))
    with pytest.raises(Error, match="requested"):
        await world.server.changes.approve(change.id, world.administrator(AUTHOR), "mine")
    with pytest.raises(PermissionDenied, match="must approve"):
        await world.admin.apply_estate(after.files, change=change.id)
    assert await world.second(change.id) == "approved", told
    await world.admin.apply_estate(after.files, change=change.id)
    assert world.server.estate.applied.standing.change == change.id


async def test_no_edit_that_opens_something_passes_on_its_authors_word_alone(tmp_path) -> None:
    async with World(tmp_path / "data") as world:
        needed = await walk(world, 1, SOME)
    assert SOME // 5 < needed < SOME
