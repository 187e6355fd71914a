"""What is done with grpclib's insides: messages get a bound on both sides, and its server serves our methods.

grpclib has no bound on a message and keeps the caller's socket in private attributes; both are dealt with here
and nowhere else, which is why its version is exact in ``pyproject.toml``. Its server is the other implementation
of ``eastwest.rpc.service.Listener``: to switch to, and to compare ``eastwest.rpc.http2`` with.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import weakref
from collections.abc import Mapping
from typing import Any, cast

import grpclib.client
import grpclib.server
import grpclib.stream
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from eastwest.rpc import limits
from eastwest.rpc.joined import JoinedProtocol
from eastwest.rpc.method import Admission, Method, Place, Transport

CLIENT_BOUNDS = (16 * 1024 * 1024, 60.0)
"""Bytes of one reply, and seconds for a large one."""
AT_ONCE = 64 * 1024
"""Bytes of a message from which on it has the time of a large one."""


class GrpclibServer:
    """Serves ``methods`` by path on one listening socket."""

    def __init__(self, methods: Mapping[str, Method], admit: Admission) -> None:
        self._server = _Server([], admit)
        self._server._mapping = _Methods({path: _handler(method) for path, method in methods.items()})

    async def start(self, sock: socket.socket, backlog: int, tls: ssl.SSLContext | None) -> None:
        """Listen on a bound socket."""
        await self._server.start(sock=sock, backlog=backlog, ssl=tls)

    async def close(self) -> None:
        """Stop listening, end all calls and close their connections."""
        self._server.close()
        await self._server.wait_closed()
        self._server.close_connections()
        await self._server.connections_lost()


def cardinality(takes_stream: bool, gives_stream: bool) -> Cardinality:
    """Grpclib's name for the kind of a method."""
    if takes_stream:
        return Cardinality.STREAM_STREAM if gives_stream else Cardinality.STREAM_UNARY
    return Cardinality.UNARY_STREAM if gives_stream else Cardinality.UNARY_UNARY


class _Exchange:
    """A call of grpclib's as ``eastwest.rpc.method.Exchange``."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return cast("Mapping[str, str | bytes]", self._stream.metadata or {})

    @property
    def connection(self) -> object:
        return self._stream._stream.connection

    @property
    def transport(self) -> Transport:
        return cast("Transport", self._stream.peer._transport)

    async def receive(self) -> Any:
        return await self._stream.recv_message()

    async def send(self, message: Message) -> None:
        await self._stream.send_message(message)

    def prove(self, caller: str) -> None:
        self._stream._stream.connection.place.prove(caller)


def _handler(method: Method) -> Handler:
    async def serve(stream: Any) -> None:
        stream._stream.bounds = method.bounds
        stream._stream.takes_stream = method.takes_stream
        await method.serve(_Exchange(stream))

    kind = cardinality(method.takes_stream, method.gives_stream)
    return Handler(serve, kind, method.request_type, method.reply_type)


class _Server(grpclib.server.Server):
    def __init__(self, services: list[Any], admit: Admission) -> None:
        super().__init__(services)
        self._protocols: weakref.WeakSet[Any] = weakref.WeakSet()
        self._admit = admit

    def _protocol_factory(self) -> JoinedProtocol:
        protocol = _Protocol.instead_of(super()._protocol_factory())
        protocol.admit = self._admit
        self._protocols.add(protocol)
        return protocol

    def close_connections(self) -> None:
        for protocol in list(self._protocols):
            if hasattr(protocol, "processor"):  # else its connection was never made
                protocol.processor.close("the server has left")

    async def connections_lost(self) -> None:
        """Return once the sockets are closed: TLS says goodbye first, for as long as the peer may take."""
        lost = [protocol.lost for protocol in self._protocols if protocol.lost is not None]
        if lost:
            await asyncio.wait(lost, timeout=limits.GRACE_SECONDS)


class _Protocol(JoinedProtocol):
    """Ends at once what is not admitted."""

    admit: Admission
    _place: Place | None = None
    _timer: asyncio.TimerHandle | None = None
    lost: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.lost = asyncio.get_running_loop().create_future()
        super().connection_made(transport)
        self._place = self.admit(transport.get_extra_info("socket"))
        if self._place is None:
            transport.abort()
            return
        self._place.ending = transport.abort
        cast("Any", self.processor.connection).place = self._place
        if transport.get_extra_info("ssl_object") is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(limits.UNPROVEN_SECONDS, self._look_whether_proven, transport)

    def _look_whether_proven(self, transport: Any) -> None:
        if self._place is not None and self._place.unproven:
            transport.abort()

    def connection_lost(self, error: BaseException | None) -> None:
        super().connection_lost(error)
        if self.lost is not None:
            self.lost.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if self._place is not None:
            self._place.release()
            self._place = None


class _Methods(dict[str, Handler]):
    """Handlers by path; grpclib's own answer for a missing one lacks the content type that peers insist on."""

    def get(self, name: str, _default: Any = None) -> Handler:
        return super().get(name) or _UNIMPLEMENTED


async def _unimplemented(stream: Any) -> None:
    raise GRPCError(Status.UNIMPLEMENTED, f"this server has no {stream._method_name}")


_UNIMPLEMENTED = Handler(_unimplemented, Cardinality.STREAM_STREAM, Empty, Empty)


async def _receive_bounded(stream: Any, codec: Any, message_type: Any) -> Any:
    """Grpclib's ``recv_message`` with a bound, checked before the body is read, and with bounds of time at servers."""
    serving = hasattr(stream, "bounds")
    try:
        async with asyncio.timeout(limits.REQUEST_SECONDS if serving and not stream.takes_stream else None):
            head = await stream.recv_data(5)
    except TimeoutError:
        raise GRPCError(Status.DEADLINE_EXCEEDED, "the request did not come") from None
    if not head:
        return None
    if head[0]:
        raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not accepted")
    length = int.from_bytes(head[1:])
    limit, seconds = stream.bounds() if serving else CLIENT_BOUNDS
    if length > limit:
        raise GRPCError(Status.RESOURCE_EXHAUSTED, f"the message has {length} bytes; at most {limit} are accepted")
    try:
        async with asyncio.timeout(seconds if length > AT_ONCE or not serving else limits.REQUEST_SECONDS):
            body = await stream.recv_data(length)
    except TimeoutError:
        raise GRPCError(Status.DEADLINE_EXCEEDED, "the rest of the message did not come") from None
    if len(body) != length:
        raise GRPCError(Status.INVALID_ARGUMENT, "the message ended early")
    try:
        return codec.decode(body, message_type)
    except DecodeError:
        raise GRPCError(Status.INVALID_ARGUMENT, "the message is not of this method's type") from None


for _module in (grpclib.server, grpclib.client):
    setattr(_module, "recv_message", _receive_bounded)  # noqa: B010 - not a name that the module exports
# grpclib logs each cancelled call with a traceback; who hung up is no error of ours.
logging.getLogger("grpclib").setLevel(logging.CRITICAL)
