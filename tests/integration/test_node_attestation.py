"""Nodes prove themselves to a real server: by certificate, by host name, by token; shut out, let back, forgotten."""

import asyncio
import base64
import hashlib
import json
import random
import socket
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agent_authority import running, start, stop
from agent_workload import ME, first, stream
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from server_process import AGENT, ServerProcess, eastwest, server_id

from eastwest import errors
from eastwest.agent.app import Ports
from eastwest.agent.attestation import EvidenceRefused
from eastwest.agent.config import Settings
from eastwest.agent.connection import Dismissed
from eastwest.api.spire.api.server.agent.v1 import agent_pb2
from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.pki.csr import make_csr
from eastwest.plugins.unix import UnixAttestor
from eastwest.rpc.client import Channel, method
from eastwest.rpc.tls import client_context, expect_server
from eastwest.spiffe.id import TrustDomain
from eastwest.testing.devices import Device, DeviceCA

HOST = socket.gethostname().lower()


@pytest.fixture(scope="module")
def devices() -> DeviceCA:
    return DeviceCA(datetime.now(UTC))


@pytest.fixture(scope="module")
def server(devices: DeviceCA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        made = ServerProcess(Path(directory))
        made.init()
        config = made.data / "server" / "server.toml"
        roots = devices.write_root(made.data / "devices.pem")
        config.write_text(
            config.read_text() + f'[node_attestors.x509pop]\nca_bundle_path = "{roots}"\n'
            f"[node_attestors.http_challenge]\nallowed_dns_patterns = ['{HOST}']\n"
            'allowed_networks = ["127.0.0.0/8", "::1/128", "0.0.0.0/0"]\n'
        )
        made.start()
        made.bundle = made.data / "bundle.pem"
        made.bundle.write_text(eastwest("bundle", "show", "--data", made.data).stdout)
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ew-") as directory:
        yield Path(directory)


def by_certificate(server: ServerProcess, place: Path, device: Device, **changes: object) -> Settings:
    certificate, key = device.write(place)
    options = {"certificate_path": str(certificate), "private_key_path": str(key)}
    return settings(server, place, "x509pop", options, **changes)


def settings(server: ServerProcess, place: Path, kind: str, options: dict, **changes: object) -> Settings:
    return Settings(
        data=place,
        host="127.0.0.1",
        port=server.port,
        bundle_file=server.bundle,
        trust_domain=None,
        wait=10.0,
        node_attestor=kind,
        node_provers={kind: options},
        **changes,
    )


def nodes(server: ServerProcess) -> dict[str, dict]:
    listed = json.loads(eastwest("node", "list", "--data", server.data, "--json").stdout)["nodes"]
    return {node["id"]: node for node in listed}


def node_id(device: Device) -> str:
    return f"spiffe://td.test/spire/agent/x509pop/{hashlib.sha1(device.ders[0]).hexdigest()}"


def register(server: ServerProcess, name: str, parent: str, *selectors: str) -> None:
    given = [word for selector in selectors or (ME,) for word in ("--selector", selector)]
    done = eastwest(
        "entry",
        "create",
        "--data",
        server.data,
        "--spiffe-id",
        f"spiffe://td.test/{name}",
        "--parent-id",
        parent,
        *given,
    )
    assert done.returncode == 0, done.stderr


def kinds(server: ServerProcess, subject: str) -> list[str]:
    """What the log has of a node itself, in order."""

    async def published() -> None:
        async with server.admin() as admin:
            await admin.flush_log()

    asyncio.run(published())
    shown = eastwest("log", "show", "--data", server.data, "--limit", 10_000, "--json")
    entries = [entry.get("entry", entry) for entry in json.loads(shown.stdout)["entries"]]
    return [e["kind"] for e in entries if e.get("subject") == subject and e["kind"].startswith("node.")]


async def until(what: str, look: Callable[[], object], seconds: float = 60) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not await asyncio.to_thread(look):
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.05)


