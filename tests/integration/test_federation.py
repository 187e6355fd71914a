"""Two authorities, two agents, two trust domains: calls both ways through Envoys, and what endpoints cannot break."""

import asyncio
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from agent_workload import first
from server_process import EASTWEST, ServerProcess, eastwest

from eastwest.testing.ports import free_ports

ESTATE = """\
trust_domain: {own}
environments:
  - {{name: prod, kind: vm}}
domains:
  - {{name: home, owners: ["group:home"]}}
  - {{name: partner, owners: ["group:partner"]}}
node_groups:
  - {{name: nodes, environment: prod, selectors: ["join_token:group:nodes"]}}
"""
FEDERATION = """\
federation:
  - trust_domain: {other}
    endpoint: https://127.0.0.1:{port}/
    profile: https_spiffe
    endpoint_spiffe_id: spiffe://{other}/spire/server
    bundle: federation/{other}.json
    workloads:
      - {{spiffe_id: "spiffe://{other}/prod/home/{peer}", environment: prod, domain: partner, owner: "group:partner"}}
    services:
      - service: {peer}
        workload: spiffe://{other}/prod/home/{peer}
        environment: prod
        protocol: http
        endpoints: ["127.0.0.1:{peer_port}"]
"""
WORKLOAD = """\
workloads:
  - spiffe_id: spiffe://{own}/prod/home/{name}
    environment: prod
    domain: home
    owner: "group:home"
    node: group:nodes
    selectors: ["unix:uid:{uid}"]
    profile: workload
    federates_with: [{other}]
"""
PROFILE = """\
profile: workload
doors: [workload-api]
keys: [ec-p256]
lifetime: {default: 1h, max: 2h}
"""
SERVICE = """\
service: {name}
workload: spiffe://{own}/prod/home/{name}
owner: "group:home"
domain: home
listen: {{port: {listen}, protocol: http, mtls: strict}}
upstream: {{unix: {app}}}
operations:
  - {{name: "{name}:things:read", match: {{method: GET, path: "/things"}}, sensitivity: read}}
  - {{name: "{name}:things:write", match: {{method: POST, path: "/things"}}, sensitivity: mutate}}
"""
POLICY = """\
@id("partner-reads")
@owner("group:home")
@reason("the partner may look")
permit (
  principal in Domain::"partner",
  action == Action::"{name}:things:read",
  resource == Service::"{name}"
);
"""


