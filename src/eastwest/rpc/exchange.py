"""One gRPC call on an HTTP/2 stream: messages in and out, flow control, deadline, status.

The connection (``eastwest.rpc.http2``) gives it frames; the handler's task reads and writes messages. A call ends
once: with trailers when the caller still listens, silently when it has reset the stream or gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import structlog
from google.protobuf.message import DecodeError, Message
from grpclib.const import Status
from grpclib.encoding.proto import ProtoStatusDetailsCodec
from grpclib.exceptions import GRPCError, StreamTerminatedError

from eastwest.rpc import frames, limits, request
from eastwest.rpc.method import Method, Transport

SEND_SECONDS = 300.0
"""How long a message waits for a caller that takes nothing; memory is held for it meanwhile."""
AT_ONCE = 64 * 1024
"""Bytes of a message from which on it has the time of a large one."""
_PREFIX = 5  # flag and length before each message

_log = structlog.get_logger()
_details = ProtoStatusDetailsCodec()


class Link(Protocol):
    """What a call asks of its connection."""

    transport: Transport
    send_window: int
    max_frame: int
    header_room: int
    writable: bool

    def prove(self, caller: str) -> None: ...

    def hold(self, size: int) -> bool: ...

    def let_go(self, size: int) -> None: ...

    def write(self, data: bytes) -> None: ...

    def write_data(self, stream_id: int, part: bytes | memoryview) -> None: ...

    def acknowledge(self, exchange: HttpExchange, size: int) -> None: ...

    def wait(self, exchange: HttpExchange) -> None: ...

    def done(self, exchange: HttpExchange) -> None: ...


class HttpExchange:
    """A call; serves ``eastwest.rpc.method.Exchange``."""

    __slots__ = (
        "__weakref__",
        "_answered",
        "_buffer",
        "_cost",
        "_deadline",
        "_deaf",
        "_ending",
        "_link",
        "_loop",
        "_method",
        "_owed",
        "_reader",
        "_request",
        "_running",
        "_sender",
        "_task",
        "ended",
        "gone",
        "owed_to_stream",
        "receive_window",
        "send_window",
        "stream_id",
        "wanted",
    )

    def __init__(
        self,
        link: Link,
        stream_id: int,
        method: Method,
        asked: request.Request,
        *,
        send_window: int,
        window: int,
        cost: int,
    ) -> None:
        """``cost``: what ``link`` already holds for this call, to be let go at its end."""
        self._link = link
        self._cost = cost
        self._method = method
        self._request = asked
        self.stream_id = stream_id
        self.send_window = send_window
        self.receive_window = window
        self.owed_to_stream = 0
        self.wanted = 0  # bytes that wait for room to be sent
        self.ended = False  # the caller has sent its last byte
        self.gone = False  # the caller does not listen any more
        self._answered = False  # the first header block is out
        self._ending: Status | None = None  # why the task was cancelled by us
        self._buffer: bytes | bytearray = b""
        self._deaf = False  # the one message is read: what comes now is nothing that anybody asked for
        self._owed = 0
        self._reader: asyncio.Future[None] | None = None
        self._sender: asyncio.Future[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._running = False

    def start(self) -> None:
        """Run the handler."""
        if self._request.timeout is not None:
            self._deadline = self._loop.call_later(self._request.timeout, self.end, Status.DEADLINE_EXCEEDED)
        self._task = self._loop.create_task(self._run())

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The handler's."""
        return self._task

    @property
    def is_unary(self) -> bool:
        """Whether one message asks and one answers: such a call ends by itself."""
        return not self._method.takes_stream and not self._method.gives_stream

    # What the connection tells.

    def feed(self, data: bytes, owed: int) -> None:
        """Bytes that came, and how much of the windows they took (padding included)."""
        self._owed += owed
        if self._deaf or self._ending is not None:
            return  # nobody will read it; its windows stay taken until the call ends
        if not self._link.hold(len(data)):
            self.end(Status.RESOURCE_EXHAUSTED)
            return
        if not self._buffer:
            self._buffer = data
        else:
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)
            self._buffer += data
        _wake(self._reader)

    def half_close(self) -> None:
        """The caller sends nothing more."""
        self.ended = True
        _wake(self._reader)

    def opened(self) -> None:
        """There may be room to send."""
        _wake(self._sender)

    def lost(self) -> None:
        """The caller reset the stream, or its connection is gone."""
        self.gone = True
        self._cancel(Status.CANCELLED)

    def end(self, status: Status) -> None:
        """End the handler from outside; the caller is told ``status``."""
        if self._ending is None:
            self._ending = status
            self._cancel(status)

    # What the handler asks.

    def prove(self, caller: str) -> None:
        self._link.prove(caller)

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        return self._request.metadata()

    @property
    def connection(self) -> object:
        return self._link

    @property
    def transport(self) -> Transport:
        return self._link.transport

    async def receive(self) -> Any:
        limit, seconds = self._method.bounds()
        if len(self._buffer) < _PREFIX and not await self._begun():
            return None
        if self._buffer[0]:
            raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not accepted")
        length = int.from_bytes(self._buffer[1:_PREFIX])
        if length > limit:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, f"the message has {length} bytes; at most {limit} are accepted")
        size = _PREFIX + length
        if len(self._buffer) < size:
            await self._rest(size, seconds if length > AT_ONCE else limits.REQUEST_SECONDS)
        try:
            return self._method.request_type.FromString(self._take(size))
        except DecodeError:
            raise GRPCError(Status.INVALID_ARGUMENT, "the message is not of this method's type") from None

    async def send(self, message: Message) -> None:
        body = message.SerializeToString()
        size = _PREFIX + len(body)
        link = self._link
        if self.gone:
            raise StreamTerminatedError("the caller has gone")
        if not self._answered:
            self._answered = True
            link.write(frames.head(len(_HEAD), frames.HEADERS, frames.END_HEADERS, self.stream_id) + _HEAD)
        framed = b"\x00" + len(body).to_bytes(4) + body
        if link.writable and size <= self.send_window and size <= link.send_window and size <= link.max_frame:
            self.send_window -= size
            link.write_data(self.stream_id, framed)
        else:
            await self._send_slowly(memoryview(framed))

    # Within.

    def _cancel(self, status: Status) -> None:
        if self._task is None:
            return
        self._task.cancel()
        if not self._running:
            # A task that is cancelled before its first step never takes it: nobody else would end this call.
            self._close(status, _REASONS.get(status), None)

    async def _run(self) -> None:
        self._running = True
        status, text, details = Status.OK, None, None
        try:
            await self._method.serve(self)
        except GRPCError as error:
            status, text = error.status, error.message
            if error.details is not None:
                details = _details.encode(status, text, error.details)
        except asyncio.CancelledError:
            # The caller has gone, _ending says why we ended it, or the whole process ends.
            status = self._ending or Status.CANCELLED
        except StreamTerminatedError:
            status = Status.CANCELLED
        except Exception:  # noqa: BLE001 - a handler's last resort; the peer gets a status and the log the cause
            _log.exception("rpc.failed", path=self._request.path.decode("ascii", "replace"))
            status, text = Status.INTERNAL, "internal error; the server's log says more"
        if self._ending is not None:
            status, text, details = self._ending, _REASONS.get(self._ending), None
        self._close(status, text, details)

    def _close(self, status: Status, text: str | None, details: bytes | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if not self.gone:
            if status is Status.OK and self._answered:
                self._link.write(
                    frames.head(len(_OK), frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, self.stream_id) + _OK
                )
            else:
                block = request.trailers(status, text, details, self._link.header_room)
                if not self._answered:
                    block = _HEAD + block
                self._link.write(frames.headers(self.stream_id, block, self._link.max_frame, end_stream=True))
            if not self.ended:
                # The answer is whole; what the caller still sends is not needed (RFC 9113, section 8.1).
                self._link.write(frames.rst_stream(self.stream_id, frames.NO_ERROR))
        owed, self._owed = self._owed, 0
        self._link.let_go(len(self._buffer) + self._cost)
        self._buffer = b""
        self.ended = self._deaf = True
        self._link.acknowledge(self, owed)
        self._link.done(self)
        self._task = None

    def _take(self, size: int) -> bytes:
        buffer = self._buffer
        if isinstance(buffer, bytes):
            body = buffer[_PREFIX:size]
            self._buffer = bytearray(buffer[size:]) if len(buffer) > size else b""
        else:
            body = bytes(memoryview(buffer)[_PREFIX:size])
            del buffer[:size]
        owed = min(self._owed, len(self._buffer))
        if not self._method.takes_stream:
            self._deaf = True
            size += len(self._buffer)
            self._buffer = b""
        self._link.let_go(size)
        self._link.acknowledge(self, self._owed - owed)
        self._owed = owed
        return body

    async def _begun(self) -> bool:
        """Wait for the first bytes of a message; False: the caller sends no more.

        One that may send messages when it likes may take its time before each; any other has to come up with its own.
        """
        until = None if self._method.takes_stream else self._loop.time() + limits.REQUEST_SECONDS
        while len(self._buffer) < _PREFIX:
            if self.ended:
                if self._buffer:
                    raise GRPCError(Status.INVALID_ARGUMENT, "the message ended early")
                return False
            if until is None and self._buffer:
                until = self._loop.time() + limits.REQUEST_SECONDS
            try:
                async with asyncio.timeout_at(until):
                    await self._more()
            except TimeoutError:
                raise GRPCError(Status.DEADLINE_EXCEEDED, "the request did not come") from None
        return True

    async def _rest(self, size: int, seconds: float) -> None:
        """Wait until ``size`` bytes are there; a caller that takes too long over a message is not waited for."""
        try:
            async with asyncio.timeout(seconds):
                while len(self._buffer) < size:
                    if self.ended:
                        raise GRPCError(Status.INVALID_ARGUMENT, "the message ended early")
                    await self._more()
        except TimeoutError:
            raise GRPCError(Status.DEADLINE_EXCEEDED, "the rest of the message did not come") from None

    async def _more(self) -> None:
        # Whoever waits for more lets the caller send more.
        owed, self._owed = self._owed, 0
        self._link.acknowledge(self, owed)
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    async def _send_slowly(self, rest: memoryview) -> None:
        link = self._link
        while rest:
            if self.gone:
                raise StreamTerminatedError("the caller has gone")
            size = min(len(rest), self.send_window, link.send_window, link.max_frame)
            if size <= 0 or not link.writable:
                await self._room(len(rest))
                continue
            self.send_window -= size
            link.write_data(self.stream_id, rest[:size])
            rest = rest[size:]

    async def _room(self, wanted: int) -> None:
        self.wanted = wanted
        self._sender = self._loop.create_future()
        self._link.wait(self)
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._sender
        except TimeoutError:
            raise GRPCError(Status.DEADLINE_EXCEEDED, "the caller takes nothing") from None
        finally:
            self._sender = None


_HEAD = request.head()
_OK = request.trailers(Status.OK, None, None, 0)
_REASONS = {
    Status.DEADLINE_EXCEEDED: "the caller's deadline has passed",
    Status.UNAVAILABLE: "the server is stopping",
    Status.RESOURCE_EXHAUSTED: "too much is held for this caller already: let calls end before there are more",
}


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
