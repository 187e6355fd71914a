"""Writes of one turn of the loop leave as one, in order, and never later than a close."""

import asyncio

import pytest
from grpclib.client import Handler
from grpclib.config import Configuration
from grpclib.protocol import H2Protocol
from h2.config import H2Configuration

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
