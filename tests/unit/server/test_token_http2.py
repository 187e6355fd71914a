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

from eastwest.rpc import frames, limits
from eastwest.rpc.tls import client_context, mutual_context
from eastwest.server.public import https
from eastwest.server.public.https import PublicListener
from eastwest.server.tokens import http2
from eastwest.server.tokens.endpoint import application
from eastwest.server.tokens.flood import REQUEST_COST
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
        self.status = 200

    async def __call__(self, certificate: bytes, asked: Asked) -> Answer:
        self.asked.append(asked)
        await self.go.wait()
        self.answered += 1
        said = {"path": asked.path, "length": len(asked.body), "large": asked.too_large, "pad": "x" * self.size}
        assert certificate
        return Answer(self.status, json.dumps(said).encode())


@asynccontextmanager
async def serving(handler: Handler):
    chain, key = CA.pem(*CA.svid("/spire/server"))
    context = mutual_context(chain, key, CA.roots)
    listener = PublicListener(
        application(handler), "tokens", tls=context, protocol=by_alpn(handler), places=http2.places()
    )
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
    async def connect(cls, port: int, path: str = "/console") -> "Client":
        chain, key = CA.pem(*CA.svid(path))
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


FLOODS = {
    "PING": frames.frame(frames.PING, 0, 0, b"12345678"),
    "SETTINGS": frames.settings([]),
    "SETTINGS, acknowledged": frames.frame(frames.SETTINGS, frames.ACK, 0),
    "WINDOW_UPDATE": frames.window_update(0, 1),
    "PRIORITY": frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
    "unknown": frames.frame(0xFA, 0, 0, b""),
    "empty DATA": frames.frame(frames.DATA, 0, 1, b""),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_frames_that_carry_nothing_are_paid_for(kind: str, monkeypatch) -> None:
    monkeypatch.setattr(limits, "ALLOWANCE_PER_SECOND", 0)
    handler = Handler()
    async with serving(handler) as (_, port):
        client, other = await Client.connect(port), await Client.connect(port, "/web")
        await client.hear(lambda: client.settings)
        client.begin(b"x", ended=False)
        client.writer.write(FLOODS[kind] * (limits.ALLOWANCE + 50))
        await client.hear(lambda: client.goaway is not None)
        assert client.goaway == ErrorCodes.ENHANCE_YOUR_CALM
        # Whatever comes after that is not looked at, and the end does not wait for the caller.
        assert await asyncio.wait_for(client.reader.read(), 10) is not None
        # As many connections as it may have share one allowance.
        again = await Client.connect(port)
        with suppress(ConnectionError, ssl.SSLError):
            again.writer.write(FLOODS["PING"] * (limits.ALLOWANCE // 2))
            await again.hear(lambda: again.goaway is not None)
        assert again.goaway == ErrorCodes.ENHANCE_YOUR_CALM
        stream = other.begin(b"abc")
        await other.hear(lambda: stream in other.ended)
        assert json.loads(other.content[stream])["length"] == 3
        for one in (client, again, other):
            await one.close()


async def test_requests_of_http1_are_paid_for_too(monkeypatch) -> None:
    monkeypatch.setattr(limits, "ALLOWANCE", 2 * REQUEST_COST)
    monkeypatch.setattr(limits, "ALLOWANCE_PER_SECOND", 0)
    handler = Handler()
    handler.status = 400
    async with serving(handler) as (_, port):
        chain, key = CA.pem(*CA.svid("/console"))
        tls = client_context(CA.roots, chain, key)
        tls.set_alpn_protocols(["http/1.1"])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        writer.write(b"POST /token HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n" * 5)
        answers = await asyncio.wait_for(reader.read(), 10)
        assert answers.count(b"HTTP/1.1 400") == 2
        assert answers.count(b"HTTP/1.1 429") == 1
        writer.transport.abort()


async def test_a_caller_who_makes_tokens_may_go_on(monkeypatch) -> None:
    monkeypatch.setattr(limits, "ALLOWANCE", 30)
    monkeypatch.setattr(limits, "ALLOWANCE_PER_SECOND", 0)
    handler = Handler()
    async with serving(handler) as (_, port):
        client = await Client.connect(port)
        for _ in range(100):  # far more frames than the allowance has
            stream = client.begin(b"abc")
            await client.hear(lambda stream=stream: stream in client.ended)
        assert handler.answered == 100
        await client.close()


async def test_one_caller_has_few_connections_and_idle_ones_go_first(monkeypatch) -> None:
    monkeypatch.setattr(http2, "MAX_CONNECTIONS_OF_CALLER", 2)
    handler = Handler()
    handler.go.clear()
    async with serving(handler) as (_, port):
        busy = await Client.connect(port)
        busy.begin(b"abc")
        async with asyncio.timeout(10):
            while not handler.asked:
                await asyncio.sleep(0.01)
        other = await Client.connect(port, "/web")
        idle = await Client.connect(port)
        await idle.hear(lambda: idle.settings)
        late = await Client.connect(port)
        with suppress(ConnectionError, ssl.SSLError):
            await idle.hear(lambda: False)
        assert idle.reader.at_eof() or idle.reader.exception() is not None
        handler.go.set()
        for client in (other, late):
            stream = client.begin(b"abc")
            await client.hear(lambda client=client, stream=stream: stream in client.ended)
            assert stream in client.ended
        await busy.hear(lambda: 1 in busy.ended)
        assert 1 in busy.ended
        for client in (busy, other, late, idle):
            await client.close()


async def test_a_connection_on_which_nothing_is_asked_any_more_is_ended(monkeypatch) -> None:
    monkeypatch.setattr(http2, "IDLE_SECONDS", 0.2)
    async with serving(Handler()) as (_, port):
        client = await Client.connect(port)
        stream = client.begin(b"abc")
        await client.hear(lambda: client.goaway is not None)
        assert stream in client.ended
        assert client.goaway == ErrorCodes.NO_ERROR
        await client.close()


async def test_who_begins_no_handshake_takes_no_place_for_long(monkeypatch) -> None:
    monkeypatch.setattr(http2, "as_many_as_possible", lambda: 8 * https.SHARE)
    monkeypatch.setattr(limits, "UNDISTURBED_SECONDS", 0.0)
    handler = Handler()
    async with serving(handler) as (_, port):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        # Strangers get half of the places: the others of them have been let go, and whoever proves something gets in.
        gone = [asyncio.create_task(reader.read()) for reader, _ in silent]
        async with asyncio.timeout(10):
            while sum(task.done() for task in gone) < 36:
                await asyncio.sleep(0.01)
        for _ in range(3):
            client = await Client.connect(port)
            stream = client.begin(b"abc")
            await client.hear(lambda client=client, stream=stream: stream in client.ended)
            assert stream in client.ended
            await client.close()
        for _, writer in silent:
            writer.transport.abort()
        await asyncio.gather(*gone, return_exceptions=True)


async def test_a_handshake_has_an_end(monkeypatch) -> None:
    monkeypatch.setattr(https, "HANDSHAKE_SECONDS", 0.1)
    async with serving(Handler()) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.transport.abort()


async def test_a_caller_who_reads_nothing_is_not_kept(monkeypatch) -> None:
    monkeypatch.setattr(http2, "MAX_UNSENT", 64 * 1024)
    handler = Handler()
    handler.size = 15_000
    async with serving(handler) as (listener, port):
        client = await Client.connect(port)
        client.writer.transport.pause_reading()
        client.http.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**30})
        client.http.increment_flow_control_window(2**30)
        open_still = listener._serving.connections
        async with asyncio.timeout(20):
            while not open_still:
                await asyncio.sleep(0.01)
            for asked in range(1, 2000):  # the kernel's buffers take some megabytes
                client.begin()
                while open_still and handler.answered < asked:
                    await asyncio.sleep(0.001)
                if not open_still:
                    break
        assert not open_still
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
