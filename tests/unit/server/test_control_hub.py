"""The control stream's end: a certificate proves nothing once it has ended, on an open stream neither."""

import asyncio
from datetime import timedelta

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from eastwest.agent import sidecars
from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.clock import SystemClock
from eastwest.errors import InvalidInput, PermissionDenied, Unavailable
from eastwest.rpc.service import MAX_MESSAGE
from eastwest.server.agents import control_service
from eastwest.server.control import MAX_ACK, MAX_SIDECARS, ControlHub
from eastwest.server.gate import SocketGate
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


class ReportingCall(SilentCall):
    """An agent that says hello and reports once."""

    def __init__(self, ack: pb.Ack) -> None:
        super().__init__()
        self.reports = [pb.SubscribeRequest(ack=ack)]

    async def __anext__(self) -> pb.SubscribeRequest:
        if self.reports:
            return self.reports.pop()
        return await super().__anext__()


def _hub() -> ControlHub:
    return ControlHub(lambda _: {}, SystemClock(), SeededEntropy(), Metrics(), 60)


async def test_what_is_kept_of_a_report_is_bounded():
    hub, heard = _hub(), asyncio.Event()
    told: list[pb.Ack] = []
    hub.on_ack = lambda _agent, ack: (told.append(ack), heard.set())
    status = pb.SidecarStatus(
        node_id="n" * 9999,
        spiffe_id="s" * 9999,
        acknowledged_version="a" * 9999,
        intended_version="i" * 9999,
        error="e" * 9999,
        connected=True,
        bundle_sequence=7,
    )
    status.MergeFromString(b"\xfa\x06\x90\x4e" + b"u" * 10_000)  # field 111, which nobody knows
    assert status.ByteSize() > 50_000
    call = ReportingCall(pb.Ack(number=1, sidecars=[status], bundle_sequence=7))
    serving = asyncio.create_task(hub.serve(AGENT, call, SystemClock().now() + timedelta(seconds=60)))
    async with asyncio.timeout(10):
        await heard.wait()
    [kept] = hub.streams[AGENT].sidecars.values()
    assert kept.ByteSize() < 4096
    assert (kept.connected, kept.bundle_sequence, len(kept.node_id)) == (True, 7, 256)
    assert told[0].ByteSize() < 4096
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def test_a_report_about_too_many_sidecars_ends_the_stream_with_the_reason():
    ack = pb.Ack(sidecars=[pb.SidecarStatus(node_id=str(number)) for number in range(MAX_SIDECARS + 1)])
    hub = _hub()
    async with asyncio.timeout(10):
        with pytest.raises(InvalidInput, match="sidecars"):
            await hub.serve(AGENT, ReportingCall(ack), SystemClock().now() + timedelta(seconds=60))
    assert not hub.streams[AGENT].sidecars


def test_an_agent_stays_within_what_a_server_takes():
    assert sidecars.MAX_SIDECARS + sidecars.MAX_BEHIND <= MAX_SIDECARS
    fullest = pb.SidecarStatus(
        node_id="n" * sidecars.MAX_NODE_ID,
        spiffe_id="spiffe://td.test/" + "x" * 2031,
        acknowledged_version="f" * 64,
        intended_version="f" * 64,
        error="e" * sidecars.MAX_ERROR,
        connected_at=1 << 40,
        bundle_sequence=1 << 40,
    )
    ack = pb.Ack(sidecars=[fullest] * MAX_SIDECARS)
    assert pb.SubscribeRequest(ack=ack).ByteSize() < MAX_ACK


class ChokingCall(SilentCall):
    """An agent whose report is more than a message may have."""

    async def __anext__(self) -> pb.SubscribeRequest:
        raise GRPCError(Status.RESOURCE_EXHAUSTED, "the message has 5000000 bytes")


async def test_a_message_that_cannot_be_read_ends_the_stream_with_its_status():
    async with asyncio.timeout(10):
        with pytest.raises(GRPCError, match="5000000 bytes"):
            await _hub().serve(AGENT, ChokingCall(), SystemClock().now() + timedelta(seconds=60))


async def test_a_stream_ends_when_its_certificate_has_come_to_prove_nothing():
    hub, call, revoked = _hub(), SilentCall(), []

    def confirm() -> None:
        if revoked:
            raise PermissionDenied("its CA was revoked")

    serving = asyncio.create_task(hub.serve(AGENT, call, SystemClock().now() + timedelta(seconds=60), confirm))
    async with asyncio.timeout(10):
        while not call.sent:
            await asyncio.sleep(0)
        revoked.append(True)
        hub.wake()
        with pytest.raises(PermissionDenied, match="revoked"):
            await serving
    assert len(call.sent) == 1


async def test_who_is_displaced_is_told_so():
    hub, until = _hub(), SystemClock().now() + timedelta(seconds=60)
    first, second = SilentCall(), SilentCall()
    displaced = asyncio.create_task(hub.serve(AGENT, first, until))
    async with asyncio.timeout(10):
        while not first.sent:
            await asyncio.sleep(0)
        staying = asyncio.create_task(hub.serve(AGENT, second, until))
        with pytest.raises(Unavailable, match="another subscription"):
            await displaced
        while not second.sent:
            await asyncio.sleep(0)
    assert hub.connected == 1
    staying.cancel()
    await asyncio.gather(staying, return_exceptions=True)


def test_only_subscribe_has_the_smaller_limit():
    services = control_service(_hub(), None, Metrics(), SocketGate(None), lambda _: ())
    limits = {path.rpartition("/")[2]: method.bounds()[0] for s in services for path, method in s.methods().items()}
    assert limits == {"Subscribe": MAX_ACK, "ReportDecisions": MAX_MESSAGE}
