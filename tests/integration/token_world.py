"""A real server that makes transaction tokens, workloads with real SVIDs, and clients that ask over mTLS."""

import asyncio
import hashlib
import json
import socket
import ssl
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset
from server_process import SVID, BareAgent, ServerProcess, eastwest

from eastwest.agent.state import State
from eastwest.api.eastwest.admin.v1 import admin_pb2
from eastwest.api.eastwest.approvals.v1 import approvals_pb2
from eastwest.api.eastwest.control.v1 import control_pb2
from eastwest.api.spire.api.server.svid.v1 import svid_pb2
from eastwest.cli.admin import admin_channel
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.csr import make_csr
from eastwest.rpc.client import Channel, method
from eastwest.rpc.tls import certificate_id, client_context, expect_server
from eastwest.server.tokens.exchange import GRANT, TOKEN_TYPE

TD = "spiffe://td.test"
WEB, CONSOLE, BILLING, LEDGER = (f"{TD}/prod/shop/{name}" for name in ("web", "console", "billing", "ledger"))
WORKLOADS = ("shop/web", "shop/console", "shop/billing", "shop/ledger", "shop/owner", "base/stranger", "base/reader")
CONTROL = control_pb2.DESCRIPTOR.services_by_name["Control"]
APPROVALS = approvals_pb2.DESCRIPTOR.services_by_name["Approvals"]


def workload_row(name: str, uid: int) -> str:
    """A line of workloads/all.yaml."""
    domain = name.partition("/")[0]
    return (
        f"  - {{spiffe_id: {TD}/prod/{name}, environment: prod, domain: {domain}, owner: group:{domain},"
        f' node: group:nodes, selectors: ["unix:uid:{uid}"], profile: workload,'
        " attributes: {tenants: [acme, globex]}}\n"
    )


ESTATE = {
    "estate.yaml": """
trust_domain: td.test
environments: [{name: prod, kind: vm}]
domains: [{name: shop, owners: [group:shop]}, {name: base, owners: [group:base]}]
node_groups: [{name: nodes, environment: prod, selectors: ["join_token:group:nodes"]}]
administrators:
  - {who: "unix:uid:0", may: [everything]}
  - {who: "spiffe://td.test/prod/shop/console", may: [approvals], domains: [shop]}
  - {who: "spiffe://td.test/prod/shop/owner", may: [approvals], domains: [shop]}
  - {who: "spiffe://td.test/prod/base/stranger", may: [approvals], domains: [base]}
  - {who: "spiffe://td.test/prod/base/reader", may: [read]}
""",
    "workloads/all.yaml": "workloads:\n" + "".join(map(workload_row, WORKLOADS, range(1001, 1010))),
    "services/billing.yaml": """
service: billing
workload: spiffe://td.test/prod/shop/billing
owner: group:shop
domain: shop
listen: {port: 8443, protocol: http, mtls: strict}
upstream: {tcp: "127.0.0.1:8080"}
tenant: {path: tenant}
operations:
  - {name: "billing:invoices:read", match: {method: GET, path: "/tenants/{tenant}/invoices"}, sensitivity: read}
  - {name: "billing:adjustments:create", match: {method: POST, path: "/tenants/{tenant}/adjustments"},
     sensitivity: mutate, demands: [step-up, approval, single-use]}
  - {name: "billing:credits:create", match: {method: POST, path: "/tenants/{tenant}/credits"},
     sensitivity: mutate, demands: [approval]}
  - {name: "billing:refunds:create", match: {method: POST, path: "/{region}/tenants/{tenant}/refunds"},
     sensitivity: mutate, demands: [step-up]}
  - {name: "billing:reports:make", match: {method: POST, path: /reports}, sensitivity: mutate, demands: [step-up]}
  - {name: "billing:exports:make", match: {method: POST, path: /exports}, sensitivity: mutate,
     demands: [step-up, single-use]}
  - {name: "billing:keys:rotate", match: {method: POST, path: /keys}, sensitivity: control, demands: [approval]}
""",
    "services/ledger.yaml": """
service: ledger
workload: spiffe://td.test/prod/shop/ledger
owner: group:shop
domain: shop
listen: {port: 8444, protocol: http, mtls: strict}
upstream: {tcp: "127.0.0.1:8081"}
tenant: {path: tenant}
operations:
  - {name: "ledger:entries:write", match: {method: POST, path: "/t/{tenant}/entries"}, sensitivity: mutate,
     demands: [step-up]}
""",
    "policies/shop.cedar": """
@id("console-does") @owner("group:shop") @reason("people work with the console")
permit (principal == Workload::"spiffe://td.test/prod/shop/console", action, resource == Service::"billing")
when { principal has tenants };

@id("web-reads") @owner("group:shop") @reason("the shop shows invoices")
permit (principal == Workload::"spiffe://td.test/prod/shop/web", action == Action::"billing:invoices:read",
  resource == Service::"billing");

@id("keys-need-the-owner") @owner("group:shop") @reason("the owner answers for the keys")
forbid (principal, action == Action::"billing:keys:rotate", resource)
unless { context has approval && context.approval.approver == "spiffe://td.test/prod/shop/owner" };

@id("billing-writes-for-the-console") @owner("group:shop") @reason("entries stem from people")
permit (principal == Workload::"spiffe://td.test/prod/shop/billing", action == Action::"ledger:entries:write",
  resource == Service::"ledger")
when { context has transaction && context.transaction.origin == "spiffe://td.test/prod/shop/console" };
""",
}


