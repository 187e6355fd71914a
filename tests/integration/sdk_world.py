"""A real server and a real agent, and processes that the agent tells apart by the path of their program."""

import asyncio
import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

from server_process import EASTWEST, ServerProcess
from token_world import configure

import eastwest.errors
from eastwest.agent.envoy import envoy_binary
from eastwest.testing.ports import free_port

TD = "spiffe://td.test"
HERE = Path(__file__).parent
SOURCE = str(Path(eastwest.errors.__file__).parents[1])


class Process:
    """A process of ours that says when it is ready, and then answers lines by lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ask(self, do: str, **words) -> dict:
        self.process.stdin.write(json.dumps({"do": do, **words}).encode() + b"\n")
        async with asyncio.timeout(60):
            line = await self.process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        try:
            async with asyncio.timeout(20):
                await self.process.communicate()
        except TimeoutError:
            self.process.kill()
            await self.process.communicate()
            raise


class SdkWorld:
    """The server with an estate in force, an agent, and workloads below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server = ServerProcess(root / "server")
        self.agent_data = root / "agent"
        self.port = free_port()
        self.processes: list[Process] = []
        self.agent: Process | None = None
        self.settings = ""
        """More lines of server.toml."""

    @property
    def socket(self) -> Path:
        return self.agent_data / "agent" / "agent.sock"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def start(self, **workloads: str) -> None:
        """``workloads`` have more fields of their rows in the estate."""
        self.root.chmod(0o755)
        await asyncio.to_thread(self.server.init)
        configure(self.server)
        with (self.server.data / "server" / "server.toml").open("a") as file:
            file.write(self.settings)
        await asyncio.to_thread(self.server.start)
        await self.apply(workloads=workloads)
        async with self.server.admin() as admin:
            token = await admin.create_join_token(group="nodes")
        self.agent_data.mkdir()
        bundle = self.root / "bundle.pem"
        shown = await asyncio.to_thread(
            subprocess.run, [*EASTWEST, "bundle", "show", "--data", self.server.data], capture_output=True, check=True
        )
        bundle.write_bytes(shown.stdout)
        settings = self.root / "agent.toml"
        more = ("--config", str(settings)) if settings.exists() else ()
        await self.start_agent("--bundle", str(bundle), "--join-token", token.value, *more)

    async def start_agent(self, *more: str) -> None:
        where = f"127.0.0.1:{self.server.port}"
        command = [*EASTWEST, "agent", "run", "--data", str(self.agent_data), "--server", where, *more]
        self.agent = await self._run("agent", command)

    async def stop_agent(self) -> None:
        await self.agent.stop()

    async def workload(self, name: str, script: str, *words: object, ready: str = "ready") -> Process:
        """A process whose program lies at a path of its own, so that the agent knows it for ``name``."""
        command = [str(self.program(name)), str(HERE / script), *map(str, words)]
        base = {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": os.pathsep.join([*site.getsitepackages(), SOURCE])}
        base["SPIFFE_ENDPOINT_SOCKET"] = f"unix://{self.socket}"
        process = await self._run(name, command, env={**os.environ, **base}, ready=ready)
        self.processes.append(process)
        return process

    async def opened(self) -> None:
        """Until the service listens, which it says to nobody."""
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return

    async def caller(self, name: str) -> Process:
        return await self.workload(name, "sdk_caller.py", self.socket)

    async def sidecar(self, name: str) -> Path:
        """The way out of an Envoy beside the workload ``name``, which the agent knows by the Envoy's own path."""
        envoy, out = self.root / f"{name}-python", self.root / f"{name}.sock"
        try:
            os.link(envoy_binary(), envoy)
        except OSError:
            shutil.copy(envoy_binary(), envoy)
        command = [*EASTWEST, "sidecar", "run", "--data", str(self.agent_data), "--node-id", name]
        command += ["--egress-socket", str(out), "--admin-socket", str(self.root / f"{name}-admin.sock")]
        self.processes.append(await self._run(name, [*command, "--envoy", str(envoy)], ready=""))
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_unix_connection(str(out))
                except (FileNotFoundError, ConnectionRefusedError):
                    await asyncio.sleep(0.05)  # Envoy tells nobody that it listens
                else:
                    writer.close()
                    return out

    def program(self, name: str) -> Path:
        path = self.root / f"{name}-python"
        if not path.exists():
            shutil.copy(Path(sys.executable).resolve(), path)
        return path

    async def apply(self, workloads=None, **files: str) -> None:
        """Put the estate in force, some of its files replaced."""
        more = workloads or {}
        rows = [
            f"  - {{spiffe_id: {TD}/prod/shop/{name}, environment: prod, domain: shop, owner: group:shop,"
            f' node: group:nodes, selectors: ["unix:path:{self.program(name)}"], profile: workload'
            f"{', ' + more[name] if name in more else ''}}}\n"
            for name in ("billing", "web", "stranger")
        ]
        estate = {
            "estate.yaml": ESTATE,
            "workloads/all.yaml": "workloads:\n" + "".join(rows),
            "services/billing.yaml": SERVICE.replace("PORT", str(self.port)),
            "policies/shop.cedar": POLICY,
            **files,
        }
        async with self.server.admin() as admin:
            await admin.apply_estate({name: text.encode() for name, text in estate.items()})

    async def decisions(self, enough) -> list[dict]:
        """The ledger's rows, once there are enough of them."""
        async with self.server.admin() as admin, asyncio.timeout(20):
            while not enough(rows := (await admin.decisions(limit=1000))[0]):
                await asyncio.sleep(0.1)  # reports travel by themselves
            return rows

    async def close(self) -> None:
        running = [*self.processes, *([self.agent] if self.agent is not None else [])]
        try:
            for ended in await asyncio.gather(*(process.stop() for process in running), return_exceptions=True):
                if ended is not None:
                    raise ended
        finally:
            self.server.kill()

    async def _run(self, name: str, command: list[str], *, env=None, ready: str = "ready") -> Process:
        log = self.root / f"{name}.log"
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env
            )
        async with asyncio.timeout(60):
            line = await process.stdout.readline() if ready else b""
        assert ready in line.decode(), log.read_text()
        return Process(process)


