"""The gRPC interceptor over real mutual TLS: who may call which method, in all four shapes of a call."""

import ast
import asyncio
from dataclasses import replace

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy_mesh import Ca
from google.protobuf.wrappers_pb2 import StringValue
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from msgspec.structs import replace as replace_struct

from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    GrpcMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Rule,
    Sidecar,
    Verdict,
)
from eastwest.registry.containment import Contained
from eastwest.rpc.client import Channel
from eastwest.rpc.on_grpclib import cardinality
from eastwest.rpc.tls import client_context, expect_server
from eastwest.rpc.workload_client import OwnSvid
from eastwest.sdk.grpc import EnforcementInterceptor, current_call, server_credentials
from eastwest.sdk.source import Rules, RuleSource
from eastwest.spiffe.id import SpiffeId, TrustDomain

WEB, OTHER, SERVICE = (f"spiffe://td.test/{name}" for name in ("web", "other", "svc"))
CA, FRIENDS = Ca("td.test"), Ca("friend.test")
SHAPES = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


def ders(pem: bytes) -> tuple[bytes, ...]:
    return tuple(c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(pem))


def own(spiffe_id: str) -> OwnSvid:
    made = CA.identity(spiffe_id)
    return OwnSvid(SpiffeId.parse(spiffe_id), ders(made.chain), made.key, ders(CA.pem))


def rules(*allowed: str) -> Rules:
    allow = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
    operations = tuple(
        OperationRules(
            name=f"svc:{shape}:call",
            match=GrpcMatch(method=f"x.Y/{shape}"),
            cells=(Cell(callers=(WEB,), rule=allow),) if shape in allowed else (),
        )
        for shape in SHAPES
    )
    inbound = Inbound(
        service="svc",
        address="127.0.0.1",
        port=1,
        protocol="http",
        mode=MtlsMode.STRICT,
        upstream="tcp:127.0.0.1:2",
        operations=operations,
    )
    sidecar = Sidecar(spiffe_id=SERVICE, version="v", known_callers=(OTHER, WEB), inbound=(inbound,))
    return Rules(TrustDomain("td.test"), sidecar, {TrustDomain("td.test"): ders(CA.pem)})


def said(text: str = "") -> StringValue:
    return StringValue(value=text)


async def unary(request, _context):
    return said(f"{request.value}{current_call.get().principal} {current_call.get().operation}")


async def stream(request, context):
    yield await unary(request, context)


async def taking(requests, context):
    return await unary(said("".join([one.value async for one in requests])), context)


async def both(requests, context):
    async for one in requests:
        yield await unary(one, context)


WIRE = {"request_deserializer": StringValue.FromString, "response_serializer": StringValue.SerializeToString}
HANDLERS = {
    "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary, **WIRE),
    "UnaryStream": grpc.unary_stream_rpc_method_handler(stream, **WIRE),
    "StreamUnary": grpc.stream_unary_rpc_method_handler(taking, **WIRE),
    "StreamStream": grpc.stream_stream_rpc_method_handler(both, **WIRE),
}


class Service:
    """A running service and ways to call it."""

    def __init__(self) -> None:
        self.source = RuleSource("/nowhere.sock")
        self.source.identity = own(SERVICE)
        self.source.rules = rules(*SHAPES)
        self.decisions = []

    async def start(self, handlers=HANDLERS, *behind) -> None:
        interceptor = EnforcementInterceptor(self.source, "svc", on_decision=self.decisions.append)
        self.server = grpc.aio.server(interceptors=[interceptor, *behind])
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", handlers),))
        self.port = self.server.add_secure_port("127.0.0.1:0", server_credentials(self.source))
        await self.server.start()

    async def call(self, shape: str, *uris: str, ca: Ca = CA, metadata=None) -> str:
        """What the method answers, or the code of its refusal."""
        identity = ca.identity(*uris)
        tls = client_context(ders(CA.pem), identity.chain, identity.key)
        check = expect_server(self.source.identity.id)
        channel = Channel(host="127.0.0.1", port=self.port, tls=tls, check=check)
        kind = cardinality(shape.startswith("Stream"), shape.endswith("Stream"))
        try:
            async with channel.request(
                f"/x.Y/{shape}", kind, StringValue, StringValue, timeout=10, metadata=metadata
            ) as stream:
                await stream.send_message(said("hello "), end=True)
                reply = await stream.recv_message()
                await stream.recv_trailing_metadata()
                return reply.value
        except GRPCError as error:
            code = (stream.trailing_metadata or stream.initial_metadata or {}).get("x-eastwest-code", "")
            return code if error.status is Status.PERMISSION_DENIED else error.status.name
        finally:
            channel.close()

    async def stream_to_its_end(self, spiffe_id: str) -> list[str]:
        """What a stream says that its handler never ends, and the code with which it ends."""
        identity = CA.identity(spiffe_id)
        tls = client_context(ders(CA.pem), identity.chain, identity.key)
        channel = Channel(host="127.0.0.1", port=self.port, tls=tls, check=expect_server(self.source.identity.id))
        heard = []
        try:
            kind = cardinality(False, True)
            async with channel.request("/x.Y/UnaryStream", kind, StringValue, StringValue, timeout=30) as stream:
                await stream.send_message(said("hello"), end=True)
                while (reply := await stream.recv_message()) is not None:
                    heard.append(reply.value)
                await stream.recv_trailing_metadata()
        except GRPCError:
            heard.append((stream.trailing_metadata or {}).get("x-eastwest-code", ""))
        finally:
            channel.close()
        return heard