def configure(server: ServerProcess, **settings: object) -> None:
    """Write ``[tokens]`` with these settings at the end of server.toml."""
    path = server.data / "server" / "server.toml"
    text = path.read_text().partition("[tokens]")[0]
    lines = [f"{name} = {json.dumps(value)}" for name, value in {"port": 0, **settings}.items()]
    path.write_text("\n".join([text.rstrip(), "", "[tokens]", *lines]) + "\n")


@dataclass
class Workload:
    """One workload's SVID, and ways to ask with it."""

    spiffe_id: str
    chain: tuple[bytes, ...]
    key_pem: bytes
    roots: list[bytes]
    server: ServerProcess

    @property
    def certificate(self) -> str:
        return hashlib.sha256(self.chain[0]).hexdigest()

    @property
    def port(self) -> int:
        return int((self.server.data / "server" / "tokens.port").read_text())

    def tls(self, protocol: str = "http/1.1") -> ssl.SSLContext:
        context = client_context(self.roots, dump_chain_pem(self.chain), self.key_pem)
        context.set_alpn_protocols([protocol])
        return context

    def ask(self, operation: str, **more: object) -> tuple[int, dict]:
        """Ask for a token; ``more`` are details, but for names of the form's own parameters."""
        return self.post(urlencode(form(operation, **more)))

    def token(self, operation: str, **more: object) -> str:
        status, said = self.ask(operation, **more)
        assert status == 200, said
        return said["access_token"]

    def post(self, body, path="/token", kind="application/x-www-form-urlencoded", verb="POST") -> tuple[int, dict]:
        connection = HTTPSConnection("127.0.0.1", self.port, context=self.tls(), timeout=20)
        try:
            connection.request(verb, path, body, {"content-type": kind})
            assert str(certificate_id(connection.sock.getpeercert(binary_form=True))) == f"{TD}/spire/server"
            reply = connection.getresponse()
            assert reply.headers["cache-control"] == "no-store"
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()


def read_claims(token: str) -> dict:
    """What a token says, its signature unseen."""
    return jwt.decode(token, options={"verify_signature": False})


def form(operation: str, **more: object) -> dict[str, str]:
    """The parameters of a request."""
    names = {"grant_type", "requested_token_type", "audience", "scope", "subject_token", "subject_token_type"}
    details = {name: value for name, value in more.items() if name not in names}
    said = {
        "grant_type": GRANT,
        "requested_token_type": TOKEN_TYPE,
        "audience": TD,
        "scope": operation,
        "request_details": json.dumps(details),
        **{name: str(value) for name, value in more.items() if name in names},
    }
    if "subject_token" in said:
        said.setdefault("subject_token_type", TOKEN_TYPE)
    return said


def ask_by_http2(workload: Workload, bodies: list[str]) -> list[tuple[int, dict]]:
    """Several requests at once on one HTTP/2 connection, as a sidecar makes them."""
    raw = socket.create_connection(("127.0.0.1", workload.port), 20)
    with workload.tls("h2").wrap_socket(raw) as sock:
        assert sock.selected_alpn_protocol() == "h2"
        assert sock.version() == "TLSv1.3"
        http = H2Connection(H2Configuration(header_encoding="utf-8"))
        http.initiate_connection()
        streams = []
        for body in bodies:
            streams.append(http.get_next_available_stream_id())
            fields = {":method": "POST", ":path": "/token", ":scheme": "https", ":authority": "eastwest"}
            http.send_headers(streams[-1], [*fields.items(), ("content-type", "application/x-www-form-urlencoded")])
            for at in range(0, len(body), 16384):
                http.send_data(streams[-1], body[at : at + 16384].encode(), end_stream=at + 16384 >= len(body))
        status, content, ended = {}, dict.fromkeys(streams, b""), set()
        sock.sendall(http.data_to_send())
        while ended != set(streams):
            for event in http.receive_data(sock.recv(65536)):
                match event:
                    case ResponseReceived():
                        status[event.stream_id] = int(dict(event.headers)[":status"])
                    case DataReceived():
                        content[event.stream_id] += event.data
                        http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    case StreamEnded() | StreamReset():
                        ended.add(event.stream_id)
            sock.sendall(http.data_to_send())
    return [(status[stream], json.loads(content[stream])) for stream in streams]