async def test_an_evicted_node_comes_back_by_itself_and_its_workloads_notice_nothing(
    server: ServerProcess, devices: DeviceCA, place: Path
) -> None:
    device = devices.device("edge-1")
    config = by_certificate(server, place, device)
    me = node_id(device)
    register(server, "shop", me)
    async with running(config) as ready, stream(config.paths.socket) as workload:
        assert f"id {me}" in ready
        assert [svid.spiffe_id for svid in (await workload.next()).svids] == ["spiffe://td.test/shop"]
        before = nodes(server)[me]
        assert before["attestation"] == "x509pop"
        assert before["can_reattest"]
        assert before["attested_at"]
        assert before["last_seen"]
        assert before["connected"]
        assert "x509pop:subject:cn:edge-1" in before["selectors"]
        evicted = await asyncio.to_thread(eastwest, "node", "evict", "--data", server.data, me)
        assert evicted.returncode == 0, evicted.stderr
        await until("the node is back", lambda: nodes(server).get(me, {}).get("connected"))
        assert nodes(server)[me]["serial"] != before["serial"]
        # The stream that was open all the time goes on: a new registration arrives on it.
        await asyncio.to_thread(register, server, "billing", me)
        names: set[str] = set()
        while names != {"spiffe://td.test/shop", "spiffe://td.test/billing"}:
            names = {svid.spiffe_id for svid in (await workload.next(30)).svids}
            assert "spiffe://td.test/shop" in names, "an identity went away meanwhile"
    recorded = await asyncio.to_thread(kinds, server, me)
    assert recorded == ["node.attested", "node.evicted", "node.attested"]


async def test_a_banned_node_ends_at_once_and_stays_out_until_evicted(
    server: ServerProcess, devices: DeviceCA, place: Path
) -> None:
    device = devices.device("edge-2")
    config = by_certificate(server, place, device)
    me = node_id(device)
    register(server, "banned-shop", me)
    agent, _ = await start(config)
    try:
        await first(config.paths.socket)
        await asyncio.to_thread(eastwest, "node", "ban", "--data", server.data, me)
        with pytest.raises(Dismissed, match="banned"):
            async with asyncio.timeout(5):
                await agent
    finally:
        await stop(agent)
    with pytest.raises(Dismissed, match="banned"):
        async with running(config):
            pass
    await asyncio.to_thread(eastwest, "node", "purge", "--data", server.data, "--expired-for", "0")
    assert nodes(server)[me]["banned"], "a purge lets no banned node back"
    await asyncio.to_thread(eastwest, "node", "evict", "--data", server.data, me)
    async with running(config):
        assert (await first(config.paths.socket)).svids
    assert await asyncio.to_thread(kinds, server, me) == [
        "node.attested",
        "node.banned",
        "node.evicted",
        "node.attested",
    ]


async def test_a_restart_finds_out_that_it_attests_in_place_of_renewing(
    server: ServerProcess, devices: DeviceCA, place: Path
) -> None:
    device = devices.device("edge-3")
    config = by_certificate(server, place, device)
    me = node_id(device)
    register(server, "lasting", me)
    async with running(config):
        await first(config.paths.socket)
        serial = nodes(server)[me]["serial"]

    ports = Ports(SystemClock(), SystemEntropy(), _Soonest(1), (UnixAttestor(),))
    async with running(config, ports):
        await until("a certificate by evidence", lambda: nodes(server)[me]["serial"] != serial, 40)
        assert (await first(config.paths.socket)).svids
    recorded = await asyncio.to_thread(kinds, server, me)
    assert len(recorded) >= 2
    assert set(recorded) == {"node.attested"}


class _Soonest(random.Random):
    """Randomness that always chooses the earliest moment."""

    def uniform(self, a: float, b: float) -> float:
        return min(a, b) * 0.01


