"""HTTP/2 for gRPC servers (RFC 9113), without what gRPC never uses: push, priorities, anything but POST.

Why not grpclib and h2: they cost more than issuing a certificate does. They remain as the other implementation
behind ``eastwest.rpc.service.Listener``, to switch to and to compare with.

What a peer can make us hold or do is bounded:

- memory: one frame, one header block, one window of unread data for each connection, ``MAX_STREAMS`` calls; and
  ``MAX_UNREAD`` bytes of answers to a peer that reads nothing
- work: frames that carry nothing (PING, SETTINGS, WINDOW_UPDATE, RST_STREAM, PRIORITY, empty DATA, CONTINUATION,
  refused streams) are paid for from an allowance that refills with time and with data sent; see ``_spend``
- a call whose caller has reset it holds its place until its handler has ended, so that opening and resetting
  streams does not pile up work
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, cast

import hpack
import structlog
from grpclib.const import Status

from eastwest.rpc import frames, request
from eastwest.rpc.exchange import HttpExchange
from eastwest.rpc.method import Admission, Method
from eastwest.rpc.outgoing import MAX_HELD, Outgoing

MAX_STREAMS = 100
"""Calls of one connection at a time."""
STREAM_WINDOW = 256 * 1024
CONNECTION_WINDOW = 2 * 1024 * 1024
MAX_HEADER_BLOCK = 32 * 1024
"""Bytes of one header block as it comes, all its frames together."""
MAX_HEADER_LIST = 16 * 1024
"""Bytes of a header list once decoded, as RFC 7541 counts them."""
ALLOWANCE = 2000
"""Frames without content that come at once; 1000 more in each second."""
ALLOWANCE_PER_SECOND = 1000
_RESET_COST = 10
GREETING_SECONDS = 10.0
GRACE_SECONDS = 2.0
"""How long calls with one answer may still take when the server stops."""
LINGER_SECONDS = 5.0
HANDSHAKE_SECONDS = 20.0
KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}

_log = structlog.get_logger()


class Fault(Exception):
    """The peer broke the protocol, or went too far: the connection ends."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Http2Server:
    """Serves ``methods`` by path on one listening socket."""

    def __init__(self, methods: Mapping[str, Method], admit: Admission) -> None:
        self._methods = {path.encode(): method for path, method in methods.items()}
        self._admit = admit
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, sock: socket.socket, backlog: int, tls: ssl.SSLContext | None) -> None:
        """Listen on a bound socket."""
        loop = asyncio.get_running_loop()
        more: dict[str, Any] = {}
        if tls is not None:
            more = {
                "ssl": tls,
                "ssl_handshake_timeout": HANDSHAKE_SECONDS,
                "ssl_shutdown_timeout": LINGER_SECONDS,
            }
        create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        self._server = await cast("Any", create)(self._connection, sock=sock, backlog=backlog, **more)

    async def close(self) -> None:
        """Say goodbye, let short calls end, end the others, close every connection."""
        if self._server is not None:
            self._server.close()
        tasks = {task for connection in self._connections for task in connection.leave()}
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        left = {task for connection in self._connections for task in connection.end_calls()}
        if left:
            await asyncio.wait(left)
        for connection in list(self._connections):
            connection.close()

    def _connection(self) -> Connection:
        return Connection(self._methods, self._admit, self._connections)


