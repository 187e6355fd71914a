"""Serving and calling over our wrapper: errors, bounds, sockets, TLS with changing trust."""

import asyncio
import contextlib
import os
import socket
import stat

import pytest
from grpclib.const import Cardinality
from rpc_authority import Authority

from eastwest import errors
from eastwest.api.grpc.health.v1 import health_pb2 as pb
from eastwest.api.spire.api.types import types_pb2
from eastwest.rpc import admission, limits
from eastwest.rpc import service as service_module
from eastwest.rpc.client import Channel, method
from eastwest.rpc.service import Call, Listener, Service
from eastwest.rpc.status import Refused
from eastwest.rpc.tls import SwappableContext, certificate_id, client_context, expect_server, server_context
from eastwest.spiffe.id import SpiffeId

HEALTH = pb.DESCRIPTOR.services_by_name["Health"]
CHECK = method(HEALTH, "Check")


async def echo(request: pb.HealthCheckRequest, _call: Call) -> pb.HealthCheckResponse:
    match request.service:
        case "missing":
            raise errors.NotFound("no such thing", fix="name another")
        case "refined":
            refined = errors.PermissionDenied("not yours", where="a.yaml:1")
            refined.reason = "OPERATION_NOT_PERMITTED"
            raise refined
        case "banned":
            raise Refused("banned", [types_pb2.PermissionDeniedDetails(reason=4)])
        case "log":
            raise errors.LogUnavailable("the disk is full")
        case "bug":
            raise ZeroDivisionError
    return pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING)


@pytest.fixture
async def unix(tmp_path):
    listener = Listener([Service(HEALTH, {"Check": echo})])
    await listener.listen_unix(tmp_path / "s", 0o600)
    channel = Channel(path=str(tmp_path / "s"))
    yield channel
    channel.close()
    await listener.close()


async def ask(channel: Channel, service: str = "") -> pb.HealthCheckResponse:
    return await channel.unary(CHECK, pb.HealthCheckRequest(service=service))


async def test_a_call_is_answered(unix):
    assert (await ask(unix)).status == pb.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("service", "error", "text"),
    [
        ("missing", errors.NotFound, "no such thing (name another)"),
        ("log", errors.LogUnavailable, "the disk is full"),
        ("bug", errors.Internal, "internal error; the server's log says more"),
    ],
)
async def test_errors_cross_the_wire_with_their_kind(unix, service, error, text):
    with pytest.raises(error) as raised:
        await ask(unix, service)
    assert type(raised.value) is error
    assert str(raised.value) == text


async def test_the_parts_of_an_error_cross_the_wire_apart(unix):
    with pytest.raises(errors.NotFound) as raised:
        await ask(unix, "missing")
    assert (raised.value.message, raised.value.fix, raised.value.reason) == ("no such thing", "name another", "")
    with pytest.raises(errors.PermissionDenied) as raised:
        await ask(unix, "refined")
    told = raised.value
    assert (told.message, told.fix, told.where, told.reason) == ("not yours", "", "a.yaml:1", "OPERATION_NOT_PERMITTED")
    assert type(told) is errors.PermissionDenied, "what has no details for agents is no Refused"


async def test_details_of_a_refusal_cross_the_wire(unix):
    with pytest.raises(Refused) as raised:
        await ask(unix, "banned")
    assert raised.value.details[0].reason == types_pb2.PermissionDeniedDetails.AGENT_BANNED


async def test_a_method_without_handler_is_unimplemented(unix):
    with pytest.raises(errors.FailedPrecondition, match="this server has no"):
        async with unix.stream(method(HEALTH, "Watch")) as stream:
            await stream.send_message(pb.HealthCheckRequest(), end=True)
            await stream.recv_message()


async def test_a_message_over_the_bound_is_refused_before_it_is_read(unix, monkeypatch):
    monkeypatch.setattr(service_module, "MAX_MESSAGE", 1000)
    with pytest.raises(errors.Exhausted, match="at most 1000"):
        await ask(unix, "x" * 2000)
    assert (await ask(unix, "small")).status == pb.HealthCheckResponse.SERVING


async def test_bytes_that_are_no_message_are_invalid_input(unix):
    async with unix.request(
        "/grpc.health.v1.Health/Check", Cardinality.UNARY_UNARY, types_pb2.Selector, pb.HealthCheckResponse
    ) as stream:
        stream._codec = RawCodec()
        await stream.send_message(b"\xff\xff\xff", end=True)
        with pytest.raises(Exception, match="not of this method's type"):
            await stream.recv_message()


class RawCodec:
    """Sends bytes as they are."""

    __content_subtype__ = "proto"

    def encode(self, message, _type):
        return message


async def test_a_unix_socket_has_its_mode_and_is_not_taken_from_a_living_server(tmp_path, unix):
    assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == 0o600
    with pytest.raises(errors.FailedPrecondition, match="in use"):
        await Listener([]).listen_unix(tmp_path / "s", 0o600)


