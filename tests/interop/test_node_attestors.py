"""An unmodified spire-agent proves its node to our server by certificate and by host name, and so does our agent."""

import hashlib
import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from interop_harness import EASTWEST, TRUST_DOMAIN, Authority, Node, Peers, Process, run, spire_agent, workload

from eastwest.testing.devices import Device, DeviceCA

HOST = socket.gethostname().lower()
KEYS = {
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}


@pytest.fixture(scope="module")
def devices() -> DeviceCA:
    return DeviceCA(datetime.now(UTC))


@pytest.fixture(scope="module")
def authority(peers: Peers, devices: DeviceCA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """A server that lets in machines of one manufacturer, and this machine by its name."""
    made = Authority(tmp_path_factory.mktemp("authority") / "data", peers)
    made.initialise()
    config = made.data / "server" / "server.toml"
    roots = devices.write_root(made.data / "devices.pem")
    config.write_text(
        f"{config.read_text()}agent_svid_ttl = 60\n"
        f'[node_attestors.x509pop]\nca_bundle_path = "{roots}"\n'
        f"[node_attestors.http_challenge]\nallowed_dns_patterns = ['{HOST}']\n"
        'allowed_networks = ["0.0.0.0/0", "::/0"]\n'
    )
    made.start()
    try:
        yield made
    finally:
        made.stop()


def by_certificate(authority: Authority, folder: Path, device: Device) -> Node:
    certificate, key = device.write(folder)
    options = f'private_key_path = "{key}"\ncertificate_path = "{certificate}"'
    return stock(authority, folder, "x509pop", options, node_id(device))


def stock(authority: Authority, folder: Path, kind: str, options: str, spiffe_id: str) -> Node:
    """SPIRE's agent with another node attestor than a join token."""
    node = spire_agent(authority, folder, "unused")
    config = folder / "agent.conf"
    text = config.read_text().replace('    join_token = "unused"\n', "")
    before, rest = text.split('NodeAttestor "join_token" {')
    after = rest.split("plugin_data {}", 1)[1]
    config.write_text(f'{before}NodeAttestor "{kind}" {{\nplugin_data {{\n{options}\n}}{after}')
    return Node(node.process, node.socket, spiffe_id)


def ours(authority: Authority, folder: Path, device: Device) -> Node:
    certificate, key = device.write(folder)
    config = folder / "agent.toml"
    config.write_text(
        f'node_attestor = "x509pop"\n[node_provers.x509pop]\n'
        f'certificate_path = "{certificate}"\nprivate_key_path = "{key}"\n'
    )
    where: list[str | Path] = ["--data", folder, "--server", f"127.0.0.1:{authority.port}", "--config", config]
    process = Process([EASTWEST, "agent", "run", *where, "--bundle", authority.bundle_file], folder / "agent.log")
    return Node(process, folder / "agent" / "agent.sock", node_id(device))


def node_id(device: Device) -> str:
    return f"spiffe://{TRUST_DOMAIN}/spire/agent/x509pop/{hashlib.sha1(device.ders[0]).hexdigest()}"


@pytest.mark.parametrize("kind", KEYS)
def test_a_stock_agent_attests_by_certificate(
    authority: Authority, devices: DeviceCA, peers: Peers, tmp_path: Path, kind: str
) -> None:
    site = x509.UniformResourceIdentifier(f"x509pop://{TRUST_DOMAIN}/site/north")
    device = devices.device(f"edge-{kind}", KEYS[kind](), names=[site])
    node = by_certificate(authority, tmp_path, device)
    node.start()
    try:
        shown = authority.ask("agent", "show", "-spiffeID", node.spiffe_id)
        assert shown["attestation_type"] == "x509pop"
        assert shown["can_reattest"]
        selectors = {f"{each['type']}:{each['value']}" for each in shown["selectors"]}
        assert {f"x509pop:subject:cn:edge-{kind}", "x509pop:site:north".replace("pop:", "pop:san:")} <= selectors
        caller = workload(peers, node, tmp_path, f"shop-{kind}")
        authority.register(caller.name, node.spiffe_id, caller.selector)
        assert caller.ask("x509")["spiffe_id"] == caller.spiffe_id
    finally:
        node.stop()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("which", ["stock", "ours"])
def test_a_certificate_attests_again_in_place_of_renewing(
    authority: Authority, devices: DeviceCA, peers: Peers, tmp_path: Path, which: str
) -> None:
    make = by_certificate if which == "stock" else ours
    node = make(authority, tmp_path, devices.device(f"lasting-{which}"))
    node.start()
    try:
        caller = workload(peers, node, tmp_path, f"lasting-{which}")
        authority.register(caller.name, node.spiffe_id, caller.selector)
        caller.ask("x509")
        serial = authority.ask("agent", "show", "-spiffeID", node.spiffe_id)["x509svid_serial_number"]
        node.process.wait_until(
            "a new certificate",
            lambda: authority.ask("agent", "show", "-spiffeID", node.spiffe_id)["x509svid_serial_number"] != serial,
            90,
        )
        assert caller.ask("x509")["spiffe_id"] == caller.spiffe_id
    finally:
        node.stop()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("which", ["stock", "ours"])
def test_an_evicted_node_comes_back_by_itself(
    authority: Authority, devices: DeviceCA, peers: Peers, tmp_path: Path, which: str
) -> None:
    make = by_certificate if which == "stock" else ours
    node = make(authority, tmp_path, devices.device(f"evicted-{which}"))
    node.start()
    try:
        caller = workload(peers, node, tmp_path, f"evicted-{which}")
        authority.register(caller.name, node.spiffe_id, caller.selector)
        caller.ask("x509")
        authority.cli("agent", "evict", "-spiffeID", node.spiffe_id)
        node.process.wait_until(
            "its return",
            lambda: authority.try_cli("agent", "show", "-spiffeID", node.spiffe_id).returncode == 0,
            60,
        )
        assert caller.ask("x509")["spiffe_id"] == caller.spiffe_id
    finally:
        node.stop()


def test_a_banned_node_does_not(authority: Authority, devices: DeviceCA, tmp_path: Path) -> None:
    node = by_certificate(authority, tmp_path, devices.device("banned"))
    node.start()
    try:
        authority.cli("agent", "ban", "-spiffeID", node.spiffe_id)
        assert node.process.wait(60) != 0
        node.process.start()
        assert node.process.wait(60) != 0, "a banned node attests no more"
    finally:
        node.stop()


def test_a_stock_agent_attests_by_host_name(authority: Authority, peers: Peers, tmp_path: Path) -> None:
    spiffe_id = f"spiffe://{TRUST_DOMAIN}/spire/agent/http_challenge/{HOST}"
    node = stock(authority, tmp_path, "http_challenge", f'hostname = "{HOST}"', spiffe_id)
    node.start()
    try:
        shown = authority.ask("agent", "show", "-spiffeID", spiffe_id)
        assert shown["selectors"] == [{"type": "http_challenge", "value": f"hostname:{HOST}"}]
        assert not shown["can_reattest"]
        caller = workload(peers, node, tmp_path, "by-name")
        authority.register(caller.name, spiffe_id, caller.selector)
        assert caller.ask("x509")["spiffe_id"] == caller.spiffe_id
    finally:
        node.stop()
    listed = run([EASTWEST, "node", "list", "--data", authority.data, "--json"])
    [found] = [each for each in json.loads(listed)["nodes"] if each["id"] == spiffe_id]
    assert found["last_seen"]
