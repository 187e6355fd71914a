"""SPIRE's suite spire-server-cli: what each verb prints, to the words that the suite looks for."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from black_box import Domain, domain, lines_with, started
from cryptography import x509
from interop_harness import Authority, Peers, wait_for

from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.jwks import export_bundle
from eastwest.testing.ca import TestCA

# Selectors of the suite, which no attestor of ours gives: the server is told of them.
SELECTOR_TYPES = ["s1", "s2", "notUpdated", "otherS"]


@pytest.fixture
def home(peers: Peers, tmp_path: Path) -> Iterator[Domain]:
    made = domain(peers, tmp_path, "domain.test")
    made.configure(f"selector_types = {json.dumps(SELECTOR_TYPES)}")
    with started(made):
        yield made


def fixtures(folder: Path, name: str) -> tuple[Path, Path]:
    """A foreign authority as PEM and as a SPIFFE bundle."""
    made = TestCA(name, datetime.now(UTC) - timedelta(minutes=5))
    pem, document = folder / f"{name}.pem", folder / f"{name}.spiffe"
    pem.write_bytes(dump_chain_pem(made.roots))
    document.write_bytes(export_bundle(made.bundle))
    return pem, document


def test_bundle(home: Domain, tmp_path: Path) -> None:
    server = home.authority
    (first, first_document), (second, second_document) = (fixtures(tmp_path, name) for name in ("one.td", "two.td"))
    assert server.cli("bundle", "count").startswith("1 ")
    shown = x509.load_pem_x509_certificate(server.cli("bundle", "show").encode())
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://domain.test"]
    assert json.loads(server.cli("bundle", "show", "-format", "spiffe"))["keys"]

    # By standard input and by file, in both formats; the suite's authorities name another domain than they are set for.
    federated, other = ["-id", "spiffe://federated.td"], ["-id", "spiffe://federated2.td"]
    server.cli("bundle", "set", *federated, stdin=first.read_text())
    assert inside(first) in server.cli("bundle", "list", *federated)
    server.cli("bundle", "set", *federated, "-path", second)
    assert inside(second) in server.cli("bundle", "list", *federated)
    server.cli("bundle", "set", *other, "-format", "spiffe", stdin=first_document.read_text())
    assert key_of(first_document) in server.cli("bundle", "list", *other, "-format", "spiffe")
    assert server.cli("bundle", "count").startswith("3 ")
    server.cli("bundle", "set", *other, "-format", "spiffe", "-path", second_document)
    assert key_of(second_document) in server.cli("bundle", "list", *other, "-format", "spiffe")

    assert len(lines_with(server.cli("bundle", "list"), "* federated")) == 2
    assert "bundle deleted." in server.cli("bundle", "delete", *federated)
    assert len(lines_with(server.cli("bundle", "list"), "* federated")) == 1
    assert server.cli("bundle", "count").startswith("2 ")
    assert not server.ask("bundle", "show").get("wit_authorities")


def inside(pem: Path) -> str:
    """A line from the middle of a certificate."""
    return pem.read_text().splitlines()[3]


def key_of(document: Path) -> str:
    x: str = json.loads(document.read_text())["keys"][0]["x"]
    return x


def shown(server: Authority, *words: str, found: str = "Found 1 entry") -> str:
    told = server.cli("entry", "show", *words)
    assert found in told
    return told


def has(told: str, field: str, value: str) -> bool:
    """Whether one line has both, as `grep FIELD | grep VALUE` finds it."""
    return bool(lines_with(told, field, value))


def entry_id(told: str) -> str:
    return lines_with(told, "Entry ID")[0].split(": ", 1)[1].strip()


def test_entry(home: Domain, tmp_path: Path) -> None:
    server, td = home.authority, "spiffe://domain.test"
    pem, _ = fixtures(tmp_path, "any.td")
    for name in ("federated1.test", "federated2.test"):
        server.cli("bundle", "set", "-id", f"spiffe://{name}", "-path", pem)

    create = ["entry", "create", "-selector"]
    federates = ["-federatesWith", "spiffe://federated1.test"]
    server.cli(*create, "s1:v1", "-parentID", f"{td}/parent", "-spiffeID", f"{td}/child1", *federates, "-admin")
    names = ["-parentID", f"{td}/parentNotUpdated", "-spiffeID", f"{td}/child2NotUpdated"]
    server.cli(*create, "notUpdated:notUpdated", *names, "-downstream")
    server.cli(
        *create, "otherS:otherV", "-spiffeID", f"{td}/otherChild", "-node", "-dns", "dnsname1", "-x509SVIDTTL", "123"
    )
    assert server.cli("entry", "count").startswith("3 ")

    one = shown(server, "-spiffeID", f"{td}/child1")
    expect(one, "spiffe://domain.test/child1", "spiffe://domain.test/parent", "0", "default", ["s1:v1"])
    assert has(one, "FederatesWith", "federated1.test")
    assert has(one, "Admin", "true")
    assert not lines_with(one, "Downstream")
    assert not lines_with(one, "DNS name")
    two = shown(server, "-spiffeID", f"{td}/child2NotUpdated")
    expect(two, f"{td}/child2NotUpdated", f"{td}/parentNotUpdated", "0", "default", ["notUpdated:notUpdated"])
    assert has(two, "Downstream", "true")
    assert not any(lines_with(two, field) for field in ("FederatesWith", "DNS name", "Admin"))
    three = shown(server, "-spiffeID", f"{td}/otherChild")
    expect(three, f"{td}/otherChild", f"{td}/spire/server", "0", "123", ["otherS:otherV"])
    assert has(three, "DNS name", "dnsname1")
    assert not any(lines_with(three, field) for field in ("FederatesWith", "Downstream", "Admin"))

    first, second, third = map(entry_id, (one, two, three))
    update = ["entry", "update", "-entryID"]
    names = ["-parentID", f"{td}/parent", "-spiffeID", f"{td}/child1"]
    server.cli(*update, first, "-selector", "s1:v1", *names, *federates, "-x509SVIDTTL", "456")
    names = ["-parentID", f"{td}/parent", "-spiffeID", f"{td}/child2", "-dns", "dnsname2"]
    both = [*federates, "-federatesWith", "spiffe://federated2.test"]
    server.cli(*update, second, "-selector", "s1:v1", "-selector", "s2:v2", *names, *both)
    names = ["-parentID", f"{td}/spire/server", "-spiffeID", f"{td}/child3"]
    server.cli(*update, third, "-selector", "otherS:otherV", *names, "-admin", "-downstream")

    one = shown(server, "-spiffeID", f"{td}/child1")
    expect(one, f"{td}/child1", f"{td}/parent", "1", "456", ["s1:v1"])
    assert has(one, "FederatesWith", "federated1.test")
    assert not any(lines_with(one, field) for field in ("Downstream", "DNS name", "Admin"))
    two = shown(server, "-spiffeID", f"{td}/child2")
    expect(two, f"{td}/child2", f"{td}/parent", "1", "default", ["s1:v1", "s2:v2"])
    assert has(two, "FederatesWith", "federated1.test")
    assert has(two, "FederatesWith", "federated2.test")
    assert has(two, "DNS name", "dnsname2")
    assert not any(lines_with(two, field) for field in ("Downstream", "Admin"))
    three = shown(server, "-spiffeID", f"{td}/child3")
    expect(three, f"{td}/child3", f"{td}/spire/server", "1", "default", ["otherS:otherV"])
    assert has(three, "Admin", "true")
    assert has(three, "Downstream", "true")
    assert [entry_id(one), entry_id(two), entry_id(three)] == [first, second, third]

    told = shown(server, "-parentID", f"{td}/parent", found="Found 2 entries")
    assert first in told
    assert second in told
    told = shown(server, "-selector", "s1:v1", found="Found 2 entries")
    assert first in told
    assert second in told
    assert second in shown(server, "-selector", "s1:v1", "-selector", "s2:v2")
    assert first in shown(server, "-selector", "s1:v1", "-matchSelectorsOn", "exact")

    told = shown(server, found="Found 3 entries")
    assert all(each in told for each in (first, second, third))
    server.cli("entry", "delete", "-entryID", first)
    told = shown(server, found="Found 2 entries")
    assert second in told
    assert third in told
    assert server.cli("entry", "count").startswith("2 ")


def expect(told: str, spiffe_id: str, parent: str, revision: str, ttl: str, selectors: list[str]) -> None:
    assert has(told, "SPIFFE ID", spiffe_id)
    assert has(told, "Parent ID", parent)
    assert has(told, "Revision", revision)
    assert has(told, "X509-SVID TTL", ttl)
    assert has(told, "JWT-SVID TTL", "default")
    for selector in selectors:
        assert has(told, "Selector", selector)


@pytest.mark.timeout(120)
def test_agent(home: Domain) -> None:
    server = home.authority
    nodes = []
    for number in (1, 2, 3):
        token = server.cli("token", "generate", "-spiffeID", home.id(f"node{number}")).split()[1]
        nodes.append(home.joining_agent(f"agent-{number}", token))
    assert "No attested agents found" in server.cli("agent", "list")
    with started(*nodes):
        wait_for("three agents", lambda: server.cli("agent", "count").startswith("3 "), 30)
        listed = server.cli("agent", "list")
        assert "Found 3 attested agents" in listed
        assert has(listed, "Attestation type", "join_token")
        # The entry that a token with an ID makes is parented to the agent.
        agents = [
            lines_with(shown(server, "-spiffeID", home.id(f"node{number}")), "Parent ID")[0].split(": ", 1)[1].strip()
            for number in (1, 2, 3)
        ]
        assert agents == [node.spiffe_id for node in nodes]
        for agent in agents:
            assert agent in listed
            told = server.cli("agent", "show", "-spiffeID", agent)
            assert "Found an attested agent given its SPIFFE ID" in told
            assert has(told, "SPIFFE ID", agent)
            assert has(told, "Attestation type", "join_token")
        assert "Agent banned successfully" in server.cli("agent", "ban", "-spiffeID", agents[0])
        assert "Found 3 attested agents" in server.cli("agent", "list")
        assert "Banned            : true" in server.cli("agent", "show", "-spiffeID", agents[0])
        assert "Agent evicted successfully" in server.cli("agent", "evict", "-spiffeID", agents[0])
        assert "Found 2 attested agents" in server.cli("agent", "list")
        assert server.try_cli("agent", "show", "-spiffeID", agents[0]).returncode != 0
        for agent in agents[1:]:
            assert has(server.cli("agent", "show", "-spiffeID", agent), "Attestation type", "join_token")
