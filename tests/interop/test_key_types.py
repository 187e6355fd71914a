"""CAs and leaves of every classical key type before go-spiffe, java-spiffe and rust-spiffe, with a root beside it that
none of them can read: the table in docs/reference/certificates.md.
"""

import asyncio
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from interop_harness import Authority, Node, Peers, our_agent, run, workload, workload_id
from test_other_languages import built, check, environment, java, java_selectors, rust

from eastwest.cli.admin import AdminClient

LEAVES = {"ec-p256": "P-256", "ec-p384": "P-384", "ed25519": "Ed25519"}
__all__ = ["built", "java", "rust"]  # fixtures


@pytest.fixture(scope="module", params=LEAVES)
def authority(
    request: pytest.FixtureRequest, peers: Peers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Authority]:
    """A server with CAs of one key type, and an ML-DSA-65 root beside them."""
    made = Authority(tmp_path_factory.mktemp("authority") / "data", peers)
    made.initialise("--ca-key", request.param, "--post-quantum")
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
