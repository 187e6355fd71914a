"""Calling gRPC: one channel, methods by descriptor, errors as ours, messages bounded."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpclib.client
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from h2.exceptions import H2Error

from eastwest import errors
from eastwest.rpc.joined import JoinedProtocol
from eastwest.rpc.on_grpclib import cardinality
from eastwest.rpc.status import from_grpc
from eastwest.rpc.tracing import carried

DEFAULT_DEADLINE = 30.0
"""Seconds that a unary call may take."""
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 30_000}
_TOO_EARLY, _TOO_LATE = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


class Untrusted(errors.Unauthenticated):
    """TLS failed. ``outside_validity``: only because a certificate is expired or not valid yet by our clock."""

    def __init__(self, message: str, *, outside_validity: bool = False, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.outside_validity = outside_validity


class Channel(grpclib.client.Channel):
    """A connection to one server, made at the first call and again after a loss.

    ``check`` sees the server's certificate (DER) after each handshake and raises when it is the wrong one.
    """

    def __init__(
        self,
        *,
        host: str = "",
        port: int = 0,
        path: str = "",
        tls: ssl.SSLContext | None = None,
        check: Callable[[bytes | None], None] | None = None,
    ) -> None:
        self._check = check
        if path:
            super().__init__(path=path)
        else:
            super().__init__(host, port, ssl=tls)
        self.target = path or f"{host}:{port}"

    def _protocol_factory(self) -> JoinedProtocol:
        return JoinedProtocol.instead_of(super()._protocol_factory())

    def close(self) -> None:
        """Close at once: nothing is owed to a server whose answers have arrived."""
        # A connection that was lost has no transport any more.
        transport = getattr(self._protocol.connection, "_transport", None) if self._protocol is not None else None
        super().close()
        if transport is not None:
            transport.abort()

    async def _create_connection(self) -> Any:
        protocol = await super()._create_connection()
        transport = protocol.connection._transport
        _keep_alive(transport.get_extra_info("socket"))
        if self._check is not None:
            tls = transport.get_extra_info("ssl_object")
            try:
                self._check(tls.getpeercert(binary_form=True) if tls is not None else None)
            except errors.Error:
                transport.close()
                raise
        return protocol

    async def unary(
        self,
        method: MethodDescriptor,
        request: Message,
        *,
        deadline: float = DEFAULT_DEADLINE,
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """Call a unary method; raises our errors."""
        told = {**carried(), **(metadata or {})}
        async with self.stream(method, deadline=deadline, metadata=told) as stream:
            await stream.send_message(request, end=True)
            reply = await stream.recv_message()
            if reply is None:
                await stream.recv_trailing_metadata()
                raise errors.Internal(f"{method.full_name} answered nothing")
            return reply

    @asynccontextmanager
    async def stream(
        self, method: MethodDescriptor, *, deadline: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> AsyncIterator[Any]:
        """Open a call of any kind and yield grpclib's stream; foreign failures become our errors."""
        try:
            async with self.request(
                f"/{method.containing_service.full_name}/{method.name}",
                cardinality(method.client_streaming, method.server_streaming),
                GetMessageClass(method.input_type),
                GetMessageClass(method.output_type),
                timeout=deadline,
                metadata=metadata,
            ) as stream:
                yield stream
        except GRPCError as error:
            raise from_grpc(error) from None
        except ssl.SSLCertVerificationError as error:
            raise Untrusted(
                f"the certificate of {self.target} is refused: {error.verify_message}",
                outside_validity=error.verify_code in {_TOO_EARLY, _TOO_LATE},
            ) from None
        except ssl.SSLError as error:
            raise Untrusted(f"TLS with {self.target} failed: {error.reason or error}") from None
        except (TimeoutError, OSError, StreamTerminatedError, ProtocolError, H2Error) as error:
            # h2's own errors too: grpclib lets them through where a stream or connection ends under a write.
            raise errors.Unavailable(f"{self.target} does not answer: {str(error) or type(error).__name__}") from None


def _keep_alive(sock: Any) -> None:
    """Let the kernel find a peer that vanished without a word: a subscription may be silent for hours."""
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def method(service: ServiceDescriptor, name: str) -> MethodDescriptor:
    """The descriptor of a method, for ``unary`` and ``stream``."""
    return service.methods_by_name[name]
