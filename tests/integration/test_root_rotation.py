"""The root is replaced while two Envoys do nothing but new mTLS handshakes: none fails, and nobody notices.

The server is killed as well, by kill -9, in the middle of each step, and comes back to a state it can go on from.
"""

import asyncio
import contextlib
import random
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from rotation_mesh import RotationMesh

from eastwest.api.eastwest.authority.v1 import authority_pb2 as pb
from eastwest.cli.authority import AuthorityClient
from eastwest.errors import Error, FailedPrecondition

BETWEEN = 20
"""Handshakes between two steps."""


@pytest.fixture
async def mesh() -> AsyncIterator[RotationMesh]:
    with tempfile.TemporaryDirectory(prefix="ew-") as place:
        Path(place).chmod(0o755)
        made = RotationMesh(Path(place))
        try:
            await made.start()
            yield made
        finally:
            await made.stop()


async def test_a_full_rotation_under_load_fails_no_handshake(mesh: RotationMesh) -> None:
    load = mesh.load
    load.start()
    await load.more(BETWEEN)
    async with mesh.ca() as ca:
        before = await ca.state()
        old = next(item for item in before.items if item.kind == "x509")
        assert await mesh.shown_root() == old.id
        mesh.agents[0].send_signal(signal.SIGSTOP)
        prepared = (await ca.prepare("x509", "")).item
        with pytest.raises(FailedPrecondition, match=r"1 live node has not confirmed: spiffe://.*/join_token/"):
            await ca.change("Activate", prepared.id)
        mesh.agents[0].send_signal(signal.SIGCONT)
        await mesh.confirmed()
        await load.more(BETWEEN)
        await ca.change("Activate", prepared.id)
        await load.more(BETWEEN)
        with pytest.raises(FailedPrecondition, match="only what is tainted can be revoked"):
            await ca.change("Revoke", old.id)
        await ca.change("Taint", old.id)
        await mesh.confirmed(released=True)
        assert await mesh.shown_root() == prepared.id
        await load.more(BETWEEN)
        await ca.change("Revoke", old.id)
        await mesh.confirmed()
        await load.more(BETWEEN)
        after = await ca.state()
        await replace_issuing_ca(mesh, ca)
        await load.more(BETWEEN)
    await load.stop()
    assert not load.failed, [*load.failed[:3], mesh.logs()]
    made, resumed = await mesh.handshakes()
    assert made >= load.done >= 5 * BETWEEN
    assert resumed == 0
    assert [(item.id, item.stage) for item in after.items if item.kind == "x509"] == [(prepared.id, "active")]
    assert after.bundle_sequence > before.bundle_sequence
    assert len(list((mesh.data / "server" / "keys").glob("root-*.pem"))) == 1


async def test_an_envoy_that_is_away_is_waited_for_also_by_an_agent_that_was_killed(mesh: RotationMesh) -> None:
    away = mesh.envoys["caller"]
    async with mesh.ca() as ca:
        await mesh.confirmed()
        old = next(item for item in (await ca.state()).items if item.kind == "x509")
        away.send_signal(signal.SIGSTOP)
        mesh.kill_agent()
        prepared = (await ca.prepare("x509", "")).item
        # The agent is back, has the new bundle, and the other Envoy has it from there.
        await mesh.waits_for("caller")
        with pytest.raises(FailedPrecondition, match=r"1 live node has not confirmed: .*sidecars waiting: .*caller"):
            await ca.change("Activate", prepared.id)
        away.send_signal(signal.SIGCONT)
        await mesh.confirmed()
        await ca.change("Activate", prepared.id)
        # What it shows is waited for as well as what it trusts.
        away.send_signal(signal.SIGSTOP)
        await ca.change("Taint", old.id)
        mesh.kill_agent()
        # The agent is back and has replaced its own and the other Envoy's certificate; one is left.
        await mesh.holds(1)
        with pytest.raises(FailedPrecondition, match=r"1 live node has not let go .*holds 1 tainted"):
            await ca.change("Revoke", old.id)
        # One that has ended is not waited for.
        away.kill()
        await mesh.confirmed(released=True)
        await ca.change("Revoke", old.id)


async def replace_issuing_ca(mesh: RotationMesh, ca: AuthorityClient) -> None:
    """The CA of the workloads' environment, which no bundle names."""
    old = next(item.id for item in (await ca.state()).items if item.environment == "prod")
    assert await mesh.shown_issuer() == old
    prepared = (await ca.prepare("issuing", "prod")).item.id
    await ca.change("Activate", prepared)
    await ca.change("Taint", old)
    await mesh.confirmed(released=True)
    assert await mesh.shown_issuer() == prepared
    await ca.change("Revoke", old)


async def test_the_server_is_killed_within_each_step_and_no_handshake_fails(mesh: RotationMesh) -> None:
    chance = random.Random(4)
    load = mesh.load
    load.start()
    await load.more(BETWEEN)
    async with mesh.ca() as ca:
        old = next(item.id for item in (await ca.state()).items if item.kind == "x509")

    def new(state: pb.State) -> pb.Item | None:
        return next((item for item in state.items if item.kind == "x509" and item.id != old), None)

    await killed_within(mesh, chance, "Prepare", "", lambda state: new(state) is not None)
    async with mesh.ca() as ca:
        prepared = new(await ca.state())
    assert prepared is not None
    await mesh.confirmed()
    await killed_within(mesh, chance, "Activate", prepared.id, lambda s: stage(s, prepared.id) == "active")
    await killed_within(mesh, chance, "Taint", old, lambda s: stage(s, old) == "tainted")
    await mesh.confirmed(released=True)
    await killed_within(mesh, chance, "Revoke", old, lambda s: stage(s, old) == "")
    await mesh.confirmed()
    await load.more(BETWEEN)
    await load.stop()
    assert not load.failed, [*load.failed[:3], mesh.logs()]
    assert await mesh.shown_root() == prepared.id
    async with mesh.ca() as ca:
        state = await ca.state()
    # Whatever was cut short left no key behind that nothing needs.
    keys = {path.stem for path in (mesh.data / "server" / "keys").glob("*.pem")}
    assert len([name for name in keys if name.startswith("root-")]) == 1
    assert len([name for name in keys if name.startswith("issuing-")]) == len(
        [item for item in state.items if item.kind == "issuing"]
    )


async def killed_within(
    mesh: RotationMesh, chance: random.Random, verb: str, authority: str, done: Callable[[pb.State], bool]
) -> None:
    """One step, with kill -9 somewhere in it, done again after the restart if it did not come to pass."""

    async def step() -> None:
        async with mesh.ca() as ca:
            if verb == "Prepare":
                await ca.prepare("x509", "")
            else:
                await ca.change(verb, authority)

    attempt = asyncio.create_task(step())
    await asyncio.sleep(chance.uniform(0.0, 0.03))
    mesh.server.kill()
    with contextlib.suppress(Error):
        await attempt
    await asyncio.to_thread(mesh.server.start)
    async with mesh.ca() as ca:
        if not done(await ca.state()):
            await step()
        assert done(await ca.state())
    await mesh.load.more(BETWEEN)


def stage(state: pb.State, authority: str) -> str:
    for item in state.items:
        if item.id == authority:
            return "tainted" if item.tainted else item.stage
    return ""
