"""Words that were given once: what came between voids them, and identities that decide are not had without a word."""

import pytest
from two_person_world import AUTHOR, TD, World, base, rendered, workload

from eastwest.errors import FailedPrecondition, PermissionDenied
from eastwest.policy.load import load_estate
from eastwest.policy.risk import required, widenings
from eastwest.policy.table import compile_estate

BOSS = f"spiffe://{TD}/prod/blue/boss"
OPEN = f'permit (principal == Workload::"spiffe://{TD}/prod/red/web", action, resource == Service::"desk");'
LESS = f'forbid (principal == Workload::"spiffe://{TD}/prod/blue/jobs", action, resource);'


def edited(name: str, text: str) -> dict[str, bytes]:
    parts = base()
    parts["policies"][name] = (' @tenants("any")' if text.startswith("permit") else "", text)
    return rendered(parts)


async def agreed(world: World, files: dict[str, bytes]) -> str:
    change = await world.server.changes.request(files, "an edit", world.administrator(AUTHOR))
    assert await world.second(change.id) == "approved"
    return change.id


async def test_what_was_approved_does_not_come_back_with_the_version_that_it_was_compared_with(tmp_path):
    async with World(tmp_path / "data") as world:
        first, opened = rendered(base()), edited("open", OPEN)
        await world.admin.apply_estate(first)
        old = await agreed(world, opened)
        await world.admin.apply_estate(edited("less", LESS))
        back = await agreed(world, first)
        await world.admin.apply_estate(first, change=back)
        assert (await world.server.changes.get(old)).state == "void"
        with pytest.raises(FailedPrecondition, match="void"):
            await world.admin.apply_estate(opened, change=old)
        with pytest.raises(PermissionDenied, match="must approve"):
            await world.admin.apply_estate(opened)
        # One that waits for nothing is none that stands in the way of a new one, which holds.
        assert await agreed(world, opened) != old
        await world.admin.apply_estate(opened)


async def test_a_word_that_is_taken_back_while_the_record_is_replayed_counts_no_more(tmp_path):
    rings = {"rollout": {"rings": [{"name": "first", "domains": ["red"]}]}}
    first, parts = base(), base()
    for one in (first, parts):
        one["estate.yaml"] |= rings
    parts["policies"]["open"] = (' @tenants("any")', OPEN)
    async with World(tmp_path / "data") as world:
        await world.admin.apply_estate(rendered(first))
        change = await agreed(world, rendered(parts))

        async def replay(_files):
            await world.server.changes.withdraw(change, world.administrator(AUTHOR), "no")
            return (), "00"

        world.server.estate.breaks = replay
        with pytest.raises(FailedPrecondition, match="withdrawn"):
            await world.admin.apply_estate(rendered(parts), change=change)
        assert world.server.estate.version == compile_estate(load_estate(rendered(first))).version


def with_boss(*, registered: bool = True):
    parts = base()
    parts["estate.yaml"]["administrators"].append({"who": BOSS, "may": ["approvals"]})
    if registered:
        parts["workloads/w.yaml"]["workloads"].append(workload("boss", "blue"))
    return parts


def words(before, after):
    estates = [load_estate(rendered(one)) for one in (before, after)]
    tables = [compile_estate(one) for one in estates]
    return {(one.domain, one.owner) for one in required(widenings(*tables, *estates))}


def test_who_would_get_the_identity_of_one_who_decides_needs_the_word_of_one_who_decides_for_all():
    after = with_boss()
    after["workloads/w.yaml"]["workloads"][-1]["selectors"] = ["unix:uid:1"]
    assert ("", "") in words(with_boss(), after)
    assert ("", "") in words(with_boss(registered=False), with_boss())
    assert words(with_boss(), with_boss()) == set()


def test_who_would_answer_in_the_name_of_a_service_needs_its_owners_word():
    after = base()
    server = next(one for one in after["workloads/w.yaml"]["workloads"] if one["spiffe_id"].endswith("/desk"))
    server["selectors"] = ["unix:uid:1"]
    assert ("blue", "group:blue") in words(base(), after)


def test_a_permissive_port_that_others_reach_is_wider():
    before, after = base(), base()
    for one in (before, after):
        one["services/desk.yaml"]["listen"] |= {"mtls": "permissive", "until": "2099-01-01"}
    after["services/desk.yaml"]["listen"]["address"] = "0.0.0.0"
    assert words(before, after) == {("blue", "group:blue")}


def test_a_token_for_a_tenant_is_none_for_an_operation_that_has_no_tenants():
    after = base()
    after["services/desk.yaml"]["tenant"] = {"claim": True}
    assert ("blue", "group:blue") in words(base(), after)