class TokenWorld:
    """The server with its estate in force, and one node that may have every workload's SVID."""

    def __init__(self, data: Path) -> None:
        self.server = ServerProcess(data)
        self.agent: BareAgent | None = None
        self._workloads: dict[str, Workload] = {}

    async def start(self, files: Mapping[str, str] | None = None, **settings: object) -> "TokenWorld":
        """``files`` stand in the first estate in place of others of their names: later they would be a widening."""
        self.server.init()
        configure(self.server, **settings)
        self.server.start()
        await self.apply(**(files or {}))
        self.agent = await self.server.join(group="nodes")
        return self

    async def apply(self, **files: str) -> None:
        async with self.server.admin() as admin:
            await admin.apply_estate({name: text.encode() for name, text in {**ESTATE, **files}.items()})

    def restart(self) -> None:
        """Kill the server as a crash would, and start it again."""
        self.server.kill()
        self.server.start()
        assert self.agent is not None
        self.agent.reconnect()

    def close(self) -> None:
        if self.agent is not None:
            self.agent.close()
        self.server.kill()

    async def workload(self, spiffe_id: str) -> Workload:
        """A registered workload with an SVID that this server issued."""
        if spiffe_id not in self._workloads:
            async with self.server.admin() as admin:
                [entry] = await admin.entries(admin_pb2.ListEntriesRequest(spiffe_id=spiffe_id))
            key = ec.generate_private_key(ec.SECP256R1())
            csr = make_csr(key, self.server.trust_domain.id("/any"))
            assert self.agent is not None
            reply = await self.agent.channel.unary(
                method(SVID, "BatchNewX509SVID"),
                svid_pb2.BatchNewX509SVIDRequest(params=[svid_pb2.NewX509SVIDParams(entry_id=entry.entry.id, csr=csr)]),
            )
            chain = tuple(reply.results[0].svid.cert_chain)
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            self._workloads[spiffe_id] = Workload(spiffe_id, chain, pem, self.agent.roots, self.server)
        return self._workloads[spiffe_id]

    async def approvals(self, name: str, channel=None, **fields: object) -> object:
        """Call the approvals' API, by default as root on the admin socket."""
        own = channel is None
        channel = channel or admin_channel(self.server.data)
        request = getattr(approvals_pb2, APPROVALS.methods_by_name[name].input_type.name)(**fields)
        try:
            return await channel.unary(method(APPROVALS, name), request)
        finally:
            if own:
                channel.close()

    @contextmanager
    def administering(self, workload: Workload):
        """A channel to the agents' port as this workload."""
        channel = Channel(
            host="127.0.0.1",
            port=self.server.port,
            tls=client_context(workload.roots, dump_chain_pem(workload.chain), workload.key_pem),
            check=expect_server(self.server.trust_domain.id("/spire/server")),
        )
        try:
            yield channel
        finally:
            channel.close()

    async def state(self) -> State:
        """What the node is told now: everything, by the agents' own reading."""
        subscribe = method(CONTROL, "Subscribe")
        async with self.agent.channel.stream(subscribe) as stream:
            await stream.send_message(control_pb2.SubscribeRequest(hello=control_pb2.Hello(agent_version="test")))
            update = await stream.recv_message()
            await stream.cancel()
        return State(self.server.trust_domain).apply(update)

    async def use(self, token: str, **changed: object) -> bool:
        """Tell the server that a token is used now; whether it was before."""
        claims = read_claims(token)
        request = {
            "token_id": claims["jti"],
            "expires_at": claims["exp"],
            "approval_id": claims["tctx"].get("approval", ""),
            "operation": claims["scope"],
        }
        request = control_pb2.UseTokenRequest(**{**request, **changed})
        return (await self.agent.channel.unary(method(CONTROL, "UseToken"), request)).used

    async def recorded(self, *kinds: str) -> list[dict]:
        """Log entries of these kinds, oldest first, from the public files."""
        async with self.server.admin() as admin:
            await admin.flush_log()
        done = await asyncio.to_thread(eastwest, "log", "show", "--data", self.server.data, "--limit", 1000, "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        return [one["entry"] for one in found["entries"] if one["entry"]["kind"] in kinds]
