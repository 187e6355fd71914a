"""Two real Envoys that prove themselves to each other by ML-DSA-65 alone, from their keys up to the root.

Server, agent and sidecars run as they do in earnest; what was negotiated is Envoy's own word, by its counters.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import mldsa
from interop_harness import Authority, Node, Peers, answers, spire_agent, workload
from rotation_mesh import TD, RotationMesh, estate

from eastwest.api.eastwest.authority.v1 import authority_pb2 as pb
from eastwest.cli.admin import AdminClient
from eastwest.cli.authority import AuthorityClient
from eastwest.cli.demo.launch import envoy_admin
from eastwest.testing.ports import free_port

PROFILE = b"""
profile: quantum-safe
doors: [workload-api]
keys: [ml-dsa-65]
lifetime: {default: 1h, max: 4h}
"""


def files(place: Path, old_port: int) -> dict[str, bytes]:
    """``caller`` and ``db`` have ML-DSA-65 keys only. ``old``, with a P-256 key, may call ``db`` by policy too, and has
    a service of its own that ``caller`` may call.
    """
    workloads = "".join(
        f"""
  - spiffe_id: spiffe://{TD}/prod/shop/{name}
    environment: prod
    domain: shop
    owner: group:shop
    node: group:machines
    selectors: ["unix:path:{place}/envoy-{name}"]
    profile: {profile}
"""
        for name, profile in (("caller", "quantum-safe"), ("db", "quantum-safe"), ("old", "workload"))
    )
    policies = "".join(
        f"""
@id("{name}-opens-{service}")
@owner("group:shop")
@reason("the test")
permit (
  principal == Workload::"spiffe://{TD}/prod/shop/{name}",
  action == Action::"{service}:sessions:open",
  resource == Service::"{service}"
);
"""
        for name, service in (("caller", "db"), ("old", "db"), ("caller", "old"))
    )
    service = estate(place, old_port)["services/db.yaml"].decode()
    return {
        "profiles/quantum-safe.yaml": PROFILE,
        "workloads/all.yaml": f"workloads:{workloads}".encode(),
        "policies/shop.cedar": policies.encode(),
        "services/old.yaml": service.replace("service: db", "service: old")
        .replace("shop/db", "shop/old")
        .replace("db:sessions", "old:sessions")
        .encode(),
    }


class QuantumMesh(RotationMesh):
    """The mesh of the rotation tests with a third sidecar."""

    async def start(self) -> None:
        await super().start()
        self._start_sidecar("old")
        async with asyncio.timeout(40):
            while not answers(self.place / "old" / "db.sock"):
                await asyncio.sleep(0.05)

    async def stats(self, name: str, prefix: str) -> dict[str, int]:
        """Envoy's TLS counters below ``prefix`` that are not zero."""
        _, body = await envoy_admin(self.place / name / "envoy.sock", "/stats?format=json")
        stats = {one["name"]: one["value"] for one in json.loads(body)["stats"] if one.get("value")}
        return {
            key.partition(".ssl.")[2]: value
            for key, value in stats.items()
            if key.startswith(prefix) and ".ssl." in key and ".ssl.certificate." not in key
        }

    async def shown(self) -> list[x509.Certificate]:
        """The chain that the service's Envoy shows."""
        return await self._shown()

    async def call(self, caller: str, service: str) -> bytes:
        """What comes back through the sidecar of ``caller``; nothing where the connection was refused."""
        reader, writer = await asyncio.open_unix_connection(str(self.place / caller / f"{service}.sock"))
        try:
            writer.write(b"ping")
            async with asyncio.timeout(10):
                return await reader.read(100)
        except ConnectionError:
            return b""
        finally:
            writer.close()


@pytest.fixture
async def mesh() -> AsyncIterator[QuantumMesh]:
    place = Path(tempfile.mkdtemp(prefix="ew-pq-"))
    place.chmod(0o755)
    made = QuantumMesh(place, ["--post-quantum"], files(place, free_port()))
    try:
        await made.start()
        yield made
    finally:
        await made.stop()
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.timeout(120)
async def test_two_envoys_prove_themselves_by_ml_dsa_65_from_key_to_root(mesh: QuantumMesh) -> None:
    await mesh.load.once()
    for name, prefix in (("caller", "cluster.remote/db."), ("db", "listener.127.0.0.1_")):
        told = await mesh.stats(name, prefix)
        made = told["handshake"]
        # A signature counter is about the peer's, so each side says it of the other.
        assert {key: value for key, value in told.items() if value == made} == {
            "handshake": made,
            "sigalgs.mldsa65": made,
            "curves.X25519MLKEM768": made,
            "versions.TLSv1.3": made,
            "ciphers.TLS_AES_128_GCM_SHA256": made,
        }
    leaf, issuing = await mesh.shown()
    async with mesh.ca() as ca:
        [root] = [x509.load_der_x509_certificate(one.certificate) for one in await roots_of(ca, "post-quantum")]
        assert len(await roots_of(ca, "classical")) == 1
    for certificate, above in ((leaf, issuing), (issuing, root), (root, root)):
        assert isinstance(certificate.public_key(), mldsa.MLDSA65PublicKey)
        certificate.verify_directly_issued_by(above)


@pytest.mark.timeout(120)
async def test_a_classical_peer_is_refused_there_and_only_there(mesh: QuantumMesh) -> None:
    """The policy permits it; it is the handshake that does not come about."""
    assert await mesh.call("old", "db") == b""
    refused = await mesh.stats("old", "cluster.remote/db.")
    assert refused.get("handshake", 0) == 0
    assert refused["connection_error"] >= 1
    # Where nobody demands post-quantum keys, each proves itself by what it has.
    assert await mesh.call("caller", "old") == b"ping"
    out = await mesh.stats("caller", "cluster.remote/old.")
    assert (out["sigalgs.ecdsa_secp256r1_sha256"], out["curves.X25519MLKEM768"]) == (1, 1)
    assert (await mesh.stats("old", "listener.127.0.0.1_"))["sigalgs.mldsa65"] == 1


