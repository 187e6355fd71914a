"""CAs and leaves of every classical key type before go-spiffe, java-spiffe and rust-spiffe, with a root beside it that
none of them can read: the table in docs/reference/certificates.md.
"""

import asyncio
import json
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from interop_harness import EASTWEST, Authority, Node, Peers, our_agent, run, workload, workload_id
from test_other_languages import built, check, environment, java, java_selectors, rust

from eastwest.cli.admin import AdminClient

LEAVES = {"ec-p256": "P-256", "ec-p384": "P-384", "ed25519": "Ed25519"}
__all__ = ["built", "java", "rust"]  # fixtures


def corporate_files(folder: Path) -> str:
    """A company's RSA root as ``[upstreams.disk]`` takes it: the text of a server.toml that uses it."""
    key = rsa.generate_private_key(65537, 3072)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A company's root")])
    begin = datetime.now(UTC) - timedelta(hours=1)
    usage = {
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "encipher_only", "decipher_only",
    }  # fmt: skip
    root = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **dict.fromkeys(usage, False)), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(root.public_bytes(Encoding.PEM))
    (folder / "ca.key").touch(mode=0o600)
    (folder / "ca.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return f"""
upstream = "disk"
[upstreams.disk]
cert_file = "{folder}/ca.pem"
key_file = "{folder}/ca.key"
"""


@pytest.fixture(scope="module", params=[*LEAVES, "rsa-3072"])
def authority(
    request: pytest.FixtureRequest, peers: Peers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Authority]:
    """A server with CAs of one key type, or below a company's RSA root, and an ML-DSA-65 root beside them."""
    made = Authority(tmp_path_factory.mktemp("authority") / "data", peers)
    if request.param in LEAVES:
        made.initialise("--ca-key", request.param, "--post-quantum")
    else:
        folder = tmp_path_factory.mktemp("company")
        config = folder / "server.toml"
        own = f'trust_domain = "{made.trust_domain}"\nagent_port = {made.port}\npost_quantum = true\n'
        config.write_text(own + corporate_files(folder))
        where = ("--data", made.data, "--trust-domain", made.trust_domain, "--config", config)
        run([EASTWEST, "server", "init", *where])
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def node(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    started = our_agent(authority, tmp_path_factory.mktemp("own"))
    started.start()
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def programs(
    authority: Authority, node: Node, peers: Peers, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """By leaf, a folder with the programs ``server`` and ``client`` that are registered under a profile of that key."""
    folders = {leaf: tmp_path_factory.mktemp(leaf) for leaf in LEAVES}
    for folder in folders.values():
        for name in ("server", "client"):
            shutil.copy2(peers.spiffe_client, folder / name)
    workloads = "".join(
        f"""
  - spiffe_id: {workload_id(f"prod/shop/{name}-{leaf}")}
    environment: prod
    domain: shop
    owner: group:shop
    node: {node.spiffe_id}
    selectors: ["unix:path:{folder.resolve() / name}"]
    profile: with-{leaf}
"""
        for leaf, folder in folders.items()
        for name in ("server", "client")
    )
    files = {
        "estate.yaml": f"""
trust_domain: {authority.trust_domain}
environments:
  - {{name: prod, kind: vm}}
domains:
  - {{name: shop, owners: [group:shop]}}
""",
        "workloads/all.yaml": f"workloads:{workloads}",
    }
    for leaf in LEAVES:
        files[f"profiles/{leaf}.yaml"] = f"""
profile: with-{leaf}
doors: [workload-api]
keys: [{leaf}, {next(other for other in LEAVES if other != leaf)}]
lifetime: {{default: 1h, max: 4h}}
"""

    async def apply() -> None:
        async with AdminClient.connect(authority.data) as admin:
            await admin.apply_estate({name: text.encode() for name, text in files.items()})

    asyncio.run(apply())
    return folders


@pytest.mark.timeout(120)
@pytest.mark.parametrize("leaf", LEAVES)
def test_go_speaks_with_go(
    leaf: str, programs: Mapping[str, Path], node: Node, authority: Authority, peers: Peers
) -> None:
    server, client = (workload(peers, node, programs[leaf], name) for name in ("server", "client"))
    ids = {name: workload_id(f"prod/shop/{name}-{leaf}") for name in ("server", "client")}
    told = client.ask("x509")
    # The agent makes a key of the first type in the profile.
    assert (told["key"], told["roots"]) == (LEAVES[leaf], 2)
    with server.keep_running("serve", ids["client"]) as lines:
        address = lines.first("an address")["address"]
        assert client.ask("call", address, ids["server"]) == {"peer": ids["server"], "answer": "hello"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("leaf", LEAVES)
def test_java_calls_go(
    leaf: str, programs: Mapping[str, Path], authority: Authority, node: Node, peers: Peers, java: list[str]
) -> None:
    server = workload(peers, node, programs[leaf], "server")
    # What an earlier test's run of it printed.
    (programs[leaf] / "server.out").unlink(missing_ok=True)
    entry = authority.register("prod/shop/java", node.spiffe_id, *java_selectors())
    try:
        with server.keep_running("serve", workload_id("prod/shop/java")) as lines:
            host, port = lines.first("an address")["address"].rsplit(":", 1)
            command = [*java, "call", host, port, workload_id(f"prod/shop/server-{leaf}")]
            assert json.loads(run(command, environment=environment(node))) == {"answer": "hello"}
    finally:
        authority.cli("entry", "delete", "-entryID", entry)


@pytest.mark.timeout(120)
def test_rust_takes_the_bundle(programs: Mapping[str, Path], authority: Authority, node: Node, rust: Path) -> None:
    assert programs  # the estate, with its naming convention
    selector = f"unix:path:{rust}"
    authority.register("prod/shop/rust", node.spiffe_id, selector, x509SVIDTTL=20, hint="first")
    told = json.loads(run([rust], environment=environment(node), seconds=90))
    check(told, workload_id("prod/shop/rust"))
    assert len(told["x509"]["authorities"]) == 2
