"""New rules go ring by ring through a real server, agent and Envoys, and come back by themselves when they are bad."""

import json
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import pytest_asyncio
from envoy_mesh import Http
from rollout_world import RIGHT, RolloutWorld, of
from server_process import eastwest

from eastwest.errors import FailedPrecondition

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world():
    place = Path(tempfile.mkdtemp(prefix="ew-", dir="/tmp"))
    place.chmod(0o755)
    made = RolloutWorld(place)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()
        shutil.rmtree(place)


def without(*verbs: str) -> tuple[str, ...]:
    return tuple(verb for verb in RIGHT if verb not in verbs)


async def test_a_bad_rule_is_rolled_back_by_itself_and_only_the_first_ring_saw_it(world):
    before = (await world.apply(world.estate()))["version"]
    version = (await world.apply(world.estate(may=without("write"))))["version"]
    await world.until_state("soaking", "first")
    status = await world.status()
    assert (of(status, "alpha")["version"], of(status, "beta")["version"]) == (version, before)
    assert status["in_step"], status["mismatches"]
    # Nobody who was refused all the time can bring anything back.
    refused = await world.call("alpha", caller="stranger")
    assert refused.status == 403
    await world.until_recorded(refused)
    assert (await world.status())["rollout"]["state"] == "soaking"
    assert (await world.call("beta", "write")).status == 200
    denied_at = time.monotonic()
    denied = await world.call("alpha", "write")
    assert (denied.status, denied.code) == (403, "OPERATION_NOT_PERMITTED")
    await world.until("alpha", 200, "write")
    assert time.monotonic() - denied_at < 10
    ended = await world.until_state("braked")
    assert ended["version"] == version
    assert "alpha:items:write" in ended["reason"]
    assert (await world.status())["version"] == before
    # The other ring's service never decided anything by the bad rule, nor refused anybody.
    rows = await world.rows(service="beta")
    assert rows
    assert {row["policy_version"] for row in rows}.isdisjoint({version})
    assert {row["verdict"] for row in rows} == {"allow"}
    [braked] = world.logged("rollout.braked")
    assert (braked["version"], braked["previous"], braked["ring"]) == (version, before, "first")
    assert braked["reference"] == denied.seen["error"]["reference"]
    activated = world.logged("policy.activated")
    assert (activated[-1]["version"], activated[-1]["cause"]) == (before, "brake")


async def test_calls_on_record_are_not_refused_unless_somebody_said_that_they_may_be(world):
    bad = world.estate(may=without("write"))  # by now it is on record
    before = (await world.status())["version"]
    with pytest.raises(FailedPrecondition, match=r"spiffe://rings\.test/prod/shop/web at alpha:items:write"):
        await world.apply(bad)
    assert (await world.status())["version"] == before
    version = (await world.apply(bad, accept_breaks=True))["version"]
    await world.until_state("soaking", "first")
    denied = await world.call("alpha", "write")
    assert denied.status == 403
    await world.until_recorded(denied)
    told = (await world.status())["rollout"]
    assert (told["version"], told["state"]) == (version, "soaking")
    # And back by hand, which nobody has to approve of: shown first, done only when said.
    shown = eastwest("policy", "rollback", "--data", world.data)
    assert shown.returncode == 2, shown
    assert "newly allowed" in shown.stdout
    assert (await world.status())["version"] == version
    done = eastwest("policy", "rollback", "--data", world.data, "--yes", "--json")
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["version"] == before
    await world.until("alpha", 200, "write")
    assert (await world.until_state("rolled-back"))["version"] == version