async def test_a_replaced_device_certificate_is_a_new_node_without_a_restart(
    server: ServerProcess, devices: DeviceCA, place: Path
) -> None:
    old, new = devices.device("edge-4"), devices.device("edge-4")
    config = by_certificate(server, place, old)
    for device in (old, new):
        register(server, "moving", node_id(device), ME)
    async with running(config), stream(config.paths.socket) as workload:
        await workload.next()
        new.write(place)
        await asyncio.to_thread(eastwest, "node", "evict", "--data", server.data, node_id(old))
        await until("the new node", lambda: nodes(server).get(node_id(new), {}).get("connected"))
        assert (await first(config.paths.socket)).svids[0].spiffe_id == "spiffe://td.test/moving"
    # What was kept is the new node's: a restart serves it before it has heard from the server.
    async with running(config) as ready:
        assert node_id(new) in ready


async def test_a_certificate_of_a_stranger_is_refused_with_a_fix(server: ServerProcess, place: Path) -> None:
    config = by_certificate(server, place, DeviceCA(datetime.now(UTC), "Strangers").device())
    with pytest.raises(EvidenceRefused, match=r"x509pop.*does not lead to a configured authority.*ca_bundle_path"):
        async with running(config):
            pass


async def test_a_host_name_attests_once_and_again_after_an_eviction(server: ServerProcess, place: Path) -> None:
    me = f"spiffe://td.test/spire/agent/http_challenge/{HOST}"
    config = settings(server, place, "http_challenge", {"hostname": HOST})
    async with running(config) as ready:
        assert me in ready
    (place / "second").mkdir()
    second = settings(server, place / "second", "http_challenge", {"hostname": HOST})
    with pytest.raises(EvidenceRefused, match="attested already"):
        async with running(second):
            pass
    await asyncio.to_thread(eastwest, "node", "evict", "--data", server.data, me)
    async with running(second) as ready:
        assert me in ready


async def test_groups_by_selectors_take_effect_live(server: ServerProcess, devices: DeviceCA, place: Path) -> None:
    site = x509.UniformResourceIdentifier("x509pop://td.test/site/north")
    device = devices.device("edge-5", names=[site])
    config = by_certificate(server, place, device)
    me = node_id(device)
    group = "spiffe://td.test/fleet/north"
    register(server, "grouped", group)
    async with running(config):
        with pytest.raises(errors.PermissionDenied, match="no identity"):
            await first(config.paths.socket)
        # The alias makes the node a member while it runs.
        await asyncio.to_thread(
            register, server, "fleet/north", "spiffe://td.test/spire/server", "x509pop:san:site:north"
        )
        assert [svid.spiffe_id for svid in (await served(config.paths.socket)).svids] == ["spiffe://td.test/grouped"]
        shown = eastwest("node", "show", "--data", server.data, me, "--json")
        assert json.loads(shown.stdout)["aliases"] == [group]
        plain = eastwest("node", "show", "--data", server.data, me).stdout
        assert "x509pop:san:site:north" in plain
        assert "attests again in place of renewing" in plain


