"""Cutting one identity off at 200 enforcement points while its neighbours call on: how long, and what they lost.

A server, an agent, two real sidecars with a TCP, an HTTP and a gRPC service, and streams of config that play the other
points' Envoys. The command's own code asks; a point counts once the server has heard that it enforces the newest list,
and the agent once it has that on its disk.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bench.measure import Result, calibration, percentile, spread
from bench.processes import ROOT, Helper
from eastwest.mesh import names

if TYPE_CHECKING:
    import ssl

    from containment_world import ContainmentWorld

sys.path.insert(0, str(ROOT / "tests" / "integration"))

NAMES = ("contain_200_points_ms_p99", "contain_last_allowed_ms_max", "contain_neighbour_lost_calls")
POINTS = 200
REAL = 3  # two sidecars and the agent itself
ROUNDS = 100


def run(*, quick: bool) -> list[Result]:
    """Contain and release again and again, under load."""
    points, rounds = (40, 5) if quick else (POINTS, ROUNDS)
    told = asyncio.run(_measure(points, rounds))
    note = (
        f"{points} points, {REAL - 1} real Envoys, one agent; contain called -> all acknowledged, {{}}; {calibration()}"
    )
    return [
        Result(
            "contain_200_points_ms_p99",
            round(percentile(told.reached, 0.99), 1),
            "ms",
            len(told.reached),
            note.format(f"p50 {percentile(told.reached, 0.5):.0f}, {spread(told.reached)}"),
        ),
        Result(
            "contain_last_allowed_ms_max",
            round(max(told.allowed), 1),
            "ms",
            len(told.allowed),
            "contain called -> the last call of the identity that a real Envoy let through had been answered",
        ),
        Result("contain_neighbour_lost_calls", told.lost, "", told.calls, "calls and new sessions of two neighbours"),
    ]


@dataclass(slots=True)
class _Told:
    reached: list[float] = field(default_factory=list)
    allowed: list[float] = field(default_factory=list)
    calls: int = 0
    lost: int = 0


async def _measure(points: int, rounds: int) -> _Told:
    from containment_world import NEIGHBOUR, NOTIFY, ContainmentWorld

    told = _Told()
    with tempfile.TemporaryDirectory(prefix="ew-") as folder:
        place = Path(folder)
        place.chmod(0o755)
        world = ContainmentWorld(place)
        try:
            await world.start()
            with _Streams(world, points - REAL) as streams:
                neighbour, notify = await world.context(NEIGHBOUR), await world.context(NOTIFY)
                world.mesh.load.start()
                done = asyncio.Event()
                calling = asyncio.create_task(_call_on(world, neighbour, told, done))
                for _ in range(rounds):
                    await _round(world, notify, told, points, streams)
                done.set()
                await calling
                await world.mesh.load.stop()
                told.calls += world.mesh.load.done
                told.lost += len(world.mesh.load.failed)
        finally:
            await world.stop()
    return told


async def _round(world: ContainmentWorld, notify: ssl.SSLContext, told: _Told, points: int, streams: _Streams) -> None:
    from containment_world import NOTIFY

    last = [0.0]
    done = asyncio.Event()
    probing = asyncio.create_task(_probe(world, notify, last, done))
    await asyncio.sleep(0.2)
    began = time.monotonic()
    made, reached = await asyncio.to_thread(_contain, world.data, NOTIFY)
    told.reached.append((time.monotonic() - began) * 1000)
    if reached["enforced"] != points:
        raise RuntimeError(f"{reached['enforced']} of {points} points: {reached['behind'][:3]}")
    await asyncio.sleep(0.2)
    done.set()
    await probing
    told.allowed.append(max(0.0, last[0] - began) * 1000)
    await asyncio.to_thread(streams.changed)
    await asyncio.to_thread(_release, world.data, made["id"])
    await asyncio.to_thread(streams.changed)


def _contain(data: Path, spiffe_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``eastwest contain --yes`` does once its interpreter has started."""
    from eastwest.cli.containment import Api

    with Api(data) as api:
        meant = api.ask("ResolveContainment", selector=spiffe_id)
        named = [one["spiffe_id"] for one in meant["identities"]]
        made = api.ask("StartContainment", spiffe_ids=named, selector=spiffe_id, reason="measured")
        return made, api.follow(30, quiet=True)


def _release(data: Path, containment: str) -> None:
    from eastwest.cli.containment import Api

    with Api(data) as api:
        api.ask("EndContainment", id=containment, reason="measured")
        api.follow(30, quiet=True)


async def _probe(world: ContainmentWorld, notify: ssl.SSLContext, last: list[float], done: asyncio.Event) -> None:
    """Call as the identity, on new connections where the last one was ended; remember the last call that passed."""
    from envoy_mesh import Http

    while not done.is_set():
        try:
            connection = await Http.tcp(world.web_port, ssl=notify, server_hostname="x")
            try:
                while not done.is_set() and (await connection.ask("GET", "/items")).status == 200:
                    last[0] = time.monotonic()
            finally:
                connection.writer.transport.abort()
        except (OSError, EOFError, TimeoutError):
            pass
        await asyncio.sleep(0.002)


async def _call_on(world: ContainmentWorld, neighbour: ssl.SSLContext, told: _Told, done: asyncio.Event) -> None:
    """Call as a neighbour on one connection; one that breaks is a call lost."""
    from envoy_mesh import Http

    while not done.is_set():
        connection = await Http.tcp(world.web_port, ssl=neighbour, server_hostname="x")
        try:
            while not done.is_set():
                told.calls += 1
                if (await connection.ask("GET", "/items")).status != 200:
                    told.lost += 1
                await asyncio.sleep(0.002)
        except (OSError, EOFError, TimeoutError):
            told.lost += 1
        finally:
            connection.writer.transport.abort()


class _Streams:
    """Streams of config that acknowledge all they are sent, from an interpreter with a path of its own."""

    def __init__(self, world: ContainmentWorld, count: int) -> None:
        program = world.place / "simulated"
        shutil.copy(Path(sys.executable).resolve(), program)
        self._helper = Helper(
            "bench.fanout_client", world.agent_socket, str(count), names.operations_filter("simulated"), program=program
        )

    def __enter__(self) -> Self:
        self._helper.__enter__()
        self.changed()
        return self

    def changed(self) -> None:
        """Wait until each stream has got other rules; to be called for every change, for they tell of each."""
        self._helper.ask()

    def __exit__(self, *exception: object) -> None:
        self._helper.__exit__(*exception)
