"""A workload in the test's own process: calls to an agent's Workload API."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from eastwest import errors
from eastwest.api.spiffe.workload import workload_pb2 as api
from eastwest.rpc.client import Channel, method

SERVICE = api.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
HEADER = {"workload.spiffe.io": "true"}
ME = f"unix:uid:{os.geteuid()}"


async def ask(socket: Path, name: str, request: Any, metadata: dict[str, str] | None = None) -> Any:
    """One unary call."""
    channel = Channel(path=str(socket))
    try:
        return await channel.unary(method(SERVICE, name), request, metadata=HEADER if metadata is None else metadata)
    finally:
        channel.close()


class Stream:
    """A server stream of the Workload API."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def next(self, seconds: float = 10) -> Any:
        async with asyncio.timeout(seconds):
            reply = await self._stream.recv_message()
            if reply is None:
                await self._stream.recv_trailing_metadata()
            return reply


@asynccontextmanager
async def stream(socket: Path, name: str = "FetchX509SVID") -> AsyncIterator[Stream]:
    """An open stream; what ends it is raised."""
    channel = Channel(path=str(socket))
    descriptor = method(SERVICE, name)
    request = {"FetchX509SVID": api.X509SVIDRequest, "FetchX509Bundles": api.X509BundlesRequest}.get(
        name, api.JWTBundlesRequest
    )()
    try:
        async with channel.stream(descriptor, metadata=HEADER) as opened:
            await opened.send_message(request, end=True)
            yield Stream(opened)
            with suppress(errors.Error):
                await opened.cancel()
    finally:
        channel.close()


async def first(socket: Path) -> api.X509SVIDResponse:
    """What FetchX509SVID gives first."""
    async with stream(socket) as opened:
        return await opened.next()


def ids(response: api.X509SVIDResponse) -> list[str]:
    """The SPIFFE IDs in a response, without the trust domain."""
    return [svid.spiffe_id.removeprefix("spiffe://saas.example/") for svid in response.svids]
