"""A real server in this process, and callers of every standing who send it bytes as they please."""

import asyncio
import itertools
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf.message_factory import GetMessageClass
from http2_client import GREETING, RawClient

from eastwest.api.eastwest.admin.v1 import admin_pb2
from eastwest.api.eastwest.authority.v1 import authority_pb2
from eastwest.api.eastwest.certificates.v1 import certificates_pb2
from eastwest.api.eastwest.changes.v1 import changes_pb2
from eastwest.api.eastwest.control.v1 import control_pb2
from eastwest.api.eastwest.federation.v1 import federation_pb2
from eastwest.api.eastwest.impact.v1 import impact_pb2
from eastwest.api.eastwest.insight.v1 import insight_pb2
from eastwest.api.eastwest.mtls.v1 import mtls_pb2
from eastwest.api.eastwest.rollout.v1 import rollout_pb2
from eastwest.api.eastwest.verification.v1 import verification_pb2
from eastwest.api.grpc.health.v1 import health_pb2
from eastwest.api.spire.api.server.agent.v1 import agent_pb2
from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2
from eastwest.api.spire.api.server.debug.v1 import debug_pb2
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.server.localauthority.v1 import localauthority_pb2
from eastwest.api.spire.api.server.logger.v1 import logger_pb2
from eastwest.api.spire.api.server.svid.v1 import svid_pb2
from eastwest.api.spire.api.server.trustdomain.v1 import trustdomain_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.csr import make_csr
from eastwest.rpc.tls import client_context
from eastwest.server.app import Server
from eastwest.server.config import ServerConfig, ServerFile, ServerPaths
from eastwest.server.init import init_server
from eastwest.spiffe.id import TrustDomain
from eastwest.testing.devices import DeviceCA

TD = TrustDomain("td.test")
OK, INTERNAL, UNKNOWN = 0, 13, 2
SERVICES = [
    module.DESCRIPTOR.services_by_name[name]
    for module, name in [
        (admin_pb2, "Admin"),
        (authority_pb2, "Authority"),
        (certificates_pb2, "Certificates"),
        (changes_pb2, "Changes"),
        (control_pb2, "Control"),
        (federation_pb2, "Federation"),
        (health_pb2, "Health"),
        (impact_pb2, "Impact"),
        (insight_pb2, "Insight"),
        (mtls_pb2, "Mtls"),
        (rollout_pb2, "Rollout"),
        (agent_pb2, "Agent"),
        (bundle_pb2, "Bundle"),
        (debug_pb2, "Debug"),
        (entry_pb2, "Entry"),
        (localauthority_pb2, "LocalAuthority"),
        (logger_pb2, "Logger"),
        (svid_pb2, "SVID"),
        (trustdomain_pb2, "TrustDomain"),
        (verification_pb2, "Verification"),
    ]
]
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
ESTATE = b"""
trust_domain: td.test
environments: [{name: prod, kind: vm}]
domains: [{name: shop, owners: [group:shop]}]
node_groups: [{name: nodes, environment: prod, selectors: ["join_token:group:nodes"]}]
administrators:
  - {who: "spiffe://td.test/prod/shop/scoped", may: [workloads], domains: [shop]}
  - {who: "spiffe://td.test/prod/shop/federator", may: [federation]}
  - who: "spiffe://td.test/prod/shop/minter"
    may: [mint]
    spiffe_ids: ["spiffe://td.test/prod/shop/*"]
    dns: ["*.shop.internal"]
  - {who: "spiffe://td.test/prod/shop/registrar", may: [workloads]}
"""


@dataclass
class Caller:
    """One standing: an open connection, and what SPIFFE IDs it may be given certificates for."""

    name: str
    world: "World"
    tls: ssl.SSLContext | None
    may_have: frozenset[str] = frozenset()
    client: RawClient | None = None
    leaf: bytes = b""
    numbers: itertools.count = field(default_factory=lambda: itertools.count(1, 2))

    async def call(self, path: str, *messages: bytes, seconds: float = 15.0):
        """(status, answers) of one call with these messages' bytes."""
        if self.client is None or self.client.closed or self.client.goaway is not None:
            if self.client is not None:
                await self.client.close()
            await self._connect()
        client, number = self.client, next(self.numbers)
        frames_ = client.headers(number, path=path)
        for message in messages:
            framed = b"\0" + len(message).to_bytes(4) + message
            for at in range(0, len(framed), 16384):
                frames_ += _data(number, framed[at : at + 16384])
        client.send(frames_ + _data(number, b"", end=True))
        await client.until(lambda: client.answers[number].ended or client.answers[number].reset is not None, seconds)
        answer = client.answers.pop(number)
        assert not client.closed, f"{path}: the connection was closed"
        assert answer.status is not None, f"{path}: reset with {answer.reset}"
        return answer.status, answer.messages

    async def ask(self, path: str, *messages):
        """``call`` with messages; the replies decoded."""
        status, replies = await self.call(path, *(message.SerializeToString() for message in messages))
        kind = GetMessageClass(METHODS[path].output_type)
        return status, [kind.FromString(reply) for reply in replies]

    async def _connect(self):
        world = self.world
        if self.tls is None and self.name == "socket":
            reader, writer = await asyncio.open_unix_connection(str(world.paths.admin_socket))
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port, ssl=self.tls)
        self.client = RawClient(reader, writer)
        self.client.send(_GREETING)
        self.numbers = itertools.count(1, 2)

    async def close(self):
        if self.client is not None:
            await self.client.close()