class Connection(Outgoing):
    """One caller's connection; serves ``eastwest.rpc.exchange.Link``. Lives as long as it is open."""

    def __init__(self, methods: Mapping[bytes, Method], admit: Admission, all_connections: set[Connection]) -> None:
        super().__init__()
        self._methods = methods
        self._admit = admit
        self._all = all_connections
        self._release: Callable[[], None] | None = None
        # What comes in.
        self._pending = bytearray()
        self._needed = len(frames.PREFACE) + frames.HEAD
        self._greeted = False
        self._first_frame = True
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_LIST)
        self._block: tuple[int, int, bytearray] | None = None
        self._receive_window = CONNECTION_WINDOW
        self._owed = 0
        self._allowance = ALLOWANCE
        # Calls.
        self._initial_window = frames.DEFAULT_WINDOW
        self._exchanges: dict[int, HttpExchange] = {}
        self._last_id = 0
        self._leaving = False

    # asyncio's calls.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        sock = transport.get_extra_info("socket")
        self._release = self._admit(sock)
        if self._release is None:
            self.closing = True
            transport.abort()
            return
        _keep_alive(sock)
        self._all.add(self)
        self._refilled = self._loop.time()
        self._greeting = self._loop.call_later(GREETING_SECONDS, self._not_greeted)
        self.write(_SETTINGS)

    def connection_lost(self, _error: Exception | None) -> None:
        self.closing = True
        self._all.discard(self)
        if self._release is None:
            return
        self._release()
        self._release = None
        self._greeting.cancel()
        self._held.clear()
        for exchange in list(self._exchanges.values()):
            exchange.lost()

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return
            data = bytes(self._pending)
            self._pending.clear()
        try:
            taken = self._read_frames(data)
            if taken < len(data):
                self._pending += data[taken:] if taken else data
        except Fault as fault:
            self._fail(fault.code, str(fault))
        except Exception:  # noqa: BLE001 - a fault of ours: this peer's connection ends, the others' go on
            _log.exception("http2.failed")
            self._fail(frames.INTERNAL_ERROR, "internal error")

    # For calls.

    def write_data(self, stream_id: int, part: bytes | memoryview) -> None:
        if len(part) >= 512 and self._allowance < ALLOWANCE:
            self._allowance += 2  # a peer may acknowledge what it gets, and measure how fast it gets it
        super().write_data(stream_id, part)

    def acknowledge(self, exchange: HttpExchange, size: int) -> None:
        """``size`` bytes of a call were read: the peer may send as many more, for this call and for all."""
        if not size:
            return
        if not exchange.ended:
            exchange.owed_to_stream += size
            if exchange.owed_to_stream >= STREAM_WINDOW // 4:
                exchange.receive_window += exchange.owed_to_stream
                self.write(frames.window_update(exchange.stream_id, exchange.owed_to_stream))
                exchange.owed_to_stream = 0
        self._give_back(size)

    def done(self, exchange: HttpExchange) -> None:
        """The call has ended."""
        self._exchanges.pop(exchange.stream_id, None)
        self.leave_queue(exchange)

    # For the server.

    def leave(self) -> list[asyncio.Task[None]]:
        """Take no new calls, and end those that do not end by themselves; the tasks of all that run."""
        if not self._leaving and not self.closing:
            self._leaving = True
            self.write(frames.goaway(self._last_id, frames.NO_ERROR, "the server is stopping"))
        running = [exchange.task for exchange in self._exchanges.values()]
        for exchange in list(self._exchanges.values()):
            if not exchange.is_unary:
                exchange.end(Status.UNAVAILABLE)
        return [task for task in running if task is not None]

    def end_calls(self) -> list[asyncio.Task[None]]:
        """End all calls; their tasks."""
        running = [exchange.task for exchange in self._exchanges.values()]
        for exchange in list(self._exchanges.values()):
            exchange.end(Status.UNAVAILABLE)
        return [task for task in running if task is not None]

    def close(self) -> None:
        """Send what is held and close."""
        self.flush()
        self.closing = True
        if not self.transport.is_closing():
            self.transport.close()
            self._loop.call_later(LINGER_SECONDS, self.transport.abort)

    # Frames.

    def _read_frames(self, data: bytes) -> int:
        """Handle every whole frame; how many bytes they had."""
        at, end = 0, len(data)
        if not self._greeted:
            if not frames.PREFACE.startswith(data[: len(frames.PREFACE)]):
                raise Fault(frames.PROTOCOL_ERROR, "this port speaks HTTP/2 only")
            if end < len(frames.PREFACE):
                return 0
            self._greeted = True
            at = len(frames.PREFACE)
        while end - at >= frames.HEAD:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if length > frames.DEFAULT_MAX_FRAME:
                raise Fault(frames.FRAME_SIZE_ERROR, "a frame is longer than 16384 bytes")
            stop = at + frames.HEAD + length
            if stop > end:
                self._needed = stop - at
                return at
            kind, flags = data[at + 3], data[at + 4]
            stream_id = int.from_bytes(data[at + 5 : at + 9]) & 0x7FFFFFFF
            self._read_frame(kind, flags, stream_id, data[at + frames.HEAD : stop])
            if self.closing:
                return end
            at = stop
        self._needed = frames.HEAD
        return at

    def _read_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._first_frame:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise Fault(frames.PROTOCOL_ERROR, "the first frame must be SETTINGS")
            self._first_frame = False
            self._greeting.cancel()
        if self._block is not None and kind != frames.CONTINUATION:
            raise Fault(frames.PROTOCOL_ERROR, "a header block is not finished")
        if kind < len(_READERS):
            _READERS[kind](self, flags, stream_id, payload)
        else:
            self._spend()  # unknown frames are ignored (RFC 9113, section 4.1)

    def _read_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._check_begun(stream_id)
        self._receive_window -= size
        if self._receive_window < 0:
            raise Fault(frames.FLOW_CONTROL_ERROR, "more data than the connection's window")
        content = _unpadded(payload) if flags & frames.PADDED else payload
        exchange = self._exchanges.get(stream_id)
        if exchange is None or exchange.gone:
            # Sent before the caller knew that the call had ended.
            self._spend()
            self._give_back(size)
            return
        if exchange.ended:
            self._give_back(size)
            self._reset(exchange, frames.STREAM_CLOSED)
            return
        exchange.receive_window -= size
        if exchange.receive_window < 0:
            self._give_back(size)
            self._reset(exchange, frames.FLOW_CONTROL_ERROR)
            return
        if not content and not flags & frames.END_STREAM:
            self._spend()
        if size:
            exchange.feed(content, size)
        if flags & frames.END_STREAM:
            exchange.half_close()

    def _read_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id % 2:
            raise Fault(frames.PROTOCOL_ERROR, "a client opens streams with odd numbers")
        if flags & frames.PADDED:
            payload = _unpadded(payload)
        if flags & frames.HAS_PRIORITY:
            if len(payload) < 5:
                raise Fault(frames.FRAME_SIZE_ERROR, "HEADERS is too short")
            payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._read_block(flags, stream_id, payload)
        else:
            self._block = stream_id, flags, bytearray(payload)

    def _read_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise Fault(frames.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._spend()
        _, first_flags, block = self._block
        block += payload
        if len(block) > MAX_HEADER_BLOCK:
            raise Fault(frames.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & frames.END_HEADERS:
            self._block = None
            self._read_block(first_flags, stream_id, bytes(block))

    def _read_block(self, flags: int, stream_id: int, block: bytes) -> None:
        try:
            fields = cast("request.Fields", self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError:
            raise Fault(frames.ENHANCE_YOUR_CALM, "a header list is too large") from None
        except Exception:  # noqa: BLE001 - the library's own errors are not all that its parsing of hostile bytes raises
            raise Fault(frames.COMPRESSION_ERROR, "a header block is not HPACK") from None
        ended = bool(flags & frames.END_STREAM)
        exchange = self._exchanges.get(stream_id)
        if exchange is not None and not exchange.gone:
            if exchange.ended or not ended:
                self._reset(exchange, frames.PROTOCOL_ERROR)
            else:
                exchange.half_close()
            return
        if stream_id <= self._last_id:
            self._spend()
            return
        self._last_id = stream_id
        if self._leaving:
            return
        if len(self._exchanges) >= MAX_STREAMS:
            self._spend(_RESET_COST)
            self.write(frames.rst_stream(stream_id, frames.REFUSED_STREAM))
            return
        self._open(stream_id, fields, ended=ended)

    def _open(self, stream_id: int, fields: request.Fields, *, ended: bool) -> None:
        try:
            asked = request.Request(fields)
            method = self._methods.get(asked.path)
            if method is None:
                path = asked.path[:200].decode("ascii", "replace")
                raise request.NotServed(200, Status.UNIMPLEMENTED, f"this server has no {path}")
        except request.Malformed:
            self._spend(_RESET_COST)
            self.write(frames.rst_stream(stream_id, frames.PROTOCOL_ERROR))
            return
        except request.NotServed as refused:
            self._spend(_RESET_COST)
            block = request.head(refused.http_status)
            block += request.trailers(refused.status, str(refused), None, self.header_room)
            self.write(frames.headers(stream_id, block, self.max_frame, end_stream=True))
            if not ended:
                self.write(frames.rst_stream(stream_id, frames.NO_ERROR))
            return
        exchange = HttpExchange(self, stream_id, method, asked, send_window=self._initial_window, window=STREAM_WINDOW)
        exchange.ended = ended
        self._exchanges[stream_id] = exchange
        exchange.start()

    def _read_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise Fault(frames.PROTOCOL_ERROR, "PRIORITY of no stream")
        if len(payload) != 5:
            raise Fault(frames.FRAME_SIZE_ERROR, "PRIORITY has five bytes")
        self._spend()

    def _read_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        self._check_begun(stream_id)
        if len(payload) != 4:
            raise Fault(frames.FRAME_SIZE_ERROR, "RST_STREAM has four bytes")
        exchange = self._exchanges.get(stream_id)
        if exchange is None or exchange.gone:
            self._spend()
            return
        self._spend(_RESET_COST)
        exchange.lost()

    def _read_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Fault(frames.PROTOCOL_ERROR, "SETTINGS are of the connection")
        if flags & frames.ACK:
            if payload:
                raise Fault(frames.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS is empty")
            return
        if len(payload) % 6:
            raise Fault(frames.FRAME_SIZE_ERROR, "SETTINGS are pairs of six bytes")
        self._spend(1 + len(payload) // 60)
        for key, value in frames.read_settings(payload):
            self._apply_setting(key, value)
        self.write(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _apply_setting(self, key: int, value: int) -> None:
        if key == frames.INITIAL_WINDOW_SIZE:
            if value > frames.LARGEST_WINDOW:
                raise Fault(frames.FLOW_CONTROL_ERROR, "the initial window is too large")
            grown = value - self._initial_window
            self._initial_window = value
            for exchange in self._exchanges.values():
                exchange.send_window += grown
                if exchange.send_window > frames.LARGEST_WINDOW:
                    raise Fault(frames.FLOW_CONTROL_ERROR, "a window is too large")
            self.wake()
        elif key == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_MAX_FRAME <= value <= frames.LARGEST_MAX_FRAME:
                raise Fault(frames.PROTOCOL_ERROR, "the frame size is out of range")
            self.max_frame = min(value, MAX_HELD)
        elif key == frames.MAX_HEADER_LIST_SIZE:
            self.header_room = min(value, 64 * 1024)
        elif key == frames.ENABLE_PUSH and value > 1:
            raise Fault(frames.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")

    def _read_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise Fault(frames.PROTOCOL_ERROR, "a client does not push")

    def _read_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Fault(frames.PROTOCOL_ERROR, "PING is of the connection")
        if len(payload) != 8:
            raise Fault(frames.FRAME_SIZE_ERROR, "PING has eight bytes")
        self._spend()
        if not flags & frames.ACK:
            self.write(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _read_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Fault(frames.PROTOCOL_ERROR, "GOAWAY is of the connection")
        if len(payload) < 8:
            raise Fault(frames.FRAME_SIZE_ERROR, "GOAWAY has eight bytes or more")
        self._spend()  # it says that no more calls come; those that run go on

    def _read_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fault(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE has four bytes")
        self._spend()
        size = int.from_bytes(payload) & 0x7FFFFFFF
        if stream_id == 0:
            if not size:
                raise Fault(frames.PROTOCOL_ERROR, "a window grows by one at least")
            self.send_window += size
            if self.send_window > frames.LARGEST_WINDOW:
                raise Fault(frames.FLOW_CONTROL_ERROR, "the connection's window is too large")
            self.wake()
            return
        self._check_begun(stream_id)
        exchange = self._exchanges.get(stream_id)
        if exchange is None or exchange.gone:
            return
        exchange.send_window += size
        if not size or exchange.send_window > frames.LARGEST_WINDOW:
            self._reset(exchange, frames.FLOW_CONTROL_ERROR if size else frames.PROTOCOL_ERROR)
            return
        self.wake()

    # Within.

    def _check_begun(self, stream_id: int) -> None:
        if stream_id == 0 or stream_id > self._last_id or not stream_id % 2:
            raise Fault(frames.PROTOCOL_ERROR, "a frame of a stream that was never opened")

    def _give_back(self, size: int) -> None:
        self._owed += size
        if self._owed >= CONNECTION_WINDOW // 4:
            self._receive_window += self._owed
            self.write(frames.window_update(0, self._owed))
            self._owed = 0

    def _reset(self, exchange: HttpExchange, code: int) -> None:
        """The peer broke a rule of one stream."""
        self._spend(_RESET_COST)
        self.write(frames.rst_stream(exchange.stream_id, code))
        exchange.lost()

    def _spend(self, cost: int = 1) -> None:
        self._allowance -= cost
        if self._allowance >= 0:
            return
        now = self._loop.time()
        refill = min(ALLOWANCE, int((now - self._refilled) * ALLOWANCE_PER_SECOND))
        if refill > 0:
            self._refilled = now
        self._allowance += refill
        if self._allowance < 0:
            raise Fault(frames.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _not_greeted(self) -> None:
        self._fail(frames.PROTOCOL_ERROR, "no HTTP/2 greeting came")

    def _fail(self, code: int, text: str) -> None:
        if self.closing:
            return
        self.write(frames.goaway(self._last_id, code, text))
        self.close()
        for exchange in list(self._exchanges.values()):
            exchange.lost()


# By kind of frame, 0 to 9.
_READERS: tuple[Callable[[Connection, int, int, bytes], None], ...] = (
    Connection._read_data,
    Connection._read_headers,
    Connection._read_priority,
    Connection._read_rst_stream,
    Connection._read_settings,
    Connection._read_push_promise,
    Connection._read_ping,
    Connection._read_goaway,
    Connection._read_window_update,
    Connection._read_continuation,
)
_SETTINGS = frames.settings(
    [
        (frames.MAX_CONCURRENT_STREAMS, MAX_STREAMS),
        (frames.INITIAL_WINDOW_SIZE, STREAM_WINDOW),
        (frames.MAX_HEADER_LIST_SIZE, MAX_HEADER_LIST),
    ]
) + frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW)


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise Fault(frames.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def _keep_alive(sock: socket.socket) -> None:
    """Let the kernel find a caller that vanished without a word."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
