"""The control stream's end: a certificate proves nothing once it has ended, on an open stream neither."""

import asyncio
from datetime import timedelta

import pytest

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.clock import SystemClock
from eastwest.errors import Unavailable
from eastwest.server.control import ControlHub
from eastwest.server.telemetry import Metrics
from eastwest.spiffe.id import SpiffeId
from eastwest.testing.entropy import SeededEntropy

AGENT = SpiffeId.parse("spiffe://td.test/spire/agent/a")


class SilentCall:
    """An agent that says hello, and then nothing for ever."""

    def __init__(self) -> None:
        self.sent: list[pb.Update] = []

    async def receive(self) -> pb.SubscribeRequest:
        return pb.SubscribeRequest(hello=pb.Hello())

    def __aiter__(self) -> "SilentCall":
        return self

    async def __anext__(self) -> pb.SubscribeRequest:
        await asyncio.Event().wait()
        raise StopAsyncIteration

    async def send(self, update: pb.Update) -> None:
        self.sent.append(update)


async def test_a_stream_ends_with_the_certificate_that_opened_it():
    clock = SystemClock()
    hub = ControlHub(lambda _: {}, clock, SeededEntropy(), Metrics(), 60)
    call = SilentCall()
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable, match="certificate"):
            await hub.serve(AGENT, call, clock.now() + timedelta(seconds=0.2))
    assert [update.full for update in call.sent] == [True]
    assert hub.connected == 0
