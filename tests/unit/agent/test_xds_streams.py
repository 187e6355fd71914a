"""Streams of config and secrets: who is read at all, how much of it, and who is left because it answers nothing."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from envoy.service.discovery.v3.ads_pb2 import DESCRIPTOR as ADS
from envoy.service.secret.v3.sds_pb2 import DESCRIPTOR as SDS

from eastwest.agent import xds
from eastwest.agent.xds import ConfigStreams, Latest, Principal
from eastwest.errors import Exhausted, PermissionDenied, Unavailable
from eastwest.mesh.names import CLUSTER, SECRET
from eastwest.mesh.secrets import Identity, SecretSet
from eastwest.mesh.snapshot import Snapshot
from eastwest.rpc.client import Channel, method
from eastwest.rpc.service import IMPLEMENTATIONS, Listener

ADS_METHOD = method(ADS.services_by_name["AggregatedDiscoveryService"], "DeltaAggregatedResources")
FETCH, STREAM, DELTA = (
    method(SDS.services_by_name["SecretDiscoveryService"], name)
    for name in ("FetchSecrets", "StreamSecrets", "DeltaSecrets")
)


def secrets(key: bytes = b"key") -> SecretSet:
    """One identity without a bundle."""
    return SecretSet((Identity("spiffe://td.test/a", b"chain", key),), "td.test", {}, marker=object())


class Source:
    def __init__(self) -> None:
        first = secrets()
        self.sets = Latest(first)
        self.configs = Latest(Snapshot.of("v1", first.resources(), object()))

    def snapshots(self, _principal: Principal):
        return self.configs.watch()

    def secrets(self, _principal: Principal):
        return self.sets.watch()


@asynccontextmanager
async def serving(tmp_path, *, known=True, implementation="own", **hears):
    """A channel to the streams of an agent which knows its callers, or none of them."""

    async def identify(_call) -> Principal:
        if not known:
            raise PermissionDenied("no identity issued")
        return Principal(("spiffe://td.test/a",), 42)

    source = Source()
    streams = ConfigStreams(source, identify, hears.pop("report", lambda _status: None), **hears)
    listener = Listener(streams.services(), implementation=implementation)
    await listener.listen_unix(tmp_path / "s", 0o600)
    channel = Channel(path=str(tmp_path / "s"))
    try:
        async with asyncio.timeout(20):
            yield channel, source
    finally:
        channel.close()
        await listener.close()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("called", [FETCH, STREAM, DELTA, ADS_METHOD])
async def test_nothing_is_read_of_a_caller_without_identity(tmp_path, called, implementation):
    async with serving(tmp_path, known=False, implementation=implementation) as (channel, _):
        with pytest.raises(PermissionDenied):
            async with channel.stream(called) as call:
                await call.send_request()
                await call.recv_message()
                await call.recv_trailing_metadata()


@pytest.mark.parametrize(
    ("called", "most"),
    [(FETCH, xds.MAX_SECRETS_REQUEST), (STREAM, xds.MAX_SECRETS_REQUEST), (ADS_METHOD, xds.MAX_REQUEST)],
)
async def test_requests_are_bounded(tmp_path, called, most):
    kind = discovery.DiscoveryRequest if called is not ADS_METHOD else discovery.DeltaDiscoveryRequest
    async with serving(tmp_path) as (channel, _):
        with pytest.raises(Exhausted, match=f"at most {most}"):
            async with channel.stream(called) as call:
                await call.send_message(kind(type_url="x" * (most + 1)), end=True)
                await call.recv_message()


async def test_an_envoy_that_answers_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(xds, "ACKNOWLEDGE_SECONDS", 0.3)
    async with serving(tmp_path) as (channel, source), channel.stream(STREAM) as call:
        await call.send_message(discovery.DiscoveryRequest(type_url=SECRET))
        for number in range(3):
            pushed = await call.recv_message()
            answer = discovery.DiscoveryRequest(type_url=SECRET, response_nonce=pushed.nonce)
            if number == 1:
                answer.error_detail.message = "not that"  # a refusal is an answer too
            await call.send_message(answer)
            with pytest.raises(TimeoutError):  # longer than a push may wait
                async with asyncio.timeout(0.4):
                    await call.recv_message()
            source.sets.set(secrets(b"key %d" % number))
        assert (await call.recv_message()).resources
        await call.cancel()


@pytest.mark.parametrize("called", [STREAM, DELTA, ADS_METHOD])
async def test_an_envoy_that_answers_nothing_is_left(tmp_path, monkeypatch, called):
    """It would keep a change of trust waiting for ever: after its stream nobody waits for it long."""
    monkeypatch.setattr(xds, "ACKNOWLEDGE_SECONDS", 0.2)
    ended = asyncio.Event()
    async with serving(tmp_path, ended=lambda _stream: ended.set()) as (channel, _):
        with pytest.raises(Unavailable, match="not acknowledged"):
            async with channel.stream(called) as call:
                kind = discovery.DiscoveryRequest if called is STREAM else discovery.DeltaDiscoveryRequest
                await call.send_message(kind(type_url=SECRET))
                assert await call.recv_message() is not None
                # It goes on asking, and never says what became of what it got.
                await call.send_message(kind(type_url=CLUSTER if called is ADS_METHOD else SECRET, response_nonce="0"))
                while await call.recv_message() is not None:
                    pass
                await call.recv_trailing_metadata()
        if called is not ADS_METHOD:
            await ended.wait()


async def test_a_stream_for_which_there_is_no_room_is_refused(tmp_path):
    def refuse(*_args) -> None:
        raise Exhausted("there is no room")

    for called, kind, hears in (
        (ADS_METHOD, discovery.DeltaDiscoveryRequest, {"report": refuse_connected}),
        (STREAM, discovery.DiscoveryRequest, {"taken": refuse}),
    ):
        async with serving(tmp_path, **hears) as (channel, _):
            with pytest.raises(Exhausted, match="no room"):
                async with channel.stream(called) as call:
                    await call.send_message(kind(type_url=SECRET))
                    while await call.recv_message() is not None:
                        pass
                    await call.recv_trailing_metadata()


def refuse_connected(status) -> None:
    if status.connected:
        raise Exhausted("there is no room")


def test_a_push_is_answered_by_its_nonce_and_where_one_stands_for_all_by_a_later_one():
    async def main():
        pushes = xds._Pushes()
        for nonce in "1234":
            pushes.sent(nonce)
        pushes.answered("")
        pushes.answered("9", and_before=True)
        pushes.answered("3")
        assert list(pushes._sent) == ["1", "2", "4"]
        pushes.answered("2", and_before=True)
        assert list(pushes._sent) == ["4"]
        pushes.answered("4")
        assert pushes.seconds_left() is None

    asyncio.run(main())
