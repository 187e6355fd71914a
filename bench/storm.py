"""Everything at once: 50 nodes that join and 5,000 workloads that wait, and one node with 500 workloads.

The 50 agents are whole agents of ours (``eastwest.agent.app.run``: join token, control stream, keys and CSRs, Workload
API on a socket of its own), all in one process (``bench.storm_agents``), as 50 interpreters would measure themselves.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

from bench.measure import Result, calibration, cpu_seconds, percentile, rss_mb
from bench.processes import TRUST_DOMAIN, Agent, Helper, Server, scratch
from eastwest.api.spiffe.workload import workload_pb2
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.rpc.client import Channel, method

NAMES = ("storm_5000_s", "storm_5000_server_cpu_s", "agent_500_workloads_rss_mb")
AGENTS, OF_EACH = 50, 100
WORKLOADS = 500
_CREATE = method(entry_pb2.DESCRIPTOR.services_by_name["Entry"], "BatchCreateEntry")
_FETCH = method(workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"], "FetchX509SVID")
_HEADER = {"workload.spiffe.io": "true"}


def run(*, quick: bool) -> list[Result]:
    """The storm, each time on a new server; then the one agent."""
    seconds, cpu = [], []
    for _ in range(1 if quick else 3):
        taken, used = _storm(AGENTS // 5 if quick else AGENTS)
        seconds.append(taken)
        cpu.append(used)
    agents = AGENTS // 5 if quick else AGENTS
    note = f"{agents} agents join by token, {agents * OF_EACH} SVIDs; agents started -> all on Workload API streams; "
    return [
        Result("storm_5000_s", round(percentile(seconds, 0.5), 2), "s", len(seconds), note + calibration()),
        Result(
            "storm_5000_server_cpu_s", round(percentile(cpu, 0.5), 2), "s", len(cpu), "the server's share of CPU in it"
        ),
        _memory(WORKLOADS),
    ]


def _storm(agents: int) -> tuple[float, float]:
    with scratch() as folder, Server(folder / "data") as server:
        tokens = [server.token() for _ in range(agents)]
        for number, token in enumerate(tokens):
            parent = f"/spire/agent/join_token/{token}"
            entries = [_entry(parent, f"{number}-{one}", os.geteuid()) for one in range(OF_EACH)]
            _create(server, entries)
        with Helper("bench.storm_agents", server.address, server.bundle(), folder) as helper:
            before = cpu_seconds(server.pid)
            answer = helper.ask(tokens=tokens, svids=OF_EACH)
            return answer["seconds"], cpu_seconds(server.pid) - before


def _memory(workloads: int) -> Result:
    with scratch() as folder, Server(folder / "data") as server, Agent(server) as agent:
        log_before = server.admin(lambda admin: admin.status()).log_size
        # Processes of one program can be told apart by nothing here: one entry is theirs, the others are made ready.
        entries = [_entry(agent.path, f"other-{one}", 60_000 + one) for one in range(workloads - 1)]
        _create(server, [*entries, _entry(agent.path, "mine", os.geteuid())])
        agent.wait_for(
            "all SVIDs", lambda: server.admin(lambda admin: admin.status()).log_size >= log_before + 2 * workloads
        )
        size = asyncio.run(_with_streams(agent, workloads))
    note = f"{workloads} SVIDs held ready, and {workloads} Workload API streams open, each on a connection of its own"
    return Result("agent_500_workloads_rss_mb", round(size, 1), "MB", 1, note)


async def _with_streams(agent: Agent, count: int) -> float:
    """The agent's memory while ``count`` streams are open, each of which has been served."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            channel = Channel(path=str(agent.socket))
            stack.callback(channel.close)
            stream = await stack.enter_async_context(channel.stream(_FETCH, metadata=_HEADER))
            await stream.send_message(workload_pb2.X509SVIDRequest(), end=True)
            assert await stream.recv_message() is not None
            stack.push_async_callback(stream.cancel)
        return rss_mb(agent.pid)


def _create(server: Server, entries: list[types_pb2.Entry]) -> None:
    reply = server.call(_CREATE, entry_pb2.BatchCreateEntryRequest(entries=entries))
    assert all(result.status.code == 0 for result in reply.results), reply.results[0]


def _entry(parent: str, name: str, uid: int) -> types_pb2.Entry:
    return types_pb2.Entry(
        spiffe_id=types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=f"/storm/{name}"),
        parent_id=types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=parent),
        selectors=[types_pb2.Selector(type="unix", value=f"uid:{uid}")],
    )
