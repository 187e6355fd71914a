"""Bounds of the HTTP/2 server that show only from within, or after a while."""

import asyncio
import contextlib
import socket

import hpack
import pytest
from http2_client import RawClient

from eastwest.api.grpc.health.v1 import health_pb2 as pb
from eastwest.errors import NotFound
from eastwest.rpc import accepting, frames, limits
from eastwest.rpc.limits import Allowance, Fault
from eastwest.rpc.outgoing import MAX_HELD, MAX_UNREAD, Outgoing
from eastwest.rpc.service import Listener, Service

HEALTH = pb.DESCRIPTOR.services_by_name["Health"]


@pytest.fixture
def answered():
    return []


@pytest.fixture
async def path(tmp_path, answered):
    async def check(request, _call):
        answered.append(True)
        reply = pb.HealthCheckResponse()
        if request.service == "long words":
            raise NotFound("x" * 30_000)
        if request.service == "some":
            reply.MergeFromString(b"\x7a\x90\x4e" + bytes(10_000))
        if request.service == "big":
            reply.MergeFromString(b"\x7a\x80\x80\x40" + bytes(2**20))
        return reply

    listener = Listener([Service(HEALTH, {"Check": check})])
    await listener.listen_unix(tmp_path / "s", 0o600)
    yield tmp_path / "s"
    await listener.close()


def test_an_allowance_ends_refills_with_time_and_is_never_more_than_at_first():
    allowance = Allowance(0.0)
    for _ in range(limits.ALLOWANCE):
        allowance.spend(1, 0.0)
    with pytest.raises(Fault) as fault:
        allowance.spend(1, 0.0)
    assert fault.value.code == frames.ENHANCE_YOUR_CALM
    # A second gives what is told, an hour no more than there was at first.
    allowance = Allowance(0.0)
    allowance.spend(limits.ALLOWANCE, 0.0)
    allowance.spend(limits.ALLOWANCE_PER_SECOND, 1.0)
    with pytest.raises(Fault):
        allowance.spend(1, 1.0)
    allowance = Allowance(0.0)
    allowance.spend(limits.ALLOWANCE, 0.0)
    with pytest.raises(Fault):
        allowance.spend(limits.ALLOWANCE + 1, 3600.0)


def test_an_allowance_earned_is_no_larger_than_at_first():
    allowance = Allowance(0.0)
    for _ in range(1000):
        allowance.earn(2)
    with pytest.raises(Fault):
        allowance.spend(limits.ALLOWANCE + 1, 0.0)
    allowance = Allowance(0.0)
    allowance.spend(limits.ALLOWANCE, 0.0)
    allowance.earn(2)
    allowance.spend(2, 0.0)


async def test_a_reset_costs_as_much_as_ten_frames(path):
    client = await RawClient.connect(path)
    calls = limits.ALLOWANCE // limits.RESET_COST + limits.ALLOWANCE_PER_SECOND // 10
    for stream in range(1, 2 * calls, 2):
        client.send(client.headers(stream))
        client.send(frames.rst_stream(stream, frames.CANCEL))
    assert await client.gone() == frames.ENHANCE_YOUR_CALM
    await client.close()


async def test_large_header_blocks_are_paid_for_before_they_are_read(path, monkeypatch):
    """Huffman's code costs hundreds of times its bytes to read, on a stream that has long ended too."""
    client = await RawClient.connect(path)
    client.send(client.call(3))
    await client.ended(3)
    decoded, decode = [], hpack.Decoder.decode
    monkeypatch.setattr(
        hpack.Decoder, "decode", lambda self, block, **how: decoded.append(1) or decode(self, block, **how)
    )
    block = hpack.Encoder().encode([(f"a{number}", "a0" * 2500) for number in range(3)], huffman=True)
    assert len(block) > 9000
    most = limits.ALLOWANCE // (len(block) // limits.HEADERS_PER_FRAME)
    with contextlib.suppress(ConnectionError):
        for _ in range(3 * most):
            client.send(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, block))
            await client.writer.drain()
    assert await client.gone() in {frames.ENHANCE_YOUR_CALM, None}
    assert most // 2 < len(decoded) < 2 * most
    await client.close()


