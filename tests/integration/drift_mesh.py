"""A small mesh of real processes, and drift planted in it: what `eastwest verify run` must find.

``python drift_mesh.py tampered agent run ...`` is an agent whose node somebody got into: it tells its
Envoys other things than the server told it, by the word in ``EASTWEST_DRIFT``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from envoy.config.core.v3 import extension_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from typer.testing import CliRunner

from eastwest.agent import sidecars
from eastwest.agent.envoy import envoy_binary
from eastwest.api.eastwest.verification.v1 import verification_pb2 as pb
from eastwest.cli.admin import AdminClient
from eastwest.cli.main import app
from eastwest.cli.verification_client import VerificationClient
from eastwest.mesh import names
from eastwest.mesh.matching import pack
from eastwest.mesh.snapshot import Resource
from eastwest.policy.canary import Plan
from eastwest.policy.enforcement import HttpMatch, MtlsMode, Sidecar, decode_sidecar, encode_sidecar
from eastwest.policy.load import load_estate
from eastwest.policy.table import compile_estate
from eastwest.server.verification.credentials import Wallet
from eastwest.testing.ports import free_port

TD = "verify.test"
SHOP, WEB, BATCH = (f"spiffe://{TD}/prod/shop/{name}" for name in ("shop", "web", "batch"))
EASTWEST = [sys.executable, "-m", "eastwest.cli.main"]
TAMPERED = [sys.executable, __file__, "tampered"]
READY = 40.0
DRIFTS = (
    "stale-point",
    "edited-config",
    "bypass-port",
    "permissive-left-on",
    "wrong-root",
    "disabled-filter",
    "old-policy-replayed",
    "missing-read-rule",
)

APP = """
import http.server, os, socketserver, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        with open(sys.argv[1], "a") as seen:
            print(self.command, self.path, file=seen)
        self.send_response(200); self.send_header("content-length", "2"); self.end_headers(); self.wfile.write(b"ok")
    do_GET = do_POST = do_DELETE = answer
    def log_message(self, *_): pass