class World:
    """The server and its callers, on an event loop of their own; ``run`` brings work there."""

    def __init__(self, data: Path):
        self.paths = ServerPaths(data)
        self.logged = []
        self.callers = {}
        self._leaves = {}
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()

    def run(self, work, seconds=60.0):
        async def bounded():
            async with asyncio.timeout(seconds):
                return await work

        return self._runner.run(bounded())

    def open(self):
        self._before = structlog.get_config()
        structlog.configure(processors=[self._note], cache_logger_on_first_use=False)
        self.run(self._open())
        return self

    def close(self):
        async def closed():
            for caller in self.callers.values():
                await caller.close()
            await self._stack.aclose()

        self.run(closed())
        self._runner.close()
        structlog.configure(**self._before)

    def _note(self, _logger, _method, event):
        self.logged.append(dict(event))
        raise structlog.DropEvent

    async def http(self, name, raw, seconds=15.0, *, whole=True):
        """What the listener ``name`` answers to these bytes until it closes; None when it does not in time.

        ``whole``: say that nothing more comes, where the transport can.
        """
        match name:
            case "oidc":
                opening = asyncio.open_unix_connection(str(self.paths.home / "oidc.sock"))
            case "revocation":
                opening = asyncio.open_connection("127.0.0.1", int(self.paths.revocation_port.read_text()))
            case "bundle":
                tls = client_context(self.roots)
                tls.set_alpn_protocols(["http/1.1"])
                port = int(self.paths.bundle_endpoint_port.read_text())
                opening = asyncio.open_connection("127.0.0.1", port, ssl=tls)
            case "health":
                opening = asyncio.open_connection("127.0.0.1", int(self.paths.health_port.read_text()))
        reader, writer = await opening
        try:
            writer.write(raw)
            if whole and writer.can_write_eof():
                writer.write_eof()
            answer = b""
            async with asyncio.timeout(seconds):
                while len(answer) < 1 << 20 and (more := await _read(reader)):
                    answer += more
                    if name == "bundle" and b"\r\n\r\n" in answer:
                        break  # TLS has no half-closed connections: the listener waits for more
            return answer
        except TimeoutError:
            return None
        finally:
            writer.transport.abort()

    def failures(self):
        """Internal errors that the log tells of, since the last time."""
        found = [event for event in self.logged if event.get("event") in {"rpc.failed", "http2.failed"}]
        self.logged.clear()
        return [f"{event.get('method') or event.get('path')}" for event in found]

    async def _open(self):
        devices = DeviceCA(SystemClock().now())
        self.paths.data.mkdir(exist_ok=True)
        roots = self.paths.data / "devices.pem"
        roots.write_bytes(devices.root.public_bytes(Encoding.PEM))
        file = ServerFile(
            trust_domain=TD.name,
            agent_port=0,
            attest_rate=10_000,
            attest_burst=100_000,
            downstream_depth=2,
            jwt_issuer="https://id.td.test",
            oidc_socket="oidc.sock",
            revocation_port=0,
            revocation_url="http://pki.td.test",
            bundle_endpoint_port=0,
            node_attestors={
                "join_token": {},
                "x509pop": {"ca_bundle_path": str(roots)},
                "http_challenge": {"allowed_dns_patterns": [r".*\.invalid"]},
            },
        )
        clock, entropy = SystemClock(), SystemEntropy()
        await init_server(self.paths.data, file, clock, entropy)
        self.server = Server(ServerConfig.checked(self.paths, file), clock, entropy)
        await self.server.start(self._stack)
        # Nobody here ends the runs that fuzzing begins.
        self.server.verification.patience = 0.01
        self.port = int(self.paths.agent_port.read_text())
        self.roots = [authority.der for authority in self.server.bundle.x509_authorities]
        self.devices = devices
        admin = self._caller("socket", None)
        estate = admin_pb2.ApplyEstateRequest(files={"estate.yaml": ESTATE}, expected_version="*")
        status, _ = await admin.ask("/eastwest.admin.v1.Admin/ApplyEstate", estate)
        assert status == OK
        self._caller("anonymous", client_context(self.roots))
        first, second = await self._join("nodes"), await self._join("")
        self.agents = [first[0], second[0]]
        self.entries = await self._register()
        own = {str(first[0]), "spiffe://td.test/prod/shop/web"}
        self._caller("agent", first[1], frozenset(own))
        self._caller("other agent", second[1], frozenset({str(second[0]), "spiffe://td.test/prod/shop/other"}))
        agent = self.callers["agent"]
        web = self.entries["web"]
        self._caller("workload", await self._svid(agent, web))
        # Certificates of those whom the estate names: minted, as an administrator does.
        for name in ("scoped", "federator", "minter", "registrar"):
            self._caller(name, await self._mint(f"/prod/shop/{name}"))
        self._caller("downstream", await self._svid(agent, self.entries["downstream"]))

    def _caller(self, name, tls, may_have=frozenset()):
        self.callers[name] = Caller(name, self, tls, may_have, leaf=self._leaves.get(id(tls), b""))
        return self.callers[name]

    async def _join(self, group):
        admin = self.callers["socket"]
        request = admin_pb2.CreateJoinTokenRequest(ttl=600, group=group)
        status, [token] = await admin.ask("/eastwest.admin.v1.Admin/CreateJoinToken", request)
        assert status == OK
        key = ec.generate_private_key(ec.SECP256R1())
        first = agent_pb2.AttestAgentRequest()
        first.params.data.type, first.params.data.payload = "join_token", token.value.encode()
        first.params.params.csr = make_csr(key, TD.id("/spire/agent/x"))
        anonymous = Caller("joining", self, client_context(self.roots))
        status, [reply] = await anonymous.ask("/spire.api.server.agent.v1.Agent/AttestAgent", first)
        await anonymous.close()
        assert status == OK
        svid = reply.result.svid
        return TD.id(svid.id.path), self._tls(svid.cert_chain, key)

    async def _register(self):
        nodes = TD.id("/eastwest/group/nodes")
        found = {}
        for name, parent, more in [
            ("web", nodes, {}),
            ("other", self.agents[1], {}),
            ("downstream", nodes, {"downstream": True}),
        ]:
            entry = types_pb2.Entry(
                spiffe_id=_id(f"/prod/shop/{name}"),
                parent_id=_id(parent.path),
                selectors=[types_pb2.Selector(type="unix", value=f"uid:{1000 + len(found)}")],
                **more,
            )
            status, [reply] = await self.callers["socket"].ask(
                "/spire.api.server.entry.v1.Entry/BatchCreateEntry", entry_pb2.BatchCreateEntryRequest(entries=[entry])
            )
            assert status == OK
            assert reply.results[0].status.code == OK, reply
            found[name] = reply.results[0].entry.id
        return found

    async def _svid(self, agent, entry_id):
        key = ec.generate_private_key(ec.SECP256R1())
        params = svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=make_csr(key, TD.id("/x")))
        status, [reply] = await agent.ask(
            "/spire.api.server.svid.v1.SVID/BatchNewX509SVID", svid_pb2.BatchNewX509SVIDRequest(params=[params])
        )
        assert status == OK
        assert reply.results[0].status.code == OK, reply
        return self._tls(reply.results[0].svid.cert_chain, key)

    async def _mint(self, path):
        key = ec.generate_private_key(ec.SECP256R1())
        request = svid_pb2.MintX509SVIDRequest(csr=make_csr(key, TD.id(path)))
        status, [reply] = await self.callers["socket"].ask("/spire.api.server.svid.v1.SVID/MintX509SVID", request)
        assert status == OK
        return self._tls(reply.svid.cert_chain, key)

    def _tls(self, chain, key):
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        context = client_context(self.roots, dump_chain_pem(chain), pem)
        self._leaves[id(context)] = chain[0]
        return context


async def _read(reader):
    try:
        return await reader.read(65536)
    except OSError:
        return b""


def certified(reply) -> set[str]:
    """The SPIFFE IDs of all leaf certificates anywhere in a reply."""
    found = set()
    for descriptor, value in reply.ListFields():
        values = [value] if isinstance(value, bytes) or not hasattr(value, "__len__") else value
        if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
            continue
        for one in values if not isinstance(value, str) else ():
            if descriptor.message_type is not None:
                found |= certified(one)
            elif isinstance(one, bytes):
                found |= _leaf_ids(one)
    return found


def _leaf_ids(der: bytes) -> set[str]:
    try:
        extensions = x509.load_der_x509_certificate(der).extensions
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return set()
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return set()
    return set(names.get_values_for_type(x509.UniformResourceIdentifier))


def _id(path):
    return types_pb2.SPIFFEID(trust_domain=TD.name, path=path)


def _data(number, payload, *, end=False):
    return len(payload).to_bytes(3) + b"\0" + (b"\1" if end else b"\0") + number.to_bytes(4) + payload


# As the other client greets, with windows so large that answers of any size come.
_GREETING = GREETING + (4).to_bytes(3) + b"\x08\0\0\0\0\0" + (2**30).to_bytes(4)