class Side:
    """One organisation: server, estate, agent, one workload with its Envoy."""

    def __init__(self, root: Path, own: str, name: str, listen: int, endpoint: int) -> None:
        self.root, self.own, self.name = root, own, name
        self.listen, self.endpoint = listen, endpoint
        root.mkdir()
        self.server = ServerProcess(root / "data", own)
        self.server.init()
        config = root / "data/server/server.toml"
        config.write_text(f"{config.read_text()}\nbundle_endpoint_port = {endpoint}\n")
        self.children: list[subprocess.Popen[bytes]] = []

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def egress(self) -> Path:
        return self.root / "egress.sock"

    def write_estate(self, other: "Side", *, federated: bool = True) -> None:
        estate = self.root / "estate"
        for folder in ("workloads", "services", "policies", "federation", "profiles"):
            (estate / folder).mkdir(parents=True, exist_ok=True)
        facts = {
            "own": self.own,
            "name": self.name,
            "other": other.own,
            "peer": other.name,
            "peer_port": other.listen,
            "port": other.endpoint,
            "uid": os.geteuid(),
            "listen": self.listen,
            "app": self.root / "app.sock",
        }
        text = ESTATE + FEDERATION if federated else ESTATE
        (estate / "estate.yaml").write_text(text.format(**facts))
        workload = WORKLOAD if federated else WORKLOAD.replace("    federates_with: [{other}]\n", "")
        (estate / "workloads/all.yaml").write_text(workload.format(**facts))
        (estate / "profiles/workload.yaml").write_text(PROFILE)
        (estate / f"services/{self.name}.yaml").write_text(SERVICE.format(**facts))
        (estate / "policies/all.cedar").write_text(POLICY.format(**facts))
        bundle = eastwest("bundle", "show", "--data", other.data, "--format", "spiffe")
        (estate / f"federation/{other.own}.json").write_text(bundle.stdout)

    def apply(self) -> None:
        done = eastwest("apply", self.root / "estate", "--data", self.data)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        bundle = self.root / "bundle.pem"
        bundle.write_text(eastwest("bundle", "show", "--data", self.data).stdout)
        token = eastwest("token", "create", "--data", self.data, "--group", "nodes").stdout.strip()
        (self.root / "token").write_text(token)
        server = f"127.0.0.1:{self.server.port}"
        join = ["--bundle", bundle, "--join-token-file", self.root / "token"]
        self._run("agent", "agent", "run", "--data", self.data, "--server", server, *join)
        self._run("sidecar", "sidecar", "run", "--data", self.data, "--egress-socket", self.egress)

    def _run(self, name: str, *words: object) -> None:
        with (self.root / f"{name}.log").open("ab") as log:
            self.children.append(subprocess.Popen([*EASTWEST, *map(str, words)], stdout=log, stderr=log))

    def stop(self) -> None:
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
        for child in self.children:
            child.wait(30)
        self.server.kill()

    def logs(self) -> str:
        return "".join(f"--- {log}\n{log.read_text()[-2000:]}" for log in self.root.glob("*.log"))

    def call(self, service: str, method: str = "GET") -> tuple[int, dict]:
        """One request out of this side's application, over its sidecar."""
        connection = http.client.HTTPConnection(service, timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(10)
            connection.sock.connect(str(self.egress))
            connection.request(method, "/things")
            reply = connection.getresponse()
            return reply.status, _json(reply.read())
        finally:
            connection.close()

    def federation(self, domain: str) -> dict:
        done = eastwest("federation", "show", domain, "--data", self.data, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def _json(body: bytes) -> dict:
    try:
        return json.loads(body)
    except ValueError:
        return {"text": body.decode(errors="replace")}


@contextmanager
def application(side: Side):
    """The workload's own HTTP service behind its sidecar."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"from": side.name}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_: object) -> None: ...

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True
        block_on_close = False

    with Server(str(side.root / "app.sock"), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


async def becomes(side: Side, service: str, wanted: int, method: str = "GET", seconds: float = 60) -> dict:
    """Call until the answer has the status ``wanted``; returns the body."""
    last: object = None
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                try:
                    last = status, body = await asyncio.to_thread(side.call, service, method)
                    if status == wanted:
                        return body
                except OSError as error:
                    last = error
                await asyncio.sleep(0.05)
    raise AssertionError(f"{service} never answered {wanted}: {last}\n{side.logs()}")


@pytest.fixture
def sides():
    root = Path(tempfile.mkdtemp(prefix="ewf-", dir="/tmp"))
    ports = free_ports(4)
    alpha = Side(root / "a", "alpha.example", "shop", ports[0], ports[1])
    beta = Side(root / "b", "beta.example", "ledger", ports[2], ports[3])
    try:
        for side in (alpha, beta):
            side.server.start()
        for side, other in ((alpha, beta), (beta, alpha)):
            side.write_estate(other)
            side.apply()
            side.start()
        with application(alpha), application(beta):
            yield alpha, beta
    finally:
        for side in (alpha, beta):
            side.stop()
        shutil.rmtree(root, ignore_errors=True)


async def test_two_trust_domains_call_each_other_and_no_endpoint_can_break_that(sides) -> None:
    alpha, beta = sides
    # Both ways, with policy deciding.
    assert await becomes(alpha, "ledger", 200) == {"from": "ledger"}
    assert await becomes(beta, "shop", 200) == {"from": "shop"}
    status, body = alpha.call("ledger", "POST")
    assert (status, body["error"]["code"]) == (403, "OPERATION_NOT_PERMITTED")
    # The Workload API gives the foreign bundle to a workload that federates.
    found = await first(alpha.data / "agent/agent.sock")
    assert list(found.federated_bundles) == ["spiffe://beta.example"]
    # The poller has been at the real endpoint: own SVID of the other server, verified by the first bundle.
    done = eastwest("federation", "refresh", "beta.example", "--data", alpha.data)
    assert done.returncode == 0, done.stderr
    told = alpha.federation("beta.example")
    assert (told["problem"], told["managed_by"], told["profile"]) == ("", "estate", "https_spiffe")
    # The estate's relationship is not the API's to change.
    refused = eastwest("federation", "delete", "beta.example", "--data", alpha.data)
    assert refused.returncode == 1
    assert "estate.yaml" in refused.stderr
    # The endpoint dies with its server.
    beta.server.kill()
    failed = eastwest("federation", "refresh", "beta.example", "--data", alpha.data)
    assert failed.returncode == 3
    assert "cannot be reached" in failed.stderr
    assert "cannot be reached" in alpha.federation("beta.example")["problem"]
    assert alpha.call("ledger") == (200, {"from": "ledger"})
    # Somebody else answers in its place.
    liar = ServerProcess(beta.root / "liar", "beta.example")
    liar.init()
    config = beta.root / "liar/server/server.toml"
    config.write_text(f"{config.read_text()}\nbundle_endpoint_port = {beta.endpoint}\n")
    liar.start()
    try:
        lied = eastwest("federation", "refresh", "beta.example", "--data", alpha.data)
        assert lied.returncode == 3
        assert "did not prove itself" in lied.stderr
        assert alpha.call("ledger") == (200, {"from": "ledger"})
        assert beta.call("shop") == (200, {"from": "shop"})
    finally:
        liar.kill()
    # The relationship ends on one side: its own callers lose the way, and the other's are refused.
    _end(alpha)
    await becomes(alpha, "ledger", 404)
    body = await becomes(beta, "shop", 403)
    assert body["error"]["code"] == "UNKNOWN_CALLER"
    log = eastwest("federation", "list", "--data", alpha.data, "--json")
    assert json.loads(log.stdout) == {"trust_domains": []}


def _end(side: Side) -> None:
    estate = side.root / "estate"
    text = (estate / "estate.yaml").read_text()
    (estate / "estate.yaml").write_text(text.partition("federation:")[0])
    workloads = estate / "workloads/all.yaml"
    kept = [line for line in workloads.read_text().splitlines() if "federates_with" not in line]
    workloads.write_text("\n".join(kept) + "\n")
    side.apply()
