"""Federation with foreign programs: SPIRE's command line and agent, and go-spiffe at our bundle endpoint."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from interop_harness import (
    EASTWEST,
    TRUST_DOMAIN,
    Authority,
    Node,
    Peers,
    agent_id,
    attempt,
    run,
    spire_agent,
    workload,
)

from eastwest.pki.jwks import export_bundle
from eastwest.testing.ca import TestCA

PARTNER = "partner.example"
ENDPOINT = "https://partner.example:8443/"


@pytest.fixture(scope="module")
def authority(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """A running server that offers its bundle."""
    made = Authority(tmp_path_factory.mktemp("authority") / "data", peers)
    made.initialise()
    config = made.data / "server" / "server.toml"
    config.write_text(f"{config.read_text()}\nbundle_endpoint_port = 0\n")
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def partner_bundle(tmp_path: Path) -> Path:
    """The bundle of another trust domain, in SPIFFE format."""
    made = TestCA(PARTNER, datetime.now(UTC) - timedelta(minutes=5))
    path = tmp_path / "partner.json"
    path.write_bytes(export_bundle(made.bundle))
    return path


@pytest.fixture
def no_federation(authority: Authority) -> Iterator[None]:
    """Leaves nothing behind, whatever a test did."""
    yield
    authority.try_cli("federation", "delete", "-id", f"spiffe://{PARTNER}")
    authority.try_cli("bundle", "delete", "-id", f"spiffe://{PARTNER}", "-mode", "delete")


def test_go_spiffe_takes_our_bundle_from_our_endpoint(authority: Authority, peers: Peers, tmp_path: Path) -> None:
    port = (authority.data / "server" / "bundle-endpoint.port").read_text().strip()
    first = tmp_path / "bundle.json"
    first.write_text(authority.cli("bundle", "show", "-format", "spiffe"))
    url, server = f"https://127.0.0.1:{port}/", f"spiffe://{TRUST_DOMAIN}/spire/server"
    fetched = json.loads(run([peers.spiffe_client, "federate", url, TRUST_DOMAIN, server, first]))
    held = authority.ask("bundle", "show")
    assert fetched == {
        "trust_domain": TRUST_DOMAIN,
        "sequence": int(held["sequence_number"]),
        "refresh_hint": int(held["refresh_hint"]),
        "x509": len(held["x509_authorities"]),
        "jwt": len(held["jwt_authorities"]),
    }
    other = attempt([peers.spiffe_client, "federate", url, TRUST_DOMAIN, f"spiffe://{TRUST_DOMAIN}/web", first])
    assert other.returncode == 1
    assert "unexpected ID" in other.stderr


@pytest.mark.usefixtures("no_federation")
def test_federation_verbs(authority: Authority, partner_bundle: Path) -> None:
    identity = ["-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID", f"spiffe://{PARTNER}/spire/server"]
    first = ["-trustDomainBundlePath", partner_bundle, "-trustDomainBundleFormat", "spiffe"]
    names = ["-trustDomain", PARTNER, "-bundleEndpointURL", ENDPOINT]
    assert PARTNER in authority.cli("federation", "create", *names, *identity, *first)
    again = authority.try_cli("federation", "create", *names, "-bundleEndpointProfile", "https_web")
    assert again.returncode != 0
    assert "AlreadyExists" in again.stdout + again.stderr

    shown = authority.ask("federation", "show", "-trustDomain", PARTNER)
    assert shown["bundle_endpoint_url"] == ENDPOINT
    assert shown["https_spiffe"]["endpoint_spiffe_id"] == f"spiffe://{PARTNER}/spire/server"
    (listed,) = authority.ask("federation", "list")["federation_relationships"]
    assert listed["trust_domain"] == PARTNER
    assert "BEGIN CERTIFICATE" in authority.cli("bundle", "list", "-id", f"spiffe://{PARTNER}")
    assert authority.ask("bundle", "count")["count"] == 2

    web = ["-bundleEndpointURL", "https://elsewhere.example/bundle", "-bundleEndpointProfile", "https_web"]
    authority.cli("federation", "update", "-trustDomain", PARTNER, *web)
    shown = authority.ask("federation", "show", "-trustDomain", PARTNER)
    assert shown["bundle_endpoint_url"] == "https://elsewhere.example/bundle"
    assert "https_web" in shown
    refreshed = authority.try_cli("federation", "refresh", "-id", f"spiffe://{PARTNER}")
    assert refreshed.returncode != 0
    assert "cannot be reached" in refreshed.stdout + refreshed.stderr

    authority.cli("federation", "delete", "-id", PARTNER)
    assert authority.ask("federation", "list")["federation_relationships"] == []
    gone = authority.try_cli("federation", "refresh", "-id", f"spiffe://{PARTNER}")
    assert "no federation relationship" in gone.stdout + gone.stderr
    for bad in (["-trustDomain", TRUST_DOMAIN, "-bundleEndpointURL", ENDPOINT], ["-trustDomain", PARTNER]):
        words = [*bad, "-bundleEndpointProfile", "https_web"]
        assert authority.try_cli("federation", "create", *words).returncode != 0


@pytest.mark.usefixtures("no_federation")
def test_bundle_verbs(authority: Authority, partner_bundle: Path) -> None:
    domain = ["-id", f"spiffe://{PARTNER}"]
    authority.cli("bundle", "set", *domain, "-format", "spiffe", "-path", partner_bundle)
    (listed,) = authority.ask("bundle", "list")["bundles"]
    assert listed["trust_domain"] == PARTNER
    document = json.loads(authority.cli("bundle", "list", *domain, "-format", "spiffe"))
    assert {key["use"] for key in document["keys"]} == {"x509-svid", "jwt-svid"}

    parent = agent_id("no-such-node")
    entry = authority.register("federated", parent, "unix:uid:7001", federatesWith=f"spiffe://{PARTNER}")
    restricted = authority.try_cli("bundle", "delete", *domain, "-mode", "restrict")
    assert restricted.returncode != 0
    assert "1 entries federate" in restricted.stdout + restricted.stderr
    authority.cli("bundle", "delete", *domain, "-mode", "dissociate")
    (shown,) = authority.ask("entry", "show", "-entryID", entry)["entries"]
    assert shown["federates_with"] == []

    authority.cli("bundle", "set", *domain, "-format", "spiffe", "-path", partner_bundle)
    authority.cli("entry", "delete", "-entryID", entry)
    entry = authority.register("federated", parent, "unix:uid:7001", federatesWith=f"spiffe://{PARTNER}")
    authority.cli("bundle", "delete", *domain, "-mode", "delete")
    assert authority.try_cli("entry", "show", "-entryID", entry).returncode != 0
    assert authority.ask("bundle", "list")["bundles"] == []


@pytest.mark.usefixtures("no_federation")
def test_a_stock_agent_serves_both_bundles(
    authority: Authority, peers: Peers, partner_bundle: Path, tmp_path: Path
) -> None:
    run([EASTWEST, "bundle", "set", PARTNER, partner_bundle, "--data", authority.data])
    node: Node = spire_agent(authority, tmp_path)
    here = workload(peers, node, tmp_path, "abroad")
    node.start()
    try:
        authority.register("abroad", node.spiffe_id, here.selector, federatesWith=f"spiffe://{PARTNER}")
        bundles = here.ask("bundles", seconds=60)
        assert sorted(bundles["x509"]) == sorted([PARTNER, TRUST_DOMAIN])
        assert sorted(bundles["jwt"]) == sorted([PARTNER, TRUST_DOMAIN])
    finally:
        node.stop()
