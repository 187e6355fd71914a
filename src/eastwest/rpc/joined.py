"""One write for one turn of the event loop: grpclib writes an answer's headers, message and trailers one by one.

Over TLS each write is a record and a system call, which cost more than what they carry.
"""

from __future__ import annotations

import asyncio
from typing import Any, Self, cast

from grpclib.protocol import H2Protocol
from h2.errors import ErrorCodes
from h2.events import StreamReset

MAX_HELD = 64 * 1024
"""Bytes that wait at most for the end of the turn; more is passed on at once, so that back-pressure is felt."""


class JoinedProtocol(H2Protocol):
    """grpclib's protocol on a transport that joins its writes."""

    @classmethod
    def instead_of(cls, plain: H2Protocol) -> Self:
        """The same protocol, not yet connected."""
        return cls(plain.handler, plain.config, plain.h2_config)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.BaseTransport", _JoinedTransport(transport)))
        self.processor.processors[StreamReset] = self._stream_reset

    def _stream_reset(self, event: StreamReset) -> None:
        # A server that has answered in full may so refuse the rest of the request, and what it answered counts
        # (RFC 9113, section 8.1). Left to itself grpclib would throw the answer away; a refusal it keeps.
        stream = self.processor.streams.get(event.stream_id)
        answered = stream is not None and dict(stream.trailers or ()).get("grpc-status") == "0"
        if event.remote_reset and event.error_code == ErrorCodes.NO_ERROR and answered:
            return
        self.processor.process_stream_reset(event)


class _JoinedTransport:
    """What grpclib uses of a transport; bytes leave in the order in which they were written."""

    __slots__ = ("_held", "_loop", "_size", "_transport", "get_extra_info", "is_closing")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held: list[bytes] = []
        self._size = 0
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._size += len(data)
        if self._size >= MAX_HELD:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._held.clear()
        self._transport.abort()

    def _flush(self) -> None:
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            self._size = 0
            if not self._transport.is_closing():
                self._transport.write(data)
