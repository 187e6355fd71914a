"""SPIRE's suites about agents: join-token, node-re-attestation, evict-agent, entries, sync-authorized-entries,
fetch-x509-svids, fetch-jwt-svids, rotation and agent-cli, with its agent on our server; and its `spire-agent` commands
on our agent."""

import base64
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from black_box import SYNC_SECONDS, Domain, Program, domain, lines_with, program, started
from cryptography import x509
from interop_harness import Node, Peers, Process, attempt, our_agent, wait_for

# Agents keep so many SVIDs of each kind in the suites fetch-*; there are more workloads than that.
CACHED, ENTRIES = 8, 10


@pytest.fixture(scope="module")
def home(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    made = domain(peers, tmp_path_factory.mktemp("home"), "domain.test")
    made.configure()
    with started(made):
        yield made


@pytest.fixture(scope="module")
def agent(home: Domain) -> Iterator[Node]:
    """A stock agent by certificate, with small caches and a debug endpoint."""
    node = home.agent("agent")
    config = home.folder / "agent" / "agent.conf"
    text = config.read_text()
    settings = f'admin_socket_path = "{debug_socket(node)}"\n    x509_svid_cache_max_size = {CACHED}\n'
    settings += f"    jwt_svid_cache_max_size = {CACHED}\n    experimental {{"
    debug_socket(node).parent.mkdir()
    config.write_text(text.replace("experimental {", settings))
    with started(node):
        yield node


@pytest.fixture(scope="module", params=["ours", "spire"])
def either(request: pytest.FixtureRequest, home: Domain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """An agent with a join token, ours or SPIRE's."""
    if request.param == "ours":
        node = our_agent(home.authority, tmp_path_factory.mktemp("ours"))
    else:
        node = home.joining_agent("either", home.authority.token())
    with started(node):
        yield node


def debug_socket(node: Node) -> Path:
    # SPIRE wants it beside the folder of the other socket, not in it.
    return node.socket.parent.with_name(f"{node.socket.parent.name}-admin") / "api.sock"


def workload(home: Domain, node: Node, peers: Peers, folder: Path, name: str, *parents: str) -> Program:
    """`spire-agent` as a workload, registered as spiffe://TD/NAME."""
    made = program(peers.spire_agent, folder, name, node)
    home.authority.register(name, *(parents or (node.spiffe_id,)), made.selector)
    return made


def attested(home: Domain, node: Node) -> bool:
    return home.authority.try_cli("agent", "show", "-spiffeID", node.spiffe_id).returncode == 0


def leaf(told: object) -> x509.Certificate:
    """The first certificate of what `api fetch x509 -output json` prints."""
    assert isinstance(told, dict)
    der = base64.b64decode(told["svids"][0]["x509_svid"])
    # Others may follow it; a certificate's length is in its bytes 2 and 3.
    return x509.load_der_x509_certificate(der[: 4 + int.from_bytes(der[2:4])])


@pytest.mark.timeout(180)
def test_join_token(home: Domain, peers: Peers, tmp_path: Path) -> None:
    token = home.authority.cli("token", "generate", "-spiffeID", home.id("node")).split()[1]
    first, second = home.joining_agent("joined", token), home.joining_agent("late", token)
    with started(first):
        caller = workload(home, first, peers, tmp_path, "joined-workload", home.id("node"))
        caller.wait_for_identity(home.id("joined-workload"))
        second.process.start()
        try:
            refused = "failed to attest: join token does not exist or has already been used"
            wait_for("the refusal", lambda: refused in second.process.log.read_text(), SYNC_SECONDS)
        finally:
            second.process.stop(signal.SIGKILL)


@pytest.mark.timeout(240)
def test_node_re_attestation(home: Domain) -> None:
    token = home.authority.cli("token", "generate", "-spiffeID", home.id("node-b")).split()[1]
    by_certificate, by_token = home.agent("re-a"), home.joining_agent("re-b", token)
    with started(by_certificate, by_token):
        for node in (by_certificate, by_token):
            assert attested(home, node)
            evicted = home.authority.cli("agent", "evict", "-spiffeID", node.spiffe_id)
            assert "Agent evicted successfully" in evicted
        by_certificate.process.wait_until("its return", lambda: attested(home, by_certificate), 60)
        assert by_token.process.wait(60) != 0
        for node in (by_certificate, by_token):
            node.stop()
            node.process.start()
        by_certificate.process.wait_until("its return", lambda: attested(home, by_certificate), 60)
        by_token.process.wait(90)
        assert not attested(home, by_token)


@pytest.mark.timeout(240)
def test_evict_agent(home: Domain, peers: Peers, tmp_path: Path) -> None:
    node = home.agent("banned")
    with started(node):
        workload(home, node, peers, tmp_path, "of-banned").wait_for_identity(home.id("of-banned"))
        assert "Agent banned successfully" in home.authority.cli("agent", "ban", "-spiffeID", node.spiffe_id)
        assert node.process.wait(60) != 0
        assert "Agent is banned: removing SVID and shutting down" in node.process.log.read_text()
        node.process.start()
        assert node.process.wait(60) != 0
        assert "failed to attest: agent is banned" in node.process.log.read_text()
        home.authority.cli("agent", "evict", "-spiffeID", node.spiffe_id)
        node.start()
        assert "Node attestation was successful" in node.process.log.read_text()
        # Its entries were never gone.
        Program(tmp_path.resolve() / "of-banned", node.socket).wait_for_identity(home.id("of-banned"))


@pytest.mark.timeout(240)
def test_entries(home: Domain, peers: Peers, tmp_path: Path) -> None:
    token = home.authority.cli("token", "generate", "-spiffeID", home.id("cluster/test")).split()[1]
    nodes = [home.agent("entries-1", san="cluster/test"), home.agent("entries-2", san="cluster/test")]
    nodes.append(home.joining_agent("entries-3", token))
    group = ["-parentID", home.id("spire/server"), "-spiffeID", home.id("cluster/test")]
    home.authority.cli("entry", "create", *group, "-selector", "x509pop:san:cluster:test")
    with started(*nodes):

        def create(identifier: str, parent: str, name: str, programs: list[Program], *words: str) -> None:
            for number, each in enumerate(programs):
                names = ["-spiffeID", home.id(name), "-parentID", parent, "-entryID", f"{identifier}-{number}"]
                home.authority.cli("entry", "create", *names, "-selector", each.selector, *words)

        def at_each_node(name: str) -> list[Program]:
            folders = [tmp_path / f"{name}-{number}" for number in range(len(nodes))]
            for folder in folders:
                folder.mkdir()
            return [program(peers.spire_agent, folder, name, node) for folder, node in zip(folders, nodes, strict=True)]

        for number, node in enumerate(nodes[:2]):
            own = program(peers.spire_agent, tmp_path, f"own-{number}", node)
            create(f"agent-{number}", node.spiffe_id, f"workload-agent-{number}", [own])
            own.wait_for_identity(home.id(f"workload-agent-{number}"))
        shared, with_dns, late = at_each_node("shared"), at_each_node("dns"), at_each_node("late")
        cluster = home.id("cluster/test")
        create("shared", cluster, "workload-shared", shared)
        create("with-dns", cluster, "workload-with-dns", with_dns, "-dns", "example.org")
        create("late", cluster, "workload-late", late, "-disableX509SVIDPrefetch")
        for programs, name in ((shared, "workload-shared"), (with_dns, "workload-with-dns"), (late, "workload-late")):
            for each in programs:
                each.wait_for_identity(home.id(name))
        assert all(dns_names(each) == ["example.org"] for each in with_dns)

        for number, each in enumerate(with_dns):
            names = ["-entryID", f"with-dns-{number}", "-parentID", cluster, "-spiffeID", home.id("workload-with-dns")]
            home.authority.cli("entry", "update", *names, "-selector", each.selector, "-dns", "example.com")
        for each in with_dns:
            wait_for("the update", lambda: dns_names(each) == ["example.com"], SYNC_SECONDS)  # noqa: B023 - at once
        for number in range(len(with_dns)):
            home.authority.cli("entry", "delete", "-entryID", f"with-dns-{number}")
        for each in with_dns:
            wait_for("the deletion", lambda: each.fetch_x509().returncode != 0, SYNC_SECONDS)  # noqa: B023 - at once


def dns_names(workload: Program) -> list[str]:
    names = leaf(workload.x509()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(names.get_values_for_type(x509.DNSName))


@pytest.mark.timeout(120)
def test_sync_authorized_entries(home: Domain, peers: Peers, tmp_path: Path) -> None:
    # As the suite: more than one page, then one entry that comes after.
    node = home.agent("many")
    entries = [
        {
            "parent_id": node.spiffe_id,
            "spiffe_id": home.id(f"many/{number}"),
            "selectors": [{"type": "unix", "value": f"uid:{500_000 + number}"}],
        }
        for number in range(700)
    ]
    with started(node):
        home.authority.cli("entry", "create", "-data", "-", stdin=json.dumps({"entries": entries}))
        last = workload(home, node, peers, tmp_path, "theworkload")
        last.wait_for_identity(home.id("theworkload"))


@pytest.mark.timeout(180)
def test_fetch_x509_svids(home: Domain, agent: Node, peers: Peers, tmp_path: Path) -> None:
    for name in ("a", "b"):
        caller = many(home, agent, peers, tmp_path, f"x509-{name}")
        wait_for("all identities", lambda: len(caller_ids(caller)) == ENTRIES, SYNC_SECONDS)  # noqa: B023 - at once
        wait_for("a pruned cache", lambda: debug(peers, agent)["cachedX509SvidsCount"] == CACHED, SYNC_SECONDS)


@pytest.mark.timeout(180)
def test_fetch_jwt_svids(home: Domain, agent: Node, peers: Peers, tmp_path: Path) -> None:
    callers = [many(home, agent, peers, tmp_path, f"jwt-{name}") for name in ("a", "b")]
    for caller in callers:
        wait_for("all tokens", lambda: len(tokens(home, caller)) == ENTRIES, SYNC_SECONDS)  # noqa: B023 - at once
        wait_for("a pruned cache", lambda: debug(peers, agent).get("cachedJwtSvidsCount") == CACHED, SYNC_SECONDS)
    assert len(tokens(home, callers[0])) == ENTRIES


def many(home: Domain, node: Node, peers: Peers, folder: Path, name: str) -> Program:
    """One program with many identities."""
    made = program(peers.spire_agent, folder, name, node)
    for number in range(ENTRIES):
        home.authority.register(f"{name}/{number}", node.spiffe_id, made.selector)
    return made


def caller_ids(caller: Program) -> Sequence[str]:
    return lines_with(caller.fetch_x509().stdout, "SPIFFE ID:")


def tokens(home: Domain, caller: Program) -> list[str]:
    told = caller.fetch_jwt("test").stdout
    return [line for line in told.splitlines() if line.startswith("token(") and home.name in line]


def debug(peers: Peers, node: Node) -> dict[str, int]:
    """The agent's own account, by SPIRE's client."""
    told = attempt(
        [peers.debugagent, "-debugSocketPath", f"unix://{debug_socket(node)}", "-testCase", "printDebugPage"]
    )
    assert told.returncode == 0, told.stderr
    page: dict[str, int] = json.loads(told.stdout)
    return page


@pytest.mark.timeout(180)
def test_agent_cli(home: Domain, either: Node, peers: Peers, tmp_path: Path) -> None:
    healthy = attempt([peers.spire_agent, "healthcheck", "-socketPath", either.socket])
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    assert "Agent is healthy" in healthy.stdout
    assert attempt([peers.spire_agent, "healthcheck", "-socketPath", "invalid/path"]).returncode != 0

    name = f"cli-{either.socket.parent.parent.name}"
    caller = program(peers.spire_agent, tmp_path, name, either)
    refused = caller.fetch_x509()
    assert refused.returncode != 0
    assert "no identity issued" in refused.stdout + refused.stderr
    watch = Process([caller.path, "api", "watch", "-socketPath", either.socket], tmp_path / "watch.out")
    with watch:
        home.authority.register(name, either.spiffe_id, caller.selector, x509SVIDTTL=20)
        watch.wait_until("five SVIDs", lambda: len(lines_with(watch.tail(10_000), "Received 1 svid after")) > 4, 90)

    token = caller.jwt("aud")[0]["svids"][0]["svid"]
    check = ["api", "validate", "jwt", "-socketPath", either.socket, "-svid", token]
    valid = caller.attempt(*check, "-audience", "aud")
    assert valid.returncode == 0, valid.stderr
    assert "SVID is valid" in valid.stdout
    assert home.id(name) in valid.stdout
    assert caller.attempt(*check, "-audience", "other").returncode != 0
    caller.fetch_x509("-write", tmp_path)
    assert (tmp_path / "svid.0.pem").read_text().count("BEGIN CERTIFICATE") >= 1
    assert (tmp_path / "bundle.0.pem").read_text().split() == home.authority.bundle().split()


@pytest.mark.timeout(180)
def test_rotation(peers: Peers, tmp_path: Path) -> None:
    # The suite has a CA of one minute and SVIDs of ten seconds; the shortest that our entries may have are asked for.
    quick = domain(peers, tmp_path, "domain.test")
    quick.configure("agent_svid_ttl = 60")
    node = quick.agent("agent")
    with started(quick, node):
        caller = program(peers.spire_agent, tmp_path, "workload", node)
        quick.authority.register("workload", node.spiffe_id, caller.selector, x509SVIDTTL=10)
        caller.wait_for_identity(quick.id("workload"))
        serials = set()

        def renewed() -> bool:
            done = caller.fetch_x509("-output", "json")
            assert done.returncode == 0, done.stderr
            serials.add(leaf(json.loads(done.stdout)).serial_number)
            return len(serials) >= 5

        wait_for("four renewals without a gap", renewed, 60)
