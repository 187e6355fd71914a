"""Bytes and frames as nobody would send them, and calls that both implementations must answer alike."""

import asyncio
import socket
import tempfile
from itertools import pairwise
from pathlib import Path

import hpack
from http2_client import GREETING, RawClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from eastwest import errors
from eastwest.api.grpc.health.v1 import health_pb2 as pb
from eastwest.rpc import frames, http2, limits
from eastwest.rpc.admission import Connections
from eastwest.rpc.service import Listener, Service

HEALTH = pb.DESCRIPTOR.services_by_name["Health"]
INVALID_ARGUMENT, INTERNAL = 3, 13
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


async def check(request, _call):
    if request.service == "missing":
        raise errors.NotFound("no such thing", fix="name anöther")
    if request.service == "bug":
        raise ZeroDivisionError
    return pb.HealthCheckResponse(status=len(request.service) % 4)


async def watch(request, call):
    for number in range(len(request.service) % 5):
        await call.send(pb.HealthCheckResponse(status=number % 4))
    if request.service == "missing":
        raise errors.NotFound("no such thing")


def service():
    return Service(HEALTH, {"Check": check, "Watch": watch}, limit=5000)


class Transport(asyncio.Transport):
    """Takes what is written, as a peer that reads everything would; or says that it is full."""

    def __init__(self):
        super().__init__()
        self.written = 0
        self.last = b""
        self.closed = False
        self.socket, self._other = socket.socketpair()

    def get_extra_info(self, name, default=None):
        return self.socket if name == "socket" else default

    def write(self, data):
        assert not self.closed
        self.written += len(data)
        self.last = bytes(data)

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    abort = close

    def end(self):
        self.socket.close()
        self._other.close()


async def feed(chunks):
    """Give a connection these bytes; checks what must hold whatever they are."""
    connections = set()
    methods = {path.encode(): method for path, method in service().methods().items()}
    transport = Transport()
    connection = http2.Connection(methods, Connections(1).admit(transport.socket), connections)
    with capture_logs() as logs:
        connection.connection_made(transport)
        received = 0
        for chunk in chunks:
            received += len(chunk)
            connection.data_received(chunk)
            assert len(connection._pending) <= frames.DEFAULT_MAX_FRAME + frames.HEAD
            assert len(connection._exchanges) <= limits.MAX_STREAMS
            await asyncio.sleep(0)
            if transport.closed:
                break
        for _ in range(5):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        for _ in range(5):
            await asyncio.sleep(0)
    transport.end()
    assert not connection._exchanges, "a call outlived its connection"
    assert not connections
    assert not [entry for entry in logs if entry["event"] == "http2.failed"], logs
    # No answer is much larger than what asked for it.
    assert transport.written <= 20_000 + 100 * received


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=20), st.booleans())
def test_any_bytes_end_in_answers_or_in_goodbye(chunks, greeted):
    asyncio.run(feed([GREETING] * greeted + chunks))


