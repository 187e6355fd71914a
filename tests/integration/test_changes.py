"""A change's life on a running server, break-glass, what comes back for less, and the commands."""

import asyncio
import copy
import json
import urllib.request
from datetime import timedelta

import pytest
from log_entries import recorded
from token_world import ESTATE, TokenWorld
from token_world import WEB as SHOP_WEB
from two_person_world import AUTHOR, JOBS, OWNERS, TD, WHOLE, World, base, operation, rendered, service
from typer.testing import CliRunner

from eastwest.api.eastwest.changes.v1 import changes_pb2
from eastwest.cli.change_client import call_changes
from eastwest.cli.rollout_client import RolloutClient
from eastwest.clock import SystemClock
from eastwest.errors import FailedPrecondition, InvalidInput, NotFound, PermissionDenied
from eastwest.policy.emergency import is_emergency
from eastwest.registry.changes import GRANTED, WAITING
from eastwest.rpc.client import method
from eastwest.server.changes.emergency import CAUSE
from eastwest.spiffe.id import SpiffeId

WEB = f"spiffe://{TD}/prod/red/web"
IDLE = f"spiffe://{TD}/prod/blue/idle"
BLUE = OWNERS["blue"]
PEOPLE = ("shop/owner", "base/stranger", "shop/web")


class SetClock(SystemClock):
    """The machine's clock, set on by hours."""

    ahead = timedelta(0)

    def now(self):
        return super().now() + self.ahead


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
async def world(tmp_path, clock):
    async with World(tmp_path / "data", clock) as world:
        await world.admin.apply_estate(rendered(base()))
        yield world


def opened(name="added", action="desk:move:do"):
    """The base, and the web may change what blue answers for."""
    parts = base()
    parts["policies"][name] = ("", f'permit (principal == Workload::"{WEB}", action == Action::"{action}", resource);')
    return rendered(parts)


def narrowed(parts):
    """Another version, for which nobody is asked, nor for the way back."""
    policies = parts["policies"] | {"less": ("", f'forbid (principal == Workload::"{IDLE}", action, resource);')}
    return parts | {"policies": policies}


def entries(world, *kinds):
    return [entry for raw in recorded(world.data) if (entry := json.loads(raw))["kind"] in kinds]


async def ask(world, files, who=AUTHOR):
    return await world.server.changes.request(files, "the web moves seats", world.administrator(who))


async def agreed(world, files):
    change = await ask(world, files)
    await world.server.changes.approve(change.id, world.administrator(BLUE), "agreed")
    return change


async def state(world, change):
    return (await world.server.changes.get(change.id)).state


async def test_asked_for_approved_and_applied_by_its_content(world) -> None:
    files = opened()
    change = await ask(world, files)
    assert (await ask(world, files)).id == change.id, "the same again is the same request"
    assert [(one.domain, one.owner) for one in change.requirements] == [("blue", "group:blue")]
    for stranger in (OWNERS["red"], AUTHOR):
        with pytest.raises(PermissionDenied):
            await world.server.changes.approve(change.id, world.administrator(stranger), "mine")
    approved = await world.server.changes.approve(change.id, world.administrator(BLUE), "agreed")
    assert approved.state == "approved"
    applied = await world.admin.apply_estate(files)
    await world.server.changes.applied()
    assert await state(world, change) == "applied"
    [activated] = [one for one in entries(world, "policy.activated") if one["version"] == applied["version"]]
    assert (activated["author"], activated["approvers"], activated["change"]) == (AUTHOR, [BLUE], change.id)
    steps = [(one["kind"], one["actor"]) for one in entries(world, "change.requested", "change.approved")]
    assert steps == [("change.requested", AUTHOR), ("change.approved", BLUE)]


