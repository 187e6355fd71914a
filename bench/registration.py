"""How long a workload waits for an identity: entry created by the admin API -> SVID on its open Workload API stream.

admin API -> server -> control stream -> agent -> key and CSR -> server -> agent -> FetchX509SVID stream
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from bench.measure import Result, calibration, percentile, rss_mb
from bench.processes import TRUST_DOMAIN, Agent, Server, scratch
from eastwest.api.spiffe.workload import workload_pb2
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.errors import Error
from eastwest.rpc.client import Channel, method

NAMES = ("registration_to_svid_ms_p50", "registration_to_svid_ms_p99", "agent_rss_mb")
AGENT_ENTRIES = 100
_ENTRY = entry_pb2.DESCRIPTOR.services_by_name["Entry"]
_CREATE, _DELETE = method(_ENTRY, "BatchCreateEntry"), method(_ENTRY, "BatchDeleteEntry")
_FETCH = method(workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"], "FetchX509SVID")
_HEADER = {"workload.spiffe.io": "true"}


def run(*, quick: bool) -> list[Result]:
    """One server, one agent; this process is the workload and the administrator."""
    with scratch() as folder, Server(folder / "data") as server, Agent(server) as agent:
        samples = asyncio.run(measure(server, agent, 20 if quick else 100))
        note = f"create entry -> pushed to the open stream ({max(samples):.1f} ms at most); " + calibration()
        return [
            Result("registration_to_svid_ms_p50", round(percentile(samples, 0.5), 1), "ms", len(samples), note),
            Result("registration_to_svid_ms_p99", round(percentile(samples, 0.99), 1), "ms", len(samples), note),
            _memory(server, agent),
        ]


async def measure(server: Server, agent: Agent, count: int) -> list[float]:
    """Milliseconds, one for each entry made."""
    rig = _Rig(server, agent)
    try:
        return await rig.measure(count)
    finally:
        rig.close()


class _Rig:
    """An administrator and a workload."""

    def __init__(self, server: Server, agent: Agent) -> None:
        self._agent = agent
        self._admin = Channel(path=str(server.data / "server" / "api.sock"))
        self._workload = Channel(path=str(agent.socket))

    def close(self) -> None:
        self._admin.close()
        self._workload.close()

    async def measure(self, count: int) -> list[float]:
        await self._create("first")
        # A caller without any identity is refused, so the stream is opened again until the first one is there.
        for _ in range(200):
            try:
                async with self._workload.stream(_FETCH, metadata=_HEADER) as stream:
                    await stream.send_message(workload_pb2.X509SVIDRequest(), end=True)
                    if await stream.recv_message() is not None:
                        samples = [await self._one(stream, number) for number in range(count + 3)]
                        await stream.cancel()
                        return samples[3:]
                    await stream.recv_trailing_metadata()
            except Error:
                await asyncio.sleep(0.05)
        raise RuntimeError("the first entry never became an identity")

    async def _one(self, stream: Any, number: int) -> float:
        name = f"w{number}"
        begin = time.perf_counter()
        entry = await self._create(name)
        await _until(stream, f"/bench/{name}", there=True)
        taken = time.perf_counter() - begin
        reply = await self._admin.unary(_DELETE, entry_pb2.BatchDeleteEntryRequest(ids=[entry]))
        assert reply.results[0].status.code == 0, reply
        await _until(stream, f"/bench/{name}", there=False)
        return taken * 1e3

    async def _create(self, name: str) -> str:
        request = entry_pb2.BatchCreateEntryRequest(entries=[_entry(self._agent, name, os.geteuid())])
        [result] = (await self._admin.unary(_CREATE, request)).results
        assert result.status.code == 0, result
        return str(result.entry.id)


async def _until(stream: Any, path: str, *, there: bool) -> None:
    async with asyncio.timeout(20):
        while True:
            reply = await stream.recv_message()
            if any(svid.spiffe_id.endswith(path) for svid in reply.svids) is there:
                return


def _memory(server: Server, agent: Agent) -> Result:
    """With SVIDs of a hundred other workloads ready in the agent."""
    before = server.admin(lambda admin: admin.status()).log_size
    entries = [_entry(agent, f"other-{number}", 60_000) for number in range(AGENT_ENTRIES)]
    server.call(_CREATE, entry_pb2.BatchCreateEntryRequest(entries=entries))
    # Each entry is one line in the log and its SVID another.
    agent.wait_for(
        "all SVIDs", lambda: server.admin(lambda admin: admin.status()).log_size >= before + 2 * AGENT_ENTRIES
    )
    note = f"{AGENT_ENTRIES} SVIDs held ready"
    return Result("agent_rss_mb", round(rss_mb(agent.pid), 1), "MB", 1, note)


def _entry(agent: Agent, name: str, uid: int) -> types_pb2.Entry:
    return types_pb2.Entry(
        spiffe_id=types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=f"/bench/{name}"),
        parent_id=types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=agent.path),
        selectors=[types_pb2.Selector(type="unix", value=f"uid:{uid}")],
    )
