"""A gRPC call through two sidecars: HTTP/2 all the way to the application, refused ones as gRPC statuses."""

import grpclib.client
import grpclib.server
import pytest
from envoy_mesh import TD, Ca, Mesh, spiffe
from google.protobuf.wrappers_pb2 import StringValue
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    GrpcMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Outbound,
    Rule,
    Sidecar,
    TenantRules,
    TenantSource,
    Verdict,
)
from eastwest.testing.ports import free_port

CLIENT, NOTIFY = spiffe("client"), spiffe("notify")
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="send")
DENY = Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_NOT_PERMITTED)


class Notify:
    async def _send(self, stream) -> None:
        request = await stream.recv_message()
        await stream.send_message(StringValue(value=f"{request.value} from {stream.metadata['x-eastwest-caller']}"))

    def __mapping__(self):
        return {"/notify.v1.Notify/Send": Handler(self._send, Cardinality.UNARY_UNARY, StringValue, StringValue)}


async def test_a_grpc_call(tmp_path):
    ca, port = Ca(), free_port()
    mesh = Mesh(tmp_path, {TD: ca.pem})
    app = grpclib.server.Server([Notify()])
    await app.start(path=str(tmp_path / "notify.sock"))
    send = OperationRules(
        name="notify:messages:send",
        match=GrpcMatch(method="notify.v1.Notify/Send"),
        tenant=TenantSource(header="x-tenant"),
        cells=(Cell(callers=(CLIENT,), tenants=TenantRules(by_tenant={"acme": ALLOW}, otherwise=DENY)),),
    )
    inbound = Inbound(
        service="notify",
        address="127.0.0.1",
        port=port,
        protocol="http",
        mode=MtlsMode.STRICT,
        upstream=f"unix:{tmp_path}/notify.sock",
        operations=(send,),
    )
    known = (CLIENT, NOTIFY)
    outbound = Outbound(service="notify", spiffe_id=NOTIFY, endpoints=(f"127.0.0.1:{port}",), protocol="http")
    server = Sidecar(spiffe_id=NOTIFY, version="v1", known_callers=known, inbound=(inbound,))
    client = Sidecar(spiffe_id=CLIENT, version="v1", known_callers=known, outbound=(outbound,))
    channel = None
    try:
        await mesh.add(server, ca.identity(NOTIFY))
        way_out = free_port()
        await mesh.add(client, ca.identity(CLIENT), egress_port=way_out)
        await mesh.settled()
        await mesh.opened(way_out)
        channel = grpclib.client.Channel("127.0.0.1", way_out)
        channel._authority = "notify"
        call = grpclib.client.UnaryUnaryMethod(channel, "/notify.v1.Notify/Send", StringValue, StringValue)
        reply = await call(StringValue(value="hello"), metadata={"x-tenant": "acme"}, timeout=10)
        assert reply.value == f"hello from {CLIENT}"
        with pytest.raises(GRPCError) as refused:
            await call(StringValue(value="hello"), metadata={"x-tenant": "globex"}, timeout=10)
        assert refused.value.status is Status.PERMISSION_DENIED
        assert "TENANT_NOT_PERMITTED" in str(refused.value.message)
        row = await mesh.decision(lambda d: d.tenant == "acme")
        assert (row.operation, row.policy, row.method) == ("notify:messages:send", "send", "POST")
    finally:
        if channel:
            channel.close()
        await mesh.close()
        app.close()
        await app.wait_closed()
