"""A service in permissive mode, as it runs in earnest, with callers of every kind; who of them strict mode refuses.

A server, an agent and the service's Envoy are processes of their own; so is each plaintext caller, under its own user.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from envoy_mesh import App, Ca, Http
from rotation_mesh import RotationMesh
from server_process import SVID

from eastwest.api.spire.api.server.svid.v1 import svid_pb2
from eastwest.cli.admin import admin_channel
from eastwest.cli.mtls_client import MtlsClient
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.csr import make_csr
from eastwest.rpc.client import method
from eastwest.spiffe.id import SpiffeId
from eastwest.testing.ports import free_port

TD = "rotate.test"
FIRST_UID = 20_000
CALL = """
import encodings.idna, os, socket, sys
port, uid, address = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.setuid(uid)
with socket.create_connection(("127.0.0.1", port), source_address=(address, 0)) as c:
    c.sendall(b"GET /orders HTTP/1.1\\r\\nhost: shop\\r\\n\\r\\n")
    answer = c.recv(4096)
sys.exit(0 if answer.startswith(b"HTTP/1.1 200") else 3)
"""


def spiffe(name: str) -> str:
    return f"spiffe://{TD}/prod/shop/{name}"


@dataclass
class Caller:
    """One caller: ``kind`` is good, plaintext, expired, foreign or absent (registered, and does not call)."""

    name: str
    kind: str
    address: str = "127.0.0.1"
    uid: int = 0
    registered: bool = True
    period: str = ""
    context: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        return f"spiffe://elsewhere.test/{self.name}" if self.kind == "foreign" else spiffe(self.name)


def planted(good: int, plaintext: int, expired: int, foreign: int, absent: int = 1) -> list[Caller]:
    """Callers of all kinds. The first two plaintext ones share an address; every third is not registered."""
    found = [Caller(f"good-{i}", "good") for i in range(good)]
    found += [
        Caller(f"plain-{i}", "plaintext", f"127.0.1.{max(i, 1)}", registered=i % 3 != 2) for i in range(plaintext)
    ]
    found += [Caller(f"late-{i}", "expired") for i in range(expired)]
    found += [Caller(f"alien-{i}", "foreign", registered=False) for i in range(foreign)]
    found += [Caller(f"monthly-{i}", "absent", period="31d") for i in range(absent)]
    for number, caller in enumerate(found):
        caller.uid = FIRST_UID + number
    return found


def named(report: Mapping[str, Any], callers: Sequence[Caller]) -> list[str]:
    """Which callers a report's rows are about; a row that is about none is itself."""
    by_id = {caller.id: caller.name for caller in callers}
    by_user = {f"uid:{caller.uid}": caller.name for caller in callers if caller.kind == "plaintext"}
    return [
        by_id.get(one["caller"]) or by_user.get(one["caller"].split(" ")[0]) or one["caller"]
        for one in report["breaks"]
    ]