async def test_the_peer_is_told_what_it_may(path):
    client = await RawClient.connect(path)
    await client.until(lambda: client.settings)
    assert client.settings == {
        frames.MAX_CONCURRENT_STREAMS: limits.MAX_STREAMS,
        frames.INITIAL_WINDOW_SIZE: limits.STREAM_WINDOW,
        frames.MAX_HEADER_LIST_SIZE: limits.MAX_HEADER_LIST,
    }
    assert client.windows[0] == limits.CONNECTION_WINDOW - frames.DEFAULT_WINDOW
    await client.close()


async def test_who_does_not_read_the_last_words_is_left(path, answered, monkeypatch):
    monkeypatch.setattr(limits, "LINGER_SECONDS", 0.05)
    client = await RawClient.connect(path)
    client.writer.transport.pause_reading()
    # An answer that fills the kernel's buffer and some of ours, then something that ends the connection.
    client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 2**30)]), frames.window_update(0, 2**30))
    client.send(client.call(1, pb.HealthCheckRequest(service="big").SerializeToString()))
    async with asyncio.timeout(5):
        while not answered:
            await asyncio.sleep(0.01)
    client.send(frames.frame(frames.PING, 0, 1, bytes(8)))
    await client.writer.drain()
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(10):
            while True:
                client.send(bytes(10_000))
                await client.writer.drain()
                await asyncio.sleep(0.01)
    await client.close()


def test_the_kernel_looks_for_callers_that_vanished():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        accepting._keep_alive(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 12), ("deflate", 12), ("identity", 0)])
async def test_compression_is_refused_before_a_message_comes(path, encoding, status):
    client = await RawClient.connect(path)
    client.send(client.headers(1, grpc_encoding=encoding), client.data(1))
    await client.ended(1)
    assert client.answers[1].status == status
    client.send(client.call(3))
    await client.ended(3)
    assert client.answers[3].status == 0
    await client.close()


def asking(service):
    return pb.HealthCheckRequest(service=service).SerializeToString()


async def test_answers_that_nobody_reads_end_the_connection(path):
    client = await RawClient.connect(path)
    client.writer.transport.pause_reading()
    # Each is a call like any other, and costs its caller nothing but its answer of 8 KB.
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(20):
            for stream in range(1, 10 * MAX_UNREAD // 8192 * 20, 2):
                client.send(client.call(stream, asking("long words")))
                await client.writer.drain()
                if stream % 40 == 1:
                    await asyncio.sleep(0.01)
    await client.close()


async def test_what_is_held_for_one_turn_is_bounded():
    class Transport:
        written = 0

        def is_closing(self):
            return False

        def write(self, data):
            self.written += len(data)

    outgoing = Outgoing()
    outgoing.transport = Transport()
    outgoing.write(bytes(MAX_HELD - 1))
    assert outgoing.transport.written == 0
    outgoing.write(b"x")
    assert outgoing.transport.written == MAX_HELD


async def test_the_windows_of_the_connection_and_of_the_stream_both_hold(path):
    for initial, connection, room in ((2**30, 0, frames.DEFAULT_WINDOW), (1000, 2**20, 1000)):
        client = await RawClient.connect(path)
        client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, initial)]))
        if connection:
            client.send(frames.window_update(0, connection))
        client.send(client.call(1, asking("big")), frames.frame(frames.PING, 0, 0, bytes(8)))
        await client.until(lambda client=client, room=room: len(client.answers[1].data) >= room)
        client.send(frames.frame(frames.PING, 0, 0, bytes(8)))
        pongs = len(client.pongs)
        await client.until(lambda client=client, pongs=pongs: len(client.pongs) > pongs)
        assert len(client.answers[1].data) == room
        await client.close()