@pytest.mark.timeout(120)
async def test_a_client_without_hybrid_key_exchange_gets_nowhere(mesh: QuantumMesh) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        await asyncio.open_connection("127.0.0.1", await port_of(mesh), ssl=context)


@pytest.mark.timeout(180)
async def test_the_post_quantum_root_rotates_under_load(mesh: QuantumMesh) -> None:
    load = mesh.load
    load.start()
    await load.more(20)
    async with mesh.ca() as ca:
        classical, [old] = await roots_of(ca, "classical"), await roots_of(ca, "post-quantum")
        prepared = (await ca.prepare("x509", "", post_quantum=True)).item
        assert prepared.hierarchy == "post-quantum"
        await mesh.confirmed()
        await ca.change("Activate", prepared.id)
        await load.more(20)
        await ca.change("Taint", old.id)
        await mesh.confirmed(released=True)
        assert await mesh.shown_root() == prepared.id
        await load.more(20)
        await ca.change("Revoke", old.id)
        await mesh.confirmed()
        await load.more(20)
        assert [one.id for one in await roots_of(ca, "post-quantum")] == [prepared.id]
        assert await roots_of(ca, "classical") == classical
    await load.stop()
    assert load.failed == []


@pytest.mark.timeout(180)
async def test_it_can_be_switched_on_in_a_running_trust_domain() -> None:
    place = Path(tempfile.mkdtemp(prefix="ew-pq-"))
    place.chmod(0o755)
    mesh = RotationMesh(place)
    try:
        await mesh.start()
        config = mesh.data / "server" / "server.toml"
        config.write_text(config.read_text() + "\npost_quantum = true\n")
        mesh.restart()
        # Made at the start, and in use once the node has confirmed the bundle that has it.
        async with asyncio.timeout(40):
            while True:
                async with mesh.ca() as ca:
                    [made] = await roots_of(ca, "post-quantum")
                if made.stage == "active":
                    break
                await asyncio.sleep(0.1)
        wanted = estate(place, await port_of(mesh))
        moved = wanted["workloads/all.yaml"].replace(b"profile: workload", b"profile: quantum-safe")
        async with mesh.server.admin() as admin:
            await admin.apply_estate(wanted | {"workloads/all.yaml": moved, "profiles/quantum-safe.yaml": PROFILE})
        async with asyncio.timeout(40):
            while await mesh.shown_root() != made.id:
                await asyncio.sleep(0.1)
            while True:
                try:
                    await mesh.load.once()
                    break
                except (OSError, TimeoutError):
                    await asyncio.sleep(0.1)
    finally:
        await mesh.stop()
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.timeout(180)
async def test_a_stock_agent_and_go_workloads_live_with_the_second_root(peers: Peers, tmp_path: Path) -> None:
    """Their bundle has a root whose key they cannot read; a profile that demands such a key is not for them."""
    authority = Authority(tmp_path / "authority" / "data", peers)
    (tmp_path / "authority").mkdir()
    authority.initialise("--post-quantum")
    authority.start()
    try:
        with _started(spire_agent(authority, tmp_path)) as node:
            server, client, late = (workload(peers, node, tmp_path, name) for name in ("server", "client", "late"))
            for party in (server, client):
                authority.register(party.name, node.spiffe_id, party.selector)
            assert client.ask("x509")["roots"] == 2
            with server.keep_running("serve", client.spiffe_id) as lines:
                address = lines.first("an address")["address"]
                assert client.ask("call", address, server.spiffe_id) == {"peer": server.spiffe_id, "answer": "hello"}
            await _register(authority, node.spiffe_id, late.selector)
            node.process.wait_until(
                "a refusal", lambda: "ec-p256 keys are not accepted here" in node.process.log.read_text()
            )
    finally:
        authority.stop()


async def _register(authority: Authority, parent: str, selector: str) -> None:
    """An estate whose one workload is to have an ML-DSA-65 key."""
    estate_files = {
        "estate.yaml": f"""
trust_domain: {authority.trust_domain}
environments:
  - {{name: prod, kind: vm}}
domains:
  - {{name: shop, owners: [group:shop]}}
""",
        "profiles/quantum-safe.yaml": PROFILE.decode().replace("workload-api", "workload-api, spire-api"),
        "workloads/all.yaml": f"""
workloads:
  - spiffe_id: spiffe://{authority.trust_domain}/prod/shop/late
    environment: prod
    domain: shop
    owner: group:shop
    node: {parent}
    selectors: ["{selector}"]
    profile: quantum-safe
""",
    }
    async with AdminClient.connect(authority.data) as admin:
        await admin.apply_estate({name: text.encode() for name, text in estate_files.items()})


@contextmanager
def _started(node: Node) -> Iterator[Node]:
    node.start()
    try:
        yield node
    finally:
        node.stop()


async def roots_of(ca: AuthorityClient, hierarchy: str) -> list[pb.Item]:
    """The roots of one hierarchy, as administrators see them."""
    return [one for one in (await ca.state()).items if one.kind == "x509" and one.hierarchy == hierarchy]


async def port_of(mesh: RotationMesh) -> int:
    """The port of the service ``db``."""
    _, body = await envoy_admin(mesh.place / "db" / "envoy.sock", "/listeners?format=json")
    addresses = [one["local_address"].get("socket_address") for one in json.loads(body)["listener_statuses"]]
    [port] = [address["port_value"] for address in addresses if address]
    return int(port)
