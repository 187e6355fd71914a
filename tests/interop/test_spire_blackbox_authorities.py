"""SPIRE's suites force-rotation-jwt-authority, force-rotation-self-signed, nested-rotation, oidc-discovery-provider and
ghostunnel-federation: authorities that change, stand below each other, and trust each other."""

import base64
import http.client
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from black_box import SYNC_SECONDS, Domain, Program, domain, program, started
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from interop_harness import Authority, Node, Peers, Process, answers, our_agent, wait_for
from interop_harness import workload as go_workload

from eastwest.pki.chain import build_path
from eastwest.testing.ports import free_port

DOMAIN = "domain.test"
# A server looks at the one above every 15 seconds, and there are four tiers.
PROPAGATION_SECONDS = 120.0


def local(authority: Authority, kind: str, verb: str, *words: str) -> Any:
    """The JSON that `spire-server localauthority KIND VERB` prints; the command must succeed."""
    return authority.ask("localauthority", kind, verb, *words)


def change(authority: Authority, kind: str, verb: str, authority_id: str) -> None:
    """A step that is refused until those who must know the one before have said so."""
    told = [""]

    def done() -> bool:
        tried = authority.try_cli("localauthority", kind, verb, "-authorityID", authority_id)
        told[0] = tried.stdout + tried.stderr
        return tried.returncode == 0

    try:
        wait_for(f"{kind} {verb}", done, PROPAGATION_SECONDS)
    except AssertionError as late:
        raise AssertionError(f"{late}: {told[0]}") from None


def roots(authority: Authority) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = authority.ask("bundle", "show")["x509_authorities"]
    return found


def jwt_keys(authority: Authority) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = authority.ask("bundle", "show")["jwt_authorities"]
    return found


def part(text: str) -> Any:
    """A base64url part of a token."""
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def single(peers: Peers, folder: Path, settings: str = "") -> tuple[Domain, Node]:
    made = domain(peers, folder, DOMAIN)
    made.configure(settings)
    return made, made.agent("agent")


@pytest.mark.timeout(240)
def test_force_rotation_of_the_jwt_authority(peers: Peers, tmp_path: Path) -> None:
    home, node = single(peers, tmp_path)
    with started(home, node):
        server = home.authority
        caller = program(peers.spire_agent, tmp_path, "workload", node)
        server.register("workload", node.spiffe_id, caller.selector)
        caller.wait_for_identity(home.id("workload"))
        assert len(jwt_keys(server)) == 1
        prepared = local(server, "jwt", "prepare")["prepared_authority"]["authority_id"]
        assert prepared in {key["key_id"] for key in jwt_keys(server)}
        assert len(jwt_keys(server)) == 2

        def fetched() -> tuple[str, set[str]]:
            told = caller.jwt("aud")
            bundle = json.loads(base64.b64decode(told[1]["bundles"][f"spiffe://{DOMAIN}"]))
            return told[0]["svids"][0]["svid"], {key["kid"] for key in bundle["keys"]}

        token, _ = fetched()
        active = local(server, "jwt", "show")["active"]["authority_id"]
        assert part(token.split(".")[0])["kid"] == active
        wait_for("both keys at the workload", lambda: fetched()[1] == {active, prepared}, PROPAGATION_SECONDS)

        change(server, "jwt", "activate", prepared)
        assert local(server, "jwt", "show")["old"]["authority_id"] == active
        change(server, "jwt", "taint", active)
        assert [key["key_id"] for key in jwt_keys(server) if key.get("tainted")] == [active]
        removed = "JWT-SVIDs were removed from the JWT cache because they were issued by a tainted authority"
        wait_for("the agent to let go", lambda: removed in node.process.log.read_text(), PROPAGATION_SECONDS)
        second, _ = fetched()
        assert part(second.split(".")[0])["kid"] == prepared
        change(server, "jwt", "revoke", active)
        wait_for("one key at the workload", lambda: fetched()[1] == {prepared}, PROPAGATION_SECONDS)


@dataclass
class Tier:
    """A server with a stock agent; the agent attests the server below it by the program that all servers run."""

    server: Domain
    agent: Node

    @property
    def authority(self) -> Authority:
        return self.server.authority

    def downstream(self, name: str, depth: int) -> str:
        """Registers a server below, which may have so many tiers below itself; returns the settings that it needs."""
        selectors = ["-selector", f"unix:path:{Path(sys.executable).resolve()}", "-selector", f"unix:uid:{os.getuid()}"]
        names = ["-spiffeID", self.server.id(name), "-parentID", self.agent.spiffe_id]
        self.authority.cli("entry", "create", *names, *selectors, "-downstream")
        # As the suite does: the server below ends at its first start where the agent has no identity for it yet.
        log = self.agent.process.log
        wait_for(f"{name} at the agent", lambda: self.server.id(name) in log.read_text(), SYNC_SECONDS)
        return (
            f'downstream_depth = {depth}\nupstream = "spire"\n[upstreams.spire]\nserver_address = "127.0.0.1"\n'
            f'server_port = {self.authority.port}\nworkload_api_socket = "{self.agent.socket}"\n'
            f'spiffe_id = "{self.server.id(name)}"\n'
        )