class StrictWorld(RotationMesh):
    """The processes and the callers."""

    def __init__(self, place: Path, callers: Sequence[Caller], *, mode: str = "permissive, until: 2099-01-01") -> None:
        super().__init__(place)
        self.callers = callers
        self.port = free_port()
        self.service = f"listen: {{port: {self.port}, protocol: http, mtls: {mode}}}  # kept as it is"
        self.app = App(place / "app.sock")
        self.started = False

    async def start(self) -> None:
        self.server.init()
        config = self.data / "server" / "server.toml"
        config.write_text(config.read_text().replace("agent_port = 0", f"agent_port = {free_port()}"))
        self.server.start()
        await self.app.start()
        self.started = True
        async with self.server.admin() as admin:
            await admin.apply_estate(self.estate())
            token = await admin.create_join_token(group="machines")
        self._start_agent(token.value)
        await self._there(self.data / "agent" / "agent.sock")
        self._start_sidecar("orders")
        async with asyncio.timeout(30):
            while True:
                try:
                    await (await Http.tcp(self.port)).close()
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
        await self._identities()

    async def stop(self) -> None:
        await super().stop()
        if self.started:
            await self.app.stop()
            for writer in self.app._open:
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    async def reports(self) -> list[dict]:
        async with MtlsClient.connect(self.data) as mtls:
            return await mtls.reports("orders")

    def stop_agent(self) -> None:
        """The agent ends; its Envoy goes on without it."""
        agent = self.agents.pop()
        agent.terminate()
        agent.wait(20)

    async def switch_strict(self) -> None:
        """Past the gate, and until it is enforced."""
        async with MtlsClient.connect(self.data) as mtls:
            outcome = await mtls.switch(service="orders", mode="strict", override="planted")
        assert outcome["version"]
        await self.turned(403)

    async def turned(self, status: int) -> None:
        """Until a call without a certificate is answered so: the sidecar has the new mode."""
        async with asyncio.timeout(30):
            while True:
                connection = await Http.tcp(self.port)
                answer = await connection.ask("GET", "/orders")
                await connection.close()
                if answer.status == status:
                    return
                await asyncio.sleep(0.02)

    async def recorded(self, count: int) -> dict:
        """The report, once it tells of so many callers."""
        async with asyncio.timeout(30):
            while True:
                [report] = await self.reports()
                if len(report["breaks"]) + report["mtls_callers"] >= count:
                    return report
                await asyncio.sleep(0.1)

    async def all_call(self) -> dict[str, bool]:
        """Everybody who calls does so once; who came through."""
        calling = [caller for caller in self.callers if caller.kind != "absent"]
        results: dict[str, bool] = {}
        for start in range(0, len(calling), 8):
            some = calling[start : start + 8]
            answers = await asyncio.gather(*map(self.call, some))
            results |= {caller.name: answer for caller, answer in zip(some, answers, strict=True)}
        return results

    async def call(self, caller: Caller) -> bool:
        """Whether a call of this caller came through."""
        if caller.kind == "plaintext":
            script = self.place / f"{caller.name}.py"
            script.write_text(CALL)
            words = (str(script), str(self.port), str(caller.uid), caller.address)
            process = await asyncio.create_subprocess_exec(sys.executable, *words)
            return await process.wait() == 0
        try:
            connection = await Http.tcp(
                self.port, ssl=caller.context, server_hostname="x", local_addr=(caller.address, 0)
            )
            try:
                return (await connection.ask("GET", "/orders")).status == 200
            finally:
                await connection.close()
        except (OSError, asyncio.IncompleteReadError):
            return False

    async def _identities(self) -> None:
        foreign = Ca("elsewhere.test")
        waits = False
        channel = admin_channel(self.data)
        try:
            for caller in self.callers:
                if caller.kind == "foreign":
                    identity = foreign.identity(caller.id)
                    caller.context = self._context(caller.name, identity.chain + identity.key)
                elif caller.kind in {"good", "expired"}:
                    key = ec.generate_private_key(ec.SECP256R1())
                    csr = make_csr(key, SpiffeId.parse(caller.id))
                    ttl = 1 if caller.kind == "expired" else 3600
                    reply = await channel.unary(
                        method(SVID, "MintX509SVID"), svid_pb2.MintX509SVIDRequest(csr=csr, ttl=ttl)
                    )
                    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
                    caller.context = self._context(caller.name, dump_chain_pem(reply.svid.cert_chain) + pem)
                    waits = waits or caller.kind == "expired"
        finally:
            channel.close()
        if waits:
            await asyncio.sleep(2.1)  # their certificates must have ended

    def _context(self, name: str, pem: bytes) -> ssl.SSLContext:
        file = self.place / f"{name}.pem"
        file.write_bytes(pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(file)
        return context

    def estate(self, waivers: str = "") -> Mapping[str, bytes]:
        rows = [
            f"""
  - spiffe_id: {spiffe("orders")}
    environment: prod
    domain: shop
    owner: group:shop
    node: group:machines
    selectors: ["unix:path:{self.place}/envoy-orders"]
    profile: workload
"""
        ]
        known = [caller for caller in self.callers if caller.registered and caller.kind != "foreign"]
        rows += [
            f"""
  - spiffe_id: {caller.id}
    environment: prod
    domain: shop
    owner: group:{caller.name}
    node: group:machines
    selectors: ["unix:uid:{caller.uid}"]
    profile: workload
{f"    period: {caller.period}" if caller.period else ""}
"""
            for caller in known
        ]
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
            "workloads/all.yaml": f"workloads:{''.join(rows)}",
            "services/orders.yaml": f"""# who may order
service: orders
workload: {spiffe("orders")}
owner: group:shop
domain: shop
{self.service}
upstream: {{unix: {self.place}/app.sock}}
operations:
  - name: orders:orders:list
    match: {{method: GET, path: /orders}}
    sensitivity: restricted-read
""",
            "policies/shop.cedar": """
@id("shop-lists-orders")
@owner("group:shop")
@reason("the test")
permit (principal in Domain::"shop", action == Action::"orders:orders:list", resource == Service::"orders");
""",
        }
        if waivers:
            files["waivers/all.yaml"] = waivers
        return {name: text.encode() for name, text in files.items()}
