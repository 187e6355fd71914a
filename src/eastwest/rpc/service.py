"""Serving gRPC: handlers by method name, errors mapped, messages bounded, callers' sockets and certificates at hand.

grpclib has no bound on a message and keeps the caller's socket in private attributes; both are dealt with here
and nowhere else, which is why its version is exact in ``pyproject.toml``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import stat
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import grpclib.client
import grpclib.server
import grpclib.stream
import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from eastwest import errors
from eastwest.rpc.joined import JoinedProtocol
from eastwest.rpc.peer import UnknownPeer, peer_credentials
from eastwest.rpc.status import to_grpc

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes that one incoming message may have; a batch of 500 CSRs has about 250 KB."""
SMALL_MESSAGE = 64 * 1024
"""A bound for services whose requests are a few fields, above all those that anybody may call."""
MESSAGE_SECONDS = 60.0
"""How long the rest of a message may take once its length is known: memory is held for it meanwhile."""
MAX_CONNECTIONS_OF_USER = 1024
"""Connections to a unix socket by one user; root and the user that serves are not counted."""
BACKLOG = 4096

_log = structlog.get_logger()


class Call:
    """One call as its handler sees it."""

    def __init__(self, stream: Any, method: str) -> None:
        self._stream = stream
        self.method = method

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """Headers that the caller sent, beyond gRPC's own."""
        return cast("Mapping[str, str | bytes]", self._stream.metadata or {})

    @property
    def connection(self) -> object:
        """Something that lives exactly as long as the caller's connection (for weak maps)."""
        return self._stream._stream.connection

    @property
    def socket(self) -> socket.socket:
        """The caller's socket, for the kernel's word on who it is. Never read or written."""
        return cast("socket.socket", self._stream.peer._transport.get_extra_info("socket"))

    @property
    def peer_certificate(self) -> bytes | None:
        """The client certificate that TLS verified (DER), or None."""
        tls = self._stream.peer._transport.get_extra_info("ssl_object")
        return None if tls is None else tls.getpeercert(binary_form=True)

    @property
    def peer_address(self) -> str:
        """The caller's address for logs; "" on a unix socket."""
        address = self._stream.peer.addr()
        return f"{address[0]}:{address[1]}" if isinstance(address, tuple) and len(address) >= 2 else ""

    async def receive(self) -> Any:
        """The next request message of a client stream, or None at its end."""
        return await self._stream.recv_message()

    def __aiter__(self) -> AsyncIterator[Any]:
        return cast("AsyncIterator[Any]", self._stream.__aiter__())

    async def send(self, reply: Message) -> None:
        """Send one message of a server stream; waits while the caller's window is full."""
        await self._stream.send_message(reply)


UnaryHandler = Callable[[Any, Call], Awaitable[Message]]
StreamHandler = Callable[[Any, Call], Awaitable[None]]


class Service:
    """A protobuf service bound to handlers.

    A unary method's handler takes (request, call) and returns the reply; one that streams replies takes the
    same and uses ``call.send``; one that takes a client stream gets None for the request and reads the call.
    ``guard`` runs before each call and may raise. ``limit`` bounds the bytes of one incoming message
    (``MAX_MESSAGE`` unless told).
    """

    def __init__(
        self,
        descriptor: ServiceDescriptor,
        handlers: Mapping[str, UnaryHandler | StreamHandler],
        *,
        guard: Callable[[Call], Awaitable[None]] | None = None,
        limit: int | None = None,
    ) -> None:
        unknown = handlers.keys() - descriptor.methods_by_name.keys()
        if unknown:
            raise errors.Internal(f"{descriptor.full_name} has no method {sorted(unknown)}")
        self._descriptor = descriptor
        self._handlers = handlers
        self._guard = guard
        self._limit = limit

    def __mapping__(self) -> dict[str, Handler]:
        return {
            f"/{self._descriptor.full_name}/{name}": self._bind(self._descriptor.methods_by_name[name], handler)
            for name, handler in self._handlers.items()
        }

    def _bind(self, method: MethodDescriptor, handler: UnaryHandler | StreamHandler) -> Handler:
        name = f"/{self._descriptor.full_name}/{method.name}"
        guard, limit = self._guard, self._limit
        takes_stream, gives_stream = method.client_streaming, method.server_streaming

        async def serve(stream: Any) -> None:
            call = Call(stream, name)
            stream._stream.message_limit = limit
            try:
                if guard is not None:
                    await guard(call)
                request = None
                if not takes_stream:
                    request = await stream.recv_message()
                    if request is None:
                        raise errors.InvalidInput("the request has no message")
                reply = await handler(request, call)
                if not gives_stream:
                    await stream.send_message(reply)
            except errors.Error as error:
                raise to_grpc(error) from None
            except (GRPCError, StreamTerminatedError, ProtocolError):
                raise
            except DecodeError:
                raise GRPCError(Status.INVALID_ARGUMENT, "the message is not of this method's type") from None
            except Exception:  # noqa: BLE001 - whatever it is, the peer gets a status and the log the cause
                _log.exception("rpc.failed", method=name)
                raise GRPCError(Status.INTERNAL, "internal error; the server's log says more") from None

        kind = cardinality(takes_stream, gives_stream)
        return Handler(serve, kind, GetMessageClass(method.input_type), GetMessageClass(method.output_type))


