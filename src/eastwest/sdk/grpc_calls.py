"""What the interceptor for ``grpc.aio`` hands on of a call, once it is decided.

Until then nobody is told of it: not even the handler is looked up, as other interceptors see that. So every call begins
in the one shape that any other fits into, a stream of bytes in both directions, and gets its handler's shape here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import grpc

from eastwest.mesh.http import CALLER_HEADER
from eastwest.policy.headers import is_stripped
from eastwest.sdk.decide import Decision

Continuation = Callable[[Any], Awaitable[Any]]


class Metadatum(NamedTuple):
    """One entry of metadata; values are bytes where the key ends with ``-bin``."""

    key: str
    value: str | bytes


Metadata = tuple[Metadatum, ...]


def handed_on(metadata: Any, decision: Decision) -> Metadata:
    """The metadata of a call as it was decided, and whose call it is, which only we say."""
    assert decision.request is not None
    kept = [Metadatum(key, value) for key, value in decision.request.headers]
    kept += [
        Metadatum(key, value)
        for key, value in metadata
        if isinstance(value, bytes) and not is_stripped(key.lower().removesuffix("-bin"))
    ]
    if decision.principal:
        kept.append(Metadatum(CALLER_HEADER, decision.principal))
    return tuple(kept)


async def serve(
    continuation: Continuation, details: Any, metadata: Metadata, requests: AsyncIterator[bytes], context: Any
) -> AsyncIterator[bytes]:
    """Find the handler of a call that may pass, and answer as it does."""
    # gRPC takes no details but of its own type, which are read-only.
    handler = await continuation(type(details)(details.method, metadata))
    if handler is None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "there is no such method")
    seen = _Context(context, metadata, handler)
    taken = _taken(requests, handler) if handler.request_streaming else await _single(seen)
    if handler.response_streaming:
        answers = (handler.stream_stream if handler.request_streaming else handler.unary_stream)(taken, seen)
        if hasattr(answers, "__aiter__"):
            async for answer in answers:
                yield _written(handler, answer)
        else:
            await answers  # writes to the context itself
        return
    answer = await (handler.stream_unary if handler.request_streaming else handler.unary_unary)(taken, seen)
    if context.code() in {None, 0, grpc.StatusCode.OK}:  # as gRPC drops the answer otherwise
        yield _written(handler, answer)


class _Context:
    """The context of gRPC, but for what of it depends on metadata and on the handler's types of messages."""

    def __init__(self, context: Any, metadata: Metadata, handler: Any) -> None:
        self._context = context
        self._metadata = metadata
        self._handler = handler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    async def read(self) -> Any:
        message = await self._context.read()
        return message if message is grpc.aio.EOF else _read(self._handler, message)

    async def write(self, message: Any) -> None:
        await self._context.write(_written(self._handler, message))


async def _single(seen: _Context) -> Any:
    """The one request of a call that has no more."""
    message = await seen.read()
    if message is grpc.aio.EOF:
        await seen.abort(grpc.StatusCode.INTERNAL, "the call has no request")
    return message


async def _taken(requests: AsyncIterator[bytes], handler: Any) -> AsyncIterator[Any]:
    async for message in requests:
        yield _read(handler, message)


def _read(handler: Any, message: bytes) -> Any:
    return message if handler.request_deserializer is None else handler.request_deserializer(message)


def _written(handler: Any, message: Any) -> bytes:
    written: bytes = message if handler.response_serializer is None else handler.response_serializer(message)
    return written
