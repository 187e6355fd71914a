"""Many whole agents in one process, each with a workload that waits for all its SVIDs.

``python -m bench.storm_agents HOST:PORT BUNDLE FOLDER``; a question is a JSON line on standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import structlog
import uvloop

from bench.processes import answers
from eastwest.agent.app import run as run_agent
from eastwest.agent.config import Settings
from eastwest.api.spiffe.workload import workload_pb2
from eastwest.errors import Error
from eastwest.rpc.client import Channel, method

_FETCH = method(workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"], "FetchX509SVID")
_HEADER = {"workload.spiffe.io": "true"}


async def storm(address: str, bundle: str, folder: str, tokens: list[str], svids: int) -> dict[str, float]:
    """Start all agents at once; how long until every workload has every SVID."""
    host, _, port = address.rpartition(":")
    begin = time.perf_counter()
    agents, workloads = [], []
    for number, token in enumerate(tokens):
        data = Path(folder) / str(number)
        settings = Settings(
            data=data, host=host, port=int(port), bundle_file=Path(bundle), trust_domain=None, join_token=token
        )
        agents.append(asyncio.create_task(run_agent(settings)))
        workloads.append(asyncio.create_task(_served(settings.paths.socket, svids)))
    waiting = asyncio.gather(*workloads)
    done, _ = await asyncio.wait([waiting, *agents], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        await task  # an agent that ends early says why
    seconds = time.perf_counter() - begin
    for task in agents:
        task.cancel()
    await asyncio.gather(*agents, return_exceptions=True)
    return {"seconds": seconds}


async def _served(socket: Path, svids: int) -> None:
    while not answers(socket):
        await asyncio.sleep(0.02)
    channel = Channel(path=str(socket))
    try:
        while True:
            try:
                async with channel.stream(_FETCH, metadata=_HEADER) as stream:
                    await stream.send_message(workload_pb2.X509SVIDRequest(), end=True)
                    while (reply := await stream.recv_message()) is not None:
                        if len(reply.svids) == svids:
                            await stream.cancel()
                            return
                    await stream.recv_trailing_metadata()
            except Error:
                await asyncio.sleep(0.02)
    finally:
        channel.close()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    question = json.loads(sys.stdin.readline())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(storm(*sys.argv[1:], **question))), flush=True)