async def test_a_word_is_for_this_content_on_this_version(world) -> None:
    change = await agreed(world, opened())
    edited = opened(action="desk:close:do")
    with pytest.raises(PermissionDenied, match="must approve"):
        await world.admin.apply_estate(edited)
    with pytest.raises(FailedPrecondition, match="an edit voids what was approved"):
        await world.admin.apply_estate(edited, change=change.id)
    await world.admin.apply_estate(rendered(narrowed(base())))
    assert await state(world, change) == "void"
    with pytest.raises(FailedPrecondition, match="is void"):
        await world.admin.apply_estate(opened(), change=change.id)
    with pytest.raises(PermissionDenied, match="must approve"):
        await world.admin.apply_estate(opened())
    with pytest.raises(FailedPrecondition, match="void: another version"):
        await world.server.changes.approve(change.id, world.administrator(BLUE), "again")


async def test_requests_and_words_end(world, clock) -> None:
    change = await ask(world, opened())
    clock.ahead = WAITING
    assert await state(world, change) == "expired"
    with pytest.raises(FailedPrecondition, match="is expired"):
        await world.server.changes.approve(change.id, world.administrator(BLUE), "late")
    later = await agreed(world, opened())
    assert later.id != change.id
    clock.ahead += GRANTED - timedelta(seconds=60)
    assert await state(world, later) == "approved"
    clock.ahead += timedelta(seconds=60)
    assert await state(world, later) == "expired"
    with pytest.raises(PermissionDenied, match="must approve"):
        await world.admin.apply_estate(opened())
    with pytest.raises(FailedPrecondition, match="is expired"):
        await world.admin.apply_estate(opened(), change=later.id)
    listed = await world.server.changes.listed("expired", 10)
    assert {one.id for one in listed} == {change.id, later.id}
    with pytest.raises(InvalidInput, match="is not a state"):
        await world.server.changes.listed("gone", 10)


async def test_refused_or_withdrawn_it_is_over(world) -> None:
    changes = world.server.changes
    refused = await ask(world, opened())
    with pytest.raises(PermissionDenied, match="may not refuse"):
        await changes.refuse(refused.id, world.administrator(OWNERS["red"]), "not mine")
    await changes.refuse(refused.id, world.administrator(BLUE), "too wide")
    taken_back = await agreed(world, opened())
    with pytest.raises(PermissionDenied, match="may not withdraw"):
        await changes.withdraw(taken_back.id, world.administrator(WHOLE), "not mine")
    await changes.withdraw(taken_back.id, world.administrator(BLUE), "I was wrong")
    for change, ended in ((refused, "refused"), (taken_back, "withdrawn")):
        assert await state(world, change) == ended
        with pytest.raises(FailedPrecondition, match=f"is {ended}"):
            await world.admin.apply_estate(opened(), change=change.id)
        with pytest.raises(FailedPrecondition, match=f"is {ended}"):
            await changes.approve(change.id, world.administrator(BLUE), "after all")
    with pytest.raises(PermissionDenied, match="must approve"):
        await world.admin.apply_estate(opened())
    told = {one["kind"]: (one["actor"], one["reason"]) for one in entries(world, "change.refused", "change.withdrawn")}
    assert told == {"change.refused": (BLUE, "too wide"), "change.withdrawn": (BLUE, "I was wrong")}
    with pytest.raises(NotFound):
        await changes.get("0" * 16)