async def test_a_server_that_is_killed_goes_on_where_it_was(world):
    before = (await world.status())["version"]
    version = (await world.apply(world.estate(stranger=("read",))))["version"]
    await world.until("alpha", 200, caller="stranger")
    world.server.kill()
    world.server.start()
    told = await world.until_state("soaking", "first")
    assert (told["version"], told["previous"]) == (version, before)
    status = await world.until_in_step()
    assert (of(status, "alpha")["version"], of(status, "beta")["version"]) == (version, before)
    assert (await world.call("alpha", caller="stranger")).status == 200
    assert (await world.call("beta", caller="stranger")).status == 403
    promoted = eastwest("policy", "promote", "--data", world.data, "--json")
    assert json.loads(promoted.stdout)["ring"] == "everywhere"
    await world.until("beta", 200, caller="stranger")
    await world.until_state("soaking", "everywhere")
    assert eastwest("policy", "pause", "--data", world.data).returncode == 0
    assert eastwest("policy", "promote", "--data", world.data).returncode == 1
    assert eastwest("policy", "resume", "--data", world.data).returncode == 0
    assert eastwest("policy", "promote", "--data", world.data).returncode == 0
    assert (await world.until_state("finished"))["version"] == version
    kinds = [entry["ring"] for kind in ("started", "advanced", "finished") for entry in world.logged(f"rollout.{kind}")]
    assert kinds[-2:] == ["everywhere", "everywhere"]


async def test_denials_that_came_while_the_server_was_dead_brake_when_it_is_back(world):
    before = (await world.status())["version"]
    version = (await world.apply(world.estate(stranger=("read",), may=without("drop"))))["version"]
    await world.until_state("soaking", "first")
    world.server.kill()
    assert (await world.call("alpha", "drop")).status == 403
    assert (await world.call("beta", "drop")).status == 200
    world.server.start()
    assert (await world.until_state("braked"))["version"] == version
    await world.until("alpha", 200, "drop")
    assert (await world.status())["version"] == before


async def test_going_strict_is_watched_too_and_strangers_cannot_stop_it(world):
    await world.apply(world.estate(mode="permissive"))
    for _ in range(2):
        await world.until_state("soaking")
        assert eastwest("policy", "promote", "--data", world.data).returncode == 0
    before = (await world.until_state("finished"))["version"]
    # What was refused before, and was let through since, is on record.
    version = (await world.apply(world.estate(), accept_breaks=True))["version"]
    await world.until_state("soaking", "first")
    # Nobody knows who this is, nor has seen it before.
    plain = await Http.tcp(world.ports["alpha"])
    refused = await plain.ask("GET", "/items")
    await plain.close()
    assert refused.code == "MTLS_REQUIRED"
    await world.until_recorded(refused)
    assert (await world.status())["rollout"]["state"] == "soaking"
    # A registered workload that was let through because the port only reported.
    assert (await world.call("beta", "patch", caller="stranger")).status == 200
    assert (await world.call("alpha", "patch", caller="stranger")).status == 403
    assert (await world.until_state("braked"))["version"] == version
    await world.until("alpha", 200, "patch", caller="stranger")
    assert (await world.status())["version"] == before


async def test_any_version_that_was_in_force_comes_back(world):
    told = json.loads(eastwest("policy", "versions", "--data", world.data, "--json").stdout)["versions"]
    first, now = told[-1], told[0]
    assert now["in_force"]
    assert [one["cause"] for one in told if one["cause"] != "apply"] == ["brake", "brake", "rollback", "brake"]
    done = eastwest("policy", "rollback", first["version"][:8], "--data", world.data, "--yes")
    assert done.returncode == 0, done
    assert f"in force: version {first['version']}" in done.stdout
    await world.until("alpha", 403, caller="stranger")
    status = await world.until_in_step()
    assert status["version"] == first["version"]
    assert {point["version"] for point in status["points"]} == {first["version"]}
    refused = eastwest("policy", "rollback", "0123456789", "--data", world.data, "--yes")
    assert refused.returncode == 1
    assert "no version begins with" in refused.stderr
    shown = eastwest("policy", "status", "--data", world.data)
    assert shown.returncode == 0, shown.stdout
    assert "every connected enforcement point runs what is intended" in shown.stdout
    seen = eastwest("policy", "versions", "--data", world.data)
    assert "braked" in seen.stdout