async def test_a_dead_socket_is_replaced_and_a_file_is_not(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    listener = Listener([])
    await listener.listen_unix(tmp_path / "dead", 0o600)
    await listener.close()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.FailedPrecondition, match="not a socket"):
        await Listener([]).listen_unix(tmp_path / "file", 0o600)


async def test_a_taken_port_is_a_clear_error():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(errors.FailedPrecondition, match="Address already in use"):
            await Listener([]).listen_tcp("127.0.0.1", holder.getsockname()[1], server_tls(Authority()))


def server_tls(authority, trusted=None):
    return server_context(*authority.leaf("spiffe://td.test/spire/server"), [(trusted or authority).root])


async def test_client_certificates_are_optional_verified_and_trust_can_change():
    first, second = Authority(), Authority()
    seen = []

    async def who(_request, call):
        seen.append(None if call.peer_certificate is None else str(certificate_id(call.peer_certificate)))
        return pb.HealthCheckResponse()

    context = SwappableContext(server_tls(first))
    listener = Listener([Service(HEALTH, {"Check": who})])
    await listener.listen_tcp("127.0.0.1", 0, context.listening)
    check = expect_server(SpiffeId.parse("spiffe://td.test/spire/server"))

    async def call(identity=None):
        tls = client_context([first.root], *(identity or (None, None)))
        channel = Channel(host="127.0.0.1", port=listener.port, tls=tls, check=check)
        try:
            async with asyncio.timeout(10):
                await ask(channel)
        finally:
            channel.close()

    await call()
    await call(first.leaf("spiffe://td.test/a"))
    with pytest.raises((errors.Unavailable, errors.Unauthenticated)):
        await call(second.leaf("spiffe://td.test/b"))
    context.swap(server_tls(first, trusted=second))
    await call(second.leaf("spiffe://td.test/b"))
    with pytest.raises((errors.Unavailable, errors.Unauthenticated)):
        await call(first.leaf("spiffe://td.test/a"))
    await listener.close()
    assert seen == [None, "spiffe://td.test/a", "spiffe://td.test/b"]


@pytest.mark.parametrize("uris", [["spiffe://td.test/other"], ["spiffe://td.test/spire/server", "spiffe://td.test/x"]])
async def test_a_server_that_proves_another_name_is_refused(uris):
    authority = Authority()
    listener = Listener([Service(HEALTH, {"Check": echo})])
    await listener.listen_tcp("127.0.0.1", 0, server_context(*authority.leaf(*uris), [authority.root]))
    check = expect_server(SpiffeId.parse("spiffe://td.test/spire/server"))
    channel = Channel(host="127.0.0.1", port=listener.port, tls=client_context([authority.root]), check=check)
    with pytest.raises(errors.Unauthenticated, match="the server proved to be"):
        await ask(channel)
    channel.close()
    await listener.close()


async def test_a_server_that_is_not_there_is_unavailable():
    channel = Channel(host="127.0.0.1", port=1)
    with pytest.raises(errors.Unavailable, match="does not answer"):
        await ask(channel)
    channel.close()


async def test_a_service_bounds_its_messages_by_its_own_limit(tmp_path):
    async def check(request, _call):
        return pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING if request.service else 0)

    listener = Listener([Service(HEALTH, {"Check": check}, limit=100)])
    path = tmp_path / "s"
    await listener.listen_unix(path, 0o600)
    channel = Channel(path=str(path))
    try:
        assert (await channel.unary(CHECK, pb.HealthCheckRequest(service="x" * 90))).status == 1
        with pytest.raises(errors.Exhausted, match="at most 100"):
            await channel.unary(CHECK, pb.HealthCheckRequest(service="x" * 100))
    finally:
        channel.close()
        await listener.close()


async def test_a_message_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "MESSAGE_SECONDS", 0.05)

    async def check(_request, _call):
        return pb.HealthCheckResponse()

    listener = Listener([Service(HEALTH, {"Check": check})])
    path = tmp_path / "s"
    await listener.listen_unix(path, 0o600)
    channel = Channel(path=str(path))
    try:
        with pytest.raises(errors.Unavailable, match="did not come"):
            async with channel.stream(CHECK) as call:
                await call.send_request()
                await call._stream.send_data((0).to_bytes(1) + (1 << 20).to_bytes(4))
                await call.recv_message()
                await call.recv_trailing_metadata()
    finally:
        channel.close()
        await listener.close()


async def test_one_user_cannot_take_all_connections(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_CONNECTIONS_OF_USER", 2)
    uids = iter([7, 7, 7, 8])
    monkeypatch.setattr(admission, "peer_credentials", lambda _: (1, next(uids), 1))
    listener = Listener([])
    path = tmp_path / "s"
    await listener.listen_unix(path, 0o600)
    opened = [await asyncio.open_unix_connection(str(path)) for _ in range(4)]
    ended = []
    for reader, _ in opened:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(), 0.3)
        ended.append(reader.at_eof())
    for _, writer in opened:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    await listener.close()
    assert ended == [False, False, True, False]
