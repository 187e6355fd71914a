"""Many Envoys' config streams: each asks for everything, and acknowledges what it is sent.

``python -m bench.fanout_client SOCKET STREAMS FILTER``; questions are JSON lines: ``open`` the streams, and ``wait``
until every stream has acknowledged another content of the filter. The answers say when the first and the last did, in
seconds of the machine's monotonic clock. A process may have few streams, so there is a process for every eight.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
import time

import uvloop
from envoy.service.discovery.v3 import ads_pb2, discovery_pb2

from eastwest.mesh import names
from eastwest.rpc.client import Channel, method

OF_A_PROCESS = 8
SECONDS = 60.0
_ADS = method(ads_pb2.DESCRIPTOR.services_by_name["AggregatedDiscoveryService"], "DeltaAggregatedResources")


async def _streams(socket: str, numbers: range, watched: str, told: int) -> None:
    channel = Channel(path=socket)
    await asyncio.gather(*(_stream(channel, number, watched, told) for number in numbers))


async def _stream(channel: Channel, number: int, watched: str, told: int) -> None:
    held = ""
    async with channel.stream(_ADS) as stream:
        for type_url in names.PUSH_ORDER:
            request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url)
            request.node.id = f"fanout-{number}"
            await stream.send_message(request)
        while (response := await stream.recv_message()) is not None:
            taken = discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
            await stream.send_message(taken)
            version = next((one.version for one in response.resources if one.name == watched), held)
            if version != held:
                held = version
                os.write(told, f"{time.monotonic()}\n".encode())
        await stream.recv_trailing_metadata()  # the agent's reason


class Processes:
    """The processes with the streams, and what they tell."""

    def __init__(self, socket: str, count: int, watched: str) -> None:
        self._count = count
        self._told, told = os.pipe()
        self._rest = b""
        self._pids: list[int] = []
        for start in range(0, count, OF_A_PROCESS):
            pid = os.fork()
            if pid == 0:
                numbers = range(start, min(start + OF_A_PROCESS, count))
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(_streams(socket, numbers, watched, told))
                os._exit(1)
            self._pids.append(pid)

    def changed(self) -> dict[str, float]:
        """Wait until each stream has told of another content."""
        times: list[float] = []
        while len(times) < self._count:
            ready, _, _ = select.select([self._told], [], [], SECONDS)
            if not ready:
                raise RuntimeError(f"{self._count - len(times)} streams acknowledged nothing in {SECONDS:.0f} s")
            *lines, self._rest = (self._rest + os.read(self._told, 65536)).split(b"\n")
            times += map(float, lines)
        return {"first": min(times), "last": max(times)}

    def end(self) -> None:
        """End them."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main() -> None:
    socket, count, watched = sys.argv[1:]
    sys.stdin.readline()
    processes = Processes(socket, int(count), watched)
    try:
        print(json.dumps(processes.changed()), flush=True)
        while sys.stdin.readline():
            print(json.dumps(processes.changed()), flush=True)
    finally:
        processes.end()


if __name__ == "__main__":
    main()