@pytest.fixture
async def service():
    made = Service()
    await made.start()
    yield made
    await made.server.stop(None)


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_shape_of_call(service, shape):
    assert await service.call(shape, WEB) == f"hello {WEB} svc:{shape}:call"
    assert await service.call(shape, OTHER) == "OPERATION_NOT_PERMITTED"
    assert [decision.code for decision in service.decisions] == ["ALLOWED", "OPERATION_NOT_PERMITTED"]


async def test_who_is_refused(service):
    assert await service.call("UnaryUnary", "spiffe://td.test/nobody") == "UNKNOWN_CALLER"
    assert await service.call("Nothing", WEB) == "UNLISTED_OPERATION"
    assert await service.call("UnaryUnary", WEB, OTHER) == "CERTIFICATE_REFUSED"
    spoofed = {"x-eastwest-caller": WEB, "x-forwarded-client-cert": f"URI={WEB}"}
    assert await service.call("UnaryUnary", OTHER, metadata=spoofed) == "OPERATION_NOT_PERMITTED"
    with pytest.raises((OSError, StreamTerminatedError)):
        await service.call("UnaryUnary", WEB, ca=FRIENDS)  # the handshake ends it


async def test_an_authority_that_speaks_for_others(service):
    """Trusted for its own trust domain, and so by TLS for all."""
    friends = TrustDomain("friend.test")
    held = service.source.rules
    service.source.rules = replace(held, bundles={**held.bundles, friends: ders(FRIENDS.pem)})
    assert await service.call("UnaryUnary", "spiffe://friend.test/web", ca=FRIENDS) == "UNKNOWN_CALLER"
    assert await service.call("UnaryUnary", WEB, ca=FRIENDS) == "CERTIFICATE_REFUSED"
    assert await service.call("UnaryUnary", WEB) == f"hello {WEB} svc:UnaryUnary:call"


async def test_new_rules_and_identities_count_at_once(service):
    assert (await service.call("UnaryUnary", WEB)).startswith("hello")
    service.source.rules = rules("UnaryStream")
    assert await service.call("UnaryUnary", WEB) == "OPERATION_NOT_PERMITTED"
    assert (await service.call("UnaryStream", WEB)).startswith("hello")
    service.source.identity = own("spiffe://td.test/renamed")
    assert (await service.call("UnaryStream", WEB)).startswith("hello")


class Told(grpc.aio.ServerInterceptor):
    """An interceptor behind ours, which hears of calls."""

    def __init__(self) -> None:
        self.calls = []

    async def intercept_service(self, continuation, details):
        self.calls.append((details.method, dict(details.invocation_metadata)))
        return await continuation(details)


def given(context) -> dict:
    """The metadata that the handler sees, without what the client's library sends of itself."""
    return {key: value for key, value in context.invocation_metadata() if key != "user-agent"}


async def unary_telling(_request, context):
    return said(repr(sorted(given(context).items())))


async def stream_telling(request, context):
    await context.write(await unary_telling(request, context))


async def taking_telling(_requests, context):
    assert (await context.read()).value == "hello "
    assert await context.read() is grpc.aio.EOF
    return await unary_telling(None, context)


async def both_telling(requests, context):
    async for one in requests:
        yield await unary_telling(one, context)


