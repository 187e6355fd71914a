"""The SPIRE services of the admin socket, as ``eastwest entry`` and ``eastwest node`` call them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from google.protobuf.message import Message

from eastwest.api.spire.api.server.agent.v1 import agent_pb2
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.cli.admin import admin_channel
from eastwest.errors import Error
from eastwest.rpc.client import Channel, method
from eastwest.rpc.spire import id_to_proto
from eastwest.rpc.status import error_of
from eastwest.spiffe.id import SpiffeId

PAGE = 500
_AGENT = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
_ENTRY = entry_pb2.DESCRIPTOR.services_by_name["Entry"]


class SpireAdmin:
    """Entries and nodes over the admin socket. Use as ``async with SpireAdmin.connect(data) as spire``."""

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

    async def entries(self, wanted: entry_pb2.ListEntriesRequest.Filter) -> list[types_pb2.Entry]:
        """All entries that the filter admits."""
        found: list[types_pb2.Entry] = []
        token = ""
        while True:
            request = entry_pb2.ListEntriesRequest(filter=wanted, page_size=PAGE, page_token=token)
            page = await self._entry("ListEntries", request)
            found += page.entries
            token = page.next_page_token
            if not token:
                return found

    async def create_entry(self, entry: types_pb2.Entry) -> types_pb2.Entry:
        """Create one entry; raises what the server says of it."""
        reply = await self._entry("BatchCreateEntry", entry_pb2.BatchCreateEntryRequest(entries=[entry]))
        [result] = reply.results
        _raise(result.status)
        created: types_pb2.Entry = result.entry
        return created

    async def delete_entry(self, entry_id: str) -> None:
        """Delete one entry by id."""
        [result] = (await self._entry("BatchDeleteEntry", entry_pb2.BatchDeleteEntryRequest(ids=[entry_id]))).results
        _raise(result.status)

    async def nodes(self) -> list[types_pb2.Agent]:
        """All attested nodes."""
        found: list[types_pb2.Agent] = []
        token = ""
        while True:
            request = agent_pb2.ListAgentsRequest(page_size=PAGE, page_token=token)
            page = await self._channel.unary(method(_AGENT, "ListAgents"), request)
            found += page.agents
            token = page.next_page_token
            if not token:
                return found

    async def ban(self, node: SpiffeId) -> None:
        """Shut a node out until it is evicted."""
        await self._channel.unary(method(_AGENT, "BanAgent"), agent_pb2.BanAgentRequest(id=id_to_proto(node)))

    async def evict(self, node: SpiffeId) -> None:
        """Forget a node; it may attest again with new evidence."""
        await self._channel.unary(method(_AGENT, "DeleteAgent"), agent_pb2.DeleteAgentRequest(id=id_to_proto(node)))

    async def _entry(self, name: str, request: Message) -> Any:
        return await self._channel.unary(method(_ENTRY, name), request)


def _raise(status: types_pb2.Status) -> None:
    error: Error | None = error_of(status.code, status.message)
    if error is not None:
        raise error
