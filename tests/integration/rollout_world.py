"""A server, an agent and Envoys of three workloads in two domains, for new rules that go ring by ring.

``web`` (domain shop) calls ``alpha`` (shop) and ``beta`` (billing); ``stranger`` is registered and may do nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from envoy_mesh import App, Http, Reply
from log_entries import recorded
from server_process import EASTWEST, ServerProcess

from eastwest.agent.envoy import envoy_binary
from eastwest.cli.rollout_client import RolloutClient
from eastwest.ledger.query import DecisionQuery
from eastwest.testing.ports import free_port

TD = "rings.test"
WORKLOADS = {"web": "shop", "stranger": "shop", "alpha": "shop", "beta": "billing"}
SERVICES = ("alpha", "beta")
ROLLOUT = "rollout: {rings: [{name: first, domains: [shop]}], soak: 1h, advance: manual}"
METHODS = {"read": "GET", "write": "POST", "drop": "DELETE", "patch": "PATCH"}
RIGHT = tuple(METHODS)


class RolloutWorld:
    """The processes. ``place`` must have a short path: sockets lie in it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.data = place / "data"
        self.data.mkdir()
        self.server = ServerProcess(self.data, TD)
        self.ports = {name: free_port() for name in SERVICES}
        self.apps = {name: App(place / f"{name}-app.sock") for name in SERVICES}
        self._started: list[App] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._connections: dict[str, Http] = {}

    async def start(self) -> None:
        self.server.init()
        # A server that comes back must be where its agents look for it.
        config = self.data / "server" / "server.toml"
        config.write_text(config.read_text().replace("agent_port = 0", f"agent_port = {free_port()}"))
        self.server.start()
        for app in self.apps.values():
            await app.start()
            self._started.append(app)
        async with self.server.admin() as admin:
            await admin.apply_estate(self.estate())
            token = await admin.create_join_token(group="machines")
        self._start_agent(token.value)
        async with asyncio.timeout(30):
            while not (self.data / "agent" / "agent.sock").exists():
                await asyncio.sleep(0.02)
        for name in WORKLOADS:
            self._start_sidecar(name)
        for service in SERVICES:
            await self.until(service, 200)

    async def stop(self) -> None:
        for connection in self._connections.values():
            await connection.close()
        for child in reversed(self._children):
            if child.poll() is None:
                child.terminate()
        for child in self._children:
            # Beside the loop, so that it sees the ends of their connections.
            await asyncio.to_thread(child.wait, 20)
        for app in self._started:
            await app.stop()
        self.server.stop()

    def rollout(self) -> RolloutClient:
        return RolloutClient.connect(self.data)

    async def status(self) -> dict[str, Any]:
        async with self.rollout() as rollout:
            return await rollout.status()

    async def until_state(self, state: str, ring: str = "", seconds: float = 20) -> dict[str, Any]:
        """Until the rollout is there; an end is found among the versions."""
        told: Any = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    async with self.rollout() as rollout:
                        told = [v["rollout"] for v in await rollout.versions(20) if v["rollout"] is not None]
                    if told and told[0]["state"] == state and (not ring or told[0]["ring"] == ring):
                        return told[0]
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"the rollout is not {state}: {told}\n{self.logs()}") from None

    async def apply(self, files: dict[str, bytes], *, accept_breaks: bool = False) -> dict[str, Any]:
        async with self.server.admin() as admin:
            return await admin.apply_estate(files, accept_breaks=accept_breaks)

    async def call(self, service: str, verb: str = "read", caller: str = "web") -> Reply:
        """One request by a workload's own application, through both Envoys."""
        connection = self._connections.get(caller)
        if connection is None:
            connection = self._connections[caller] = await Http.unix(self.place / caller / "egress.sock")
        try:
            return await connection.ask(METHODS[verb], "/items", host=service)
        except (OSError, asyncio.IncompleteReadError):
            self._connections.pop(caller, None)
            raise

    async def until(self, service: str, status: int, verb: str = "read", caller: str = "web") -> None:
        last: object = None
        try:
            async with asyncio.timeout(40):
                while True:
                    try:
                        last = await self.call(service, verb, caller)
                        if last.status == status:
                            return
                    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                        last = error
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{caller} at {service}: {last}, not {status}\n{self.logs()}") from None

    async def rows(self, **query: Any) -> list[dict[str, Any]]:
        async with self.server.admin() as admin:
            found, _ = await admin.ledger_rows(DecisionQuery(**query))
            return found

    async def until_recorded(self, reply: Reply) -> None:
        """Until the server has stored the refusal."""
        reference = reply.seen["error"]["reference"]
        async with asyncio.timeout(20):
            while not await self.rows(reference=reference):
                await asyncio.sleep(0.05)

    async def until_in_step(self) -> dict[str, Any]:
        """Until every sidecar is back and runs what it should."""
        told: Any = None
        try:
            async with asyncio.timeout(20):
                while True:
                    told = await self.status()
                    if told["in_step"] and sum(point["connected"] for point in told["points"]) == len(WORKLOADS):
                        return told
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"not in step: {told}\n{self.logs()}") from None

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """Log entries of a kind, the oldest first."""
        entries = [json.loads(raw) for raw in recorded(self.data)]
        return [entry for entry in entries if entry["kind"] == kind]

    def logs(self) -> str:
        logs = [*sorted(self.place.rglob("*.log")), self.data / "server.err"]
        return "\n".join(f"== {log.name}\n{log.read_text()[-2500:]}" for log in logs)

    def estate(
        self,
        *,
        rollout: str = ROLLOUT,
        may: tuple[str, ...] = RIGHT,
        stranger: tuple[str, ...] = (),
        mode: str = "strict",
    ) -> dict[str, bytes]:
        """``may``: what web may do at both services, and ``stranger`` what that may; ``mode``: of both."""
        workloads = "".join(
            f"""
  - spiffe_id: spiffe://{TD}/prod/{domain}/{name}
    environment: prod
    domain: {domain}
    owner: group:{domain}
    node: group:machines
    selectors: ["unix:path:{self.place}/envoy-{name}"]
    profile: workload
"""
            for name, domain in WORKLOADS.items()
        )
        files = {
            "estate.yaml": f"""
trust_domain: {TD}
environments:
  - {{name: prod, kind: vm}}
domains:
  - {{name: shop, owners: [group:shop]}}
  - {{name: billing, owners: [group:billing]}}
node_groups:
  - {{name: machines, environment: prod, selectors: ["join_token:group:machines"]}}
{rollout}
""",
            "workloads/all.yaml": f"workloads:{workloads}",
        }
        until = f", until: {datetime.now(UTC).date() + timedelta(days=30)}" if mode == "permissive" else ""
        for name in SERVICES:
            domain = WORKLOADS[name]
            files[f"services/{name}.yaml"] = f"""
service: {name}
workload: spiffe://{TD}/prod/{domain}/{name}
owner: group:{domain}
domain: {domain}
listen: {{port: {self.ports[name]}, protocol: http, mtls: {mode}{until}}}
upstream: {{unix: {self.place}/{name}-app.sock}}
operations:
""" + "".join(
                f'  - {{name: "{name}:items:{verb}", match: {{method: {method}, path: /items}}, sensitivity: read}}\n'
                for verb, method in METHODS.items()
            )
        files["policies/web.cedar"] = "".join(
            f"""
@id("{who}-may-{verb}-{name}")
@owner("group:shop")
@reason("the test")
permit (
  principal == Workload::"spiffe://{TD}/prod/shop/{who}",
  action == Action::"{name}:items:{verb}",
  resource == Service::"{name}"
);
"""
            for name in SERVICES
            for who, verbs in (("web", may), ("stranger", stranger))
            for verb in verbs
        )
        return {name: text.encode() for name, text in files.items()}

    def _start_agent(self, token: str) -> None:
        bundle, file = self.place / "bundle.pem", self.place / "join.token"
        shown = subprocess.run([*EASTWEST, "bundle", "show", "--data", str(self.data)], capture_output=True, check=True)
        bundle.write_bytes(shown.stdout)
        file.touch(mode=0o600)
        file.write_text(token)
        given = ["--server", f"127.0.0.1:{self.server.port}", "--bundle", str(bundle), "--join-token-file", str(file)]
        self._run("agent", "agent", "run", "--data", str(self.data), *given)

    def _start_sidecar(self, name: str) -> None:
        home = self.place / name
        home.mkdir(mode=0o700)
        envoy = self.place / f"envoy-{name}"
        try:
            os.link(envoy_binary(), envoy)
        except OSError:
            envoy.write_bytes(envoy_binary().read_bytes())
            envoy.chmod(0o755)
        self._run(
            f"sidecar-{name}",
            *("sidecar", "run", "--data", str(self.data), "--egress-socket", str(home / "egress.sock")),
            *("--admin-socket", str(home / "envoy.sock"), "--envoy", str(envoy), "--node-id", name),
        )

    def _run(self, name: str, *words: str) -> None:
        with (self.place / f"{name}.log").open("ab") as log:
            self._children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "eastwest.cli.main", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )


def of(status: dict[str, Any], sidecar: str) -> dict[str, Any]:
    """One point of a status."""
    return next(json.loads(json.dumps(point)) for point in status["points"] if point["sidecar"] == sidecar)