TELLING = {
    "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary_telling, **WIRE),
    "UnaryStream": grpc.unary_stream_rpc_method_handler(stream_telling, **WIRE),
    "StreamUnary": grpc.stream_unary_rpc_method_handler(taking_telling, **WIRE),
    "StreamStream": grpc.stream_stream_rpc_method_handler(both_telling, **WIRE),
}
SPOOFED = {
    "x-eastwest-caller": "spiffe://td.test/admin",
    "x-eastwest-caller-bin": b"spiffe://td.test/admin",
    "x-eastwest-tenant": "acme",
    "x-forwarded-client-cert": f"URI={OTHER}",
    "x-kind": "ordinary",
    "x-kind-bin": b"\x00\xff",
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_handler_sees_the_call_as_it_was_decided(shape):
    service = Service()
    await service.start(TELLING)
    try:
        seen = dict(ast.literal_eval(await service.call(shape, WEB, metadata=SPOOFED)))
        assert seen == {"x-eastwest-caller": WEB, "x-kind": "ordinary", "x-kind-bin": b"\x00\xff"}
    finally:
        await service.server.stop(None)


async def test_interceptors_behind_ours_hear_of_calls_that_pass_alone():
    service, told = Service(), Told()
    await service.start(HANDLERS, told)
    try:
        assert await service.call("UnaryUnary", OTHER, metadata=SPOOFED) == "OPERATION_NOT_PERMITTED"
        assert await service.call("Nothing", WEB) == "UNLISTED_OPERATION"
        assert told.calls == []
        assert (await service.call("UnaryUnary", WEB, metadata=SPOOFED)).startswith("hello")
        ((method, metadata),) = told.calls
        assert method == "/x.Y/UnaryUnary"
        assert metadata["x-eastwest-caller"] == WEB
        assert not {"x-eastwest-tenant", "x-eastwest-caller-bin", "x-forwarded-client-cert"} & set(metadata)
    finally:
        await service.server.stop(None)


async def failing(_request, context):
    context.set_code(grpc.StatusCode.NOT_FOUND)
    context.set_details("no such thing")
    return said("dropped")


async def test_a_handler_that_sets_a_status_and_one_that_is_missing():
    service = Service()
    await service.start({"UnaryUnary": grpc.unary_unary_rpc_method_handler(failing, **WIRE)})
    try:
        assert await service.call("UnaryUnary", WEB) == "NOT_FOUND"
        assert await service.call("UnaryStream", WEB) == "UNIMPLEMENTED"
        assert await service.call("UnaryStream", OTHER) == "OPERATION_NOT_PERMITTED"
    finally:
        await service.server.stop(None)


async def test_a_call_of_one_request_that_has_none(service):
    identity = CA.identity(WEB)
    tls = client_context(ders(CA.pem), identity.chain, identity.key)
    channel = Channel(host="127.0.0.1", port=service.port, tls=tls, check=expect_server(service.source.identity.id))
    try:
        with pytest.raises(GRPCError) as caught:
            async with channel.request(
                "/x.Y/UnaryUnary", cardinality(True, False), StringValue, StringValue, timeout=10
            ) as call:
                await call.send_request()
                await call.end()
                await call.recv_message()
        assert caught.value.status is Status.INTERNAL
    finally:
        channel.close()


async def test_streams_of_who_is_contained_end_and_no_others(service):
    begun = asyncio.Queue()

    async def lasting(request, _context):
        yield request
        await begun.put(current_call.get().principal)
        await asyncio.Event().wait()

    await service.start({"UnaryStream": grpc.unary_stream_rpc_method_handler(lasting, **WIRE)})
    operations = tuple(
        replace_struct(one, cells=(replace_struct(one.cells[0], callers=(OTHER, WEB)),))
        for one in service.source.rules.sidecar.inbound[0].operations
    )
    inbound = replace_struct(service.source.rules.sidecar.inbound[0], operations=operations)
    sidecar = replace_struct(service.source.rules.sidecar, inbound=(inbound,))
    service.source.rules = replace(service.source.rules, sidecar=sidecar)
    theirs = {who: asyncio.create_task(service.stream_to_its_end(who)) for who in (WEB, OTHER)}
    async with asyncio.timeout(10):
        assert {await begun.get(), await begun.get()} == {WEB, OTHER}
        service.source.underway.follow(SERVICE, Contained(1, (WEB,)))
        assert await theirs[WEB] == ["hello", "CALLER_CONTAINED"]
    assert not theirs[OTHER].done()
    theirs[OTHER].cancel()
    await asyncio.gather(theirs[OTHER], return_exceptions=True)