@dataclass
class Tree:
    """A root, two servers below it, and one below the first of these, all of one trust domain."""

    tiers: Mapping[str, Tier]
    callers: Mapping[str, Program]

    def __getitem__(self, name: str) -> Authority:
        return self.tiers[name].authority


@pytest.fixture(scope="module")
def tree(peers: Peers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    tiers: dict[str, Tier] = {}
    callers: dict[str, Program] = {}
    with ExitStack() as stack:
        for name, above, depth in (("root", "", 2), ("a", "root", 1), ("b", "root", 0), ("leaf", "a", 0)):
            folder = tmp_path_factory.mktemp(name)
            server = domain(peers, folder, DOMAIN)
            server.configure(tiers[above].downstream(name, depth) if above else f"downstream_depth = {depth}")
            tier = tiers[name] = Tier(server, server.agent("agent"))
            stack.enter_context(started(server, tier.agent))
            caller = callers[name] = program(peers.spire_agent, folder, f"workload-{name}", tier.agent)
            tier.authority.register(f"{name}/workload", tier.agent.spiffe_id, caller.selector)
        for name, caller in callers.items():
            caller.wait_for_identity(f"spiffe://{DOMAIN}/{name}/workload")
        yield Tree(tiers, callers)


def chain_and_roots(caller: Program, folder: Path) -> tuple[list[x509.Certificate], list[bytes]]:
    """What `api fetch x509 -write` leaves on disk."""
    done = caller.fetch_x509("-write", folder)
    assert done.returncode == 0, done.stderr
    chain = x509.load_pem_x509_certificates((folder / "svid.0.pem").read_bytes())
    trusted = x509.load_pem_x509_certificates((folder / "bundle.0.pem").read_bytes())
    return chain, [root.public_bytes(Encoding.DER) for root in trusted]


@pytest.mark.timeout(240)
def test_nested_servers_verify_each_other(tree: Tree, tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("leaf", "b"), ("b", "leaf"), ("root", "leaf")):
        chain, _ = chain_and_roots(tree.callers[one], tmp_path)
        _, trusted = chain_and_roots(tree.callers[other], tmp_path)
        assert build_path(chain, trusted)
        token = tree.callers[one].jwt("testIt")[0]["svids"][0]["svid"]
        where = ["-socketPath", tree.callers[other].socket, "-svid", token, "-audience", "testIt"]

        def valid() -> bool:
            return tree.callers[other].attempt("api", "validate", "jwt", *where).returncode == 0  # noqa: B023 - at once

        wait_for(f"a token of {one} valid at {other}", valid, PROPAGATION_SECONDS)


@pytest.mark.timeout(240)
def test_a_nested_jwt_key_reaches_a_sibling_that_was_restarted(tree: Tree) -> None:
    tree["b"].stop()
    tree["b"].start()
    new = local(tree["a"], "jwt", "prepare")["prepared_authority"]["authority_id"]
    change(tree["a"], "jwt", "activate", new)
    wait_for("the key at the sibling", lambda: new in tree["b"].cli("bundle", "show", "-format", "spiffe"), 60)


@pytest.mark.timeout(420)
def test_force_rotation_of_the_root_above_nested_servers(tree: Tree, tmp_path: Path) -> None:
    def everywhere(what: str, fits: Any) -> None:
        for name in tree.tiers:
            wait_for(f"{what} at {name}", lambda: fits(roots(tree[name])), PROPAGATION_SECONDS)  # noqa: B023 - at once

    everywhere("one root", lambda found: len(found) == 1)
    old = local(tree["root"], "x509", "show")["active"]["authority_id"]
    prepared = local(tree["root"], "x509", "prepare")["prepared_authority"]["authority_id"]
    everywhere("two roots", lambda found: len(found) == 2)
    change(tree["root"], "x509", "activate", prepared)
    change(tree["root"], "x509", "taint", old)
    everywhere("the taint", lambda found: [bool(root.get("tainted")) for root in found].count(True) == 1)
    good = [base64.b64decode(root["asn1"]) for root in roots(tree["root"]) if not root.get("tainted")]

    def resigned(caller: Program) -> bool:
        try:
            return bool(build_path(chain_and_roots(caller, tmp_path)[0], good))
        except Exception:  # noqa: BLE001 - whatever does not verify is asked for again
            return False

    for name, caller in tree.callers.items():
        wait_for(f"an SVID of {name} below the new root", lambda: resigned(caller), 120)  # noqa: B023 - at once
    change(tree["root"], "x509", "revoke", old)

    def alone(name: str) -> bool:
        return [base64.b64decode(root["asn1"]) for root in roots(tree[name])] == good

    for name in ("root", "b"):
        wait_for(f"the new root alone at {name}", lambda: alone(name), PROPAGATION_SECONDS)  # noqa: B023 - at once
        caller = tree.callers[name]
        wait_for("the same at its workload", lambda: chain_and_roots(caller, tmp_path)[1] == good, SYNC_SECONDS)  # noqa: B023
    # A server that lets others stand below it keeps the tainted root, unlike SPIRE's, while CAs below that may live.
    for name in ("a", "leaf"):
        assert [root.get("tainted", False) for root in roots(tree[name])].count(True) == 1
    assert all(resigned(caller) for caller in tree.callers.values())


class _UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def got(path: Path, url: str) -> Any:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", url)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def has_keys(listen: Path) -> bool:
    """Not yet where it answers with a sentence."""
    try:
        return bool(got(listen, "/keys")["keys"])
    except ValueError:
        return False


@pytest.mark.timeout(120)
@pytest.mark.parametrize("source", ["server", "workload", "workload-ours"])
def test_oidc_discovery_provider(peers: Peers, tmp_path: Path, source: str) -> None:
    home, node = single(peers, tmp_path)
    listen, config = tmp_path / "p.sock", tmp_path / "provider.conf"
    with ExitStack() as stack:
        stack.enter_context(started(home))
        provider = tmp_path / "oidc-discovery-provider"
        if source == "server":
            where = f'server_api {{\n  address = "unix://{home.authority.socket}"\n}}'
            binary = peers.oidc_discovery_provider
        else:
            if source == "workload-ours":
                node = our_agent(home.authority, tmp_path)
            stack.enter_context(started(node))
            here = program(peers.oidc_discovery_provider, tmp_path, provider.name, node)
            home.authority.register("oidc-provider", node.spiffe_id, here.selector)
            where = f'workload_api {{\n  socket_path = "{node.socket}"\n  trust_domain = "{DOMAIN}"\n}}'
            binary = here.path
        config.write_text(f'log_level = "DEBUG"\ndomains = ["localhost"]\nlisten_socket_path = "{listen}"\n{where}\n')
        process = Process([binary, "-config", config], tmp_path / "provider.log")
        with process:
            process.wait_until("its socket", lambda: answers(listen))
            process.wait_until("its keys", lambda: has_keys(listen))
            [key] = got(listen, "/keys")["keys"]
            [known] = jwt_keys(home.authority)
            assert key["kid"] == known["key_id"]
            spki = base64.b64decode(known["public_key"])
            point = base64.urlsafe_b64decode(key["x"] + "==") + base64.urlsafe_b64decode(key["y"] + "==")
            assert spki.endswith(point)
            document = got(listen, "/.well-known/openid-configuration")
            assert document["issuer"] == "https://localhost"
            assert document["jwks_uri"] == "https://localhost/keys"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["spire", "ours"])
