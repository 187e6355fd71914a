"""Which key types of CAs and leaves a real Envoy, Python's ssl and openssl take: docs/reference/certificates.md.

And what a service that demands post-quantum keys makes of a CA whose key is not one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import ssl
import subprocess

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from envoy_mesh import TD, Ca, Http, Mesh, Workload, spiffe

from eastwest.cli.demo.launch import envoy_admin
from eastwest.mesh.secrets import Identity
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.signer import KeyAlgorithm
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    Inbound,
    MtlsMode,
    OperationRules,
    Outbound,
    Rule,
    Sidecar,
    TcpMatch,
    Verdict,
)
from eastwest.testing import TestCA
from eastwest.testing.ports import free_port

CLIENT, DB = spiffe("client"), spiffe("db")
SIGNATURES = {
    KeyAlgorithm.EC_P256: "ecdsa_secp256r1_sha256",
    KeyAlgorithm.EC_P384: "ecdsa_secp384r1_sha384",
    KeyAlgorithm.ED25519: "ed25519",
    KeyAlgorithm.ML_DSA_65: "mldsa65",
}
QUANTUM = KeyAlgorithm.ML_DSA_65


class World:
    """A caller and a service with their Envoys, whose identities are exchanged under them."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.port = free_port()
        self.client: Workload
        self.server: Workload
        self._version = 0

    async def start(self, ca: TestCA, *, post_quantum: bool = False) -> None:
        app = await self.mesh.app("db")
        self.trust(ca)
        rule = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
        operation = OperationRules(
            name="db:sessions:open", match=TcpMatch(), cells=(Cell(callers=(CLIENT,), rule=rule),)
        )
        inbound = Inbound(
            service="db",
            address="127.0.0.1",
            port=self.port,
            protocol="tcp",
            mode=MtlsMode.STRICT,
            upstream=f"unix:{app.path}",
            operations=(operation,),
            post_quantum=post_quantum,
        )
        outbound = Outbound(
            service="db",
            spiffe_id=DB,
            endpoints=(f"127.0.0.1:{self.port}",),
            protocol="tcp",
            post_quantum=post_quantum,
        )
        known = (CLIENT, DB)
        identities = (identity(ca, DB), identity(ca, CLIENT))
        self.server = await self.mesh.add(
            Sidecar(spiffe_id=DB, version="v0", known_callers=known, inbound=(inbound,)), identities[0]
        )
        self.client = await self.mesh.add(
            Sidecar(spiffe_id=CLIENT, version="v0", known_callers=known, outbound=(outbound,)), identities[1]
        )
        await self.mesh.settled()

    def trust(self, *cas: TestCA) -> None:
        self.mesh.bundles[TD] = dump_chain_pem([ca.root for ca in cas])
        quantum_safe = [ca.root for ca in cas if ca.root_signer.algorithm is QUANTUM]
        self.mesh.post_quantum[TD] = dump_chain_pem(quantum_safe) if quantum_safe else b""

    async def give(self, server: Identity, client: Identity) -> None:
        """Both Envoys show these from now on, and trust what ``trust`` was told."""
        self._version += 1
        for workload, shown in ((self.server, server), (self.client, client)):
            sidecar = msgspec.structs.replace(workload.sidecar, version=f"v{self._version}")
            self.mesh.publish(workload, sidecar, shown)
        await self.mesh.settled()

    async def call(self) -> bool:
        """Whether a new connection through both Envoys gets an answer."""
        http = await Http.unix(f"{self.client.settings.tcp_egress_directory}/db.sock")
        try:
            return (await http.ask("GET", "/")).status == 200
        except (ConnectionError, asyncio.IncompleteReadError):
            return False
        finally:
            await http.close()

    async def becomes(self, *, answered: bool) -> None:
        """Until a new connection fares so: Envoy acknowledges a secret a moment before its workers use it."""
        async with asyncio.timeout(20):
            while await self.call() is not answered:
                await asyncio.sleep(0.01)

    async def counters(self, workload: Workload) -> dict[str, int]:
        """Envoy's signature counters that are not zero: what the peer proved itself by."""
        _, body = await envoy_admin(workload.admin, "/stats?format=json")
        stats = [one for one in json.loads(body)["stats"] if one.get("value") and ".ssl.sigalgs." in one["name"]]
        return {one["name"].rpartition(".")[2]: one["value"] for one in stats}


def identity(ca: TestCA, spiffe_id: str, algorithm: KeyAlgorithm | None = None) -> Identity:
    svid, key = ca.svid(spiffe_id.removeprefix(f"spiffe://{TD}"), algorithm=algorithm or ca.root_signer.algorithm)
    return Identity(spiffe_id, *TestCA.pem(svid, key))


