"""Serving gRPC: handlers by method name, errors mapped, messages bounded, callers' sockets and certificates at hand.

What moves bytes is ``eastwest.rpc.http2``, or grpclib where a ``Listener`` is told so.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import structlog
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from eastwest import errors
from eastwest.rpc import tracing
from eastwest.rpc.admission import Connections
from eastwest.rpc.http2 import Http2Server
from eastwest.rpc.method import Exchange, Method
from eastwest.rpc.on_grpclib import GrpclibServer
from eastwest.rpc.status import to_grpc

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes that one incoming message may have; a batch of 500 CSRs has about 250 KB."""
SMALL_MESSAGE = 64 * 1024
"""A bound for services whose requests are a few fields."""
TINY_MESSAGE = 1024
"""A bound for what anybody may ask without a certificate, and says in a few bytes."""
MESSAGE_SECONDS = 60.0
"""How long the rest of a message may take once its length is known: memory is held for it meanwhile."""
BACKLOG = 4096
IMPLEMENTATIONS: Mapping[str, type[Http2Server | GrpclibServer]] = {"own": Http2Server, "grpclib": GrpclibServer}
"""What moves the bytes, by the name that settings use."""

_log = structlog.get_logger()


class Call:
    """One call as its handler sees it."""

    def __init__(self, exchange: Exchange, method: str) -> None:
        self._exchange = exchange
        self.method = method

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """Headers that the caller sent, beyond gRPC's own."""
        return self._exchange.metadata

    @property
    def connection(self) -> object:
        """Something that lives exactly as long as the caller's connection (for weak maps)."""
        return self._exchange.connection

    @property
    def socket(self) -> socket.socket:
        """The caller's socket, for the kernel's word on who it is. Never read or written."""
        return cast("socket.socket", self._exchange.transport.get_extra_info("socket"))

    @property
    def peer_certificate(self) -> bytes | None:
        """The client certificate that TLS verified (DER), or None."""
        tls = self._exchange.transport.get_extra_info("ssl_object")
        return None if tls is None else tls.getpeercert(binary_form=True)

    @property
    def peer_address(self) -> str:
        """The caller's address for logs; "" on a unix socket."""
        address = self._exchange.transport.get_extra_info("peername")
        return f"{address[0]}:{address[1]}" if isinstance(address, tuple) and len(address) >= 2 else ""

    def prove(self, caller: str) -> None:
        """The caller is known here by this name. For gates: before it a connection over TCP is a stranger's."""
        self._exchange.prove(caller)

    async def receive(self) -> Any:
        """The next request message of a client stream, or None at its end."""
        return await self._exchange.receive()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self._exchange.receive()) is not None:
            yield message

    async def send(self, reply: Message) -> None:
        """Send one message of a server stream; waits while the caller's window is full."""
        await self._exchange.send(reply)


UnaryHandler = Callable[[Any, Call], Awaitable[Message]]
StreamHandler = Callable[[Any, Call], Awaitable[None]]


class Service:
    """A protobuf service bound to handlers.

    A unary method's handler takes (request, call) and returns the reply; one that streams replies takes the
    same and uses ``call.send``; one that takes a client stream gets None for the request and reads the call.
    ``guard`` runs before each call and may raise. ``limit`` bounds the bytes of one incoming message
    (``MAX_MESSAGE`` unless told), ``limits`` those of some methods by name.
    """

    def __init__(
        self,
        descriptor: ServiceDescriptor,
        handlers: Mapping[str, UnaryHandler | StreamHandler],
        *,
        guard: Callable[[Call], Awaitable[None]] | None = None,
        limit: int | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        unknown = {*handlers, *(limits or ())} - set(descriptor.methods_by_name)
        if unknown:
            raise errors.Internal(f"{descriptor.full_name} has no method {sorted(unknown)}")
        self._descriptor = descriptor
        self._handlers = handlers
        self._guard = guard
        self._limit = limit
        self._limits = limits or {}

    def methods(self) -> dict[str, Method]:
        """What to serve, by path."""
        return {
            f"/{self._descriptor.full_name}/{name}": self._bind(self._descriptor.methods_by_name[name], handler)
            for name, handler in self._handlers.items()
        }

    def _bind(self, method: MethodDescriptor, handler: UnaryHandler | StreamHandler) -> Method:
        name = f"/{self._descriptor.full_name}/{method.name}"
        guard, limit = self._guard, self._limits.get(method.name, self._limit)
        takes_stream, gives_stream = method.client_streaming, method.server_streaming

        async def serve(exchange: Exchange) -> None:
            call = Call(exchange, name)
            try:
                if guard is not None:
                    await guard(call)
                if takes_stream:
                    reply = await handler(None, call)
                else:
                    request = await exchange.receive()
                    if request is None:
                        raise errors.InvalidInput("the request has no message")
                    # After the guard: a stranger's calls are no part of anybody's trace. A span that lasts as long as
                    # a stream would tell nothing.
                    with nullcontext() if gives_stream else tracing.serving(name, call.metadata):
                        reply = await handler(request, call)
                if not gives_stream:
                    await exchange.send(cast("Message", reply))
            except errors.Error as error:
                raise to_grpc(error) from None
            except (GRPCError, StreamTerminatedError, ProtocolError):
                raise
            except DecodeError:
                raise GRPCError(Status.INVALID_ARGUMENT, "the message is not of this method's type") from None
            except Exception:  # noqa: BLE001 - whatever it is, the peer gets a status and the log the cause
                _log.exception("rpc.failed", method=name)
                raise GRPCError(Status.INTERNAL, "internal error; the server's log says more") from None

        return Method(
            serve=serve,
            takes_stream=takes_stream,
            gives_stream=gives_stream,
            request_type=GetMessageClass(method.input_type),
            reply_type=GetMessageClass(method.output_type),
            bounds=lambda: (limit or MAX_MESSAGE, MESSAGE_SECONDS),
        )


class Servable(Protocol):
    """Anything that a listener can serve."""

    def methods(self) -> dict[str, Method]: ...


class Listener:
    """A listening gRPC port or unix socket. ``implementation`` is one of ``IMPLEMENTATIONS``."""

    def __init__(self, services: Sequence[Servable], *, implementation: str = "own") -> None:
        methods = {path: method for service in services for path, method in service.methods().items()}
        self._server = IMPLEMENTATIONS[implementation](methods, Connections().admit)
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
        await self._server.start(sock, BACKLOG, context)

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
        await self._server.start(sock, BACKLOG, None)

    async def close(self) -> None:
        """Stop listening, end all calls and close their connections: a peer must not wait on a server that left."""
        await self._server.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


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
