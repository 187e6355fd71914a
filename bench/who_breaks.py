"""A planted estate of forty callers: how exactly the break list names those that fail after the flip to strict.

And what it costs a plaintext connection that the agent looks who is there.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bench.measure import Result

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "integration"))

NAMES = (
    "who_breaks_precision",
    "who_breaks_recall",
    "plaintext_connection_ms_p50",
    "plaintext_connection_ms_p99",
    "plaintext_identified_added_ms_p50",
)
CONNECTIONS = 1000


def run(*, quick: bool) -> list[Result]:
    """Real processes: a server, an agent, the service's Envoy, plaintext callers under users of their own."""
    return asyncio.run(_measured(CONNECTIONS // 10 if quick else CONNECTIONS))


async def _measured(connections: int) -> list[Result]:
    from strict_world import StrictWorld, named, planted

    callers = planted(good=27, plaintext=7, expired=3, foreign=2, absent=1)
    with tempfile.TemporaryDirectory(prefix="ew-") as place:
        Path(place).chmod(0o755)
        world = StrictWorld(Path(place), callers)
        try:
            await world.start()
            await world.all_call()
            report = await world.recorded(sum(caller.kind != "absent" for caller in callers))
            listed = named(report, callers)
            await world.switch_strict()
            after = await world.all_call()
            times = sorted([await _connect(world.port) for _ in range(connections)])
            world.stop_agent()
            alone = sorted([await _connect(world.port) for _ in range(connections)])
        finally:
            await world.stop()
    failed = {name for name, passed in after.items() if not passed}
    right = len(set(listed) & failed)
    note = f"{len(listed)} rows, {len(failed)} callers failed after the flip, of {len(callers)}"
    cost = "connect, first request, its refusal; the agent has looked before that"
    middle = connections // 2
    added = times[middle] - alone[middle]
    return [
        Result("who_breaks_precision", right / len(listed), "", len(listed), note),
        Result("who_breaks_recall", right / len(failed), "", len(failed), ""),
        Result("plaintext_connection_ms_p50", times[middle], "ms", connections, cost),
        Result("plaintext_connection_ms_p99", times[int(connections * 0.99)], "ms", connections, ""),
        Result("plaintext_identified_added_ms_p50", added, "ms", connections, "against the same without an agent"),
    ]


async def _connect(port: int) -> float:
    from envoy_mesh import Http

    begin = time.perf_counter()
    connection = await Http.tcp(port)
    await connection.ask("GET", "/orders")
    took = (time.perf_counter() - begin) * 1000
    await connection.close()
    return took