def authority(algorithm: KeyAlgorithm) -> TestCA:
    return TestCA(TD, dt.datetime.now(dt.UTC), algorithm)


@pytest.fixture
async def world(tmp_path):
    mesh = Mesh(tmp_path, {})
    try:
        yield World(mesh)
    finally:
        await mesh.close()


@pytest.mark.parametrize("of_ca", list(KeyAlgorithm))
async def test_envoys_take_every_key_type_below_every_other(world, of_ca):
    ca = authority(of_ca)
    await world.start(ca)
    for leaf in KeyAlgorithm:
        await world.give(identity(ca, DB, leaf), identity(ca, CLIENT, leaf))
        signature = SIGNATURES[leaf]
        async with asyncio.timeout(20):
            while True:
                before = [(await world.counters(one)).get(signature, 0) for one in (world.server, world.client)]
                assert await world.call(), f"{leaf} below {of_ca}"
                after = [(await world.counters(one)).get(signature, 0) for one in (world.server, world.client)]
                # Envoy acknowledges a secret a moment before its workers use it.
                if after == [count + 1 for count in before]:
                    break


@pytest.mark.parametrize("of_ca", list(KeyAlgorithm))
async def test_python_and_openssl_take_all_but_ml_dsa(world, of_ca, tmp_path):
    """Both are OpenSSL 3.0 on the machines of today; 3.5 is the first that knows ML-DSA."""
    if ssl.OPENSSL_VERSION_INFO >= (3, 5):
        pytest.skip(f"{ssl.OPENSSL_VERSION} may know ML-DSA: the table is about what does not")
    ca = authority(of_ca)
    await world.start(ca)
    (tmp_path / "root.pem").write_bytes(dump_chain_pem([ca.root]))
    for leaf in KeyAlgorithm:
        theirs, ours = identity(ca, DB, leaf), identity(ca, CLIENT, leaf)
        await world.give(theirs, ours)
        readable = QUANTUM not in {of_ca, leaf}
        assert await _python_calls(world, ours, dump_chain_pem([ca.root])) is readable, f"{leaf} below {of_ca}"
        leaf_file, above = tmp_path / "leaf.pem", tmp_path / "above.pem"
        leaf_file.write_bytes(theirs.chain)
        above.write_bytes(dump_chain_pem(ca.authority.chain))
        command = ["openssl", "verify", "-CAfile", tmp_path / "root.pem", "-untrusted", above, leaf_file]
        judged = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
        assert (judged.returncode == 0) is readable, judged.stderr


async def _python_calls(world: World, ours: Identity, roots: bytes) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=roots.decode())
    file = world.mesh.root / "python.pem"
    file.write_bytes(ours.chain + ours.key)
    try:
        context.load_cert_chain(file)
        http = await Http.tcp(world.port, ssl=context, server_hostname="x")
    except (ssl.SSLError, ConnectionError):
        return False
    try:
        return (await http.ask("GET", "/")).status == 200
    finally:
        await http.close()


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
async def test_envoys_take_the_rsa_root_of_a_company(world, bits):
    await world.start(authority(KeyAlgorithm.EC_P256))
    company = Ca(key=rsa.generate_private_key(65537, bits))
    world.mesh.bundles[TD] = company.pem
    await world.give(company.identity(DB), company.identity(CLIENT))
    await world.becomes(answered=True)


async def test_a_post_quantum_root_beside_a_classical_one_disturbs_nobody(world):
    ca, quantum = authority(KeyAlgorithm.EC_P256), authority(QUANTUM)
    await world.start(ca)
    world.trust(ca, quantum)
    await world.give(identity(ca, DB), identity(ca, CLIENT))
    assert await world.call()
    assert await _python_calls(world, identity(ca, CLIENT), world.mesh.bundles[TD])


async def test_a_demand_for_post_quantum_keys_is_one_for_the_whole_chain(world):
    """Whoever can forge the classical CA's signature can certify an ML-DSA-65 key of their own by it."""
    ca, quantum = authority(KeyAlgorithm.EC_P256), authority(QUANTUM)
    world.trust(ca, quantum)
    await world.start(quantum, post_quantum=True)
    world.trust(ca, quantum)
    honest, forged = (identity(one, CLIENT, QUANTUM) for one in (quantum, ca))
    classical = identity(quantum, CLIENT, KeyAlgorithm.EC_P256)
    await world.becomes(answered=True)
    for server, client in (
        (identity(quantum, DB), forged),
        (identity(ca, DB, QUANTUM), honest),
        (identity(quantum, DB), classical),
    ):
        await world.give(server, client)
        await world.becomes(answered=False)
        await world.give(identity(quantum, DB), honest)
        await world.becomes(answered=True)
