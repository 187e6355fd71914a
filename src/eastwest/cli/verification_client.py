"""Verify runs over the admin socket: the plan and the certificates come from the server, the calls go out from here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from eastwest.api.eastwest.verification.v1 import verification_pb2 as pb
from eastwest.cli.admin import admin_channel
from eastwest.clock import SystemClock
from eastwest.policy.canary import Plan
from eastwest.rpc.client import Channel, method
from eastwest.server.verification.credentials import Wallet, Wanted
from eastwest.server.verification.prober import Prober

_SERVICE = pb.DESCRIPTOR.services_by_name["Verification"]
BATCH = 500


class VerificationClient:
    """Use as ``async with VerificationClient.connect(data) as verification``; raises what the server says."""

    def __init__(self, channel: Channel, wallet: Wallet | None = None) -> None:
        """``wallet`` has the certificates of earlier runs."""
        self._channel = channel
        self._clock = SystemClock()
        self._wallet = wallet or Wallet()

    @classmethod
    def connect(cls, data: Path, wallet: Wallet | None = None) -> VerificationClient:
        """Reach the server of ``data``; raises ``Unavailable`` when none runs there."""
        return cls(admin_channel(data), wallet)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._channel.close()

    async def run(
        self, services: Sequence[str], allow_ports: Sequence[int], progress: Callable[[int, int], None]
    ) -> dict[str, Any]:
        """One run, and its report. ``progress`` hears how many points are done, and of how many."""
        begun = await self._call("BeginRun", pb.BeginRunRequest(services=services), 60)
        finish = pb.FinishRunRequest(run=begun.run, abandoned=True)
        try:
            plan = msgspec.json.decode(begun.plan, type=Plan)
            now = self._clock.now().timestamp()
            credentials = await self._wallet.credentials(plan, lambda asked: self._issue(begun.run, asked), now)
            seen = await Prober(plan, credentials, self._clock, progress).run()
            finish = pb.FinishRunRequest(run=begun.run, observations=msgspec.json.encode(seen), allow_ports=allow_ports)
        finally:
            # A run that failed here ends there too, and lets others go on.
            reply = await self._call("FinishRun", finish, 60)
        report: dict[str, Any] = msgspec.json.decode(reply.report)
        return report

    async def last(self) -> dict[str, Any] | None:
        """The report of the last run, whoever made it; None: there was none since the server started."""
        reply = await self._call("GetLastRun", pb.GetLastRunRequest(), 20)
        return msgspec.json.decode(reply.report) if reply.report else None

    async def _issue(self, run: str, asked: Sequence[Wanted]) -> list[tuple[bytes, ...]]:
        found: list[tuple[bytes, ...]] = []
        for start in range(0, len(asked), BATCH):
            wanted = [
                pb.IssueCanariesRequest.Wanted(spiffe_id=one.spiffe_id, csr=one.csr, ttl=one.ttl)
                for one in asked[start : start + BATCH]
            ]
            reply = await self._call("IssueCanaries", pb.IssueCanariesRequest(run=run, wanted=wanted), 60)
            found += [tuple(issued.chain) for issued in reply.issued]
        return found

    async def _call(self, name: str, request: Any, seconds: float) -> Any:
        return await self._channel.unary(method(_SERVICE, name), request, deadline=seconds)
