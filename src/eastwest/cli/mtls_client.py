"""What ``eastwest mtls`` asks of a running server."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Self

import msgspec

from eastwest.api.eastwest.mtls.v1 import mtls_pb2 as pb
from eastwest.cli.admin import admin_channel
from eastwest.rpc.client import Channel, method

_MTLS = pb.DESCRIPTOR.services_by_name["Mtls"]
SECONDS = 120.0


class MtlsClient:
    """The API as Python values. Use as ``async with MtlsClient.connect(data) as mtls``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    def connect(cls, data: Path) -> MtlsClient:
        """Reach the server of ``data``; raises ``Unavailable`` when none runs there."""
        return cls(admin_channel(data))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._channel.close()

    async def reports(
        self, service: str = "", start: datetime | None = None, end: datetime | None = None
    ) -> list[dict[str, Any]]:
        """A report for each service, or for the one named."""
        request = pb.GetReportsRequest(service=service, start=_seconds(start), end=_seconds(end))
        reply = await self._channel.unary(method(_MTLS, "GetReports"), request, deadline=SECONDS)
        return msgspec.json.decode(reply.reports, type=list[dict[str, Any]])

    async def switch(self, start: datetime | None = None, **wanted: Any) -> dict[str, Any]:
        """Change a service's mode (fields of ``SwitchRequest``), or with ``dry_run`` say what that would do."""
        request = pb.SwitchRequest(start=_seconds(start), **wanted)
        reply = await self._channel.unary(method(_MTLS, "Switch"), request, deadline=SECONDS)
        outcome: dict[str, Any] = msgspec.json.decode(reply.outcome)
        return outcome


def _seconds(moment: datetime | None) -> int:
    return int(moment.timestamp()) if moment is not None else 0
