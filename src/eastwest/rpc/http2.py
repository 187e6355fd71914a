"""HTTP/2 for gRPC servers (RFC 9113), without what gRPC never uses: push, priorities, anything but POST.

Why not grpclib and h2: they cost more than issuing a certificate does. They remain as the other implementation
behind ``eastwest.rpc.service.Listener``, to switch to and to compare with. What a peer can make us hold or do is
bounded by ``eastwest.rpc.limits``; a connection is ``Outgoing``, then ``Incoming``, then ``Connection``.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from grpclib.const import Status

from eastwest.rpc import frames, limits, request
from eastwest.rpc.accepting import Acceptor
from eastwest.rpc.exchange import HttpExchange
from eastwest.rpc.incoming import Incoming, unpadded
from eastwest.rpc.limits import Fault
from eastwest.rpc.method import Admission, Method, Place
from eastwest.rpc.outgoing import MAX_HELD


class Http2Server:
    """Serves ``methods`` by path on one listening socket."""

    def __init__(self, methods: Mapping[str, Method], admit: Admission) -> None:
        self._methods = {path.encode(): method for path, method in methods.items()}
        self._admit = admit
        self._connections: set[Connection] = set()
        self._acceptor: Acceptor | None = None

    async def start(self, sock: socket.socket, backlog: int, tls: ssl.SSLContext | None) -> None:
        """Listen on a bound socket."""
        self._acceptor = Acceptor(sock, tls, self._admit, self._connection)
        self._acceptor.start(backlog)

    async def close(self) -> None:
        """Say goodbye, let short calls end, end the others, close every connection."""
        if self._acceptor is not None:
            await self._acceptor.close()
        tasks = {task for connection in self._connections for task in connection.leave()}
        if tasks:
            await asyncio.wait(tasks, timeout=limits.GRACE_SECONDS)
        left = {task for connection in self._connections for task in connection.end_calls()}
        if left:
            await asyncio.wait(left)
        for connection in list(self._connections):
            connection.close()

    def _connection(self, place: Place) -> Connection:
        return Connection(self._methods, place, self._connections)


class Connection(Incoming):
    """One caller's connection; serves ``eastwest.rpc.exchange.Link``. Lives as long as it is open."""

    def __init__(self, methods: Mapping[bytes, Method], place: Place, all_connections: set[Connection]) -> None:
        super().__init__()
        self._methods = methods
        self._place = place
        self._all = all_connections
        self._proven = False
        self._begun = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._receive_window = limits.CONNECTION_WINDOW
        self._owed = 0
        self._initial_window = frames.DEFAULT_WINDOW
        self._exchanges: dict[int, HttpExchange] = {}
        self._last_id = 0
        self._quiet_since = 0.0
        self._leaving = False

    # Its life.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        # On a unix socket the kernel has said who it is.
        self._proven = transport.get_extra_info("ssl_object") is None
        self._place.ending = self.abort
        self._all.add(self)
        self._timer = self._loop.call_later(limits.GREETING_SECONDS, self._not_greeted)
        self.write(_SETTINGS)

    def connection_lost(self, _error: Exception | None) -> None:
        self.closing = True
        self._all.discard(self)
        self._place.release()
        if self._timer is not None:
            self._timer.cancel()
        self._held.clear()
        for exchange in list(self._exchanges.values()):
            exchange.lost()

    def greeted(self) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self._quiet_since = self._loop.time()
        self._timer = self._loop.call_later(limits.IDLE_SECONDS, self._look_whether_idle)

    def fail(self, code: int, text: str) -> None:
        if self.closing:
            return
        self.write(frames.goaway(self._last_id, code, text))
        self.close()
        for exchange in list(self._exchanges.values()):
            exchange.lost()

    def _not_greeted(self) -> None:
        self.fail(frames.PROTOCOL_ERROR, "no HTTP/2 greeting came")

    def _look_whether_idle(self) -> None:
        if self._proven and self._last_id:
            return  # an agent's connection stays open between its calls
        now = self._loop.time()
        left = limits.IDLE_SECONDS
        if not self._exchanges:
            left -= now - self._quiet_since
            if left <= 0:
                self.fail(frames.NO_ERROR, "nothing is called on this connection")
                return
        if not self._proven:
            left = min(left, self._begun + limits.UNPROVEN_SECONDS - now)
            if left <= 0:
                self.fail(frames.NO_ERROR, "the caller has proved nothing, and its time is up")
                return
        self._timer = self._loop.call_later(left, self._look_whether_idle)

    # For calls.

    def prove(self, caller: str) -> None:
        """A gate knows the caller by this name."""
        self._proven = True
        self._place.prove(caller)

    def hold(self, size: int) -> bool:
        """Whether ``size`` bytes more may be held for the caller; if so they count."""
        return self._place.hold(size)

    def let_go(self, size: int) -> None:
        """What was held is held no more."""
        self._place.let_go(size)

    def write_data(self, stream_id: int, part: bytes | memoryview) -> None:
        if len(part) >= 512:
            self.allowance.earn(2)  # a peer may acknowledge what it gets, and measure how fast it gets it
        super().write_data(stream_id, part)

    def acknowledge(self, exchange: HttpExchange, size: int) -> None:
        """``size`` bytes of a call were read: the peer may send as many more, for this call and for all."""
        if not size:
            return
        if not exchange.ended:
            exchange.owed_to_stream += size
            if exchange.owed_to_stream >= limits.STREAM_WINDOW // 4:
                exchange.receive_window += exchange.owed_to_stream
                self.write(frames.window_update(exchange.stream_id, exchange.owed_to_stream))
                exchange.owed_to_stream = 0
        self._give_back(size)

    def done(self, exchange: HttpExchange) -> None:
        """The call has ended."""
        self._exchanges.pop(exchange.stream_id, None)
        if not self._proven:
            self._quiet_since = self._loop.time()
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
            self._loop.call_later(limits.LINGER_SECONDS, self.transport.abort)

    # Frames.

    def _read_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._check_begun(stream_id)
        self._receive_window -= size
        if self._receive_window < 0:
            raise Fault(frames.FLOW_CONTROL_ERROR, "more data than the connection's window")
        content = unpadded(payload) if flags & frames.PADDED else payload
        exchange = self._exchanges.get(stream_id)
        if exchange is None or exchange.gone:
            # Sent before the caller knew that the call had ended.
            self.spend()
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
            self.spend()
        if size:
            exchange.feed(content, size)
        if flags & frames.END_STREAM:
            exchange.half_close()

    def read_fields(self, stream_id: int, fields: request.Fields, *, ended: bool) -> None:
        exchange = self._exchanges.get(stream_id)
        if exchange is not None and not exchange.gone:
            if exchange.ended or not ended:
                self._reset(exchange, frames.PROTOCOL_ERROR)
            else:
                exchange.half_close()
            return
        if stream_id <= self._last_id:
            self.spend(limits.RESET_COST)  # trailers of a call that has ended; a caller has few
            return
        self._last_id = stream_id
        if self._leaving:
            return
        if len(self._exchanges) >= limits.MAX_STREAMS:
            self._refuse(stream_id)
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
            self.spend(limits.RESET_COST)
            self.write(frames.rst_stream(stream_id, frames.PROTOCOL_ERROR))
            return
        except request.NotServed as refused:
            self.spend(limits.RESET_COST)
            block = request.head(refused.http_status)
            block += request.trailers(refused.status, str(refused), None, self.header_room)
            self.write(frames.headers(stream_id, block, self.max_frame, end_stream=True))
            if not ended:
                self.write(frames.rst_stream(stream_id, frames.NO_ERROR))
            return
        cost = limits.CALL_COST + asked.size
        if not self.hold(cost):
            self._refuse(stream_id)
            return
        exchange = HttpExchange(
            self, stream_id, method, asked, send_window=self._initial_window, window=limits.STREAM_WINDOW, cost=cost
        )
        exchange.ended = ended
        self._exchanges[stream_id] = exchange
        exchange.start()

    def _read_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        self._check_begun(stream_id)
        if len(payload) != 4:
            raise Fault(frames.FRAME_SIZE_ERROR, "RST_STREAM has four bytes")
        exchange = self._exchanges.get(stream_id)
        if exchange is None or exchange.gone:
            self.spend()
            return
        self.spend(limits.RESET_COST)
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
        self.spend(1 + len(payload) // 60)
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

    def _read_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fault(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE has four bytes")
        self.spend()
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
        if self._owed >= limits.CONNECTION_WINDOW // 4:
            self._receive_window += self._owed
            self.write(frames.window_update(0, self._owed))
            self._owed = 0

    def _refuse(self, stream_id: int) -> None:
        """No call begins; the caller may try again."""
        self.spend(limits.RESET_COST)
        self.write(frames.rst_stream(stream_id, frames.REFUSED_STREAM))

    def _reset(self, exchange: HttpExchange, code: int) -> None:
        """The peer broke a rule of one stream."""
        self.spend(limits.RESET_COST)
        self.write(frames.rst_stream(exchange.stream_id, code))
        exchange.lost()


Connection.readers = (
    Connection._read_data,
    Connection.read_headers,
    Connection.read_priority,
    Connection._read_rst_stream,
    Connection._read_settings,
    Connection.read_push_promise,
    Connection.read_ping,
    Connection.read_goaway,
    Connection._read_window_update,
    Connection.read_continuation,
)
_SETTINGS = frames.settings(
    [
        (frames.MAX_CONCURRENT_STREAMS, limits.MAX_STREAMS),
        (frames.INITIAL_WINDOW_SIZE, limits.STREAM_WINDOW),
        (frames.MAX_HEADER_LIST_SIZE, limits.MAX_HEADER_LIST),
    ]
) + frames.window_update(0, limits.CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
