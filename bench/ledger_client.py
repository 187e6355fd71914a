"""An agent that reports decisions at a steady pace, in a process of its own.

``python -m bench.ledger_client HOST:PORT BUNDLE TOKEN``; questions come as JSON lines on standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from bench.issuance_client import Client
from bench.processes import TRUST_DOMAIN
from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.ledger.record import Decision
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.rpc.client import method

REPORT = method(pb.DESCRIPTOR.services_by_name["Control"], "ReportDecisions")
SIZE = 1000


class Reporter(Client):
    """One agent that tells of a service."""

    sequence = 0

    async def report(self, pace: int, seconds: float) -> dict[str, int]:
        """``pace`` reports in each second, for so many seconds; each is stored before the next is due."""
        begin, sent = time.perf_counter(), 0
        while pace and (due := begin + sent / pace) < begin + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.sequence += 1
            body = msgspec.json.encode([_row(self.sequence * SIZE + number) for number in range(SIZE)])
            request = pb.ReportDecisionsRequest(decisions=body, spool="ab" * 16, sequence=self.sequence)
            answer = await self._unary(REPORT, request)
            assert answer.sequence == self.sequence
            sent += 1
        return {"reports": sent}


def _row(number: int) -> Decision:
    return Decision(
        time=datetime(2026, 11, 22, tzinfo=UTC) + timedelta(seconds=number // 50),
        service="orders",
        verdict=Verdict.ALLOW,
        code=DecisionCode.ALLOWED,
        mode=MtlsMode.STRICT,
        enforced=True,
        caller=f"spiffe://{TRUST_DOMAIN}/prod/commerce/caller-{number % 3000}",
        operation="orders:all:read",
        method="GET",
        policy="orders-read",
        policy_version="f" * 64,
        rules_version="e" * 64,
        node="orders-1",
        count=number % 97 + 1,
    )


async def main() -> None:
    address, bundle, token = sys.argv[1:]
    client = await Reporter.attest(address, Path(bundle), token, [])
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        question = json.loads(line)
        print(json.dumps(await getattr(client, question.pop("do"))(**question)), flush=True)
    client.close()


if __name__ == "__main__":
    asyncio.run(main())
