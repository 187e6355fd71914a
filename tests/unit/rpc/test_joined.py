"""Writes of one turn of the loop leave as one, in order, and never later than a close."""

import asyncio
import contextlib

import pytest
from grpclib.client import Handler
from grpclib.config import Configuration
from grpclib.protocol import H2Protocol
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived

from eastwest import errors
from eastwest.api.spire.api.server.agent.v1 import agent_pb2
from eastwest.rpc.client import Channel, method
from eastwest.rpc.joined import MAX_HELD, JoinedProtocol


class Wire(asyncio.Transport):
    """A transport that notes what reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = ""

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def close(self) -> None:
        self.closed = "closed"

    def abort(self) -> None:
        self.closed = "aborted"

    def is_closing(self) -> bool:
        return bool(self.closed)


@pytest.fixture
async def wire():
    return Wire()


@pytest.fixture
async def transport(wire):
    plain = H2Protocol(Handler(), Configuration().__for_client__(), H2Configuration())
    protocol = JoinedProtocol.instead_of(plain)
    protocol.connection_made(wire)
    await asyncio.sleep(0)
    assert len(wire.writes) == 1  # preface, settings and window in one
    wire.writes.clear()
    return protocol.connection._transport


async def test_a_turn_is_one_write_in_order(transport, wire):
    for part in (b"headers", b"message", b"trailers"):
        transport.write(part)
    assert wire.writes == []
    await asyncio.sleep(0)
    assert wire.writes == [b"headersmessagetrailers"]
    transport.write(b"next")
    await asyncio.sleep(0)
    assert wire.writes[1:] == [b"next"]


async def test_much_is_passed_on_at_once(transport, wire):
    transport.write(b"a" * (MAX_HELD - 1))
    assert wire.writes == []
    transport.write(b"b")
    assert [len(data) for data in wire.writes] == [MAX_HELD]
    transport.write(b"c")
    await asyncio.sleep(0)
    assert b"".join(wire.writes) == b"a" * (MAX_HELD - 1) + b"bc"


async def test_close_sends_what_is_held_and_abort_does_not(transport, wire):
    transport.write(b"goodbye")
    transport.close()
    assert (wire.writes, wire.closed) == ([b"goodbye"], "closed")
    transport.write(b"too late")
    await asyncio.sleep(0)
    assert wire.writes == [b"goodbye"]


async def test_abort_drops_what_is_held(transport, wire):
    transport.write(b"lost")
    transport.abort()
    await asyncio.sleep(0)
    assert (wire.writes, wire.closed) == ([], "aborted")


async def test_an_answer_counts_though_the_rest_of_the_request_is_refused(tmp_path):
    """RFC 9113, section 8.1: a server that has answered may reset the stream, as gRPC servers in Go do."""
    agent = agent_pb2.DESCRIPTOR.services_by_name["Agent"]

    left = asyncio.Event()

    async def answer(reader, writer):
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        answered = set()
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, DataReceived) and event.stream_id not in answered:
                    answered.add(event.stream_id)
                    reply = agent_pb2.AttestAgentResponse(challenge=b"the answer").SerializeToString()
                    number = event.stream_id
                    head = [(":status", "200"), ("content-type", "application/grpc+proto")]
                    connection.send_headers(number, head)
                    connection.send_data(number, b"\0" + len(reply).to_bytes(4) + reply)
                    connection.send_headers(number, [("grpc-status", "0")], end_stream=True)
                    connection.reset_stream(number, ErrorCodes.NO_ERROR)
            writer.write(connection.data_to_send())
        writer.close()
        await writer.wait_closed()
        left.set()

    server = await asyncio.start_unix_server(answer, tmp_path / "s")
    channel = Channel(path=str(tmp_path / "s"))
    got = None
    with contextlib.suppress(errors.Unavailable):  # how the stream ends is another matter
        async with channel.stream(method(agent, "AttestAgent"), deadline=10) as stream:
            await stream.send_message(agent_pb2.AttestAgentRequest())
            got = await stream.recv_message()
    # Whatever is done with a stream that the other side has closed, the failure is one of ours.
    with pytest.raises(errors.Unavailable, match="does not answer"):
        async with channel.stream(method(agent, "AttestAgent"), deadline=10) as stream:
            await stream.send_message(agent_pb2.AttestAgentRequest())
            while await stream.recv_message() is not None:
                pass
            await stream.end()
    channel.close()
    await left.wait()
    server.close()
    assert got is not None
    assert got.challenge == b"the answer"
