"""New rules reach an application that enforces itself ring by ring as well, its tokens with them, and come back."""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from sdk_world import ESTATE, POLICY, SERVICE, TD, SdkWorld

from eastwest.cli.rollout_client import RolloutClient
from eastwest.testing.ports import free_port

BILLING = f"{TD}/prod/shop/billing"
RINGS = ESTATE.replace("owners: [group:shop]}", "owners: [group:shop]}, {name: other, owners: [group:shop]}") + (
    "rollout: {rings: [{name: first, domains: [other]}], soak: 1h}\n"
)
NO_REPORTS = """
@id("no-reports") @owner("group:shop") @reason("a mistake")
forbid (principal, action == Action::"billing:reports:make", resource == Service::"billing");
"""


@pytest.fixture
async def world():
    root = Path(tempfile.mkdtemp(prefix="ews-", dir="/tmp"))  # sockets' paths must stay short
    made = SdkWorld(root)
    try:
        yield made
    finally:
        await made.close()
        shutil.rmtree(root, ignore_errors=True)


async def until(world, state: str, ring: str) -> dict:
    """Until the newest rollout is there; its state."""
    async with asyncio.timeout(20), RolloutClient.connect(world.server.data) as rollout:
        while True:
            told = next(v["rollout"] for v in await rollout.versions(5) if v["rollout"] is not None)
            if (told["state"], told["ring"]) == (state, ring):
                return told
            await asyncio.sleep(0.05)


async def token(web) -> str:
    answer = await web.ask("token", operation="billing:reports:make")
    assert "token" in answer, answer
    return answer["token"]


async def report(web, world, with_token: str) -> int:
    answer = await web.ask("call", server=BILLING, url=world.url, method="POST", path="/reports", token=with_token)
    return answer["status"]


async def test_an_application_without_a_sidecar_keeps_rules_and_tokens_until_its_ring_and_brakes(world):
    await world.start()
    await world.apply(**{"estate.yaml": RINGS})
    await world.workload("billing", "sdk_service.py", world.socket, "billing", world.port)
    web = await world.caller("web")
    await world.apply(**{"estate.yaml": RINGS, "policies/shop.cedar": POLICY + NO_REPORTS})
    await until(world, "soaking", "first")
    async with RolloutClient.connect(world.server.data) as rollout:
        status = await rollout.status()
        [point] = [one for one in status["points"] if one["services"] == ["billing"]]
        assert (point["sidecar"], point["version"]) == ("-", status["previous"])
        assert point["acknowledged"] == point["intended"] != ""
        # Not reached: who needs a token there still gets one, which counts.
        assert await report(web, world, await token(web)) == 200
        late = await token(web)
        await rollout.step("Promote")
    await until(world, "soaking", "everywhere")
    began = time.monotonic()
    async with asyncio.timeout(10):
        while await report(web, world, late) != 403:
            await asyncio.sleep(0.1)
    ended = await until(world, "braked", "everywhere")
    assert time.monotonic() - began < 10
    assert "billing:reports:make" in ended["reason"]
    async with asyncio.timeout(10):
        while await report(web, world, late) != 200:
            await asyncio.sleep(0.1)
    # While its agent is away, nobody knows that it takes what is intended.
    out = await world.sidecar("stranger")
    assert out.exists()
    async with RolloutClient.connect(world.server.data) as rollout, asyncio.timeout(20):
        while not any(one["connected"] for one in (await rollout.status())["points"]):
            await asyncio.sleep(0.05)
        await world.stop_agent()
        elsewhere = SERVICE.replace("PORT", str(free_port()))
        await world.apply(**{"estate.yaml": RINGS.split("rollout:")[0], "services/billing.yaml": elsewhere})
        while (status := await rollout.status())["in_step"]:
            await asyncio.sleep(0.05)
        assert any("its agent is away" in sentence for sentence in status["mismatches"])
