"""What the record of a call costs the agent: messages that a real Envoy sent under load, replayed into our own part.

The agent's part runs in a process of its own (``bench.ledger_agent``) and all its CPU counts: reading HTTP/2, the
decision, the roll-up, the spool on disk, the report. The messages are those of one service under load from one caller.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from envoy.service.accesslog.v3 import als_pb2

from bench.measure import Result, calibration, spread
from bench.processes import ROOT, Helper, scratch
from bench.sidecars import Sidecars
from bench.tree import CONNECTIONS, Variant, _answering, _caller, _service
from eastwest.agent.als import MAX_MESSAGE_BYTES, Rules
from eastwest.agent.xds import Identify
from eastwest.mesh import names
from eastwest.policy.enforcement import encode_sidecar
from eastwest.rpc.client import Channel, method
from eastwest.rpc.service import Call, Servable, Service

NAMES = ("ledger_cpu_us_per_call",)
_API = als_pb2.DESCRIPTOR.services_by_name["AccessLogService"]
_METHOD = method(_API, "StreamAccessLogs")


class _Capture:
    """Keeps the messages of the service's log of requests as they came."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def service(self, _identify: Identify, _rules: Rules) -> Servable:
        return Service(_API, {"StreamAccessLogs": self._stream}, limit=MAX_MESSAGE_BYTES)

    async def _stream(self, _: None, call: Call) -> Any:
        identifier = None
        async for message in call:
            identifier = message.identifier if message.HasField("identifier") else identifier
            if identifier is not None and names.service_of_log(identifier.log_name)[0] == "decisions":
                kept = als_pb2.StreamAccessLogsMessage()
                kept.CopyFrom(message)
                kept.identifier.CopyFrom(identifier)
                self.messages.append(kept)
        return als_pb2.StreamAccessLogsResponse()


def run(*, quick: bool) -> list[Result]:
    """Capture, then replay some times over."""
    variant = Variant("logged", 20, 50, _answering)
    capture = _Capture()
    with scratch() as folder:
        with Sidecars(folder, logs=capture.service) as sidecars, Helper("bench.load") as load:
            variant.envoy = sidecars.add(_service(variant, allowed=True), variant.rewrite)
            caller = sidecars.add(_caller([variant]))
            sidecars.settle()
            sidecar = encode_sidecar(variant.envoy.sidecar).decode()
            told = {"path": str(caller.egress), "request": variant.request, "connections": CONNECTIONS, "expect": 200}
            answer = load.ask(**told, seconds=1.0 if quick else 4.0)
            if answer["wrong"]:
                raise RuntimeError(f"{answer['wrong']} of {answer['requests']} answers were not 200")
        messages = [m for m in capture.messages if m.http_logs.log_entry]
        entries = sum(len(m.http_logs.log_entry) for m in messages)
        costs = asyncio.run(_replay(folder, sidecar, messages, entries, rounds=3 if quick else 9))
    note = (
        f"{entries} entries in {len(messages)} messages of a real Envoy, replayed; CPU of the agent's part from HTTP/2 "
        f"to the server's answer, median of {len(costs)} rounds ({spread(costs, 1)}); {calibration()}"
    )
    return [Result("ledger_cpu_us_per_call", round(statistics.median(costs), 1), "us", entries * len(costs), note)]


async def _replay(folder: Path, sidecar: str, messages: list[Any], entries: int, rounds: int) -> list[float]:
    socket = folder / "ledger.sock"
    question = {"socket": str(socket), "sidecar": sidecar, "spool": str(folder / "spool")}
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.ledger_agent", stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert agent.stdin is not None
    assert agent.stdout is not None
    costs = []
    try:
        agent.stdin.write(json.dumps(question).encode() + b"\n")
        await agent.stdout.readline()
        channel = Channel(path=str(socket))
        async with channel.stream(_METHOD) as stream:
            for number in range(rounds + 1):
                agent.stdin.write(json.dumps({"entries": entries}).encode() + b"\n")
                for message in messages:
                    await stream.send_message(message)
                answer = json.loads(await agent.stdout.readline())
                if number:  # the first warms caches up, as a minute of traffic would
                    costs.append(answer["cpu"] / entries * 1e6)
            await stream.cancel()
        channel.close()
    finally:
        agent.stdin.close()
        await agent.wait()
    return costs