def metric(world):
    """The gauge and what /ready says, as a scraper and a load balancer read them."""
    with urllib.request.urlopen(f"http://{world.server.health_address}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    [gauge] = [line.split()[1] for line in lines if line.startswith("eastwest_break_glass ")]
    with urllib.request.urlopen(f"http://{world.server.health_address}/ready", timeout=10) as reply:
        ready = reply.read().decode()
    return float(gauge), "break-glass until" in ready


def marks(world):
    """The callers that are allowed something by the emergency alone, by operation, as sidecars are told."""
    table = world.server.estate.tables.newest
    return {o: callers for o, callers in table.emergency.items() if callers}


async def test_break_glass_holds_loudly_and_ends_by_itself(tmp_path, clock) -> None:
    data = tmp_path / "data"
    async with World(data, clock) as world:
        before = (await world.admin.apply_estate(rendered(base())))["version"]
        assert await asyncio.to_thread(metric, world) == (0, False)
        with pytest.raises(InvalidInput, match="at most 8 hours"):
            await world.admin.apply_estate(opened(), break_glass="seats stand still", break_glass_seconds=8 * 3600 + 1)
        with pytest.raises(FailedPrecondition, match="nothing here needs an approval"):
            await world.admin.apply_estate(rendered(base()), break_glass="for fun", break_glass_seconds=60)
        applied = await world.admin.apply_estate(opened(), break_glass="seats stand still", break_glass_seconds=3600)
        assert await asyncio.to_thread(metric, world) == (1, True)
        [entry] = [one for one in entries(world, "policy.activated") if one["version"] == applied["version"]]
        assert (entry["author"], entry["break_glass"]) == (AUTHOR, "seats stand still")
        assert entry["break_glass_until"]
        assert marks(world) == {"desk:move:do": {WEB: ()}}
        # What was let in so is no precedent: the same again still needs a word.
        with pytest.raises(PermissionDenied, match="must approve"):
            await world.admin.apply_estate(opened("other"))
    async with World(data, clock) as world:
        assert world.server.estate.version == applied["version"]
        assert await asyncio.to_thread(metric, world) == (1, True)
        assert marks(world) == {"desk:move:do": {WEB: ()}}
        clock.ahead = timedelta(minutes=59)
        world.server.emergency.activated()
        assert world.server.estate.version == applied["version"]
        ended = asyncio.Event()
        world.server.emergency.on_end = ended.set
        clock.ahead = timedelta(hours=1)
        world.server.emergency.activated()
        async with asyncio.timeout(20):
            await ended.wait()
        assert world.server.estate.version == before
        assert await asyncio.to_thread(metric, world) == (0, False)
        assert not marks(world)
        assert entries(world, "policy.activated")[-1]["cause"] == CAUSE
        assert entries(world, "policy.activated")[-1]["version"] == before


async def test_break_glass_that_ended_while_nobody_ran_ends_at_the_start(tmp_path, clock) -> None:
    data = tmp_path / "data"
    async with World(data, clock) as world:
        before = (await world.admin.apply_estate(rendered(base())))["version"]
        await world.admin.apply_estate(opened(), break_glass="seats stand still", break_glass_seconds=3600)
    clock.ahead = timedelta(hours=2)
    world, ended = World(data, clock), asyncio.Event()
    async with world:
        world.server.emergency.on_end = ended.set
        if world.server.estate.version != before:
            async with asyncio.timeout(20):
                await ended.wait()
        assert world.server.estate.version == before


async def test_break_glass_ends_without_anybody_looking(world) -> None:
    before = world.server.estate.version
    ended = asyncio.Event()
    world.server.emergency.on_end = ended.set
    await world.admin.apply_estate(opened(), break_glass="for a moment", break_glass_seconds=1)
    async with asyncio.timeout(20):
        await ended.wait()
    assert world.server.estate.version == before


async def test_a_rollout_that_break_glass_cut_short_comes_back_as_far_as_it_had_come(tmp_path, clock) -> None:
    rings = {"rollout": {"rings": [{"name": "first", "domains": ["red"]}], "advance": "automatic", "soak": "1h"}}
    data, first = tmp_path / "data", base()
    first["estate.yaml"] |= rings
    forbid = f'forbid (principal == Workload::"{WEB}", action, resource == Service::"bills");'
    less = first | {"policies": first["policies"] | {"less": ("", forbid)}}
    permit = f'permit (principal == Workload::"{WEB}", action == Action::"desk:move:do", resource);'
    broken = rendered(less | {"policies": less["policies"] | {"added": ("", permit)}})

    def standing(world):
        desk, bills = (next(w for w in world.server.estate.sidecars if str(w).endswith(n)) for n in ("/desk", "/bills"))
        agent = SpiffeId.parse(f"spiffe://{TD}/spire/agent/a")
        tables = world.server.estate.tables
        return [tables.given(agent, one).version for one in (bills, desk)], tables.progress

    async with World(data, clock) as world:
        before = (await world.admin.apply_estate(rendered(first)))["version"]
        begun = (await world.admin.apply_estate(rendered(less)))["version"]
        assert standing(world)[0] == [begun, before]
        urgent = (await world.admin.apply_estate(broken, break_glass="stuck", break_glass_seconds=60))["version"]
        assert standing(world)[0] == [urgent, urgent]
        ended = asyncio.Event()
        world.server.emergency.on_end = ended.set
        clock.ahead = timedelta(hours=4)
        world.server.emergency.activated()
        async with asyncio.timeout(20):
            await ended.wait()
    async with World(data, clock) as world:  # nor does a restart forget it, nor time go on with it
        held, progress = standing(world)
        assert held == [begun, before]
        assert (progress.version, progress.paused, progress.is_open) == (begun, True, True)
        [told] = [one for one in entries(world, "rollout.paused") if one["paused"] == "yes"]
        assert (told["version"], told["ring"]) == (begun, "first")
        assert len(entries(world, "rollout.started")) == 1
        # By hand likewise, and asking nobody.
        await world.admin.apply_estate(broken, break_glass="again", break_glass_seconds=60)
        async with RolloutClient.connect(data) as client:
            await client.roll_back("")
            assert standing(world)[0] == [begun, before]
            await client.roll_back("")
            assert standing(world)[0] == [before, before]


async def test_break_glass_repeated_is_over_after_eight_hours(world, clock) -> None:
    hours = 6 * 3600
    await world.admin.apply_estate(opened(), break_glass="still", break_glass_seconds=hours)
    clock.ahead = timedelta(hours=5)
    await world.admin.apply_estate(opened("other"), break_glass="still", break_glass_seconds=hours)
    left = world.server.emergency.until - clock.now()
    assert timedelta(hours=2, minutes=55) < left <= timedelta(hours=3)


async def test_what_break_glass_opened_may_stay_once_it_is_approved(world) -> None:
    before = world.server.estate.version
    await world.admin.apply_estate(opened(), break_glass="seats stand still", break_glass_seconds=3600)
    change = await agreed(world, opened())
    assert change.base == before
    await world.admin.apply_estate(opened())
    assert world.server.emergency.until is None
    assert not marks(world)
    assert world.server.estate.applied.standing.approvers == (BLUE,)


async def test_only_what_break_glass_newly_allows_is_marked(world) -> None:
    await world.admin.apply_estate(opened(), break_glass="seats stand still", break_glass_seconds=3600)
    [config] = [c for name, c in world.server.estate.tables.newest.configs.items() if str(name).endswith("/desk")]
    [inbound] = config.compiled.inbound
    flagged = {
        (one.name, caller)
        for one in inbound.operations
        for caller in config.compiled.known_callers
        if is_emergency(inbound, one.name, caller, "")
    }
    assert flagged == {("desk:move:do", WEB)}


# What was taken away and comes back.


def without(*operations, unclassified=()):
    parts = base()
    for path in ("services/bills.yaml", "services/desk.yaml"):
        kept = [one for one in parts[path]["operations"] if one["name"] not in operations]
        for one in kept:
            if one["name"] in unclassified:
                del one["sensitivity"]
        parts[path]["operations"] = kept
    return parts


def replaced(parts, *added):
    parts = copy.deepcopy(parts)
    parts["services/desk.yaml"]["operations"] += added
    return rendered(parts)


GONE = without("desk:move:do")
CLOSES = f'permit (principal == Workload::"{JOBS}", action == Action::"desk:close:do", resource);'
GONE["policies"]["jobs"] = ("", CLOSES)
BACK = replaced(GONE, operation("desk", "move", "read", "PUT", "/seats/{seat}"))


FRONT = service("front", "blue", 8009, [operation("front", "put", "read", "PUT", "/seats/{seat}")]) | {
    "workload": f"spiffe://{TD}/prod/blue/desk",
    "upstream": {"tcp": "127.0.0.1:9002"},
}
COMES_BACK = {
    "same": (GONE, BACK),
    "renamed": (GONE, replaced(GONE, operation("desk", "shift", "read", "PUT", "/seats/{other}"))),
    "narrower": (GONE, replaced(GONE, operation("desk", "one", "read", "PUT", "/seats/best"))),
    "name": (GONE, replaced(GONE, operation("desk", "move", "open", "PATCH", "/elsewhere"))),
    "other service": (GONE, rendered(GONE | {"services/front.yaml": FRONT})),
    "unclassified": (without(unclassified=["desk:move:do"]), BACK),
}


async def test_what_comes_back_counts_for_no_less(world) -> None:
    start = world.server.estate.version
    for name, (between, after) in COMES_BACK.items():
        for parts in (between, narrowed(between), between):  # however long ago
            await world.admin.apply_estate(rendered(parts))
        with pytest.raises(PermissionDenied, match="must approve"):
            await world.admin.apply_estate(after)
        await agreed(world, after)
        await world.admin.apply_estate(after)
        assert world.server.estate.applied.standing.approvers == (BLUE,), name
        await world.server.estate.restore(start, AUTHOR, "the next case")


async def test_what_comes_back_as_it_was_asks_only_for_who_may_do_it(world) -> None:
    await world.admin.apply_estate(rendered(GONE))
    back = replaced(GONE, operation("desk", "move", "mutate", "PUT", "/seats/{seat}"))
    await world.admin.apply_estate(back)
    assert world.server.estate.applied.standing.approvers == ()


# The commands.


def lines(result):
    said = f"{result.stdout} {result.stderr} {result.exception or ''} {getattr(result.exception, 'fix', '')}"
    return " ".join(said.split())


async def command(world, *words):
    from eastwest.cli.main import app

    arguments = [*map(str, words), "--data", str(world.data)]
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, arguments, env={"COLUMNS": "300"}))


