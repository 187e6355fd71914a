"""Secrets for an Envoy that somebody else configured: state of the world, incremental and one-shot."""

from pathlib import Path

import grpclib.client
import pytest
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.secret.v3 import sds_pb2
from envoy_mesh import TD, Ca, spiffe
from google.protobuf.message_factory import GetMessageClass
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from eastwest.agent.xds import ConfigStreams, Latest, Principal
from eastwest.errors import PermissionDenied
from eastwest.mesh import names
from eastwest.mesh.secrets import SecretSet
from eastwest.rpc.service import Listener

ONE, TWO = spiffe("one"), spiffe("two")
_SERVICE = sds_pb2.DESCRIPTOR.services_by_name["SecretDiscoveryService"]


class Server:
    def __init__(self) -> None:
        self.ca = Ca()
        self.known = True
        self.latest: Latest[SecretSet] = Latest(self.secrets())

    def secrets(self) -> SecretSet:
        return SecretSet(
            identities=(self.ca.identity(ONE), self.ca.identity(TWO)),
            trust_domain=TD,
            bundles={TD: self.ca.pem, "friend.test": self.ca.pem},
        )

    def snapshots(self, principal):
        raise AssertionError

    def secrets_of(self, principal):
        return self.latest.watch()

    async def identify(self, _) -> Principal:
        if not self.known:
            raise PermissionDenied("no identity issued")
        return Principal((ONE, TWO))


@pytest.fixture
async def sds(tmp_path: Path):
    server = Server()

    class Source:
        snapshots = server.snapshots
        secrets = server.secrets_of

    listener = Listener(ConfigStreams(Source(), server.identify, lambda _: None).services())
    await listener.listen_unix(tmp_path / "agent.sock", 0o600)
    channel = grpclib.client.Channel(path=str(tmp_path / "agent.sock"))
    try:
        yield server, channel
    finally:
        channel.close()
        await listener.close()


def method(channel, name):
    found = _SERVICE.methods_by_name[name]
    cls = grpclib.client.UnaryUnaryMethod if name == "FetchSecrets" else grpclib.client.StreamStreamMethod
    types = GetMessageClass(found.input_type), GetMessageClass(found.output_type)
    return cls(channel, f"/{_SERVICE.full_name}/{name}", *types)


def unpack(resource):
    secret = secret_pb2.Secret()
    assert resource.Unpack(secret)
    return secret


async def test_state_of_the_world_follows_rotation(sds):
    server, channel = sds
    with pytest.raises(GRPCError) as gone:
        async with method(channel, "StreamSecrets").open() as stream:
            await stream.send_message(
                discovery_pb2.DiscoveryRequest(
                    type_url=names.SECRET, resource_names=["default", "ROOTCA"], node={"id": "theirs"}
                )
            )
            first = await stream.recv_message()
            assert sorted(unpack(r).name for r in first.resources) == ["ROOTCA", "default"]
            ack = discovery_pb2.DiscoveryRequest(
                type_url=names.SECRET,
                resource_names=["default", "ROOTCA"],
                version_info=first.version_info,
                response_nonce=first.nonce,
            )
            await stream.send_message(ack)
            server.latest.set(server.secrets())
            second = await stream.recv_message()
            assert second.version_info != first.version_info
            await stream.send_message(ack)  # a late one, of the version before: ignored
            server.latest.set(server.secrets())
            assert (await stream.recv_message()).version_info == "3"
            server.latest.end()
            await stream.recv_message()
    assert gone.value.status is Status.PERMISSION_DENIED


async def test_incremental_secrets(sds):
    server, channel = sds
    async with method(channel, "DeltaSecrets").open() as stream:
        await stream.send_message(
            discovery_pb2.DeltaDiscoveryRequest(type_url=names.SECRET, resource_names_subscribe=[TWO, f"spiffe://{TD}"])
        )
        got = [await stream.recv_message() for _ in range(2)]
        assert sorted(r.resources[0].name for r in got) == sorted([TWO, f"spiffe://{TD}"])
        server.latest.set(server.secrets())
        changed = await stream.recv_message()
        assert [r.name for r in changed.resources] == [TWO]
        await stream.end()


async def test_fetch_all_and_unknown_names(sds):
    server, channel = sds
    fetch = method(channel, "FetchSecrets")
    everything = await fetch(discovery_pb2.DiscoveryRequest())
    found = {unpack(r).name: unpack(r) for r in everything.resources}
    assert found.keys() == {ONE, TWO, f"spiffe://{TD}", "spiffe://friend.test"}
    assert b"PRIVATE KEY" in found[ONE].tls_certificate.private_key.inline_bytes
    for name in ("spiffe://nowhere.test", spiffe("three"), "nonsense"):
        with pytest.raises(GRPCError) as refused:
            await fetch(discovery_pb2.DiscoveryRequest(resource_names=[name]))
        assert refused.value.status is Status.INVALID_ARGUMENT
    server.known = False
    with pytest.raises(GRPCError) as refused:
        await fetch(discovery_pb2.DiscoveryRequest())
    assert refused.value.status is Status.PERMISSION_DENIED
