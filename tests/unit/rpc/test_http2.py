"""Our HTTP/2 server, frame by frame: what it serves, what it refuses, and what nobody can make it do."""

import asyncio
import contextlib

import pytest
from http2_client import GREETING, RawClient

from eastwest.api.grpc.health.v1 import health_pb2 as pb
from eastwest.rpc import exchange as exchange_module
from eastwest.rpc import frames, limits
from eastwest.rpc.client import Channel, method
from eastwest.rpc.service import Listener, Service

HEALTH = pb.DESCRIPTOR.services_by_name["Health"]
WATCH = "/grpc.health.v1.Health/Watch"
SERVING = pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING).SerializeToString()


class Health:
    """A unary method and one that streams; they count what runs."""

    def __init__(self):
        self.running = 0
        self.most = 0
        self.cancelled = 0
        self.release = asyncio.Event()

    def service(self):
        return Service(HEALTH, {"Check": self.check, "Watch": self.watch})

    async def check(self, request, _call):
        async with self._counted():
            if request.service == "wait":
                await self.release.wait()
            if request.service.startswith("big:"):
                # As large as told: an unknown field may hold any bytes.
                reply = pb.HealthCheckResponse()
                size = int(request.service[4:])
                reply.MergeFromString(b"\x7a" + _varint(size) + bytes(size))
                return reply
        return pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING)

    async def watch(self, request, call):
        async with self._counted():
            for _ in range(int(request.service or 1)):
                await call.send(pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING))
            await self.release.wait()

    @contextlib.asynccontextmanager
    async def _counted(self):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def _varint(value):
    found = b""
    while value >= 128:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def asking(service):
    return pb.HealthCheckRequest(service=service).SerializeToString()


@pytest.fixture
async def health():
    return Health()


@pytest.fixture
async def path(tmp_path, health):
    listener = Listener([health.service()])
    await listener.listen_unix(tmp_path / "s", 0o600)
    yield tmp_path / "s"
    await listener.close()


@pytest.fixture
async def client(path):
    client = await RawClient.connect(path)
    yield client
    await client.close()


async def still_serves(path):
    channel = Channel(path=str(path))
    try:
        reply = await channel.unary(method(HEALTH, "Check"), pb.HealthCheckRequest())
        return reply.status == pb.HealthCheckResponse.SERVING
    finally:
        channel.close()


# What it serves.


async def test_a_call_is_answered_in_three_frames(client):
    client.send(client.call(1))
    await client.ended(1)
    answer = client.answers[1]
    assert answer.headers[0] == {":status": "200", "content-type": "application/grpc+proto"}
    assert answer.messages == [SERVING]
    assert answer.headers[1] == {"grpc-status": "0"}
    assert answer.reset is None


async def test_bytes_may_come_one_by_one(path):
    client = await RawClient.connect(path, b"")
    for byte in GREETING + client.call(1) + client.call(3):
        client.send(bytes([byte]))
        await client.writer.drain()
        await asyncio.sleep(0)
    await client.ended(1, 3)
    assert client.answers[1].messages == client.answers[3].messages == [SERVING]
    await client.close()


async def test_padding_priority_continuation_trailers_and_unknown_frames_are_understood(client):
    whole = client.headers(1)[9:]
    client.send(
        frames.frame(frames.HEADERS, frames.PADDED | frames.HAS_PRIORITY, 1, b"\x03" + bytes(5) + whole[:4] + bytes(3)),
        frames.frame(frames.CONTINUATION, 0, 1, whole[4:10]),
        frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1, whole[10:]),
        frames.frame(77, 0xFF, 1, b"whatever"),
        frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
        frames.frame(frames.DATA, frames.PADDED, 1, b"\x02" + bytes(5) + bytes(2)),
        frames.frame(frames.HEADERS, frames.END_STREAM | frames.END_HEADERS, 1, client._encoder.encode([("x", "y")])),
    )
    await client.ended(1)
    assert client.answers[1].messages == [SERVING]
    assert client.answers[1].reset is None


async def test_a_ping_is_answered(client):
    client.send(frames.frame(frames.PING, 0, 0, b"12345678"))
    await client.until(lambda: client.pongs)
    assert client.pongs == [b"12345678"]


