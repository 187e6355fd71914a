"""HTTP/2 (RFC 9113) and HTTP/1.1 for small requests with small answers, chosen by ALPN, to callers with certificates.

Sidecars speak HTTP/2 to every service, this one included; other programs may speak either. The framing is the ``h2``
library's; what a caller can make us hold or do is bounded here and in ``flood``, and a connection is ended before it
is old, so that none outlives the certificate or the trust that it began with by much.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from eastwest.rpc import frames
from eastwest.rpc.admission import Connections, as_many_as_possible
from eastwest.rpc.limits import Allowance, Fault
from eastwest.rpc.method import Place
from eastwest.rpc.tls import certificate_id
from eastwest.server.public.https import FIRST_REQUEST_SECONDS, MAX_AGE_SECONDS, SHARE, Impatient, Serving
from eastwest.server.tokens.flood import REQUEST_COST, TOKEN_REWARD, Allowances, Meter

MAX_BODY = 32 * 1024
MAX_STREAMS = 32
MAX_HEADERS = 16 * 1024
MAX_RESETS = 100
"""Requests that one connection may begin and take back."""
MAX_UNREAD = 64 * 1024
"""Bytes that may come without making anything whole; the library itself would wait for a frame of any length."""
MAX_UNSENT = 256 * 1024
"""Bytes that wait for a caller who does not read."""
MAX_CONNECTIONS_OF_CALLER = 32
"""Of one SPIFFE ID; one more ends the oldest that is idle, or the newest where none is."""
IDLE_SECONDS = 30.0
"""After which a connection is ended on which nothing is asked any more."""
LINGER_SECONDS = 10.0
FAULT_SECONDS = 1.0
"""How long a caller that went too far may take to read why."""
_log = structlog.get_logger()


@dataclass(slots=True)
class Asked:
    """A whole request. ``too_large``: its body was, and is not here."""

    method: str
    path: str
    content_type: str
    body: bytes
    too_large: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A response whose body is JSON, never to be cached."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[bytes, Asked], Awaitable[Answer]]
"""Takes the caller's certificate (DER) and its request. Must not raise."""