async def served(socket_path: Path, seconds: float = 20):
    """What a workload gets once it gets something."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await first(socket_path)
            except (errors.PermissionDenied, errors.Unavailable):
                await asyncio.sleep(0.05)


async def test_a_token_outlives_a_lost_answer_for_the_same_key_only(server: ServerProcess) -> None:
    token = eastwest("token", "create", "--data", server.data).stdout.strip()
    roots = [c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(server.bundle.read_bytes())]
    key = ec.generate_private_key(ec.SECP256R1())
    # The first answer is lost: the caller hears nothing of it, and asks again.
    first_svid = await attest(server, roots, token, key)
    again = await attest(server, roots, token, key)
    assert again.id == first_svid.id
    with pytest.raises(errors.InvalidInput, match="already been used, or has expired"):
        await attest(server, roots, token, ec.generate_private_key(ec.SECP256R1()))
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    leaf = x509.load_der_x509_certificate(again.cert_chain[0])
    assert leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == spki


async def test_an_unfinished_attestation_is_ended(server: ServerProcess, devices: DeviceCA) -> None:
    """A wrong answer, a missing one, and a message out of turn."""
    roots = [c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(server.bundle.read_bytes())]
    payload = json.dumps({"certificates": [base64.b64encode(der).decode() for der in devices.device().ders]}).encode()
    for answer, told in (
        (agent_pb2.AttestAgentRequest(challenge_response=b"{}"), "another type"),
        (agent_pb2.AttestAgentRequest(challenge_response=b"junk"), "not of SPIRE's form"),
        (agent_pb2.AttestAgentRequest(), "challenge was not answered"),
        (None, "challenge was not answered"),
    ):
        channel = connect(server, roots)
        with pytest.raises(errors.InvalidInput, match=told):
            async with channel.stream(method(AGENT, "AttestAgent"), deadline=20) as opened:
                await opened.send_message(request("x509pop", payload, ec.generate_private_key(ec.SECP256R1())))
                reply = await opened.recv_message()
                assert json.loads(reply.challenge)["ecdsa_signature"]
                if answer is None:
                    await opened.end()
                else:
                    await opened.send_message(answer, end=True)
                assert await opened.recv_message() is None
                await opened.recv_trailing_metadata()
        channel.close()


async def test_fifty_agents_behind_one_address_get_in_together(
    server: ServerProcess, devices: DeviceCA, place: Path
) -> None:
    roots = [c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(server.bundle.read_bytes())]
    async with server.admin() as admin:
        tokens = [(await admin.create_join_token()).value for _ in range(50)]
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in tokens]
    async with asyncio.timeout(30):
        svids = await asyncio.gather(*(attest(server, roots, *pair) for pair in zip(tokens, keys, strict=True)))
    assert len({svid.id.path for svid in svids}) == 50


def test_a_wrong_option_keeps_the_server_from_starting(devices: DeviceCA, place: Path) -> None:
    made = ServerProcess(place)
    made.init()
    config = place / "server" / "server.toml"
    text = config.read_text()
    for table, told in (
        ("[node_attestors.x509pop]\n", "node_attestors.x509pop: ca_bundle_path is missing"),
        ("[node_attestors.join_token]\nttl = 5\n", "node_attestors.join_token: there is no option 'ttl'"),
        ("[node_attestors.x509pob]\n", "did you mean 'x509pop'"),
        ("attest_rate = 0.0\n", "attest_rate must be"),
        ("node_purge_after = -1\n", "node_purge_after must be"),
    ):
        config.write_text(text + table)
        done = eastwest("server", "run", "--data", place)
        assert done.returncode != 0
        assert told in done.stderr, done.stderr
        assert "server.toml" in done.stderr


async def attest(server: ServerProcess, roots: list[bytes], token: str, key: ec.EllipticCurvePrivateKey):
    channel = connect(server, roots)
    try:
        async with channel.stream(method(AGENT, "AttestAgent"), deadline=20) as opened:
            await opened.send_message(request("join_token", token.encode(), key), end=True)
            reply = await opened.recv_message()
            if reply is None:
                await opened.recv_trailing_metadata()
            return reply.result.svid
    finally:
        channel.close()


def connect(server: ServerProcess, roots: list[bytes]) -> Channel:
    return Channel(
        host="127.0.0.1", port=server.port, tls=client_context(roots), check=expect_server(server_id(server))
    )


def request(kind: str, payload: bytes, key: ec.EllipticCurvePrivateKey) -> agent_pb2.AttestAgentRequest:
    made = agent_pb2.AttestAgentRequest()
    made.params.data.type = kind
    made.params.data.payload = payload
    made.params.params.csr = make_csr(key, TrustDomain("td.test").id("/spire/agent/x"))
    return made
