"""``policy status`` counts what nobody has told of: rules that should be somewhere, and no word that they are."""

import asyncio
import time

from two_person_world import TD, World, base, rendered
from typer.testing import CliRunner

from eastwest.cli.main import app
from eastwest.cli.rollout_client import RolloutClient
from eastwest.registry.node import Node
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.selector import Selector

AGENT = SpiffeId.parse(f"spiffe://{TD}/spire/agent/join_token/1")
GROUP = frozenset({Selector("join_token", "group:nodes"), Selector("x509pop", "subject:cn:a")})


def node(not_after):
    kind = {"attestation_type": "join_token", "serial_current": "1", "selectors": GROUP}
    return Node(spiffe_id=AGENT, not_after=not_after, **kind)


async def told(world):
    async with RolloutClient.connect(world.data) as client:
        status = await client.status()
    return status, {(one["sidecar"], one["agent"], one["services"][0]) for one in status["points"]}


async def test_rules_that_nobody_has_are_a_mismatch(tmp_path) -> None:
    async with World(tmp_path / "data") as world:
        await world.admin.apply_estate(rendered(base()))
        status, points = await told(world)
        assert points == {("?", "", "bills"), ("?", "", "desk")}
        assert not status["in_step"]
        assert [one["acknowledged"] for one in status["points"]] == ["", ""]
        assert all(one["intended"] for one in status["points"])
        assert any("nobody has the rules of bills" in one for one in status["mismatches"])
        shown = await asyncio.to_thread(CliRunner().invoke, app, ["policy", "status", "--data", str(world.data)])
        assert shown.exit_code == 1
        assert "no agent is here that may run" in shown.stdout
        assert "never" in shown.stdout


async def test_an_agent_that_was_not_heard_of_since_the_start_is_a_mismatch(tmp_path) -> None:
    async with World(tmp_path / "data") as world:
        await world.admin.apply_estate(rendered(base()))
        nodes = world.server.registry.nodes
        await nodes.record_attestation(node(int(time.time()) + 3600))
        status, points = await told(world)
        assert points == {("?", str(AGENT), "bills"), ("?", str(AGENT), "desk")}
        assert any("has not been heard of since the server started" in one for one in status["mismatches"])
        # One that is banned runs nothing any more, nor does one whose certificate has ended.
        await nodes.ban(AGENT)
        assert {agent for _, agent, _ in (await told(world))[1]} == {""}
        await nodes.evict(AGENT)
        await nodes.record_attestation(node(int(time.time()) - 1))
        assert {agent for _, agent, _ in (await told(world))[1]} == {""}
