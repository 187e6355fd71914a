"""A server below another server: one trust domain, one root, and workloads of both that verify each other."""

import asyncio
import json
import select
import signal
import socket
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agent_workload import ME, ask, stream
from cryptography import x509
from msgspec.structs import replace
from server_process import EASTWEST, ServerProcess, eastwest

from eastwest.api.spiffe.workload import workload_pb2 as workload
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.types import types_pb2 as types
from eastwest.cli.authority import AuthorityClient
from eastwest.clock import SystemClock
from eastwest.errors import FailedPrecondition, InvalidInput, PermissionDenied, Unavailable
from eastwest.pki.chain import verify_chain
from eastwest.pki.der import split_der
from eastwest.pki.upstream import UpstreamContext
from eastwest.process.plugins import UPSTREAM_AUTHORITIES, load_plugin
from eastwest.rpc.client import Channel, method
from eastwest.spiffe.bundle import JwtAuthority
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import UpstreamContract
from eastwest.testing.upstreams import jwt_authority, new_signer

DOMAIN = "saas.example"
CREATE = method(entry_pb2.DESCRIPTOR.services_by_name["Entry"], "BatchCreateEntry")


class AgentProcess:
    """`eastwest agent run` for one server."""

    def __init__(self, server: ServerProcess) -> None:
        data = server.data
        bundle, token = data / "bundle.pem", data / "token"
        bundle.write_text(done("bundle", "show", "--data", data))
        self.token = done("token", "create", "--data", data).strip()
        token.write_text(self.token)
        options = ["--server", f"127.0.0.1:{server.port}", "--bundle", bundle, "--join-token-file", token]
        with (data / "agent.err").open("wb") as errors:
            self.process = subprocess.Popen(
                [*EASTWEST, *map(str, ["agent", "run", "--data", data, *options])],
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        readable, _, _ = select.select([self.process.stdout], [], [], 60)
        line = self.process.stdout.readline().decode() if readable else ""
        assert "agent ready" in line, (data / "agent.err").read_text()[-3000:]
        self.socket = data / "agent" / "agent.sock"

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        self.process.stdout.close()


def done(*words: object) -> str:
    finished = eastwest(*words)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def new_server(data: Path, settings: str, port: int = 0) -> ServerProcess:
    config = data / "settings.toml"
    config.write_text(f'trust_domain = "{DOMAIN}"\nagent_port = {port}\n{settings}')
    done("server", "init", "--data", data, "--trust-domain", DOMAIN, "--config", config)
    server = ServerProcess(data, DOMAIN)
    server.start(seconds=60)
    return server


async def register(server: ServerProcess, agent: AgentProcess, name: str, **fields: object) -> None:
    made = types.Entry(
        spiffe_id=types.SPIFFEID(trust_domain=DOMAIN, path=f"/{name}"),
        parent_id=types.SPIFFEID(trust_domain=DOMAIN, path=f"/spire/agent/join_token/{agent.token}"),
        selectors=[types.Selector(type="unix", value=ME.removeprefix("unix:"))],
        **fields,
    )
    admin = Channel(path=str(server.data / "server" / "api.sock"))
    try:
        reply = await admin.unary(CREATE, entry_pb2.BatchCreateEntryRequest(entries=[made]))
    finally:
        admin.close()
    assert reply.results[0].status.code == 0, reply.results[0].status.message


async def svid_of(agent: AgentProcess, name: str) -> workload.X509SVID:
    async with stream(agent.socket) as opened:
        while True:
            for svid in (await opened.next(20)).svids:
                if svid.spiffe_id == f"spiffe://{DOMAIN}/{name}":
                    return svid


class Upper:
    """A server that lets others stand below it, with an agent that attests this very process."""

    def __init__(self, home: Path) -> None:
        self.server = new_server(home, "downstream_depth = 1\n")
        try:
            self.agent = AgentProcess(self.server)
        except BaseException:
            self.server.kill()
            raise

    def close(self) -> None:
        self.agent.stop()
        self.server.stop()

    @property
    def options(self) -> dict[str, object]:
        return {
            "server_address": "127.0.0.1",
            "server_port": self.server.port,
            "workload_api_socket": str(self.agent.socket),
            "spiffe_id": f"spiffe://{DOMAIN}/nested",
        }


@pytest.fixture(scope="module")
def upper():
    # Short, since a unix socket's path may not be long.
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        made = Upper(Path(directory))
        yield made
        made.close()


@pytest.fixture
async def entries(upper):
    """The identities that the upper agent gives this process: one below which a server may stand, one plain."""
    if not getattr(upper, "registered", False):
        await register(upper.server, upper.agent, "nested", downstream=True)
        await register(upper.server, upper.agent, "above")
        upper.registered = True
    await svid_of(upper.agent, "nested")
    return upper


def open_upstream(options, domain=DOMAIN):
    context = UpstreamContext(trust_domain=TrustDomain.parse(domain), clock=SystemClock(), directory="/nonexistent")
    return load_plugin(UPSTREAM_AUTHORITIES, "spire", options, context, "server.toml: upstreams.spire")


class TestSpireUpstream(UpstreamContract):
    trust_domain = TrustDomain.parse(DOMAIN)

    @pytest.fixture(autouse=True)
    def _upper(self, entries):
        self.options = entries.options

    async def make_upstream(self):
        self.upstream = open_upstream(self.options)
        return self.upstream

    async def break_upstream(self):
        self.upstream._options = replace(self.upstream._options, server_port=9)

    async def test_a_published_jwt_key_is_in_the_bundle_of_all(self, upper):
        key = jwt_authority("kid-of-nested", self.now())
        await (await self.make_upstream()).publish_jwt([key])
        async with upper.server.admin() as admin:
            assert "kid-of-nested" in [known.key_id for known in (await admin.bundle()).jwt_authorities]
        # The same kid for another key: whoever could do that would take over a sibling's tokens.
        other = JwtAuthority(jwt_authority("x", self.now()).spki, "kid-of-nested", key.expires_at)
        with pytest.raises(Exception, match="kid-of-nested"):
            await self.upstream.publish_jwt([other])


async def test_an_identity_that_is_not_downstream_is_refused(entries):
    upstream = open_upstream(entries.options | {"spiffe_id": f"spiffe://{DOMAIN}/above"})
    contract = TestSpireUpstream()
    with pytest.raises(PermissionDenied, match="no downstream server"):
        await upstream.mint(contract.request(new_signer()))
    with pytest.raises(PermissionDenied, match="no downstream server"):
        await upstream.publish_jwt([jwt_authority("kid-of-above", datetime.now(UTC))])


async def test_an_identity_that_is_not_there_is_told(entries):
    upstream = open_upstream(entries.options | {"spiffe_id": f"spiffe://{DOMAIN}/nobody"})
    with pytest.raises(FailedPrecondition, match=r"does not give this process .*/nobody.*it gives"):
        await upstream.roots()


async def test_an_agent_of_another_trust_domain_is_told(entries):
    with pytest.raises(FailedPrecondition, match="the agent belongs to trust domain"):
        await open_upstream(entries.options, "other.example").roots()


async def test_no_agent_is_unavailable(entries, tmp_path):
    with pytest.raises(Unavailable):
        await open_upstream(entries.options | {"workload_api_socket": str(tmp_path / "none.sock")}).roots()


async def test_workloads_of_both_servers_verify_each_other(entries):
    options = entries.options
    settings = "".join(f"{name} = {value!r}\n" for name, value in options.items())
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        nested = new_server(Path(directory), f'upstream = "spire"\n[upstreams.spire]\n{settings}')
        try:
            agent = AgentProcess(nested)
            try:
                await register(nested, agent, "below")
                above, below = await svid_of(entries.agent, "above"), await svid_of(agent, "below")
                _check_svids(above, below)
                await _check_tokens(entries.agent, agent)
            finally:
                agent.stop()
        finally:
            assert nested.stop() == 0
        shown = done("log", "show", "--data", entries.server.data, "--kind", "downstream_ca.issued")
        assert f"spiffe://{DOMAIN}/nested" in shown


def _check_svids(above, below):
    now = datetime.now(UTC)
    domain = TrustDomain.parse(DOMAIN)
    assert set(split_der(above.bundle)) == set(split_der(below.bundle))
    chains = split_der(above.x509_svid), split_der(below.x509_svid)
    for chain in chains:
        assert verify_chain(chain, split_der(above.bundle), now, domain)
    # The nested server's CA is between: one certificate more.
    assert len(chains[1]) == len(chains[0]) + 1
    last = x509.load_der_x509_certificate(chains[1][-1])
    assert last == x509.load_der_x509_certificate(chains[0][-1])


async def _check_tokens(upper_agent, nested_agent):
    """A token of either server is valid for the other's workloads, once its key has come around."""
    for mine, theirs in ((upper_agent, nested_agent), (nested_agent, upper_agent)):
        reply = await ask(mine.socket, "FetchJWTSVID", workload.JWTSVIDRequest(audience=["orders"]))
        wanted = workload.ValidateJWTSVIDRequest(audience="orders", svid=reply.svids[0].svid)
        async with asyncio.timeout(20):
            while (found := await _validated(theirs, wanted)) is None:
                await asyncio.sleep(0.05)
        assert found.spiffe_id == reply.svids[0].spiffe_id


async def _validated(agent, request):
    try:
        return await ask(agent.socket, "ValidateJWTSVID", request)
    except InvalidInput:
        return None


def ca(server: ServerProcess, *words: str) -> dict:
    return json.loads(done("ca", *words, "--data", server.data, "--json"))


async def roots_of(server: ServerProcess) -> dict[str, str]:
    """The stage of each root, or that it is tainted."""
    async with AuthorityClient.connect(server.data) as client:
        items = [item for item in (await client.state()).items if item.kind == "x509"]
    return {item.id: "tainted" if item.tainted else item.stage for item in items}


async def killed_until(server: ServerProcess, wanted: dict[str, str]) -> None:
    """Kill the server after every step that it makes, until its roots are as wanted."""
    last: dict[str, str] = {}
    async with asyncio.timeout(100):
        while (now := await roots_of(server)) != wanted:
            if now != last:
                last = now
                server.kill()
                server.start(seconds=60)
            await asyncio.sleep(0.1)


@pytest.mark.timeout(300)
async def test_a_change_of_the_root_above_reaches_a_server_that_is_killed_at_every_step(entries):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = "".join(f"{name} = {value!r}\n" for name, value in entries.options.items())
    upper = entries.server
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        nested = new_server(Path(directory), f'upstream = "spire"\n[upstreams.spire]\n{settings}', port)
        try:
            agent = AgentProcess(nested)
            try:
                await register(nested, agent, "below")
                await svid_of(agent, "below")
                [old] = await roots_of(upper)
                new = ca(upper, "prepare")["authority"]["id"]
                await killed_until(nested, {old: "active", new: "old"})
                async with asyncio.timeout(60):
                    while (await asyncio.to_thread(eastwest, "ca", "activate", new, "--data", upper.data)).returncode:
                        await asyncio.sleep(0.1)
                ca(upper, "taint", old)
                await killed_until(nested, {old: "tainted", new: "active"})
                # Here all is below the new root by now, so that the old one may go above; and then here.
                ca(upper, "revoke", old, "--force")
                await killed_until(nested, {new: "active"})
                async with asyncio.timeout(60):
                    while len(split_der((await svid_of(agent, "below")).bundle)) != 1:
                        await asyncio.sleep(0.1)
                below = await svid_of(agent, "below")
                roots = split_der(below.bundle)
                assert verify_chain(split_der(below.x509_svid), roots, datetime.now(UTC), TrustDomain.parse(DOMAIN))
            finally:
                agent.stop()
        finally:
            nested.kill()
