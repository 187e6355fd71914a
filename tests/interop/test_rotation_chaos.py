"""Root after root is replaced under new handshakes, while server and agent are killed again and again by kill -9.

Seeded; the seed is in every failure. EASTWEST_CHAOS_SEED and EASTWEST_CHAOS_ROUNDS choose others.
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from rotation_mesh import RotationMesh

from eastwest.errors import Error

SEED = int(os.environ.get("EASTWEST_CHAOS_SEED", str(time.time_ns() % 10_000)))
ROUNDS = int(os.environ.get("EASTWEST_CHAOS_ROUNDS", "3"))


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


class Killer:
    """Kills the server, and for its share the agent, at random moments while told to."""

    def __init__(self, mesh: RotationMesh, chance: random.Random, agent_share: float) -> None:
        self.kills = 0
        self._agent_share = agent_share
        self._mesh = mesh
        self._chance = chance
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(0.02, 0.6))
            async with self._turn:
                self.kills += 1
                if self._chance.random() >= self._agent_share:
                    await asyncio.to_thread(self._mesh.restart)
                else:
                    await asyncio.to_thread(self._mesh.kill_agent)
            await asyncio.sleep(self._chance.uniform(0.3, 1.5))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("agent_share", [0.0, 0.3], ids=["server", "server and agent"])
async def test_no_handshake_fails_however_often_they_die(mesh: RotationMesh, agent_share: float) -> None:
    chance = random.Random(SEED)
    killer = Killer(mesh, chance, agent_share)
    load = mesh.load
    load.start()
    await load.more(20)
    killing = asyncio.create_task(killer.run())
    rounds = 0
    try:
        # A quiet machine rotates faster than anybody is killed: on until enough were.
        while rounds < ROUNDS or killer.kills < 2 * ROUNDS:
            await rotate(mesh)
            rounds += 1
    finally:
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
    # What was killed in the middle of being killed is back.
    if mesh.server.process is None:
        mesh.server.start()
    await load.more(50)
    await load.stop()
    assert not load.failed, (SEED, killer.kills, load.failed[:3], mesh.logs())
    made, resumed = await mesh.handshakes()
    assert made >= load.done
    assert resumed == 0
    assert killer.kills >= 2 * ROUNDS, SEED


async def rotate(mesh: RotationMesh) -> None:
    """One rotation; each step is asked for until it has come to pass, for whoever answers may die at any time."""
    old = await one(mesh, "active")
    assert old is not None

    async def prepare() -> None:
        async with mesh.ca() as ca:
            await ca.prepare("x509", "")

    await until(prepare, lambda: one(mesh, "prepared"))
    new = await one(mesh, "prepared")
    assert new is not None
    await until(change(mesh, "Activate", new), lambda: is_so(mesh, new, "active"))
    await until(change(mesh, "Taint", old), lambda: is_so(mesh, old, "tainted"))
    await until(change(mesh, "Revoke", old), lambda: is_so(mesh, old, ""))


async def until(act: Callable[[], Awaitable[object]], done: Callable[[], Awaitable[object]]) -> None:
    last: Exception | None = None
    async with asyncio.timeout(90):
        while True:
            try:
                if await done():
                    return
                await act()
            except (Error, OSError) as error:  # it died, is not back yet, or somebody has not confirmed yet
                last = error
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                raise AssertionError(f"seed {SEED}: {last}") from last


def change(mesh: RotationMesh, verb: str, authority: str) -> Callable[[], Awaitable[object]]:
    async def act() -> None:
        async with mesh.ca() as ca:
            await ca.change(verb, authority)

    return act


async def is_so(mesh: RotationMesh, authority: str, stage: str) -> bool:
    async with mesh.ca() as ca:
        found = [item for item in (await ca.state()).items if item.id == authority]
    return (("tainted" if found[0].tainted else found[0].stage) if found else "") == stage


async def one(mesh: RotationMesh, stage: str) -> str | None:
    async with mesh.ca() as ca:
        state = await ca.state()
    return next((item.id for item in state.items if item.kind == "x509" and item.stage == stage), None)
