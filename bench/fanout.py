"""One change of policy to 1,000 sidecars: admin API -> server -> agent -> 1,000 delta ADS streams -> acknowledged.

An agent serves the Envoys of its node, over its unix socket, at most a thousand and no more than half of them for one
workload. Here four agents share the machine, and processes that are attested as one workload play its Envoys.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import ExitStack
from pathlib import Path

from bench.company import Company, workload
from bench.measure import Result, calibration, cpu_seconds, percentile, spread
from bench.processes import Agent, Helper, Server, scratch
from eastwest.cli.admin import AdminClient
from eastwest.mesh import names

NAMES = ("ads_1000_fanout_s", "ads_1000_push_s", "ads_1000_agent_cpu_s")
STREAMS, NODES = 1000, 4
_CLIENT = "bench.fanout_client"
_COMPANY = Company(domains=1, services=1, workloads=5)


def run(*, quick: bool) -> list[Result]:
    """A server, agents, processes with the streams; this one applies."""
    streams, rounds = (40 if quick else STREAMS // NODES), (3 if quick else 11)
    with scratch() as folder, Server(folder / "data") as server, ExitStack() as stack:
        server.admin(lambda admin: admin.apply_estate(_files(0)))
        agents = [stack.enter_context(_Node(server, folder / f"node{number}")) for number in range(NODES)]
        arguments = (str(streams), names.operations_filter("service-00-00"))
        clients = [stack.enter_context(Helper(_CLIENT, agent.socket, *arguments)) for agent in agents]
        pushed, whole, cpu = asyncio.run(_changes(server, agents, clients, rounds))
    note = f"{NODES} agents with {streams} streams each; %s, median of {rounds} ({{}}); {calibration()}"
    applying = (note % "apply called -> last acknowledgement").format(spread(whole, 2))
    pushing = (note % "first acknowledgement -> last").format(spread(pushed, 2))
    return [
        Result("ads_1000_fanout_s", round(percentile(whole, 0.5), 2), "s", rounds, applying),
        Result("ads_1000_push_s", round(percentile(pushed, 0.5), 2), "s", rounds, pushing),
        Result("ads_1000_agent_cpu_s", round(percentile(cpu, 0.5), 2), "s", rounds, "of all agents, for one change"),
    ]


class _Node(Agent):
    """An agent with a data directory of its own."""

    def __init__(self, server: Server, data: Path) -> None:
        super().__init__(server, group="prod-nodes")
        self.command = [str(data) if part == str(self.data) else part for part in self.command]
        self.data = data
        self.log = data.with_suffix(".log")


def _files(edition: int) -> dict[str, bytes]:
    """The smallest company; its first workload is whatever runs as this user."""
    files = _COMPANY.files(edition=edition)
    name = "workloads/domain-00.yaml"
    assert workload(0, 0).encode() in files[name]
    files[name] = files[name].replace(b"unix:path:/srv/00/000/envoy", f"unix:uid:{os.geteuid()}".encode())
    return files


async def _changes(
    server: Server, agents: list[_Node], clients: list[Helper], rounds: int
) -> tuple[list[float], list[float], list[float]]:
    pushed, whole, cpu = [], [], []
    async with AdminClient.connect(server.data) as admin:
        await _all(clients)
        for number in range(rounds + 1):
            before, begin = _cpu(agents), time.monotonic()
            seen = asyncio.create_task(_all(clients))
            await admin.apply_estate(_files(number + 1))
            told = await seen
            if number:  # the first one warms up
                first, last = min(one["first"] for one in told), max(one["last"] for one in told)
                pushed.append(last - first)
                whole.append(last - begin)
                cpu.append(_cpu(agents) - before)
    return pushed, whole, cpu


async def _all(clients: list[Helper]) -> list[dict[str, float]]:
    return await asyncio.gather(*(asyncio.to_thread(client.ask) for client in clients))


def _cpu(agents: list[_Node]) -> float:
    return sum(cpu_seconds(agent.pid) for agent in agents)
