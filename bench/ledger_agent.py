"""The agent's way of a decision, from the access log to the server's answer, in a process of its own.

``python -m bench.ledger_agent``; the one question is a JSON line ``{socket, sidecar, spool}``, answered when it
listens; each ``{entries}`` after it is answered with the CPU seconds spent, once so many entries have come and the
rows made of them are with the "server", which only counts.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from eastwest.agent.als import AccessLogs
from eastwest.agent.decisions import Decisions
from eastwest.agent.spool import DEFAULT_LIMIT, Spool
from eastwest.agent.xds import Principal
from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.ledger.record import Row
from eastwest.mesh.action import InForce
from eastwest.mesh.resources import versions_in_force
from eastwest.policy.enforcement import decode_sidecar
from eastwest.rpc.service import Call, Listener


class Rules:
    def __init__(self, sidecar: bytes) -> None:
        self._versions = versions_in_force(decode_sidecar(sidecar))

    def current(self, _principal: Principal, service: str) -> InForce | None:
        return next((rules for rules in self._versions.values() if rules.service == service), None)

    def version(self, version: str) -> InForce | None:
        return self._versions.get(version)

    def outgoing(self, _principal: Principal, _service: str) -> None:
        return None


class Server:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.calls = self.rows = 0

    async def report(self, _spool: str, sequence: int, rows: bytes) -> int:
        told = msgspec.json.decode(rows, type=list[Row])
        self.rows += len(told)
        self.calls += sum(row.count for row in told)
        return sequence


async def serve(question: dict[str, Any]) -> None:
    clock, server = SystemClock(), Server()
    spool = Spool(Path(question["spool"]), DEFAULT_LIMIT, clock, SystemEntropy())
    decisions = Decisions(server, clock, random.SystemRandom(), spool)
    await decisions.open()

    async def identify(_call: Call) -> Principal:
        return Principal(("spiffe://bench.test/service",))

    logs = AccessLogs(identify, Rules(question["sidecar"].encode()), decisions.record)
    listener = Listener(logs.services())
    await listener.listen_unix(Path(question["socket"]), 0o600)
    running = asyncio.create_task(decisions.run())
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("{}", flush=True)
    while line := await lines.readline():
        expected = server.calls + json.loads(line)["entries"]
        begin = time.process_time()
        while server.calls < expected:
            await asyncio.sleep(0.05)
        print(json.dumps({"cpu": time.process_time() - begin, "rows": server.rows}), flush=True)
    running.cancel()
    await decisions.close()
    await listener.close()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.stdin.readline())))