def written(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


async def told(world, *words):
    result = await command(world, *words, "--json")
    assert result.exit_code == 0, lines(result)
    return json.loads(result.stdout[result.stdout.index("{\n") :])  # after what the server logs in this process


async def test_the_commands_ask_show_decide_and_apply(world, tmp_path) -> None:
    folder = written(tmp_path / "estate", opened())
    refused = await command(world, "apply", folder)
    assert refused.exit_code == 1
    assert f"group:blue (domain blue) must approve ({BLUE})" in lines(refused)
    planned = await told(world, "plan", folder)
    assert planned["required_approvals"][0]["approvers"] == [BLUE]
    made = await told(world, "change", "request", folder, "--reason", "the web moves seats")
    own = await command(world, "change", "approve", made["id"], "--reason", "mine")
    assert own.exit_code == 1
    assert "has requested" in lines(own)
    early = await command(world, "apply", folder, "--change", made["id"])
    assert early.exit_code == 1
    await world.server.changes.approve(made["id"], world.administrator(BLUE), "agreed")
    shown = await command(world, "change", "show", made["id"], "--out", tmp_path / "proposed")
    assert shown.exit_code == 0
    assert f"approved by {BLUE}" in lines(shown)
    assert "next: eastwest apply DIR --change" in lines(shown)
    assert {p.relative_to(tmp_path / "proposed").as_posix() for p in (tmp_path / "proposed").rglob("*.*")} == set(
        opened()
    )
    again = await command(world, "change", "show", made["id"], "--out", tmp_path / "proposed")
    assert again.exit_code == 1, "nothing is written over"
    applied = await told(world, "apply", folder, "--change", made["id"])
    assert applied["applied_version"] == made["version"]
    await world.server.changes.applied()
    listed = await told(world, "change", "list", "--state", "applied")
    assert [(one["id"], one["approvals"][0]["who"]) for one in listed["changes"]] == [(made["id"], BLUE)]
    table = await command(world, "change", "list")
    assert made["id"] in table.stdout
    assert "applied" in table.stdout


async def test_the_commands_approve_refuse_and_withdraw(world, tmp_path) -> None:
    """Here the author is the second person: blue's only member asks, and another must stand in."""
    first = await ask(world, opened(), BLUE)
    assert (await told(world, "change", "approve", first.id, "--reason", "agreed"))["state"] == "approved"
    # Whoever gave the word is not the one who applies.
    folder = written(tmp_path / "estate", opened())
    own = await command(world, "apply", folder, "--change", first.id)
    assert own.exit_code == 1
    assert (await told(world, "change", "withdraw", first.id, "--reason", "wrong"))["state"] == "withdrawn"
    second = await ask(world, opened(), BLUE)
    refused = await told(world, "change", "refuse", second.id, "--reason", "too wide")
    assert (refused["state"], refused["decided_by"], refused["decision_reason"]) == ("refused", AUTHOR, "too wide")
    missing = await command(world, "change", "show", "nothing")
    assert missing.exit_code == 1
    assert "there is no change" in lines(missing)


async def test_break_glass_by_command(world, tmp_path) -> None:
    folder = written(tmp_path / "estate", opened())
    endless = await command(world, "apply", folder, "--break-glass", "seats stand still")
    assert endless.exit_code == 2
    applied = await told(world, "apply", folder, "--break-glass", "seats stand still", "--for", "1h")
    assert world.server.estate.version == applied["applied_version"]
    assert timedelta(minutes=59) < world.server.emergency.until - SystemClock().now() <= timedelta(hours=1)


# Stopping.


async def test_what_waits_stops_even_as_it_wakes(world) -> None:
    """A task that is cancelled in the very moment in which it hears of something ends all the same."""
    for turns in range(8):
        for work, wake in (
            (world.server.rollouts.run(), world.server.rollouts.changed),
            (world.server.rotator.run(), world.server.rotator.changed.set),
        ):
            task = asyncio.create_task(work)
            for _ in range(20):
                await asyncio.sleep(0)
            wake()
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=10)
            assert done, f"cancelled {turns} turns after it was woken, it goes on"
            assert task.cancelled()


