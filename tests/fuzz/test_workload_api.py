"""A hostile process at an agent's socket: the Workload API and what Envoys use, with messages of any kind."""

import asyncio
import itertools
import tempfile
from pathlib import Path

import pytest
from agent_authority import FakeAuthority, settings, start, stop
from agent_workload import ME
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.discovery.v3 import ads_pb2
from envoy.service.secret.v3 import sds_pb2
from fuzz_messages import Words, messages, mutated
from fuzz_settings import few
from fuzz_world import INTERNAL, UNKNOWN
from http2_client import RawClient
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from eastwest.api.spiffe.workload import workload_pb2

SERVICES = [
    workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"],
    ads_pb2.DESCRIPTOR.services_by_name["AggregatedDiscoveryService"],
    sds_pb2.DESCRIPTOR.services_by_name["SecretDiscoveryService"],
    als_pb2.DESCRIPTOR.services_by_name["AccessLogService"],
]
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
SECONDS = 0.05
"""How long streams without an end of their own are listened to."""


class Node:
    """An agent in this process, with an entry for this user."""

    def __init__(self):
        self._runner = asyncio.Runner()
        self._directory = tempfile.TemporaryDirectory(prefix="ew-")
        self.client = None

    def open(self):
        self.run(self._open())
        return self

    def run(self, work):
        async def bounded():
            async with asyncio.timeout(60):
                return await work

        return self._runner.run(bounded())

    def close(self):
        async def closed():
            await self.client.close()
            await stop(self._agent)
            await self.authority.stop()

        self.run(closed())
        self._runner.close()
        self._directory.cleanup()

    async def call(self, path, raw, *, ends):
        if self.client is None or self.client.closed:
            self.client = await RawClient.connect(self.socket)
            self._numbers = itertools.count(1, 2)
        client, number = self.client, next(self._numbers)
        client.send(client.headers(number, ("workload.spiffe.io", "true"), path=path))
        for message in raw:
            client.send(client.data(number, message, end=False))
        client.send((0).to_bytes(3) + b"\0\1" + number.to_bytes(4))
        answer = client.answers[number]
        try:
            await client.until(lambda: answer.ended or answer.reset is not None, 5.0 if ends else SECONDS)
        except TimeoutError:
            assert not ends, f"{path} does not end"
            client.send((4).to_bytes(3) + b"\3\0" + number.to_bytes(4) + (8).to_bytes(4))
        assert not client.closed
        return answer.status

    async def _open(self):
        self.authority = FakeAuthority()
        await self.authority.start()
        self.authority.put("me", ME)
        config = settings(self.authority, Path(self._directory.name) / "d")
        self._agent, _ = await start(config)
        self.socket = config.paths.socket


@pytest.fixture(scope="module")
def node():
    node = Node().open()
    yield node
    node.close()


WORDS = Words(
    texts=["spiffe://saas.example/me", "ROOTCA", "default", "type.googleapis.com/x", "requests/web", "connections/web"],
    blobs=[],
)
TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
WORDS.texts = WORDS.texts | st.just(TYPE)


@pytest.mark.parametrize("path", sorted(METHODS))
def test_no_message_breaks_the_agent(node, path):
    method = METHODS[path]
    drawn = messages(method.input_type, WORDS).map(lambda message: message.SerializeToString())
    inputs = drawn | mutated(drawn) | st.binary(max_size=64)
    ends = not method.server_streaming or method.client_streaming

    @few(15 if ends else 6)
    @given(st.lists(inputs, max_size=3) if method.client_streaming else inputs.map(lambda raw: [raw]))
    def run(raw):
        with capture_logs() as logs:
            status = node.run(node.call(path, raw, ends=ends))
        assert status not in {INTERNAL, UNKNOWN}
        assert "rpc.failed" not in {log["event"] for log in logs}

    run()
