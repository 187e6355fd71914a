"""A server, an agent and two Envoys as they run in earnest, and callers of this process to be cut off.

``notify`` and ``neighbour`` are identities that this process gets from the agent; both may call everything that the
sidecar ``db`` serves: a TCP service (``db``), an HTTP one (``web``) and one of gRPC (``grpc``).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpclib.server
from agent_workload import first
from envoy_mesh import Http
from grpclib.const import Cardinality, Handler
from rotation_mesh import TD, RotationMesh
from server_process import EASTWEST

from eastwest.api.grpc.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from eastwest.pki.der import split_der
from eastwest.testing.ports import free_port

NOTIFY, NEIGHBOUR, OTHER, DB = (f"spiffe://{TD}/prod/shop/{name}" for name in ("notify", "neighbour", "caller", "db"))
SIMULATED = f"spiffe://{TD}/prod/shop/simulated"
CALLERS = (NOTIFY, NEIGHBOUR, OTHER)


class Health:
    """A gRPC service whose one method says one thing and then never ends."""

    async def _watch(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(HealthCheckResponse(status=HealthCheckResponse.SERVING))
        await asyncio.Event().wait()

    def __mapping__(self) -> dict[str, Handler]:
        kind = (Cardinality.UNARY_STREAM, HealthCheckRequest, HealthCheckResponse)
        return {"/grpc.health.v1.Health/Watch": Handler(self._watch, *kind)}


class ContainmentWorld:
    """``place`` must have a short path: sockets lie in it. ``agent_prefix``: what the agent is started by."""

    def __init__(self, place: Path, agent_prefix: Sequence[str] = ()) -> None:
        self.place = place
        self.db_port, self.web_port, self.grpc_port = free_port(), free_port(), free_port()
        self.mesh = RotationMesh(place, files=self._files(), agent_prefix=agent_prefix)
        self.data = self.mesh.data
        self._apps: list[Any] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self.opened: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._apps.append(await asyncio.start_unix_server(self._web, str(self.place / "web.sock")))
        health = grpclib.server.Server([Health()])
        await health.start(path=str(self.place / "grpc.sock"))
        self._apps.append(health)
        await self.mesh.start()
        for port in (self.web_port, self.grpc_port):
            await self._listens(port)

    async def stop(self) -> None:
        for writer in self.opened:
            writer.transport.abort()
        for app in self._apps:
            app.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.mesh.stop()

    @property
    def agent_socket(self) -> Path:
        return self.data / "agent" / "agent.sock"

    async def context(self, spiffe_id: str) -> ssl.SSLContext:
        """TLS as one of this process's identities, from what the agent gives now."""
        reply = await first(self.agent_socket)
        svid = next(one for one in reply.svids if one.spiffe_id == spiffe_id)
        chain = "".join(map(ssl.DER_cert_to_PEM_cert, split_der(svid.x509_svid)))
        key = base64.encodebytes(svid.x509_svid_key).decode()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        file = self.place / f"{spiffe_id.rpartition('/')[2]}-{os.urandom(4).hex()}.pem"
        file.touch(mode=0o600)
        file.write_text(f"{chain}-----BEGIN PRIVATE KEY-----\n{key}-----END PRIVATE KEY-----\n")
        context.load_cert_chain(file)
        return context

    async def connect(self, port: int, context: ssl.SSLContext) -> Http:
        connection = await Http.tcp(port, ssl=context, server_hostname="x")
        self.opened.append(connection.writer)
        return connection

    def eastwest(self, *words: str, seconds: float = 60) -> Awaitable[subprocess.CompletedProcess[str]]:
        """Run a command beside this loop."""
        return asyncio.to_thread(
            subprocess.run,
            [*EASTWEST, *words, "--data", str(self.data)],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    async def contain(self, selector: str = NOTIFY, *words: str) -> dict[str, Any]:
        done = await self.eastwest("contain", selector, "--reason", "a test", "--yes", "--json", *words)
        assert done.stdout, (done.stderr, self.mesh.logs())
        return json.loads(done.stdout) | {"exit": done.returncode}

    async def release(self, containment: str) -> dict[str, Any]:
        done = await self.eastwest("release", containment, "--reason", "the test is over", "--yes", "--json")
        assert done.returncode == 0, (done.stdout, done.stderr, self.mesh.logs())
        return json.loads(done.stdout)

    async def until(self, condition: Callable[[], Awaitable[object]], seconds: float = 20) -> None:
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.05)

    async def _listens(self, port: int) -> None:
        async def open_() -> bool:
            with contextlib.suppress(ConnectionRefusedError):
                await (await Http.tcp(port)).close()
                return True
            return False

        await self.until(open_)

    async def _web(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """``/stream`` never ends; everything else is answered."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b" /stream " not in head:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                while True:
                    writer.write(b"4\r\ntick\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.05)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    def _files(self) -> dict[str, bytes]:
        workloads = "".join(
            f"""
  - spiffe_id: {name}
    environment: prod
    domain: shop
    owner: group:shop
    node: group:machines
    selectors: ["unix:path:{Path(sys.executable).resolve()}"]
    profile: workload
"""
            for name in (NOTIFY, NEIGHBOUR)
        )
        # Whatever runs from this file plays sidecars of a service of its own.
        workloads += f"""
  - spiffe_id: {SIMULATED}
    environment: prod
    domain: shop
    owner: group:shop
    node: group:machines
    selectors: ["unix:path:{self.place}/simulated"]
    profile: workload
"""
        services = {
            "db": (
                self.db_port,
                "tcp",
                "app.sock",
                ["{name: db:sessions:open, match: {tcp: true}, sensitivity: read}"],
            ),
            "web": (
                self.web_port,
                "http",
                "web.sock",
                [
                    "{name: web:items:read, match: {method: GET, path: /items}, sensitivity: read}",
                    "{name: web:items:stream, match: {method: GET, path: /stream}, sensitivity: read}",
                ],
            ),
            "simulated": (
                free_port(),
                "http",
                "none.sock",
                ["{name: simulated:items:read, match: {method: GET, path: /items}, sensitivity: read}"],
            ),
            "grpc": (
                self.grpc_port,
                "http",
                "grpc.sock",
                ["{name: grpc:health:watch, match: {grpc: grpc.health.v1.Health/Watch}, sensitivity: read}"],
            ),
        }
        files = {"workloads/more.yaml": f"workloads:{workloads}", "policies/more.cedar": _policies()}
        for name, (port, protocol, upstream, operations) in services.items():
            listed = "".join(f"\n  - {operation}" for operation in operations)
            files[f"services/{name}.yaml"] = f"""
service: {name}
workload: {SIMULATED if name == "simulated" else DB}
owner: group:shop
domain: shop
listen: {{port: {port}, protocol: {protocol}, mtls: strict}}
upstream: {{unix: {self.place}/{upstream}}}
operations:{listed}
"""
        return {name: text.encode() for name, text in files.items()}


def _policies() -> str:
    actions = ", ".join(f'Action::"{name}"' for name in ("web:items:read", "web:items:stream", "grpc:health:watch"))
    found = []
    for caller in CALLERS:
        name = caller.rpartition("/")[2]
        for action, service in ((f"action in [{actions}]", ""), ('action == Action::"db:sessions:open"', "db")):
            if (name, service) == ("caller", "db"):
                continue  # has it already
            found.append(f"""
@id("{name}-calls-{service or "web"}")
@owner("group:shop")
@reason("the test")
permit (
  principal == Workload::"{caller}",
  {action},
  resource{f' == Service::"{service}"' if service else ""}
);
""")
    return "".join(found)