# From elsewhere, with a certificate.


async def test_an_administrators_svid_approves_over_the_agents_port(tmp_path) -> None:
    tokens = TokenWorld(tmp_path / "data")
    policy = f"""
@id("web-reports") @owner("group:shop") @reason("the shop makes reports")
permit (principal == Workload::"{SHOP_WEB}", action == Action::"billing:reports:make", resource == Service::"billing");
"""
    try:
        await tokens.start()
        more = {"policies/more.cedar": policy}
        with pytest.raises(PermissionDenied, match="must approve"):
            await tokens.apply(**more)
        files = {name: text.encode() for name, text in {**ESTATE, **more}.items()}
        asked = await call_changes(tokens.server.data, "RequestChange", files=files, reason="the shop makes reports")
        change = json.loads(asked.json)["id"]
        owner, stranger, web = [await tokens.workload(f"spiffe://td.test/prod/{n}") for n in PEOPLE]
        for other, refusal in ((stranger, "may not approve"), (web, "no administrator")):
            with tokens.administering(other) as channel, pytest.raises(PermissionDenied, match=refusal):
                await decided(channel, change)
        with tokens.administering(owner) as channel:
            assert (await decided(channel, change))["state"] == "approved"
        await tokens.apply(**more)
        activated = [e for raw in recorded(tokens.server.data) if (e := json.loads(raw))["kind"] == "policy.activated"]
        assert (activated[-1]["change"], activated[-1]["approvers"]) == (change, [owner.spiffe_id])
    finally:
        tokens.close()


async def decided(channel, change):
    service_ = changes_pb2.DESCRIPTOR.services_by_name["Changes"]
    request = changes_pb2.DecideChangeRequest(id=change, reason="agreed")
    return json.loads((await channel.unary(method(service_, "ApproveChange"), request)).json)
