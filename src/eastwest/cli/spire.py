"""The SPIRE services of the admin socket, as ``eastwest node`` calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from eastwest.api.spire.api.server.agent.v1 import agent_pb2
from eastwest.cli.admin import admin_channel
from eastwest.rpc.client import Channel, method
from eastwest.rpc.spire import id_to_proto
from eastwest.spiffe.id import SpiffeId

PAGE = 500
_AGENT = agent_pb2.DESCRIPTOR.services_by_name["Agent"]


class SpireAdmin:
    """Nodes over the admin socket. Use as ``async with SpireAdmin.connect(data) as spire``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    def connect(cls, data: Path) -> SpireAdmin:
        """Reach the server of ``data``; raises ``Unavailable`` when none runs there."""
        return cls(admin_channel(data))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._channel.close()

    async def ban(self, node: SpiffeId) -> None:
        """Shut a node out until it is evicted."""
        await self._channel.unary(method(_AGENT, "BanAgent"), agent_pb2.BanAgentRequest(id=id_to_proto(node)))

    async def evict(self, node: SpiffeId) -> None:
        """Forget a node; it may attest again with new evidence."""
        await self._channel.unary(method(_AGENT, "DeleteAgent"), agent_pb2.DeleteAgentRequest(id=id_to_proto(node)))
