"""Versions and rollouts as ``eastwest policy`` reaches them: a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import msgspec

from eastwest.api.eastwest.rollout.v1 import rollout_pb2 as pb
from eastwest.cli.admin import admin_channel
from eastwest.rpc.client import Channel, method

SECONDS = 120
"""A large estate takes some seconds to compile."""
_ROLLOUT = pb.DESCRIPTOR.services_by_name["Rollout"]


class RolloutClient:
    """Use as ``async with RolloutClient.connect(data) as rollout``; every answer is plain data."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    def connect(cls, data: Path) -> RolloutClient:
        """Reach the server of ``data``; raises ``Unavailable`` when none runs there."""
        return cls(admin_channel(data))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._channel.close()

    async def status(self) -> dict[str, Any]:
        """Every enforcement point, service and rule, and the rollout that is under way."""
        return await self._ask("GetStatus", pb.GetStatusRequest())

    async def versions(self, limit: int) -> list[dict[str, Any]]:
        """What was in force, the newest first."""
        found: list[dict[str, Any]] = (await self._ask("ListVersions", pb.ListVersionsRequest(limit=limit)))["versions"]
        return found

    async def preview(self, version: str) -> dict[str, Any]:
        """What ``roll_back`` would change."""
        return await self._ask("GetRollback", pb.RollbackRequest(version=version))

    async def roll_back(self, version: str, expected: str = "", change: str = "") -> dict[str, Any]:
        """Put a version in force again; "": the one before."""
        request = pb.RollbackRequest(version=version, expected_version=expected, change=change)
        return await self._ask("Rollback", request)

    async def step(self, verb: str, expected: str = "") -> dict[str, Any]:
        """``verb``: Promote, Pause or Resume."""
        return await self._ask(verb, pb.StepRequest(expected_version=expected))

    async def _ask(self, name: str, request: Any) -> dict[str, Any]:
        reply: pb.Report = await self._channel.unary(method(_ROLLOUT, name), request, deadline=SECONDS)
        told: dict[str, Any] = msgspec.json.decode(reply.json)
        return told