ESTATE = """
trust_domain: td.test
environments: [{name: prod, kind: vm}]
domains: [{name: shop, owners: [group:shop]}]
node_groups: [{name: nodes, environment: prod, selectors: ["join_token:group:nodes"]}]
administrators: [{who: "unix:uid:UID", may: [everything]}]
""".replace("UID", str(os.geteuid()))
SERVICE = """
service: billing
workload: spiffe://td.test/prod/shop/billing
owner: group:shop
domain: shop
listen: {port: PORT, protocol: http, mtls: strict}
upstream: {tcp: "127.0.0.1:1"}
tenant: {path: tenant}
operations:
  - {name: "billing:invoices:read", match: {method: GET, path: "/tenants/{tenant}/invoices"}, sensitivity: read}
  - {name: "billing:status:read", match: {method: GET, path: /status}, sensitivity: read}
  - {name: "billing:slow:read", match: {method: GET, path: /slow}, sensitivity: read}
  - {name: "billing:adjustments:create", match: {method: POST, path: "/tenants/{tenant}/adjustments"},
     sensitivity: mutate, demands: [step-up, single-use]}
  - {name: "billing:reports:make", match: {method: POST, path: /reports}, sensitivity: mutate, demands: [step-up]}
  - {name: "billing:keys:rotate", match: {method: POST, path: /keys}, sensitivity: control}
"""
POLICY = """
@id("web-bills-acme") @owner("group:shop") @reason("the shop bills")
permit (principal == Workload::"spiffe://td.test/prod/shop/web", action in [
    Action::"billing:invoices:read", Action::"billing:adjustments:create"], resource == Service::"billing")
when { context has tenant && context.tenant == "acme" };

@id("web-looks") @owner("group:shop") @reason("the shop looks after itself")
permit (principal == Workload::"spiffe://td.test/prod/shop/web", action in [
    Action::"billing:status:read", Action::"billing:slow:read", Action::"billing:reports:make"],
  resource == Service::"billing");
"""