class Servable(Protocol):
    """Anything that grpclib can serve."""

    def __mapping__(self) -> dict[str, Handler]: ...


class Listener:
    """A listening gRPC port or unix socket."""

    def __init__(self, services: Sequence[Servable]) -> None:
        self._server = _Server(list(services))
        self._server._mapping = _Methods(self._server._mapping)
        self._path: Path | None = None
        self.port = 0

    async def listen_tcp(self, host: str, port: int, context: ssl.SSLContext) -> None:
        """Listen with TLS; port 0 takes a free one. ``port`` then says which."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            raise errors.FailedPrecondition(
                f"cannot listen on {host}:{port}: {error.strerror}", fix="choose another port, or stop what holds it"
            ) from None
        self.port = sock.getsockname()[1]
        await self._server.start(sock=sock, backlog=BACKLOG, ssl=context)

    async def listen_unix(self, path: Path, mode: int) -> None:
        """Listen on a unix socket that has ``mode`` from the moment it exists. Replaces only a dead socket."""
        _remove_dead_socket(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o777 & ~mode)
        try:
            sock.bind(str(path))
        except OSError as error:
            sock.close()
            raise errors.FailedPrecondition(
                f"cannot listen on {path}: {error.strerror or error}", fix="a socket path has at most 107 characters"
            ) from None
        finally:
            os.umask(old)
        path.chmod(mode)
        self._path = path
        await self._server.start(sock=sock, backlog=BACKLOG)

    async def close(self) -> None:
        """Stop listening, end all calls and close their connections: a peer must not wait on a server that left."""
        self._server.close()
        await self._server.wait_closed()
        self._server.close_connections()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class _Server(grpclib.server.Server):
    def __init__(self, services: Sequence[Servable]) -> None:
        super().__init__(services)
        self._protocols: weakref.WeakSet[Any] = weakref.WeakSet()
        self._users: Counter[int] = Counter()

    def _protocol_factory(self) -> JoinedProtocol:
        protocol = _Protocol.instead_of(super()._protocol_factory())
        protocol.users = self._users
        self._protocols.add(protocol)
        return protocol

    def close_connections(self) -> None:
        for protocol in list(self._protocols):
            if hasattr(protocol, "processor"):  # else its connection was never made
                protocol.processor.close("the server has left")


class _Protocol(JoinedProtocol):
    """Ends at once what is one connection too many of its user: a socket is open to all, its descriptors are few."""

    users: Counter[int]
    _uid: int | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            return
        try:
            _, uid, _ = peer_credentials(sock)
        except UnknownPeer:
            transport.abort()
            return
        if uid in {0, os.geteuid()}:
            return
        self._uid = uid
        self.users[uid] += 1
        if self.users[uid] > MAX_CONNECTIONS_OF_USER:
            transport.abort()

    def connection_lost(self, error: BaseException | None) -> None:
        super().connection_lost(error)
        if self._uid is not None:
            self.users[self._uid] -= 1
            self._uid = None


class _Methods(dict[str, Handler]):
    """Handlers by path; grpclib's own answer for a missing one lacks the content type that peers insist on."""

    def get(self, name: str, _default: Any = None) -> Handler:
        return super().get(name) or _UNIMPLEMENTED


async def _unimplemented(stream: Any) -> None:
    raise GRPCError(Status.UNIMPLEMENTED, f"this server has no {stream._method_name}")


_UNIMPLEMENTED = Handler(_unimplemented, Cardinality.STREAM_STREAM, Empty, Empty)


def cardinality(takes_stream: bool, gives_stream: bool) -> Cardinality:
    """Grpclib's name for the kind of a method."""
    if takes_stream:
        return Cardinality.STREAM_STREAM if gives_stream else Cardinality.STREAM_UNARY
    return Cardinality.UNARY_STREAM if gives_stream else Cardinality.UNARY_UNARY


def _remove_dead_socket(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise errors.FailedPrecondition(f"{path} exists and is not a socket", fix="move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise errors.FailedPrecondition(f"cannot tell whether {path} is in use: {error}") from None
    raise errors.FailedPrecondition(f"{path} is in use by another process", fix="stop it, or choose another --data")


async def _receive_bounded(stream: Any, codec: Any, message_type: Any) -> Any:
    """Grpclib's ``recv_message`` with a bound, checked before the body is read."""
    head = await stream.recv_data(5)
    if not head:
        return None
    if head[0]:
        raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not accepted")
    length = int.from_bytes(head[1:])
    limit = getattr(stream, "message_limit", None) or MAX_MESSAGE
    if length > limit:
        raise GRPCError(Status.RESOURCE_EXHAUSTED, f"the message has {length} bytes; at most {limit} are accepted")
    if length <= SMALL_MESSAGE:
        body = await stream.recv_data(length)
    else:
        try:
            async with asyncio.timeout(MESSAGE_SECONDS):
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
