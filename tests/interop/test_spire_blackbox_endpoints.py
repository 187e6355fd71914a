"""SPIRE's suites node-attestation, admin-endpoints, downstream-endpoints and debug-endpoints: who may call what."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from black_box import Domain, Program, domain, program, started
from interop_harness import Node, Peers, attempt, run

# The client of node-attestation has this name built in.
BUILT_IN = "domain.test"
# And the one of debug-endpoints this socket: it has an option for it that it never reads.
BUILT_IN_SOCKET = Path("/tmp/spire-server/private/api.sock")


@pytest.fixture(scope="module")
def home(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    made = domain(peers, tmp_path_factory.mktemp("home"), BUILT_IN)
    made.configure("downstream_depth = 1")
    with started(made):
        yield made


@pytest.fixture(scope="module")
def agent(home: Domain) -> Iterator[Node]:
    node = home.agent("agent")
    with started(node):
        yield node


def client(home: Domain, node: Node, binary: Path, folder: Path, name: str, **options: str | int) -> Program:
    """One of SPIRE's clients, registered as spiffe://TD/NAME."""
    made = program(binary, folder, name, node)
    home.authority.register(name, node.spiffe_id, made.selector, **options)
    return made


def call(caller: Program, server: Domain, *words: str) -> str:
    """What a client says, which must succeed, over a connection with its own SVID."""
    where = ["-socketPath", f"unix://{caller.socket}", "-serverAddr", server.address]
    done = caller.attempt(*where, "-trustDomain", server.name, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def flagged(caller: Program, home: Domain, flag: str, *words: str) -> None:
    """Registers `caller` with a flag that `entry create` takes without a value."""
    names = ["-spiffeID", home.id(caller.path.name), "-selector", caller.selector]
    home.authority.cli("entry", "create", *names, flag, *words)


def at_built_in_socket(home: Domain, binary: Path) -> list[str | Path]:
    """A command that sees the server's socket as /tmp/spire-server/private/api.sock: in a /tmp of its own."""
    # The server's folder stays reachable at /media, wherever it is.
    script = (
        f'mount --rbind "{home.authority.socket.parent}" /media && mount --rbind "{binary.parent}" /mnt && '
        f"mount -t tmpfs none /tmp && mkdir -p {BUILT_IN_SOCKET.parent} && "
        f"ln -s /media/{home.authority.socket.name} {BUILT_IN_SOCKET} && exec /mnt/{binary.name}"
    )
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script]


def test_node_attestation_by_join_token(home: Domain, peers: Peers) -> None:
    server = ["-serverAddr", home.address, "-serverSocketPath", f"unix://{home.authority.socket}"]

    def step(name: str, *words: str) -> str:
        return run([peers.node_attestation, *server, "-testStep", name, *words]).strip()

    token = step("jointoken")
    first = step("jointokenattest", "-tokenName", token)
    renewed = step("renew", "-certificate", first)
    assert renewed != first
    step("ban", "-tokenName", token)
    refused = attempt([peers.node_attestation, *server, "-testStep", "renew", "-certificate", renewed])
    assert refused.returncode != 0
    assert "PermissionDenied" in refused.stderr
    again = attempt([peers.node_attestation, *server, "-testStep", "jointokenattest", "-tokenName", token])
    assert again.returncode != 0


def test_node_attestation_by_x509pop(home: Domain, agent: Node, peers: Peers, tmp_path: Path) -> None:
    admin = program(peers.node_attestation, tmp_path, "pop-admin", agent)
    flagged(admin, home, "-admin", "-parentID", agent.spiffe_id)
    certificate, key = home.devices.device("tested").write(tmp_path)
    call(admin, home, "-testStep", "x509pop", "-popCertificate", str(certificate), "-popKey", str(key))


def test_downstream_endpoints(home: Domain, agent: Node, peers: Peers, tmp_path: Path) -> None:
    downstream = program(peers.downstreamclient, tmp_path, "downstream", agent)
    flagged(downstream, home, "-downstream", "-parentID", agent.spiffe_id)
    assert "finished successfully" in call(downstream, home)
    other = client(home, agent, peers.downstreamclient, tmp_path, "no-downstream")
    assert "finished successfully" in call(other, home, "-expectErrors")


def test_debug_endpoints(home: Domain, agent: Node, peers: Peers, tmp_path: Path) -> None:
    told = attempt(at_built_in_socket(home, peers.debugserver))
    if "unshare:" in told.stderr:
        pytest.skip(f"this client looks at a built-in path, and may have none of its own here: {told.stderr}")
    assert told.returncode == 0, told.stderr
    shown = json.loads(told.stderr.split("Debug info: ", 1)[1])
    assert shown["svidChain"][0]["id"] == {"trustDomain": home.name, "path": "/spire/server"}
    assert shown["agentsCount"] >= 1
    # Nobody has it over the network.
    admin = program(peers.debugagent, tmp_path, "debug-admin", agent)
    flagged(admin, home, "-admin", "-parentID", agent.spiffe_id)
    call(admin, home, "-testCase", "serverWithWorkload")
    call(client(home, agent, peers.debugagent, tmp_path, "debugger"), home, "-testCase", "serverWithWorkload")
    run([peers.debugagent, "-testCase", "serverWithInsecure", "-serverAddr", home.address])


def test_admin_endpoints(peers: Peers, tmp_path: Path) -> None:
    # Its own server: the client counts what there is. Administrators of other trust domains, whom the suite has too,
    # are not served here.
    here, abroad = domain(peers, tmp_path, "domain-a.test"), domain(peers, tmp_path, "domain-b.test")
    for each in (here, abroad):
        each.configure()
    with started(here, abroad):
        for each, other in ((here, abroad), (abroad, here)):
            bundle = other.authority.cli("bundle", "show", "-format", "spiffe")
            each.authority.cli("bundle", "set", "-format", "spiffe", "-id", f"spiffe://{other.name}", stdin=bundle)
        node = here.agent("agent-a")
        with started(node):
            admin = program(peers.adminclient, tmp_path, "admin", node)
            flagged(admin, here, "-admin", "-parentID", node.spiffe_id)
            regular = client(here, node, peers.adminclient, tmp_path, "workload")
            # The client wants at least three entries and knows these names.
            here.authority.register("agent-alias", node.spiffe_id, "unix:uid:4242")
            assert "finished successfully" in call(admin, here)
            assert "finished successfully" in call(regular, here, "-expectErrors")