async def test_settings_are_told_and_acknowledged(client):
    await client.until(lambda: client.settings and client.windows[0])
    assert client.settings[frames.MAX_CONCURRENT_STREAMS] == limits.MAX_STREAMS
    assert client.settings[frames.INITIAL_WINDOW_SIZE] == limits.STREAM_WINDOW
    assert client.windows[0] == limits.CONNECTION_WINDOW - frames.DEFAULT_WINDOW


async def test_an_answer_waits_for_room_in_both_windows(client):
    client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 10_000)]), client.call(1, asking("big:100000")))
    await client.until(lambda: len(client.answers[1].data) == 10_000)
    client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 30_000)]))
    await client.until(lambda: len(client.answers[1].data) == 30_000)
    client.send(frames.window_update(1, 200_000))
    await client.until(lambda: len(client.answers[1].data) == frames.DEFAULT_WINDOW)
    assert not client.answers[1].ended
    client.send(frames.window_update(0, 200_000))
    await client.ended(1)
    assert len(client.answers[1].messages[0]) > 100_000
    assert client.answers[1].status == 0


async def test_room_is_shared_by_all_who_wait(client):
    """A window that grows by little reaches everybody in the end, also those after one that was reset."""
    client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 2**20)]))
    streams = [1, 3, 5, 7, 9]
    client.send(*(client.call(stream, asking("big:30000")) for stream in streams))
    await client.until(lambda: sum(len(a.data) for a in client.answers.values()) == frames.DEFAULT_WINDOW)
    client.send(frames.rst_stream(5, frames.CANCEL))
    while not all(client.answers[stream].ended for stream in (1, 3, 7, 9)):
        before = sum(len(answer.data) for answer in client.answers.values())
        client.send(frames.window_update(0, 1000))
        await client.until(lambda: sum(len(answer.data) for answer in client.answers.values()) > before)  # noqa: B023 - awaited at once
    assert all(len(client.answers[stream].messages[0]) > 30_000 for stream in (1, 3, 7, 9))


async def test_a_message_larger_than_the_window_is_taken(client):
    message = asking("x" * 1_000_000)
    client.send(client.headers(1))
    framed = b"\x00" + len(message).to_bytes(4) + message
    room = {1: limits.STREAM_WINDOW, 0: limits.CONNECTION_WINDOW}
    sent = 0
    await client.until(lambda: client.windows[0])
    for start in range(0, len(framed), 16_000):
        part = framed[start : start + 16_000]
        await client.until(lambda: room[1] + client.windows[1] - sent >= 16_000)  # noqa: B023 - awaited at once
        sent += len(part)
        client.send(frames.frame(frames.DATA, 0, 1, part))
    client.send(frames.frame(frames.DATA, frames.END_STREAM, 1))
    await client.ended(1)
    assert client.answers[1].messages == [SERVING]
    assert client.windows[1] >= 500_000


async def test_an_empty_request_is_refused_and_so_is_one_that_stops_early(client):
    client.send(client.headers(1, end=True), client.headers(3), client.data(3, b"abc", length=9))
    await client.ended(1, 3)
    assert [client.answers[1].status, client.answers[3].status] == [3, 3]


async def test_a_compressed_message_is_refused(client):
    client.send(client.headers(1), client.data(1, b"", flag=1))
    await client.ended(1)
    assert client.answers[1].status == 12


async def test_the_callers_deadline_ends_the_call(client, health):
    client.send(client.call(1, asking("wait"), grpc_timeout="30m"), client.call(3, path=WATCH, grpc_timeout="0n"))
    await client.ended(1, 3)
    assert [client.answers[1].status, client.answers[3].status] == [4, 4]
    assert health.running == 0


async def test_a_caller_that_resets_a_stream_ends_its_handler_alone(client, health):
    client.send(client.call(1, path=WATCH), client.call(3, path=WATCH))
    await client.until(lambda: client.answers[1].data and client.answers[3].data)
    client.send(frames.rst_stream(1, frames.CANCEL), client.call(5))
    await client.ended(5)
    assert health.cancelled == 1
    assert health.running == 1
    assert not client.answers[3].ended


async def test_who_hangs_up_ends_all_its_handlers(path, health):
    client = await RawClient.connect(path)
    client.send(*(client.call(stream, path=WATCH) for stream in (1, 3, 5)))
    await client.until(lambda: all(client.answers[stream].data for stream in (1, 3, 5)))
    await client.close()
    async with asyncio.timeout(5):
        while health.running:
            await asyncio.sleep(0.01)
    assert health.cancelled == 3


