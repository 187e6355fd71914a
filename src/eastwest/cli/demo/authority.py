"""Starting Eastwest's own processes: the server, the agent, a sidecar for each workload."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from eastwest.cli.admin import AdminClient
from eastwest.cli.demo import estate
from eastwest.cli.demo.launch import START_TIMEOUT
from eastwest.cli.demo.place import LOOPBACK, TRUST_DOMAIN, WORKLOADS, Place, Workload
from eastwest.cli.demo.processes import Process, Processes, wait_for
from eastwest.clock import SystemClock

NODE_GROUP = "prod-nodes"
EASTWEST = [sys.executable, "-m", "eastwest.cli.main"]


class Authority:
    """A server and an agent of the demo, with the means to change the estate and to wait until it is enforced."""

    def __init__(
        self, place: Place, processes: Processes, ports: Mapping[str, int], progress: Callable[[str], None]
    ) -> None:
        self._place = place
        self._processes = processes
        self._ports = ports
        self._progress = progress
        self._sidecars: dict[str, Process] = {}
        self.version = ""
        self.server: Process
        self.agent: Process
        self.admin: AdminClient

    async def start(self, intent: estate.Intent) -> None:
        """Create the authority, run it, put the estate in force, and let the node join."""
        data = self._place.data
        create = self._processes.start(
            "server-init",
            [*EASTWEST, "server", "init", "--data", str(data), "--trust-domain", str(TRUST_DOMAIN), "--port", "0"],
        )
        create.may_end = True
        await create.exited.wait()
        if create.popen.returncode != 0:
            raise create.failure(f"ended with status {create.popen.returncode}")
        with (data / "server" / "server.toml").open("a") as settings:
            settings.write("\n[tokens]\nport = 0\n")
        self.server = self._processes.start("server", [*EASTWEST, "server", "run", "--data", str(data)])
        self.admin = await self.server.ready(self._connect, "its admin socket answered", START_TIMEOUT)
        self._progress(f"the authority for {TRUST_DOMAIN} runs (pid {self.server.pid})")
        await self.apply(intent)
        await self._start_agent()

    async def apply(self, intent: estate.Intent) -> None:
        """Put the estate of ``intent`` in force (not yet: enforced)."""
        files = estate.render(self._place, self._ports, intent, SystemClock().now().date())
        estate.write(files, self._place)
        self.version = (await self.admin.apply_estate(files))["version"]

    async def start_sidecars(self) -> None:
        """A real Envoy for each workload, all enforcing what is intended when this returns."""
        for workload in WORKLOADS:
            self._sidecars[workload.name] = self._start_sidecar(workload)
        await self.enforced()

    async def enforced(self) -> None:
        """Wait until every sidecar has acknowledged the estate in force; an Envoy's refusal is an error."""

        async def acknowledged() -> bool | None:
            reply = await self.admin.mesh_status()
            sidecars = {
                sidecar.spiffe_id: sidecar for agent in reply.agents for sidecar in agent.sidecars if sidecar.connected
            }
            for sidecar in sidecars.values():
                if sidecar.error:
                    raise self.agent.failure(
                        f"says that {sidecar.spiffe_id} refuses its configuration: {sidecar.error}"
                    )
            current = {
                spiffe_id
                for spiffe_id, sidecar in sidecars.items()
                if sidecar.acknowledged_version and sidecar.acknowledged_version == sidecar.intended_version
            }
            agents = [agent for agent in reply.agents if agent.connected]
            in_step = all(agent.acknowledged_number == agent.intended_number for agent in agents)
            complete = {workload.spiffe_id for workload in WORKLOADS} <= current
            return True if complete and in_step and reply.policy_version == self.version else None

        watched = (self.server, self.agent, *self._sidecars.values())
        await wait_for(acknowledged, "every sidecar acknowledged the estate", START_TIMEOUT, *watched)

    async def grant(self, approval: str, reason: str) -> tuple[str, str]:
        """Grant an approval as the demo's administrator; who that is, and the approval's state."""
        from eastwest.api.eastwest.approvals.v1 import approvals_pb2 as pb
        from eastwest.cli.admin import admin_channel
        from eastwest.rpc.client import method

        channel = admin_channel(self._place.data)
        try:
            granted: pb.Approval = await channel.unary(
                method(pb.DESCRIPTOR.services_by_name["Approvals"], "GrantApproval"),
                pb.DecideApprovalRequest(id=approval, reason=reason),
            )
        finally:
            channel.close()
        return granted.approver, granted.state

    async def close(self) -> None:
        """Let go of the connection to the server."""
        if hasattr(self, "admin"):
            await self.admin.__aexit__()

    async def _connect(self) -> AdminClient | None:
        admin = AdminClient.connect(self._place.data)
        try:
            await admin.status()
        except BaseException:
            await admin.__aexit__()
            raise
        return admin

    async def _start_agent(self) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        home, data = self._place.home, self._place.data
        token = await self.admin.create_join_token(group=NODE_GROUP)
        roots = (await self.admin.bundle()).x509_authorities
        bundle, token_file = home / "bundle.pem", home / "join.token"
        bundle.write_bytes(
            b"".join(x509.load_der_x509_certificate(root.asn1).public_bytes(Encoding.PEM) for root in roots)
        )
        token_file.touch(mode=0o600)
        token_file.write_text(token.value)
        port = (data / "server" / "agent.port").read_text().strip()
        self.agent = self._processes.start(
            "agent",
            [
                *EASTWEST,
                *("agent", "run", "--data", str(data), "--server", f"{LOOPBACK}:{port}"),
                *("--join-token-file", str(token_file), "--bundle", str(bundle)),
            ],
        )
        socket = data / "agent" / "agent.sock"
        await self.agent.ready(lambda: _accepts(socket), "its socket answered", START_TIMEOUT)
        self._progress(f"the agent of the node has joined (pid {self.agent.pid})")

    def _start_sidecar(self, workload: Workload) -> Process:
        command = [
            *EASTWEST,
            *("sidecar", "run", "--data", str(self._place.data)),
            *("--egress-socket", str(self._place.egress_socket(workload))),
            *("--admin-socket", str(self._place.admin_socket(workload))),
            *("--envoy", str(self._place.envoy(workload)), "--node-id", workload.name),
        ]
        uid = self._place.uids.of(workload)
        if uid is not None:
            # The command needs the interpreter's files, which the workload may not read, so it changes uid itself.
            command += ["--uid", str(uid), "--gid", str(uid)]
        return self._processes.start(f"{workload.name}-sidecar", command)


async def _accepts(socket: Path) -> bool | None:
    if not socket.exists():
        return None
    _, writer = await asyncio.open_unix_connection(str(socket))
    writer.close()
    return True