def test_federation_survives_servers_and_agents(peers: Peers, tmp_path: Path, kind: str) -> None:
    up, down = (domain(peers, tmp_path, f"{side}.test") for side in ("up", "down"))
    ports = {up.name: free_port(), down.name: free_port()}
    for each in (up, down):
        each.configure(f"bundle_endpoint_port = {ports[each.name]}")
    with started(up, down):
        for each, other in ((up, down), (down, up)):
            bundle = tmp_path / f"{other.name}.json"
            bundle.write_text(other.authority.cli("bundle", "show", "-format", "spiffe"))
            profile = ["-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID", other.id("spire/server")]
            where = ["-trustDomain", other.name, "-bundleEndpointURL", f"https://127.0.0.1:{ports[other.name]}/"]
            first = ["-trustDomainBundlePath", bundle, "-trustDomainBundleFormat", "spiffe"]
            each.authority.cli("federation", "create", *where, *profile, *first)
            assert "refreshed" in each.authority.cli("federation", "refresh", "-id", f"spiffe://{other.name}").lower()
        nodes = {each.name: new_agent(each, kind, tmp_path) for each in (up, down)}
        with started(*nodes.values()):
            server = go_workload(peers, nodes[up.name], tmp_path, "upstream-workload")
            client = go_workload(peers, nodes[down.name], tmp_path, "downstream-workload")
            for here, there, party in ((up, down, server), (down, up, client)):
                federates = {"federatesWith": f"spiffe://{there.name}"}
                here.authority.register(party.name, nodes[here.name].spiffe_id, party.selector, **federates)
            server_id, client_id = up.id(server.name), down.id(client.name)
            with server.keep_running("serve", client_id, seconds=200) as lines:
                address = lines.first("address")["address"]

                def connected() -> None:
                    assert client.ask("call", address, server_id, seconds=60)["answer"] == "hello"

                connected()
                for each in (up, down):
                    each.authority.stop()
                connected()
                for each in (up, down):
                    each.authority.start()
                connected()
                for node in nodes.values():
                    node.stop()
                for node in nodes.values():
                    node.start()
                connected()


def new_agent(home: Domain, kind: str, folder: Path) -> Node:
    if kind == "spire":
        return home.agent("agent")
    own = folder / f"agent-{home.name}"
    own.mkdir()
    return our_agent(home.authority, own)