fields = st.lists(
    st.tuples(
        st.sampled_from([":method", ":path", ":scheme", ":x", "te", "content-type", "grpc-timeout", "a", "B", "x-bin"]),
        st.sampled_from(["POST", "GET", CHECK, WATCH, "/", "http", "trailers", "application/grpc", "1n", "5S", "", "?"])
        | st.text(max_size=20),
    ),
    max_size=8,
)
VALID = [
    (":method", "POST"),
    (":path", CHECK),
    (":scheme", "http"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
stream_ids = st.sampled_from([0, 1, 1, 1, 2, 3, 3, 5, 7, 2**31 - 1])
numbers = st.sampled_from([0, 1, 2, 16_384, 65_535, 2**24, 2**31 - 1, 2**31, 2**32 - 1])


@st.composite
def some_frame(draw):
    """A frame that is right in most of its parts."""
    kind = draw(st.integers(0, 10))
    flags = draw(st.sampled_from([0, 1, 4, 5, 8, 12, 13, 0x20, 0x25, 0xFF]))
    stream_id = draw(stream_ids)
    match kind:
        case frames.HEADERS | frames.CONTINUATION:
            chosen = VALID if draw(st.booleans()) else draw(fields)
            payload = hpack.Encoder().encode(chosen, huffman=draw(st.booleans()))
            if draw(st.integers(0, 4)) == 0:
                payload = payload[: draw(st.integers(0, len(payload)))]
        case frames.DATA:
            body = pb.HealthCheckRequest(service=draw(st.text(max_size=10))).SerializeToString()
            payload = b"\x00" + len(body).to_bytes(4) + body if draw(st.booleans()) else draw(st.binary(max_size=50))
        case frames.SETTINGS:
            pairs = draw(st.lists(st.tuples(st.integers(0, 8), numbers), max_size=4))
            payload = frames.settings(pairs)[9:]
        case frames.WINDOW_UPDATE | frames.RST_STREAM:
            payload = draw(numbers).to_bytes(4)
        case frames.PING:
            payload = bytes(8)
        case _:
            payload = draw(st.binary(max_size=20))
    return frames.frame(kind, flags, stream_id, payload)


@settings(max_examples=600, deadline=None)
@given(st.lists(some_frame(), max_size=30), st.integers(1, 400))
def test_any_frames_end_in_answers_or_in_goodbye(sent, size):
    data = GREETING + b"".join(sent)
    asyncio.run(feed([data[start : start + size] for start in range(0, len(data), size)]))


@st.composite
def some_call(draw):
    """A call that obeys HTTP/2; what it asks may be anything."""
    service_name = draw(st.sampled_from(["", "a", "abc", "missing", "bug", "x" * 4000, "x" * 6000]))
    body = pb.HealthCheckRequest(service=service_name).SerializeToString()
    kind = draw(st.sampled_from(["right", "right", "right", "nothing", "cut", "flag", "no message", "two"]))
    framed = b"\x00" + len(body).to_bytes(4) + body
    match kind:
        case "nothing":
            framed = b""
        case "cut":
            framed = framed[: draw(st.integers(1, len(framed) - 1))]
        case "flag":
            framed = b"\x01" + framed[1:]
        case "no message":
            framed = b"\x00" + (3).to_bytes(4) + b"\xff\xff\xff"
        case "two":
            framed += framed
    changed = draw(
        st.sampled_from(
            [
                {},
                {},
                {},
                {"path": WATCH},
                {"path": WATCH},
                {"path": "/none"},
                {":method": "GET"},
                {"without": ("te",)},
                {"without": ("content-type",)},
                {"content_type": "application/json"},
                {"content_type": "application/grpc+proto"},
                {"grpc_timeout": "1H"},
                {"grpc_timeout": "x"},
            ]
        )
    )
    cuts = draw(st.sets(st.integers(1, len(framed)), max_size=4)) if framed else set()
    return kind, framed, changed, sorted(cuts | {len(framed)} - {0})


async def answers(implementation, calls):
    with tempfile.TemporaryDirectory(prefix="ew-") as folder:
        listener = Listener([service()], implementation=implementation)
        await listener.listen_unix(Path(folder) / "s", 0o600)
        client = await RawClient.connect(Path(folder) / "s")
        for number, (_kind, framed, changed, cuts) in enumerate(calls):
            stream = 2 * number + 1
            client.send(client.headers(stream, **changed))
            # Empty DATA comes only at the end: grpclib takes it for the end of the stream wherever it comes.
            for start, stop in pairwise([0, *cuts]):
                client.send(frames.frame(frames.DATA, 0, stream, framed[start:stop]))
            client.send(frames.frame(frames.DATA, frames.END_STREAM, stream))
            await client.ended(stream)
        found = []
        for number in range(len(calls)):
            answer = client.answers[2 * number + 1]
            texts = [headers.get("grpc-message") for headers in answer.headers]
            found.append((answer.headers[0].get(":status"), answer.status, answer.messages, texts[-1]))
        await client.close()
        await listener.close()
        return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(some_call(), min_size=1, max_size=6))
def test_both_implementations_answer_alike(calls):
    async def both():
        return await answers("own", calls), await answers("grpclib", calls)

    ours, theirs = asyncio.run(both())
    for mine, its, call in zip(ours, theirs, calls, strict=True):
        assert mine[0] == its[0], call
        if mine[0] != "200":
            continue
        if call[0] == "cut" and its[1] == INTERNAL:
            # A message that ends early is a failed assertion to grpclib.
            assert mine[1:3] == (INVALID_ARGUMENT, []), call
            continue
        assert mine[1:3] == its[1:3], call
        # Where no handler was reached each has its own words.
        if "timeout" not in str(call[2]):
            assert mine[3] == its[3], call