def places() -> Connections:
    """Which connections the token port may have."""
    return Connections(as_many_as_possible() // SHARE, of_caller=MAX_CONNECTIONS_OF_CALLER)


def by_alpn(handler: Handler) -> Callable[[Any, Serving, Place], asyncio.Protocol]:
    """What a ``PublicListener`` is to speak."""
    allowances = Allowances()
    return lambda config, serving, place: _Chooser(handler, allowances, config, serving, place)


class _Chooser(asyncio.Protocol):
    """Looks who the caller is and what TLS agreed on, and makes way."""

    def __init__(self, handler: Handler, allowances: Allowances, config: Any, serving: Serving, place: Place) -> None:
        self._handler = handler
        self._allowances = allowances
        self._config = config
        self._serving = serving
        self._place = place

    def connection_made(self, transport: Any) -> None:
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        caller = certificate_id(certificate) if certificate is not None else None
        if certificate is None or caller is None:
            transport.abort()  # TLS has asked for an SVID; without it nothing is served
            return
        allowance = self._allowances.of(str(caller), asyncio.get_running_loop().time())
        inner: Any
        if tls.selected_alpn_protocol() == "h2":
            inner = Http2(self._handler, certificate, allowance, self._serving, self._place)
        else:
            inner = _Http1(certificate, allowance, self._config, self._serving, self._place)
        transport.set_protocol(inner)
        inner.connection_made(transport)
        # Last, as it may end this very connection: then all others of the caller are busy.
        self._place.prove(str(caller))

    def connection_lost(self, _error: Exception | None) -> None:
        self._place.release()


class _Http1(Impatient):
    """HTTP/1.1, as strangers get it; the application finds the certificate in its scope."""

    def __init__(self, certificate: bytes, allowance: Allowance, config: Any, serving: Serving, place: Place) -> None:
        super().__init__(config, serving, place)
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def earn(message: Any) -> None:
                if message.get("status") == 200:
                    allowance.earn(TOKEN_REWARD)
                await send(message)

            try:
                allowance.spend(REQUEST_COST, self.loop.time())
            except Fault:
                headers = [(b"connection", b"close"), (b"retry-after", b"1"), (b"content-length", b"0")]
                await send({"type": "http.response.start", "status": 429, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
            await inner({**scope, "certificate": certificate}, receive, earn)

        self.app = app


@dataclass(slots=True)
class _Stream:
    method: str
    path: str
    content_type: str
    body: bytearray = field(default_factory=bytearray)
    too_large: bool = False
    task: asyncio.Task[None] | None = None


class Http2(asyncio.Protocol):
    """One connection. What it is asked for runs in tasks of its own."""

    def __init__(
        self, handler: Handler, certificate: bytes, allowance: Allowance, serving: Serving, place: Place
    ) -> None:
        self.transport: Any = None
        self._handler = handler
        self._certificate = certificate
        self._allowance = allowance
        self._meter = Meter(allowance)
        self._serving = serving
        self._place = place
        self._streams: dict[int, _Stream] = {}
        self._unsent: dict[int, bytes] = {}
        self._resets = 0
        self._unread = 0
        self._last = 0
        self._leaving = False
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        bounds = {SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS, SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADERS}
        self._http.local_settings = Settings(client=False, initial_values=bounds)
        self._http.decoder.max_header_list_size = MAX_HEADERS

    # From asyncio and the listener.

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._place.ending = transport.abort
        self._place.busy = lambda: bool(self._streams)
        self._serving.connections.add(self)
        self._http.initiate_connection()
        self._flush()
        self._timer = self._loop.call_later(FIRST_REQUEST_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            self._meter.count(data, self._loop.time())
            events = self._http.receive_data(data)
            self._unread = 0 if events else self._unread + len(data)
            for event in events:
                self._heard(event)
        except Fault:
            self._calm()
            return
        except ProtocolError:
            self._end(FAULT_SECONDS)
            return
        if self._unread > MAX_UNREAD:
            self._calm()
            return
        self._flush()

    def connection_lost(self, _error: Exception | None) -> None:
        self._ended = True
        self._serving.connections.discard(self)
        self._place.release()
        for timer in (self._timer, self._idle):
            if timer is not None:
                timer.cancel()
        # What has begun is finished: it may be recorded already.
        self._streams.clear()
        self._unsent.clear()

    def shutdown(self) -> None:
        """Take no new requests, and close once those under way are answered."""
        if self._leaving or self.transport.is_closing():
            return
        self._leaving = True
        # By hand: the library knows no end that lets open streams end first.
        self.transport.write(frames.goaway(self._last, frames.NO_ERROR, ""))
        self._restart(LINGER_SECONDS, self.transport.abort)
        self._close_if_done()

    # Within.

    def _heard(self, event: Any) -> None:
        match event:
            case RequestReceived():
                self._begin(event.stream_id, event.headers)
            case DataReceived():
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self._take(event.stream_id, event.data)
            case StreamEnded():
                self._run(event.stream_id)
            case StreamReset():
                self._forget(event.stream_id)
            case WindowUpdated():
                self._send_waiting()
            case ConnectionTerminated():
                self.shutdown()

    def _begin(self, stream_id: int, fields: Iterable[Any]) -> None:
        if self._leaving:
            return  # after our GOAWAY: the caller asks again elsewhere
        if not self._last:
            self._restart(MAX_AGE_SECONDS, self.shutdown)
        self._last = stream_id
        if self._idle is not None:
            self._idle.cancel()
        said: dict[str, str] = {}
        for name, value in fields:
            said.setdefault(name, value)
        self._streams[stream_id] = _Stream(said.get(":method", ""), said.get(":path", ""), said.get("content-type", ""))

    def _take(self, stream_id: int, data: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.too_large:
            return
        stream.body += data
        if len(stream.body) > MAX_BODY:
            stream.too_large = True
            stream.body.clear()
            self._run(stream_id)

    def _run(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.task is not None:
            return
        asked = Asked(stream.method, stream.path, stream.content_type, bytes(stream.body), stream.too_large)
        stream.task = self._loop.create_task(self._answer(stream_id, asked))
        self._serving.tasks.add(stream.task)
        stream.task.add_done_callback(self._serving.tasks.discard)

    async def _answer(self, stream_id: int, asked: Asked) -> None:
        answer = await self._handler(self._certificate, asked)
        if answer.status == 200:
            self._allowance.earn(TOKEN_REWARD)
        if stream_id not in self._streams or self.transport.is_closing():
            return
        fields = [
            (":status", str(answer.status)),
            ("content-type", "application/json"),
            ("cache-control", "no-store"),
            ("content-length", str(len(answer.body))),
            *answer.headers,
        ]
        try:
            self._http.send_headers(stream_id, fields)
        except ProtocolError:  # taken back meanwhile
            self._forget(stream_id)
            return
        self._unsent[stream_id] = answer.body
        self._send_waiting()
        self._flush()

    def _send_waiting(self) -> None:
        """Send what the caller's windows have room for."""
        for stream_id, body in list(self._unsent.items()):
            try:
                room = min(self._http.local_flow_control_window(stream_id), self._http.max_outbound_frame_size)
                if room < len(body):
                    continue  # an answer is smaller than any frame: it is sent whole, later
                self._http.send_data(stream_id, body, end_stream=True)
            except ProtocolError:
                self._forget(stream_id)
                continue
            del self._unsent[stream_id]
            self._done(stream_id)

    def _forget(self, stream_id: int) -> None:
        self._unsent.pop(stream_id, None)
        self._resets += 1
        self._done(stream_id)
        if self._resets > MAX_RESETS:
            self._calm()

    def _done(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        self._close_if_done()
        if not self._streams and not self._ended:
            if self._idle is not None:
                self._idle.cancel()
            self._idle = self._loop.call_later(IDLE_SECONDS, self.shutdown)

    def _close_if_done(self) -> None:
        if self._leaving and not self._streams:
            self._end()

    def _calm(self) -> None:
        """The caller went too far."""
        with suppress(ProtocolError):  # for the library it may have ended already
            self._http.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        self._end(FAULT_SECONDS)

    def _end(self, linger: float = LINGER_SECONDS) -> None:
        """Say what is to be said, and close; a caller that does not listen is not waited for."""
        self._flush()
        self._ended = True
        if self._idle is not None:
            self._idle.cancel()
        self.transport.close()
        self._restart(linger, self.transport.abort)

    def _restart(self, seconds: float, then: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, then)

    def _flush(self) -> None:
        if self._ended:
            return
        if data := self._http.data_to_send():
            self.transport.write(data)
            if self.transport.get_write_buffer_size() > MAX_UNSENT:
                self._ended = True
                self.transport.abort()