async def test_small_messages_do_not_overrun_the_window_of_the_connection_either(path):
    client = await RawClient.connect(path)
    client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 2**20)]))
    streams = range(1, 21, 2)
    client.send(*(client.call(stream, asking("some")) for stream in streams))
    received = lambda: sum(len(client.answers[stream].data) for stream in streams)
    await client.until(lambda: received() >= frames.DEFAULT_WINDOW)
    client.send(frames.frame(frames.PING, 0, 0, bytes(8)))
    await client.until(lambda: client.pongs)
    assert received() == frames.DEFAULT_WINDOW
    client.send(frames.window_update(0, 2**20))
    await client.ended(*streams)
    assert all(client.answers[stream].status == 0 for stream in streams)
    await client.close()


async def test_only_those_are_woken_for_whom_there_is_room():
    class Waiting:
        def __init__(self, window, wanted):
            self.send_window, self.wanted, self.woken = window, wanted, 0

        def opened(self):
            self.woken += 1

    outgoing = Outgoing()
    outgoing.send_window = 150
    blocked = [Waiting(0, 10), Waiting(-5, 10), Waiting(1000, 100), Waiting(1000, 100), Waiting(1000, 100)]
    for each in blocked:
        outgoing.wait(each)
    outgoing.wake()
    assert [each.woken for each in blocked] == [0, 0, 1, 1, 0]


async def test_one_more_byte_of_room_lets_one_wait_end_and_not_all(path):
    client = await RawClient.connect(path)
    client.send(frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)]), client.call(1, asking("")))
    client.send(client.call(3, asking("")), frames.window_update(3, 100))
    await client.ended(3)
    assert client.answers[3].status == 0
    assert not client.answers[1].data
    client.send(frames.window_update(1, 100))
    await client.ended(1)
    assert client.answers[1].status == 0
    await client.close()


async def test_the_window_of_a_connection_is_given_back(path):
    client = await RawClient.connect(path)
    message = b"\x7a\x90\x4e" + bytes(10_000)  # an unknown field
    sent = 0
    for stream in range(1, 2 * (limits.CONNECTION_WINDOW // 10_000 + 50), 2):
        client.send(client.call(stream, message))
        sent += len(message)
        await client.ended(stream)
    assert sent > limits.CONNECTION_WINDOW
    assert client.windows[0] >= sent - limits.CONNECTION_WINDOW // 4
    assert not client.closed
    await client.close()


async def test_a_call_reset_before_its_first_step_gives_its_place_back(path):
    client = await RawClient.connect(path)
    client.send(
        *(
            client.call(stream) + frames.rst_stream(stream, frames.CANCEL)
            for stream in range(1, 2 * limits.MAX_STREAMS, 2)
        )
    )
    client.send(frames.frame(frames.PING, 0, 0, bytes(8)))
    await client.until(lambda: client.pongs)
    client.send(client.call(999))
    await client.ended(999)
    assert client.answers[999].status == 0
    await client.close()


async def test_an_answer_before_the_request_has_ended_says_that_the_rest_is_not_needed(path):
    client = await RawClient.connect(path)
    client.send(client.headers(1), client.data(1, asking(""), end=False))
    await client.until(lambda: client.answers[1].reset is not None)
    assert client.answers[1].ended
    assert client.answers[1].reset == frames.NO_ERROR
    await client.close()


async def test_no_call_begins_once_goodbye_is_said(tmp_path):
    release, seen = asyncio.Event(), []

    async def check(request, _call):
        seen.append(request.service)
        await release.wait()
        return pb.HealthCheckResponse()

    listener = Listener([Service(HEALTH, {"Check": check})])
    await listener.listen_unix(tmp_path / "s", 0o600)
    client = await RawClient.connect(tmp_path / "s")
    client.send(client.call(1, asking("before")))
    async with asyncio.timeout(5):
        while not seen:
            await asyncio.sleep(0.01)
    closing = asyncio.create_task(listener.close())
    await client.until(lambda: client.goaway is not None)
    client.send(client.call(3, asking("after")), frames.frame(frames.PING, 0, 0, bytes(8)))
    await client.until(lambda: client.pongs)
    assert seen == ["before"]
    release.set()
    await client.gone()
    assert client.answers[1].status == 0
    await closing
    await client.close()
