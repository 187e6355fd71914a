"""SPIRE's own commands rotate our authorities, under an unmodified spire-agent and go-spiffe workloads."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from interop_harness import EASTWEST, Authority, Node, Peers, attempt, run, spire_agent, wait_for, workload


@pytest.fixture
def own(peers: Peers, tmp_path: Path) -> Any:
    """A server of one test, for what changes here concerns all of it."""
    made = Authority(tmp_path / "authority" / "data", peers)
    (tmp_path / "authority").mkdir()
    made.initialise()
    made.start()
    try:
        yield made
    finally:
        made.stop()


def ask(authority: Authority, kind: str, verb: str, *words: str) -> dict[str, Any]:
    """The JSON that `spire-server localauthority KIND VERB` prints."""
    command = [authority.peers.spire_server_cli, "localauthority", kind, verb, "-socketPath", authority.socket]
    told: dict[str, Any] = json.loads(run([*command, *words, "-output", "json"]))
    return told


def refused(authority: Authority, kind: str, verb: str, *words: str) -> str:
    command = [authority.peers.spire_server_cli, "localauthority", kind, verb, "-socketPath", authority.socket]
    done = attempt([*command, *words])
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.timeout(240)
def test_a_forced_rotation_of_the_root_under_a_stock_agent(own: Authority, peers: Peers, tmp_path: Path) -> None:
    node = spire_agent(own, tmp_path)
    node.start()
    try:
        _rotate(own, node, peers, tmp_path)
    finally:
        node.stop()


def _rotate(authority: Authority, node: Node, peers: Peers, folder: Path) -> None:
    shop = workload(peers, node, folder, "shop")
    authority.register("shop", node.spiffe_id, shop.selector)
    assert shop.ask("x509", seconds=60)["spiffe_id"] == shop.spiffe_id
    old = ask(authority, "x509", "show")["active"]["authority_id"]

    prepared = ask(authority, "x509", "prepare")["prepared_authority"]["authority_id"]
    assert ask(authority, "x509", "show")["prepared"]["authority_id"] == prepared
    # The agent confirms by its next sync.
    wait_for(
        "confirmation by the stock agent",
        lambda: (
            attempt(
                [
                    *(peers.spire_server_cli, "localauthority", "x509", "activate"),
                    *("-socketPath", authority.socket, "-authorityID", prepared),
                ]
            ).returncode
            == 0
        ),
        20,
    )
    shown = ask(authority, "x509", "show")
    assert (shown["active"]["authority_id"], shown["old"]["authority_id"]) == (prepared, old)
    assert "only what is tainted can be revoked" in refused(authority, "x509", "revoke", "-authorityID", old)
    assert "only what is old can be tainted" in refused(authority, "x509", "taint", "-authorityID", prepared)

    ask(authority, "x509", "taint", "-authorityID", old)
    assert "has not let go" in refused(authority, "x509", "revoke", "-authorityID", old)

    def released() -> bool:
        command = [peers.spire_server_cli, "localauthority", "x509", "revoke", "-socketPath", authority.socket]
        return attempt([*command, "-authorityID", old]).returncode == 0

    wait_for("a new certificate of the stock agent", released, 60)
    roots = x509.load_pem_x509_certificates(authority.bundle().encode())
    assert [_key_id(root) for root in roots] == [prepared]
    # go-spiffe verifies by the bundle that it was pushed.
    told = shop.ask("x509", seconds=60)
    assert told["spiffe_id"] == shop.spiffe_id
    assert "old" not in {name for name, state in ask(authority, "x509", "show").items() if state and old in str(state)}


@pytest.mark.timeout(240)
def test_a_stock_agent_lets_go_of_what_stems_from_a_tainted_issuing_ca(
    own: Authority, peers: Peers, tmp_path: Path
) -> None:
    node = spire_agent(own, tmp_path)
    node.start()
    try:
        _taint_issuing(own, node, peers, tmp_path)
    finally:
        node.stop()


def _taint_issuing(authority: Authority, node: Node, peers: Peers, folder: Path) -> None:
    def ca(*words: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(run([EASTWEST, "ca", *words, "--data", authority.data, "--json"]))
        return told

    shop = workload(peers, node, folder, "shop")
    authority.register("shop", node.spiffe_id, shop.selector)
    first = shop.ask("x509", seconds=60)["serial"]
    [old] = [item["id"] for item in ca("show")["authorities"] if item["kind"] == "issuing"]
    prepared = ca("prepare", "--kind", "issuing")["authority"]["id"]
    ca("activate", prepared)
    # A sync after that, as the second workload shows, changes nothing: it would be made anew at half its life.
    second = workload(peers, node, folder, "second")
    authority.register("second", node.spiffe_id, second.selector)
    second.ask("x509", seconds=60)
    assert shop.ask("x509", seconds=60)["serial"] == first
    ca("taint", old)
    wait_for("a new SVID", lambda: shop.ask("x509", seconds=60)["serial"] != first, 30)
    authority.stop()
    authority.start()
    # The number that made the agent do so outlives the server: nothing is made again.
    again = shop.ask("x509", seconds=60)["serial"]
    third = workload(peers, node, folder, "third")
    authority.register("third", node.spiffe_id, third.selector)
    third.ask("x509", seconds=60)
    assert shop.ask("x509", seconds=60)["serial"] == again


@pytest.mark.timeout(120)
def test_the_jwt_key_rotates_by_spires_commands(own: Authority) -> None:
    old = ask(own, "jwt", "show")["active"]["authority_id"]
    prepared = ask(own, "jwt", "prepare")["prepared_authority"]["authority_id"]
    assert _kids(own) == {old, prepared}
    ask(own, "jwt", "activate", "-authorityID", prepared)
    token = own.cli("jwt", "mint", "-spiffeID", "spiffe://interop.test/x", "-audience", "y").strip()
    assert prepared in _header(token)
    ask(own, "jwt", "taint", "-authorityID", old)
    ask(own, "jwt", "revoke", "-authorityID", old)
    assert _kids(own) == {prepared}


def _kids(authority: Authority) -> set[str]:
    document = json.loads(authority.cli("bundle", "show", "-format", "spiffe"))
    return {key["kid"] for key in document["keys"] if key["use"] == "jwt-svid"}


def _header(token: str) -> str:
    from base64 import urlsafe_b64decode

    part = token.split(".", maxsplit=1)[0]
    return urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode()


def _key_id(certificate: x509.Certificate) -> str:
    found = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert certificate.public_bytes(Encoding.DER)
    return found.digest.hex()
