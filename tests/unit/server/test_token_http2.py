"""The token endpoint's wire: what callers of HTTP/2 and 1.1 can do to it, and how it leaves."""

import asyncio
import json
import ssl
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes

from eastwest.rpc import frames
from eastwest.rpc.tls import client_context, mutual_context
from eastwest.server.public.https import PublicListener
from eastwest.server.tokens import http2
from eastwest.server.tokens.endpoint import application
from eastwest.server.tokens.http2 import MAX_BODY, MAX_RESETS, MAX_STREAMS, Answer, Asked, by_alpn
from eastwest.testing import TestCA

CA = TestCA("td.test", datetime.now(UTC))


class Handler:
    """Tells what it was asked, when it is let."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.asked: list[Asked] = []
        self.answered = 0
        self.size = 0

    async def __call__(self, certificate: bytes, asked: Asked) -> Answer:
        self.asked.append(asked)
        await self.go.wait()
        self.answered += 1
        said = {"path": asked.path, "length": len(asked.body), "large": asked.too_large, "pad": "x" * self.size}
        assert certificate
        return Answer(200, json.dumps(said).encode())


@asynccontextmanager
async def serving(handler: Handler):
    chain, key = CA.pem(*CA.svid("/spire/server"))
    context = mutual_context(chain, key, CA.roots)
    listener = PublicListener(application(handler), "tokens", tls=context, protocol=by_alpn(handler))
    port = listener.bind("127.0.0.1", 0)
    task = asyncio.create_task(listener.run())
    try:
        yield listener, port
    finally:
        listener.stop()
        await asyncio.wait_for(task, 20)


class Client:
    """One HTTP/2 connection, frame by frame."""

    def __init__(self, reader, writer) -> None:
        self.reader, self.writer = reader, writer
        self.http = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.http.initiate_connection()
        self.content: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.goaway: int | None = None
        self.settings: dict = {}

    @classmethod
    async def connect(cls, port: int) -> "Client":
        chain, key = CA.pem(*CA.svid("/console"))
        tls = client_context(CA.roots, chain, key)
        tls.set_alpn_protocols(["h2"])
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))

    def begin(self, body: bytes = b"", *, ended: bool = True) -> int:
        stream = self.http.get_next_available_stream_id()
        fields = {":method": "POST", ":path": "/token", ":scheme": "https", ":authority": "eastwest"}
        self.http.send_headers(stream, list(fields.items()), end_stream=ended and not body)
        for at in range(0, len(body), 16384):
            self.http.send_data(stream, body[at : at + 16384], end_stream=ended and at + 16384 >= len(body))
        self.send()
        return stream

    def send(self) -> None:
        self.writer.write(self.http.data_to_send())

    async def hear(self, until) -> None:
        """Read until ``until()``, or until the other side has closed."""
        async with asyncio.timeout(20):
            while not until():
                data = await self.reader.read(65536)
                if not data:
                    return
                for event in self.http.receive_data(data):
                    match event:
                        case DataReceived():
                            self.content[event.stream_id] = self.content.get(event.stream_id, b"") + event.data
                        case StreamEnded() | StreamReset():
                            self.ended.add(event.stream_id)
                        case ConnectionTerminated():
                            self.goaway = event.error_code
                        case RemoteSettingsChanged():
                            self.settings |= {code: change.new_value for code, change in event.changed_settings.items()}
                        case ResponseReceived():
                            pass
                self.send()

    async def close(self) -> None:
        self.writer.transport.abort()


async def test_what_it_says_of_its_bounds() -> None:
    async with serving(Handler()) as (_, port):
        client = await Client.connect(port)
        await client.hear(lambda: client.settings)
        assert client.settings[SettingCodes.MAX_CONCURRENT_STREAMS] == MAX_STREAMS
        await client.close()


async def test_a_body_that_is_too_large_is_not_kept() -> None:
    handler = Handler()
    async with serving(handler) as (_, port):
        client = await Client.connect(port)
        stream = client.begin(b"x" * (MAX_BODY + 1))
        await client.hear(lambda: stream in client.ended)
        assert json.loads(client.content[stream])["large"] is True
        stream = client.begin(b"x" * MAX_BODY)
        await client.hear(lambda: stream in client.ended)
        assert json.loads(client.content[stream])["length"] == MAX_BODY
        await client.close()


async def test_more_streams_than_are_allowed_end_the_connection() -> None:
    handler = Handler()
    handler.go.clear()
    async with serving(handler) as (_, port):
        client = await Client.connect(port)
        for _ in range(MAX_STREAMS + 1):
            client.begin()
        await client.hear(lambda: client.goaway is not None)
        assert client.goaway is not None
        assert len(handler.asked) <= MAX_STREAMS
        handler.go.set()
        await client.close()


async def test_requests_that_are_taken_back_end_the_connection() -> None:
    handler = Handler()
    handler.go.clear()
    async with serving(handler) as (_, port):
        client = await Client.connect(port)
        await client.hear(lambda: client.settings)
        for _ in range(MAX_RESETS + 1):
            stream = client.begin()
            client.http.reset_stream(stream, ErrorCodes.CANCEL)
            client.send()
        await client.hear(lambda: client.goaway is not None)
        assert client.goaway == ErrorCodes.ENHANCE_YOUR_CALM
        handler.go.set()
        await client.close()


async def test_an_answer_waits_for_a_callers_window() -> None:
    handler = Handler()
    handler.size = 9000
    async with serving(handler) as (_, port):
        client = await Client.connect(port)
        client.http.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
        client.send()
        await client.hear(lambda: client.settings)
        stream = client.begin()
        async with asyncio.timeout(10):
            while not handler.answered:
                await asyncio.sleep(0.01)
        assert stream not in client.ended
        client.http.increment_flow_control_window(20_000, stream)
        client.send()
        await client.hear(lambda: stream in client.ended)
        assert json.loads(client.content[stream])["pad"] == "x" * 9000
        await client.close()


async def test_a_connection_leaves_when_it_is_old_and_finishes_what_it_began(monkeypatch) -> None:
    monkeypatch.setattr(http2, "MAX_AGE_SECONDS", 0.2)
    handler = Handler()
    handler.go.clear()
    async with serving(handler) as (_, port):
        client = await Client.connect(port)
        stream = client.begin(b"abc")
        await client.hear(lambda: client.goaway is not None)
        assert client.goaway == ErrorCodes.NO_ERROR
        handler.go.set()
        # The library takes no more frames after a GOAWAY; what came is read from the wire.
        rest = await asyncio.wait_for(client.reader.read(), 10)
        assert b'"length": 3' in rest
        assert stream == 1
        await client.close()


async def test_a_connection_that_asks_nothing_is_ended(monkeypatch) -> None:
    monkeypatch.setattr(http2, "FIRST_REQUEST_SECONDS", 0.2)
    async with serving(Handler()) as (_, port):
        client = await Client.connect(port)
        with suppress(ConnectionError, ssl.SSLError):  # some see an end, others a reset
            await client.hear(lambda: False)
        assert client.goaway is None
        await client.close()


async def test_a_server_that_stops_finishes_what_it_began() -> None:
    handler = Handler()
    handler.go.clear()
    async with serving(handler) as (listener, port):
        client = await Client.connect(port)
        client.begin(b"abc")
        async with asyncio.timeout(10):
            while not handler.asked:
                await asyncio.sleep(0.01)
        listener.stop()
        await client.hear(lambda: client.goaway is not None)
        handler.go.set()
        assert b'"length": 3' in await asyncio.wait_for(client.reader.read(), 10)
        await client.close()


NOISE = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(64),
    "a frame that is too long": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 70_000,
    "headers without an end": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + frames.settings([])
    + frames.frame(frames.HEADERS, 0, 1, b"\x82")
    + frames.frame(frames.CONTINUATION, 0, 1, b"\x82" * 16_000) * 70,
}


@pytest.mark.parametrize("noise", NOISE)
async def test_what_is_no_http2_ends_the_connection(noise: str) -> None:
    async with serving(Handler()) as (_, port):
        client = await Client.connect(port)
        client.writer.write(NOISE[noise])
        with suppress(ConnectionError):  # some see an end, others a reset
            await asyncio.wait_for(client.reader.read(), 10)
        await client.close()


async def test_no_certificate_no_connection() -> None:
    handler = Handler()
    async with serving(handler) as (_, port):
        tls = client_context(CA.roots)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
            writer.write(b"x")
            if not await asyncio.wait_for(reader.read(), 10):
                raise ConnectionError("ended")
        assert not handler.asked