for port in sys.argv[3:]:
    beside = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    threading.Thread(target=beside.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


class DriftMesh:
    """A server, an agent, one sidecar with its application. ``place`` must have a short path: sockets lie in it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.data = place / "data"
        self.seen = place / "seen"
        self.port, self.upstream, self.beside = free_port(), free_port(), free_port()
        self.wallet = Wallet()
        self.agent: subprocess.Popen[bytes] | None = None
        self.app: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, *, settings: str = "") -> None:
        """Start all, and return when the sidecar answers."""
        self.data.mkdir(parents=True)
        self.seen.touch()
        self.eastwest("server", "init", "--trust-domain", TD, "--port", free_port())
        if settings:
            file = self.data / "server" / "server.toml"
            file.write_text(settings + file.read_text())
        self._run("server", [*EASTWEST, "server", "run", "--data", str(self.data)])
        self._until((self.data / "server" / "agent.port").exists, "the server")
        self.apply()
        self.start_app()
        self.start_agent()
        self.start_sidecar()
        self.settled()

    def stop(self) -> None:
        """End all that was started."""
        for child in reversed(self._children):
            if child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.terminate()
        for child in self._children:
            child.wait(20)

    def eastwest(self, *words: object, ok: Sequence[int] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run a command on the data directory to its end."""
        done = subprocess.run(
            [*EASTWEST, *map(str, words), "--data", str(self.data)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode not in ok:
            raise RuntimeError(f"eastwest {words[0]} {words[1]}: {done.stdout}{done.stderr}\n{self.logs()}")
        return done

    def ask(self, *words: object, ok: Sequence[int] = (0,)) -> str:
        """As ``eastwest``, in this process, which has loaded everything already; what it printed."""
        done = CliRunner().invoke(app, [*map(str, words), "--data", str(self.data)])
        if done.exit_code not in ok:
            raise RuntimeError(f"eastwest {words[0]} {words[1]}: {done.output}\n{self.logs()}")
        return done.stdout

    def verify(self, *allow_ports: int, services: Sequence[str] = ()) -> dict[str, Any]:
        """The report of one run."""

        async def work() -> dict[str, Any]:
            async with VerificationClient.connect(self.data, self.wallet) as client:
                return await client.run(services, allow_ports, lambda _done, _all: None)

        return asyncio.run(work())

    def prepare(self) -> None:
        """Get the certificates of ``verify``'s runs now: one of them must have ended before the first run is over."""

        async def work() -> None:
            async with VerificationClient.connect(self.data, self.wallet) as client:
                begun = await client._call("BeginRun", pb.BeginRunRequest(), 60)
                plan = msgspec.json.decode(begun.plan, type=Plan)
                await self.wallet.credentials(plan, lambda asked: client._issue(begun.run, asked), time.time())
                await client._call("FinishRun", pb.FinishRunRequest(run=begun.run, abandoned=True), 60)

        asyncio.run(work())

    def apply(self, *, mtls: str = "strict", more: str = "") -> None:
        """Put the estate in force."""
        estate = self.place / "estate"
        made = files(self.place, self.port, self.upstream, mtls, more)
        for name, text in made.items():
            (estate / name).parent.mkdir(parents=True, exist_ok=True)
            (estate / name).write_text(text)

        async def work() -> None:
            async with AdminClient.connect(self.data) as admin:
                await admin.apply_estate({name: text.encode() for name, text in made.items()})

        asyncio.run(work())

    def start_agent(self, drift: str = "") -> None:
        """Start the agent, or one that is not what it should be."""
        bundle, file = self.place / "bundle.pem", self.place / "join.token"
        if not file.exists():
            asyncio.run(self._invite(bundle, file))
        port = (self.data / "server" / "agent.port").read_text().strip()
        given = ["--server", f"127.0.0.1:{port}", "--bundle", str(bundle), "--join-token-file", str(file)]
        command = [*(TAMPERED if drift else EASTWEST), "agent", "run", "--data", str(self.data), *given]
        environment = os.environ | {"EASTWEST_DRIFT": drift, "EASTWEST_DRIFT_OLD": str(self.place / "old.json")}
        self.agent = self._run("agent", command, environment)
        self._until((self.data / "agent" / "agent.sock").exists, "the agent")

    def stop_agent(self) -> None:
        """End it; its sidecar goes on."""
        if self.agent is not None:
            self.agent.send_signal(signal.SIGCONT)
            self.agent.terminate()
            self.agent.wait(20)
            self._children.remove(self.agent)
            self.agent = None
        (self.data / "agent" / "agent.sock").unlink(missing_ok=True)

    def start_app(self, *beside: int) -> None:
        """Start the application anew, with ports that it listens on beside its own."""
        if self.app is not None:
            self.app.kill()
            self.app.wait(20)
            self._children.remove(self.app)
        program = [sys.executable, "-c", APP, str(self.seen), str(self.upstream), *map(str, beside)]
        self.app = self._run("app", program)

    def start_sidecar(self) -> None:
        """Start the Envoy."""
        home, envoy = self.place / "shop", self.place / "envoy-shop"
        home.mkdir(mode=0o700, exist_ok=True)
        if not envoy.exists():
            try:
                os.link(envoy_binary(), envoy)
            except OSError:
                envoy.write_bytes(envoy_binary().read_bytes())
                envoy.chmod(0o755)
        words = ["--egress-socket", str(home / "egress.sock"), "--envoy", str(envoy), "--node-id", "shop-1"]
        self._run("sidecar", [*EASTWEST, "sidecar", "run", "--data", str(self.data), *words])

    def settled(self) -> None:
        """Until the sidecar has acknowledged the rules in force."""

        async def acknowledged() -> bool:
            async with AdminClient.connect(self.data) as admin:
                told = await admin.mesh_status()
            return any(
                one.connected and one.acknowledged_version and one.acknowledged_version == one.intended_version
                for agent in told.agents
                for one in agent.sidecars
            )

        self._until(lambda: asyncio.run(acknowledged()), "the sidecar")

    def plant(self, drift: str) -> None:
        """Make the mesh drift in one of the eight ways; ``agent-gone`` is a stale point too, which is seen at once."""
        match drift:
            case "agent-gone":
                self.stop_agent()
                self.apply(more=FORBID)
            case "stale-point":
                assert self.agent is not None
                self.agent.send_signal(signal.SIGSTOP)
                self.apply(more=FORBID)
            case "bypass-port":
                self.start_app(self.beside)
                self._until(lambda: _listens(self.beside), "the second port")
            case "old-policy-replayed":
                self._remember()
                self.apply(more=FORBID)
                self.settled()
                self._tamper(drift)
            case _:
                self._tamper(drift)

    def mend(self, drift: str) -> None:
        """Undo it."""
        match drift:
            case "stale-point":
                assert self.agent is not None
                self.agent.send_signal(signal.SIGCONT)
                self.apply()
                self.settled()
            case "bypass-port":
                self.start_app()
                self._until(lambda: _listens(self.upstream), "the application")
            case _:
                self.stop_agent()
                if drift == "old-policy-replayed":
                    self.apply()
                self.start_agent()
                self.settled()

    def requests(self) -> list[str]:
        """What the application has seen."""
        return self.seen.read_text().splitlines()

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in sorted(self.place.glob("*.log")))

    async def _invite(self, bundle: Path, file: Path) -> None:
        async with AdminClient.connect(self.data) as admin:
            token = await admin.create_join_token(group="machines")
            roots = [authority.asn1 for authority in (await admin.bundle()).x509_authorities]
        file.touch(mode=0o600)
        file.write_text(token.value)
        bundle.write_text("".join(map(ssl.DER_cert_to_PEM_cert, roots)))

    def _tamper(self, drift: str) -> None:
        self.stop_agent()
        self.start_agent(drift)
        self.settled()

    def _remember(self) -> None:
        """Keep the rules that the sidecar has now, as whoever restores an old image has them."""
        estate = self.place / "estate"
        read = {str(f.relative_to(estate)): f.read_bytes() for f in estate.rglob("*") if f.is_file()}
        compiled = compile_estate(load_estate(read))
        (self.place / "old.json").write_bytes(encode_sidecar(compiled.sidecars[SHOP]))

    def _run(
        self, name: str, command: Sequence[str], environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.place / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.place
            )
        self._children.append(child)
        return child

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + READY
        while not condition():
            if time.monotonic() > until:
                raise RuntimeError(f"{what} is not ready after {READY:.0f} s\n{self.logs()}")
            time.sleep(0.05)


def files(place: Path, port: int, upstream: int, mtls: str, more: str) -> dict[str, str]:
    """One service that one workload may read and another may write to."""
    workloads = "".join(
        f"""
  - spiffe_id: {name}
    environment: prod
    domain: shop
    owner: group:shop
    node: group:machines
    selectors: ["unix:path:{place}/envoy-{name.rpartition("/")[2]}"]
    profile: workload
"""
        for name in (SHOP, WEB, BATCH)
    )
    return {
        "estate.yaml": f"""
trust_domain: {TD}
environments:
  - {{name: prod, kind: vm}}
domains:
  - {{name: shop, owners: [group:shop]}}
node_groups:
  - {{name: machines, environment: prod, selectors: ["join_token:group:machines"]}}
""",
        "workloads/all.yaml": f"workloads:{workloads}",
        "services/shop.yaml": f"""
service: shop
workload: {SHOP}
owner: group:shop
domain: shop
listen: {{port: {port}, protocol: http, mtls: {mtls}}}
upstream: {{tcp: "127.0.0.1:{upstream}"}}
tenant: {{path: tenant}}
operations:
  - name: shop:orders:list
    match: {{method: GET, path: "/tenants/{{tenant}}/orders"}}
    sensitivity: read
  - name: shop:orders:create
    match: {{method: POST, path: "/tenants/{{tenant}}/orders"}}
    sensitivity: mutate
""",
        "policies/shop.cedar": f"""
@id("web-reads-orders")
@owner("group:shop")
@reason("the test")
permit (
  principal == Workload::"{WEB}",
  action == Action::"shop:orders:list",
  resource == Service::"shop"
) when {{ context.tenant == "acme" }};

@id("batch-writes-orders")
@owner("group:shop")
@reason("the test")
permit (
  principal == Workload::"{BATCH}",
  action == Action::"shop:orders:create",
  resource == Service::"shop"
);
{more}
""",
    }


FORBID = """
@id("batch-is-suspended")
@owner("group:shop")
@reason("the test")
forbid (
  principal,
  action == Action::"shop:orders:create",
  resource == Service::"shop"
);
"""


def tamper(drift: str) -> None:
    """Make the agent in this process tell its Envoys other things than the server told it."""
    rules_of, secrets_of = sidecars.config_resources, sidecars.sidecar_secrets

    def rules(sidecar: Sidecar, *given: Any, **named: Any) -> list[Resource]:
        made = rules_of(_other(drift, sidecar), *given, **named)
        return [_off(one) for one in made] if drift == "disabled-filter" else made

    def secrets(sidecar: Sidecar, identity: Any, bundles: Any, *given: Any) -> Any:
        others = {name: _root() for name in bundles} if drift == "wrong-root" else bundles
        return secrets_of(sidecar, identity, others, *given)

    sidecars.config_resources = rules
    sidecars.sidecar_secrets = secrets


def _other(drift: str, sidecar: Sidecar) -> Sidecar:
    if not sidecar.inbound:
        return sidecar
    (inbound,) = sidecar.inbound
    operations = inbound.operations
    match drift:
        case "old-policy-replayed":
            return decode_sidecar(Path(os.environ["EASTWEST_DRIFT_OLD"]).read_bytes())
        case "permissive-left-on":
            inbound = msgspec.structs.replace(inbound, mode=MtlsMode.PERMISSIVE)
        case "missing-read-rule":
            kept = (o for o in operations if not isinstance(o.match, HttpMatch) or o.match.method != "GET")
            inbound = msgspec.structs.replace(inbound, operations=tuple(kept))
        case "edited-config":
            # Who may read may now write: somebody helped himself.
            cells = {o.name: o.cells for o in operations}
            edited = (msgspec.structs.replace(o, cells=cells["shop:orders:list"]) for o in operations)
            inbound = msgspec.structs.replace(inbound, operations=tuple(edited))
    return msgspec.structs.replace(sidecar, inbound=(inbound,))


def _off(resource: Resource) -> Resource:
    if resource.name != names.operations_filter("shop"):
        return resource
    nothing = extension_pb2.TypedExtensionConfig(name=resource.name, typed_config=pack(rbac_pb2.RBAC()))
    return Resource.of(resource.name, resource.type_url, nothing)


def _root() -> bytes:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM)


def _listens(port: int) -> bool:
    async def connect() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    try:
        asyncio.run(connect())
    except OSError:
        return False
    return True


if __name__ == "__main__" and sys.argv[1:2] == ["tampered"]:
    from eastwest.cli.main import main

    tamper(os.environ["EASTWEST_DRIFT"])
    sys.argv = ["eastwest", *sys.argv[2:]]
    main()