async def test_a_server_that_stops_says_so_lets_short_calls_end_and_ends_streams(tmp_path, health):
    listener = Listener([health.service()])
    await listener.listen_unix(tmp_path / "stopping", 0o600)
    client = await RawClient.connect(tmp_path / "stopping")
    client.send(client.call(1, path=WATCH), client.call(3, asking("wait")))
    await client.until(lambda: client.answers[1].data)
    closing = asyncio.create_task(listener.close())
    await client.until(lambda: client.goaway is not None and client.answers[1].ended)
    assert client.goaway == frames.NO_ERROR
    assert client.answers[1].status == 14
    health.release.set()
    await client.ended(3)
    assert client.answers[3].messages == [SERVING]
    await client.gone()
    await closing
    assert client.closed
    await client.close()


async def test_a_short_call_that_does_not_end_is_ended(tmp_path, health, monkeypatch):
    monkeypatch.setattr(limits, "GRACE_SECONDS", 0.05)
    listener = Listener([health.service()])
    await listener.listen_unix(tmp_path / "stopping", 0o600)
    client = await RawClient.connect(tmp_path / "stopping")
    client.send(client.call(1, asking("wait")))
    async with asyncio.timeout(5):
        while not health.running:
            await asyncio.sleep(0.01)
    await listener.close()
    await client.gone()
    assert client.answers[1].status == 14
    await client.close()


# What is no gRPC.


@pytest.mark.parametrize(
    ("http_status", "status", "changed"),
    [
        ("405", 2, {":method": "GET"}),
        ("415", 2, {"content_type": "application/json"}),
        ("415", 2, {"content_type": "application/grpc+json"}),
        ("415", 2, {"without": ("content-type",)}),
        ("400", 2, {"without": ("te",)}),
        ("200", 2, {"grpc_timeout": "soon"}),
        ("200", 2, {"grpc_timeout": "123456789S"}),
        ("200", 12, {"path": "/grpc.health.v1.Health/Nothing"}),
        ("200", 12, {"path": "*"}),
    ],
)
async def test_what_is_no_call_is_answered_so(client, http_status, status, changed):
    client.send(client.call(1, **changed), client.call(3))
    await client.ended(1, 3)
    assert client.answers[1].headers[0][":status"] == http_status
    assert client.answers[1].status == status
    assert client.answers[3].messages == [SERVING]


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        ([("connection", "close")], {}),
        ([("transfer-encoding", "chunked")], {}),
        ([("Upper", "case")], {}),
        ([(":late", "pseudo")], {}),
        ([(":path", "/again")], {}),
        ([("", "nameless")], {}),
        ([], {"without": (":path",)}),
        ([], {"without": (":scheme",)}),
        ([], {":protocol": "websocket"}),
    ],
)
async def test_a_malformed_request_is_reset(client, more, changed):
    client.send(client.headers(1, *more, **changed), client.call(3))
    await client.ended(1, 3)
    assert client.answers[1].reset == frames.PROTOCOL_ERROR
    assert client.answers[3].messages == [SERVING]


# What breaks the protocol.

