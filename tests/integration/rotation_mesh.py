"""A server, an agent and two Envoys as they run in earnest, and a load of new mTLS handshakes between the Envoys.

The service is a TCP one: each connection to its caller's way out is one new connection, with one new handshake,
between the two Envoys.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography import x509
from server_process import EASTWEST, ServerProcess

from eastwest.agent.envoy import envoy_binary
from eastwest.cli.authority import AuthorityClient
from eastwest.cli.demo.launch import envoy_admin
from eastwest.testing.ports import free_port

TD = "rotate.test"
PAUSE = 0.01  # seconds between two handshakes of one caller, so that the machine stays usable


class Load:
    """Connects again and again, never twice on one connection; remembers what failed."""

    def __init__(self, socket: Path, callers: int = 3) -> None:
        self.socket = socket
        self.done = 0
        self.failed: list[str] = []
        self._callers = callers
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._call_on()) for _ in range(self._callers)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def more(self, count: int, seconds: float = 30.0) -> None:
        """Until ``count`` more handshakes are done, or one fails."""
        goal = self.done + count
        async with asyncio.timeout(seconds):
            while self.done < goal and not self.failed:
                await asyncio.sleep(0.01)

    async def once(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            writer.write(b"ping")
            await writer.drain()
            async with asyncio.timeout(10):
                answer = await reader.read(100)
            if answer != b"ping":
                raise ConnectionError(f"the answer was {answer!r}")
        finally:
            writer.close()

    async def _call_on(self) -> None:
        while True:
            try:
                await self.once()
                self.done += 1
            except (OSError, TimeoutError) as error:
                self.failed.append(f"after {self.done}: {error!r}")
            await asyncio.sleep(PAUSE)


class RotationMesh:
    """The processes. ``place`` must have a short path: sockets lie in it.

    ``flags`` are those of ``server init``; ``files`` change those of the estate, or add to them; ``agent_prefix`` is a
    command that becomes the agent.
    """

    def __init__(
        self,
        place: Path,
        flags: Sequence[str] = (),
        files: Mapping[str, bytes] | None = None,
        agent_prefix: Sequence[str] = (),
    ) -> None:
        self.place = place
        self.flags = flags
        self.files = files or {}
        self.agent_prefix = agent_prefix
        self.data = place / "data"
        self.data.mkdir()
        self.server = ServerProcess(self.data, TD)
        self.load = Load(place / "caller" / "db.sock")
        self.agents: list[subprocess.Popen[bytes]] = []
        self.envoys: dict[str, subprocess.Popen[bytes]] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._app: asyncio.Server | None = None
        self._served: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def start(self) -> None:
        self.server.init(*self.flags)
        # A server that comes back must be where its agents look for it.
        config = self.data / "server" / "server.toml"
        config.write_text(config.read_text().replace("agent_port = 0", f"agent_port = {free_port()}"))
        self.server.start()
        self._app = await asyncio.start_unix_server(self._echo, str(self.place / "app.sock"))
        port = free_port()
        async with self.server.admin() as admin:
            await admin.apply_estate(estate(self.place, port) | dict(self.files))
            token = await admin.create_join_token(group="machines")
        self._start_agent(token.value)
        await self._there(self.data / "agent" / "agent.sock")
        for name in ("caller", "db"):
            self._start_sidecar(name)
        await self._until_called()

    async def stop(self) -> None:
        await self.load.stop()
        if self._app is not None:
            self._app.close()
        for child in reversed(self._children):
            if child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.send_signal(signal.SIGTERM)
        for child in self._children:
            child.wait(20)
        # The children were waited for without the loop, so it has not seen the ends of their connections.
        for writer in self._served.values():
            writer.close()
        await asyncio.gather(*filter(None, self._served))
        self.server.stop()

    async def handshakes(self) -> tuple[int, int]:
        """TLS handshakes that the caller's Envoy has made towards the service, and how many of them were resumed."""
        _, body = await envoy_admin(self.place / "caller" / "envoy.sock", "/stats?format=json")
        stats = {one["name"]: one["value"] for one in json.loads(body)["stats"] if "value" in one}
        return stats["cluster.remote/db.ssl.handshake"], stats["cluster.remote/db.ssl.session_reused"]

    async def shown_root(self) -> str:
        """The root (its id) above the issuing CA that the service's Envoy shows to callers."""
        above = (await self._shown())[1].extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert above.key_identifier
        return above.key_identifier.hex()

    async def shown_issuer(self) -> str:
        """The issuing CA (its id) of the certificate that the service's Envoy shows to callers."""
        found = (await self._shown())[1].extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return found.digest.hex()

    async def _shown(self) -> list[x509.Certificate]:
        _, body = await envoy_admin(self.place / "db" / "envoy.sock", "/config_dump?include_eds")
        secrets = [
            secret["secret"]["tls_certificate"]["certificate_chain"]["inline_bytes"]
            for part in json.loads(body)["configs"]
            for secret in part.get("dynamic_active_secrets", [])
            if "tls_certificate" in secret["secret"]
        ]
        return x509.load_pem_x509_certificates(b64decode(secrets[0]))

    def restart(self) -> None:
        """kill -9, and come back."""
        self.server.kill()
        self.server.start()

    def kill_agent(self) -> None:
        """kill -9 of the agent; its Envoys go on without it until it is back."""
        agent = self.agents.pop()
        agent.kill()
        agent.wait(20)
        self._children.remove(agent)
        (self.data / "agent" / "agent.sock").unlink(missing_ok=True)
        self._start_agent("")

    def ca(self) -> AuthorityClient:
        return AuthorityClient.connect(self.data)

    async def confirmed(self, *, released: bool = False) -> None:
        """Until every node has the newest bundle, and with ``released`` nobody holds anything tainted."""
        async with asyncio.timeout(30):
            while True:
                async with self.ca() as ca:
                    state = await ca.state(holders=True)
                behind = [holder for holder in state.holders if holder.bundle_sequence < state.bundle_sequence]
                held = [holder for holder in state.holders if holder.tainted_svids] if released else []
                if state.holders and not behind and not held:
                    return
                await asyncio.sleep(0.05)

    async def waits_for(self, node_id: str) -> None:
        """Until a sidecar is the only one that keeps its node from confirming the newest bundle."""
        holders: object = None
        try:
            async with asyncio.timeout(30):
                while True:
                    async with self.ca() as ca:
                        state = await ca.state(holders=True)
                    holders = state.holders
                    waiting = [name for holder in state.holders for name in holder.waiting if holder.connected]
                    if len(waiting) == 1 and f"({node_id})" in waiting[0]:
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{node_id} is not what is waited for: {holders}\n{self.logs()}") from None

    async def holds(self, count: int) -> None:
        """Until a node that is connected says that it holds so much that is tainted."""
        async with asyncio.timeout(30):
            while True:
                async with self.ca() as ca:
                    state = await ca.state(holders=True)
                if any(holder.connected and holder.tainted_svids == count for holder in state.holders):
                    return
                await asyncio.sleep(0.05)

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        self._served[this] = writer
        try:
            while data := await reader.read(100):
                writer.write(data)
        except ConnectionError:
            pass  # the Envoy in between has ended
        finally:
            writer.close()
            del self._served[this]

    def logs(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.place.rglob("*.log")))

    def _start_agent(self, token: str) -> None:
        bundle, file = self.place / "bundle.pem", self.place / "join.token"
        shown = subprocess.run(
            [*EASTWEST, "bundle", "show", "--data", str(self.data)], capture_output=True, check=True
        ).stdout
        bundle.write_bytes(shown)
        file.touch(mode=0o600)
        file.write_text(token)
        given = ["--server", f"127.0.0.1:{self.server.port}", "--bundle", str(bundle), "--join-token-file", str(file)]
        self.agents.append(self._run("agent", "agent", "run", "--data", str(self.data), *given))

    def _start_sidecar(self, name: str) -> None:
        home = self.place / name
        home.mkdir(mode=0o700)
        envoy = self.place / f"envoy-{name}"
        try:
            os.link(envoy_binary(), envoy)
        except OSError:
            envoy.write_bytes(envoy_binary().read_bytes())
            envoy.chmod(0o755)
        self.envoys[name] = self._run(
            f"sidecar-{name}",
            *("sidecar", "run", "--data", str(self.data), "--egress-socket", str(home / "egress.sock")),
            *("--admin-socket", str(home / "envoy.sock"), "--envoy", str(envoy), "--node-id", name),
        )

    def _run(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.place / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [*(self.agent_prefix if name == "agent" else ()), sys.executable, "-m", "eastwest.cli.main", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._children.append(child)
        return child

    async def _there(self, path: Path) -> None:
        async with asyncio.timeout(30):
            while not path.exists():
                await asyncio.sleep(0.02)

    async def _until_called(self) -> None:
        try:
            async with asyncio.timeout(40):
                while True:
                    try:
                        return await self.load.once()
                    except (OSError, TimeoutError):
                        await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"the service was never reached\n{self.logs()}") from None


def estate(place: Path, port: int) -> dict[str, bytes]:
    """One service, ``db``, that one workload, ``caller``, may call."""
    workloads = "".join(
        f"""
  - spiffe_id: spiffe://{TD}/prod/shop/{name}
    environment: prod
    domain: shop
    owner: group:shop
    node: group:machines
    selectors: ["unix:path:{place}/envoy-{name}"]
    profile: workload
"""
        for name in ("caller", "db")
    )
    files = {
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
        "services/db.yaml": f"""
service: db
workload: spiffe://{TD}/prod/shop/db
owner: group:shop
domain: shop
listen: {{port: {port}, protocol: tcp, mtls: strict}}
upstream: {{unix: {place}/app.sock}}
operations:
  - name: db:sessions:open
    match: {{tcp: true}}
    sensitivity: read
""",
        "policies/shop.cedar": f"""
@id("caller-opens-sessions")
@owner("group:shop")
@reason("the test")
permit (
  principal == Workload::"spiffe://{TD}/prod/shop/caller",
  action == Action::"db:sessions:open",
  resource == Service::"db"
);
""",
    }
    return {name: text.encode() for name, text in files.items()}
