"""rust-spiffe and java-spiffe as workloads on our agent, and go-spiffe on both sides of a rotation."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from interop_harness import (
    EASTWEST,
    ROOT,
    Authority,
    Node,
    Peers,
    attempt,
    our_agent,
    run,
    wait_for,
    workload,
    workload_id,
)

from eastwest.pki.chain import build_path


@pytest.fixture(scope="module")
def built() -> Mapping[str, Mapping[str, str | None]]:
    told = run([sys.executable, ROOT / "tools" / "interop_build.py", "--where"])
    others: Mapping[str, Mapping[str, str | None]] = json.loads(told)["others"]
    return others


def folder_of(built: Mapping[str, Mapping[str, str | None]], language: str) -> Path:
    """Where the workload in that language lies; skips the test where it could not be built."""
    other = built.get(language, {"path": None, "missing": "no Go here, so nothing was built"})
    if other["path"] is None:
        pytest.skip(f"no workload in {language}: {other['missing']}")
    return Path(other["path"])


@pytest.fixture(scope="module")
def own(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Our agent."""
    node = our_agent(authority, tmp_path_factory.mktemp("own"))
    node.start()
    try:
        yield node
    finally:
        node.stop()


@pytest.fixture
def rust(built: Mapping[str, Mapping[str, str | None]], tmp_path: Path) -> Path:
    program = tmp_path.resolve() / "rust-workload"
    shutil.copy2(folder_of(built, "rust") / program.name, program)
    return program


@pytest.fixture
def java(built: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """The command up to its words; the program that the kernel knows is java itself."""
    return ["java", "-cp", f"{folder_of(built, 'java')}:{folder_of(built, 'java')}/*", "JavaWorkload"]


def java_selectors() -> list[str]:
    return [f"unix:path:{Path(shutil.which('java') or 'java').resolve()}", f"unix:uid:{os.getuid()}"]


def environment(node: Node) -> Mapping[str, str]:
    return {"SPIFFE_ENDPOINT_SOCKET": f"unix:{node.socket}"}


def check(told: Any, spiffe_id: str) -> None:
    """Two generations of an X.509-SVID that verify by the bundle that came with them, and a JWT-SVID."""
    certificates, token = told["x509"], told["jwt"]
    assert certificates["spiffe_id"] == token["spiffe_id"] == token["agent_says"] == spiffe_id
    assert token["audience"] == ["billing"]
    assert token["other_audience_refused"]
    assert certificates["hint"] == "first"
    roots = [bytes.fromhex(root) for root in certificates["authorities"]]
    serials = set()
    for chain in certificates["chains"]:
        loaded = [x509.load_der_x509_certificate(bytes.fromhex(one)) for one in chain]
        path = build_path(loaded, roots)
        assert path[0] == loaded[0]
        serials.add(loaded[0].serial_number)
    assert len(serials) == 2, "one rotation was awaited"


@pytest.mark.timeout(120)
def test_rust_spiffe(authority: Authority, own: Node, rust: Path) -> None:
    authority.register("rust", own.spiffe_id, f"unix:path:{rust}", x509SVIDTTL=60, hint="first")
    check(json.loads(run([rust], environment=environment(own), seconds=90)), workload_id("rust"))


@pytest.mark.timeout(120)
def test_java_spiffe(authority: Authority, own: Node, java: list[str]) -> None:
    entry = authority.register("java", own.spiffe_id, *java_selectors(), x509SVIDTTL=60, hint="first")
    try:
        check(json.loads(run([*java, "story"], environment=environment(own), seconds=90)), workload_id("java"))
    finally:
        authority.cli("entry", "delete", "-entryID", entry)


@pytest.mark.timeout(120)
def test_java_calls_go_with_mutual_tls(
    authority: Authority, own: Node, peers: Peers, java: list[str], tmp_path: Path
) -> None:
    server = workload(peers, own, tmp_path, "go-server")
    authority.register(server.name, own.spiffe_id, server.selector)
    entry = authority.register("java-caller", own.spiffe_id, *java_selectors())
    try:
        with server.keep_running("serve", workload_id("java-caller")) as lines:
            host, port = lines.first("address")["address"].rsplit(":", 1)
            told = run([*java, "call", host, port, server.spiffe_id], environment=environment(own))
            assert json.loads(told) == {"answer": "hello"}
            wrong = [*java, "call", host, port, workload_id("somebody-else")]
            with pytest.raises(Exception, match="status 1"):
                run(wrong, environment=environment(own))
    finally:
        authority.cli("entry", "delete", "-entryID", entry)


@pytest.mark.timeout(240)
def test_go_spiffe_on_both_sides_of_a_root_rotation(
    authority: Authority, own: Node, peers: Peers, tmp_path: Path
) -> None:
    server, client = (workload(peers, own, tmp_path, f"go-{side}") for side in ("serves", "calls"))
    for party in (server, client):
        authority.register(party.name, own.spiffe_id, party.selector, x509SVIDTTL=600)

    with server.keep_running("serve", client.spiffe_id, seconds=200) as lines:
        address = lines.first("address")["address"]

        def handshake() -> str:
            peer: str = client.ask("call", address, server.spiffe_id)["peer"]
            return peer

        assert handshake() == server.spiffe_id
        before = client.ask("x509")
        old = _roots(authority)["active"]["authority_id"]
        _step(authority, "prepare")
        new = _roots(authority)["prepared"]["authority_id"]
        for step, root in (("activate", new), ("taint", old), ("revoke", old)):
            assert handshake() == server.spiffe_id
            _step(authority, step, root)
        assert handshake() == server.spiffe_id
        assert client.ask("x509")["serial"] != before["serial"]


def _roots(authority: Authority) -> Any:
    shown = [authority.peers.spire_server_cli, "localauthority", "x509", "show", "-socketPath", authority.socket]
    return json.loads(run([*shown, "-output", "json"]))


def _step(authority: Authority, step: str, *words: str) -> None:
    """Each step is refused until the agents have confirmed the one before."""
    refused = ""

    def done() -> bool:
        nonlocal refused
        tried = attempt([EASTWEST, "ca", step, *words, "--data", authority.data])
        refused = tried.stderr
        return tried.returncode == 0

    try:
        wait_for(f"ca {step}", done, 60)
    except AssertionError as late:
        raise AssertionError(f"{late}: {refused}") from None