WRONG = {
    "another protocol": (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", frames.PROTOCOL_ERROR),
    "no settings first": (frames.PREFACE + frames.frame(frames.PING, 0, 0, bytes(8)), frames.PROTOCOL_ERROR),
    "a frame too long": (GREETING + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", frames.FRAME_SIZE_ERROR),
    "data of no stream": (GREETING + frames.frame(frames.DATA, 0, 0, b"x"), frames.PROTOCOL_ERROR),
    "data of an idle stream": (GREETING + frames.frame(frames.DATA, 0, 7, b"x"), frames.PROTOCOL_ERROR),
    "data of an even stream": (GREETING + frames.frame(frames.DATA, 0, 2, b"x"), frames.PROTOCOL_ERROR),
    "headers of no stream": (GREETING + frames.frame(frames.HEADERS, 4, 0, b"\x82"), frames.PROTOCOL_ERROR),
    "headers of an even stream": (GREETING + frames.frame(frames.HEADERS, 4, 2, b"\x82"), frames.PROTOCOL_ERROR),
    "a table that has no such entry": (GREETING + frames.frame(frames.HEADERS, 4, 1, b"\xff\x7f"), 9),
    "a table too large": (GREETING + frames.frame(frames.HEADERS, 4, 1, b"\x3f\xff\xff\x7f"), 9),
    "a string that ends early": (GREETING + frames.frame(frames.HEADERS, 4, 1, b"\x00\x7fabc"), 9),
    "padding beyond the payload": (GREETING + frames.frame(frames.HEADERS, 12, 1, b"\x05\x82"), frames.PROTOCOL_ERROR),
    "a priority that is cut": (GREETING + frames.frame(frames.HEADERS, 0x24, 1, b"abc"), frames.FRAME_SIZE_ERROR),
    "a priority of no stream": (GREETING + frames.frame(frames.PRIORITY, 0, 0, bytes(5)), frames.PROTOCOL_ERROR),
    "a priority of four bytes": (GREETING + frames.frame(frames.PRIORITY, 0, 1, bytes(4)), frames.FRAME_SIZE_ERROR),
    "a block broken off": (
        GREETING + frames.frame(frames.HEADERS, 0, 1, b"\x82") + frames.frame(frames.PING, 0, 0, bytes(8)),
        frames.PROTOCOL_ERROR,
    ),
    "a block continued elsewhere": (
        GREETING + frames.frame(frames.HEADERS, 0, 1, b"\x82") + frames.frame(frames.CONTINUATION, 4, 3, b"\x82"),
        frames.PROTOCOL_ERROR,
    ),
    "a block that goes on": (GREETING + frames.frame(frames.CONTINUATION, 4, 1, b"\x82"), frames.PROTOCOL_ERROR),
    "a reset of an idle stream": (GREETING + frames.rst_stream(1, 8), frames.PROTOCOL_ERROR),
    "a reset of no stream": (GREETING + frames.rst_stream(0, 8), frames.PROTOCOL_ERROR),
    "a push": (GREETING + frames.frame(frames.PUSH_PROMISE, 4, 1, bytes(4)), frames.PROTOCOL_ERROR),
    "settings of a stream": (GREETING + frames.frame(frames.SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
    "settings of five bytes": (GREETING + frames.frame(frames.SETTINGS, 0, 0, bytes(5)), frames.FRAME_SIZE_ERROR),
    "settings acknowledged with more": (GREETING + frames.frame(frames.SETTINGS, 1, 0, bytes(6)), 6),
    "an initial window too large": (GREETING + frames.settings([(4, 2**31)]), frames.FLOW_CONTROL_ERROR),
    "a frame size too small": (GREETING + frames.settings([(5, 16_383)]), frames.PROTOCOL_ERROR),
    "a push setting of two": (GREETING + frames.settings([(2, 2)]), frames.PROTOCOL_ERROR),
    "a ping of a stream": (GREETING + frames.frame(frames.PING, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "a ping of seven bytes": (GREETING + frames.frame(frames.PING, 0, 0, bytes(7)), frames.FRAME_SIZE_ERROR),
    "a goodbye of a stream": (GREETING + frames.frame(frames.GOAWAY, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "a goodbye of four bytes": (GREETING + frames.frame(frames.GOAWAY, 0, 0, bytes(4)), frames.FRAME_SIZE_ERROR),
    "a window of three bytes": (GREETING + frames.frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), frames.FRAME_SIZE_ERROR),
    "a window that grows by nothing": (GREETING + frames.window_update(0, 0), frames.PROTOCOL_ERROR),
    "a window that overflows": (GREETING + frames.window_update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
    "a window of an idle stream": (GREETING + frames.window_update(1, 5), frames.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", WRONG)
async def test_who_breaks_the_protocol_is_told_and_left(path, name):
    sent, code = WRONG[name]
    client = await RawClient.connect(path, sent)
    assert await client.gone() == code
    await client.close()
    assert await still_serves(path)


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        (frames.STREAM_CLOSED, lambda c: c.call(1, asking("wait")) + c.data(1)),
        (frames.PROTOCOL_ERROR, lambda c: c.headers(1) + c.headers(1)),
        (frames.PROTOCOL_ERROR, lambda c: c.call(1, asking("wait")) + frames.window_update(1, 0)),
        (frames.FLOW_CONTROL_ERROR, lambda c: c.call(1, asking("wait")) + frames.window_update(1, 2**31 - 1)),
        (
            frames.FLOW_CONTROL_ERROR,
            lambda c: (
                c.headers(1, path=WATCH)
                + c.data(1, b"", end=False)
                + frames.frame(frames.DATA, 0, 1, bytes(16_000)) * (limits.STREAM_WINDOW // 16_000 + 1)
            ),
        ),
    ],
)
async def test_who_breaks_a_rule_of_one_stream_loses_that_one(client, health, code, wrong):
    client.send(wrong(client), client.call(3))
    await client.ended(1, 3)
    assert client.answers[1].reset == code
    assert client.answers[3].messages == [SERVING]
    assert health.running == 0


async def test_data_beyond_the_connections_window_ends_it(client):
    part = frames.frame(frames.DATA, 0, 1, bytes(16_000))
    client.send(client.headers(1, path=WATCH), client.data(1, b"", end=False))
    streams = range(3, 3 + 2 * (limits.CONNECTION_WINDOW // limits.STREAM_WINDOW + 1), 2)
    for stream in streams:
        whole = limits.STREAM_WINDOW // 16_000
        client.send(client.headers(stream, path=WATCH), client.data(stream, b"", end=False))
        client.send(part.replace(b"\x00\x00\x00\x01", stream.to_bytes(4), 1) * whole)
    assert await client.gone() == frames.FLOW_CONTROL_ERROR


# What nobody can make it do.


async def test_streams_opened_and_reset_do_not_pile_up(path, health):
    client = await RawClient.connect(path)
    for stream in range(1, 4001, 2):
        client.send(client.call(stream, asking("wait")), frames.rst_stream(stream, frames.CANCEL))
    assert await client.gone() == frames.ENHANCE_YOUR_CALM
    await client.close()
    assert health.most <= limits.MAX_STREAMS
    assert health.running == 0
    assert await still_serves(path)


async def test_a_call_holds_its_place_until_its_handler_has_ended(tmp_path):
    stop, running = asyncio.Event(), 0

    async def stubborn(_request, _call):
        nonlocal running
        running += 1
        while not stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await stop.wait()
        return pb.HealthCheckResponse()

    listener = Listener([Service(HEALTH, {"Check": stubborn})])
    await listener.listen_unix(tmp_path / "s", 0o600)
    client = await RawClient.connect(tmp_path / "s")
    for stream in range(1, 2 * limits.MAX_STREAMS, 2):
        client.send(client.call(stream))
    client.send(frames.frame(frames.PING, 0, 0, bytes(8)))
    await client.until(lambda: client.pongs)
    for stream in range(1, 2 * limits.MAX_STREAMS, 2):
        client.send(frames.rst_stream(stream, frames.CANCEL))
    client.send(client.call(999))
    await client.ended(999)
    assert running == limits.MAX_STREAMS
    assert client.answers[999].reset == frames.REFUSED_STREAM
    stop.set()
    client.send(frames.frame(frames.PING, 0, 0, bytes(8)))
    await client.until(lambda: len(client.pongs) == 2)
    client.send(client.call(1001))
    await client.ended(1001)
    assert client.answers[1001].status == 0
    await client.close()
    await listener.close()


FLOODS = {
    "pings": frames.frame(frames.PING, 0, 0, bytes(8)),
    "answers to pings": frames.frame(frames.PING, frames.ACK, 0, bytes(8)),
    "settings": frames.settings([(4, 65_535)]),
    "priorities": frames.frame(frames.PRIORITY, 0, 1, bytes(5)),
    "windows": frames.window_update(0, 1),
    "unknown frames": frames.frame(99, 0, 0),
    "goodbyes": frames.frame(frames.GOAWAY, 0, 0, bytes(8)),
    "data of a stream that has ended": frames.frame(frames.DATA, 0, 1),
    "resets of a stream that has ended": frames.rst_stream(1, 8),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_of_frames_without_content_is_cut_off(path, name):
    client = await RawClient.connect(path)
    client.send(client.call(1))
    await client.ended(1)
    client.send(FLOODS[name] * 20_000)
    assert await client.gone(20) == frames.ENHANCE_YOUR_CALM
    await client.close()
    assert await still_serves(path)


async def test_empty_data_is_cut_off_too(path):
    client = await RawClient.connect(path)
    client.send(client.headers(1), frames.frame(frames.DATA, 0, 1) * 20_000)
    assert await client.gone(20) == frames.ENHANCE_YOUR_CALM
    await client.close()


async def test_a_header_block_without_end_is_cut_off(path):
    client = await RawClient.connect(path)
    client.send(frames.frame(frames.HEADERS, 0, 1, b"\x82"))
    client.send(frames.frame(frames.CONTINUATION, 0, 1, bytes(8000)) * 5)
    assert await client.gone() == frames.ENHANCE_YOUR_CALM
    await client.close()
    client = await RawClient.connect(path)
    client.send(frames.frame(frames.HEADERS, 0, 1, b"\x82") + frames.frame(frames.CONTINUATION, 0, 1) * 5000)
    assert await client.gone() == frames.ENHANCE_YOUR_CALM
    await client.close()


async def test_a_small_block_that_becomes_a_large_list_is_cut_off(path):
    client = await RawClient.connect(path)
    # One entry of 3,000 bytes, then its number again and again.
    bomb = b"\x40\x01x" + b"\x7f" + b"\xb9\x16" + b"a" * 3000 + b"\xbe" * 5000
    client.send(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, bomb))
    assert await client.gone() == frames.ENHANCE_YOUR_CALM
    await client.close()


async def test_more_calls_than_allowed_are_refused_and_the_others_go_on(client, health):
    streams = list(range(1, 2 * limits.MAX_STREAMS + 1, 2))
    client.send(*(client.call(stream, asking("wait")) for stream in streams), client.call(streams[-1] + 2))
    await client.ended(streams[-1] + 2)
    assert client.answers[streams[-1] + 2].reset == frames.REFUSED_STREAM
    health.release.set()
    await client.ended(*streams)
    assert all(client.answers[stream].messages == [SERVING] for stream in streams)
    assert health.most == limits.MAX_STREAMS


async def test_who_reads_nothing_is_left(path):
    client = await RawClient.connect(path)
    client.writer.transport.pause_reading()
    stream = 1
    with contextlib.suppress(OSError):
        async with asyncio.timeout(30):
            # Each is answered at once, and none of the answers is read.
            while not client.writer.is_closing():
                client.send(*(client.headers(stream + 2 * i, path="/none" + "x" * 150, end=True) for i in range(50)))
                stream += 100
                await client.writer.drain()
    assert client.writer.is_closing()
    assert await still_serves(path)


async def test_a_stream_that_is_not_read_waits_and_holds_little(client, health):
    client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 1000)]), client.call(1, asking("100000"), path=WATCH))
    client.send(client.call(3))
    await client.ended(3)
    assert len(client.answers[1].data) <= 1000
    assert health.running == 1


async def test_a_message_that_nobody_takes_is_given_up(client, health, monkeypatch):
    monkeypatch.setattr(exchange_module, "SEND_SECONDS", 0.05)
    client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)]), client.call(1, asking("1"), path=WATCH))
    await client.ended(1)
    assert client.answers[1].status == 4
    assert health.running == 0


async def test_who_greets_with_nothing_is_left(path, monkeypatch):
    monkeypatch.setattr(limits, "GREETING_SECONDS", 0.05)
    for greeting in (b"", frames.PREFACE[:10], frames.PREFACE):
        client = await RawClient.connect(path, greeting)
        assert await client.gone() == frames.PROTOCOL_ERROR
        await client.close()


async def test_a_long_text_is_cut_to_what_the_caller_takes(tmp_path):
    async def fail(_request, _call):
        raise ZeroDivisionError

    async def refuse(request, _call):
        from eastwest.errors import NotFound

        raise NotFound("ü" * 30_000)

    listener = Listener([Service(HEALTH, {"Check": refuse})])
    await listener.listen_unix(tmp_path / "s", 0o600)
    client = await RawClient.connect(tmp_path / "s")
    client.send(client.call(1))
    await client.ended(1)
    client.send(frames.settings([(frames.MAX_HEADER_LIST_SIZE, 1000)]), client.call(3))
    await client.ended(3)
    texts = [client.answers[stream].headers[0]["grpc-message"] for stream in (1, 3)]
    assert [client.answers[stream].status for stream in (1, 3)] == [5, 5]
    assert 8000 < len(texts[0]) <= 8192
    assert 400 < len(texts[1]) <= 500
    assert all(text.endswith(("%BC", "%C3")) for text in texts)
    await client.close()
    await listener.close()
