"""What a contained administrator has approved of counts no more: changes of policy."""

import asyncio
from random import Random

import pytest
from two_person_world import AUTHOR, OWNERS, WHOLE, Edited, World, base, edited, needs_second, rendered
from typer.testing import CliRunner

from eastwest.cli.main import app
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


async def test_of_a_foreign_identity_nothing_is_promised_that_only_its_own_trust_domain_can_keep(tmp_path) -> None:
    def contain(who: str) -> str:
        command = ["contain", who, "--data", str(tmp_path / "data"), "--reason", "leaked", "--yes", "--timeout", "0"]
        result = CliRunner().invoke(app, command)
        return result.output

    async with World(tmp_path / "data") as world:
        await world.admin.apply_estate(rendered(base()))
        foreign = await asyncio.to_thread(contain, "spiffe://partner.example/prod/x")
        own = await asyncio.to_thread(contain, "spiffe://t.example/prod/nobody")
        assert {"spiffe://partner.example/prod/x", "spiffe://t.example/prod/nobody"} <= set(
            world.server.containments.contained.spiffe_ids
        )
    assert "its own trust domain must end" in foreign
    assert "live on" not in foreign
    assert "spelt right" not in foreign
    assert "live on, for 4 h" in own
    assert "spelt right" in own
    assert "foreign" not in own
