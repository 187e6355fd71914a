"""Real Envoys on loopback with an agent in this process: what the integration tests of the data plane stand on."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from eastwest.agent.als import AccessLogs
from eastwest.agent.authorization import Authorization
from eastwest.agent.departed import Departed
from eastwest.agent.envoy import sidecar_command
from eastwest.agent.handshakes import Outgoing
from eastwest.agent.peers.finder import PeerFinder
from eastwest.agent.xds import ConfigStreams, Latest, Principal, SidecarStatus
from eastwest.clock import SystemClock
from eastwest.ledger.record import Decision
from eastwest.mesh.action import InForce
from eastwest.mesh.bootstrap import bootstrap
from eastwest.mesh.resources import config_resources, sidecar_secrets, versions_in_force
from eastwest.mesh.secrets import Identity, SecretSet
from eastwest.mesh.settings import Settings
from eastwest.mesh.snapshot import Resource, Snapshot
from eastwest.policy.enforcement import Sidecar
from eastwest.registry.containment import NOBODY
from eastwest.rpc.service import Call, Listener
from eastwest.testing.tokens import TokenUses

TD = "mesh.test"


def spiffe(name: str, trust_domain: str = TD) -> str:
    return f"spiffe://{trust_domain}/{name}"


class Ca:
    """A certificate authority of one trust domain."""

    def __init__(self, trust_domain: str = TD, key: rsa.RSAPrivateKey | None = None) -> None:
        self.trust_domain = trust_domain
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"root of {trust_domain}")])
        now = dt.datetime.now(dt.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def identity(self, *uris: str, not_after: dt.timedelta = dt.timedelta(hours=1)) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "US")]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )
        return Identity(
            uris[0],
            leaf.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The stable code of a refusal, which header and body must agree on."""
        if "x-eastwest-code" in self.headers:
            assert json.loads(self.body)["error"]["code"] == self.headers["x-eastwest-code"]
        return self.headers.get("x-eastwest-code", "")

    @property
    def seen(self) -> dict:
        """What the application saw, as it told."""
        return json.loads(self.body)


class Http:
    """A small HTTP/1.1 client that sends exactly what it is told, over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def unix(cls, path: Path | str) -> Http:
        return cls(*await asyncio.open_unix_connection(str(path)))

    @classmethod
    async def tcp(cls, port: int, **tls) -> Http:
        return cls(*await asyncio.open_connection("127.0.0.1", port, **tls))

    async def ask(
        self, method: str, path: str, *headers: tuple[str, str], host: str = "svc", body: bytes = b""
    ) -> Reply:
        lines = [f"{method} {path} HTTP/1.1", f"host: {host}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self.writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        await self.writer.drain()
        return await self.reply()

    async def reply(self) -> Reply:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
        first, *rest = head.decode("latin-1").split("\r\n")[:-2]
        headers: dict[str, str] = {}
        for line in rest:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size = int(await self.reader.readline(), 16)
                chunk = await self.reader.readexactly(size + 2)
                if not size:
                    break
                body += chunk[:-2]
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Reply(int(first.split(" ")[1]), headers, body)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(Exception):
            await self.writer.wait_closed()


class App:
    """An application on a unix socket that answers with what it saw."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[tuple[str, str, list[tuple[str, str]]]] = []
        self._server: asyncio.Server | None = None
        self._open: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def stop(self) -> None:
        assert self._server
        self._server.close()
        for writer in self._open:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.split("\r\n")[:-2]
                method, path, _ = first.split(" ")
                headers = [(n.lower(), v.strip()) for n, _, v in (line.partition(":") for line in lines)]
                await reader.readexactly(int(dict(headers).get("content-length", "0")))
                self.seen.append((method, path, headers))
                body = json.dumps({"method": method, "path": path, "headers": headers}).encode()
                head = b"HTTP/1.1 200 OK\r\nx-eastwest-code: FORGED\r\ncontent-length: %d\r\n\r\n" % len(body)
                writer.write(head + body)
                await writer.drain()
        writer.close()


@dataclass
class Workload:
    """One workload of the mesh: its table, identity, latest snapshot and the Envoy that enforces it."""

    sidecar: Sidecar
    identity: Identity
    settings: Settings
    snapshots: Latest[Snapshot] = field(default_factory=Latest)
    secrets: Latest[SecretSet] = field(default_factory=Latest)
    status: SidecarStatus | None = None
    process: asyncio.subprocess.Process | None = None
    admin: Path = Path()
    canaries: bool = False


class Mesh:
    """An agent in this process. It tells its callers apart by the socket they come in on, one for each workload."""

    def __init__(self, root: Path, bundles: dict[str, bytes]) -> None:
        self.root = root
        self.bundles = bundles
        self.post_quantum: dict[str, bytes] = {}
        self.token_keys = b""
        self.contained = NOBODY
        self.token_uses = TokenUses()
        self.departed = Departed()
        self.peers = PeerFinder(SystemClock())
        self.workloads: dict[str, Workload] = {}
        self.decisions: list[Decision] = []
        self.versions: dict[str, InForce] = {}
        self._callers: list[socket.socket] = []
        self._services: dict[Path, Callable[[], list]] = {}
        self._listeners: list[Listener] = []
        self._changed = asyncio.Event()
        self._connections: list[Http] = []
        self._apps: list[App] = []

    async def app(self, name: str) -> App:
        """A started application."""
        app = App(self.root / f"{name}-app.sock")
        await app.start()
        self._apps.append(app)
        return app

    async def way_out(self, workload: Workload) -> Http:
        """A connection of ``workload``'s application to its own sidecar."""
        return self._keep(await Http.unix(workload.settings.egress_socket))

    async def plain(self, port: int) -> Http:
        """A plaintext connection straight to a sidecar's port."""
        return self._keep(await Http.tcp(port))

    async def tls(self, port: int, identity: Identity | None, *, context: ssl.SSLContext | None = None) -> Http:
        """A TLS connection straight to a sidecar's port, as ``identity`` or without a certificate."""
        return self._keep(await Http.tcp(port, ssl=context or self.context(identity), server_hostname="x"))

    def context(self, identity: Identity | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if identity is not None:
            file = self.root / f"identity-{len(list(self.root.iterdir()))}.pem"
            file.write_bytes(identity.chain + identity.key)
            context.load_cert_chain(file)
        return context

    def _keep(self, connection: Http) -> Http:
        self._connections.append(connection)
        return connection

    async def add(self, sidecar: Sidecar, identity: Identity, **settings) -> Workload:
        name = f"w{len(self.workloads)}"
        workload = Workload(
            sidecar,
            identity,
            Settings(
                egress_socket=str(self.root / f"{name}-egress.sock"),
                tcp_egress_directory=str(self.root),
                delayed_close=dt.timedelta(milliseconds=50),
                **settings,
            ),
        )
        self.workloads[name] = workload
        principal = Principal((sidecar.spiffe_id,))

        async def identify(call: Call) -> Principal:
            self._callers.append(call.socket)
            return principal

        class Source:
            def snapshots(self, _: Principal) -> AsyncIterator[Snapshot]:
                return workload.snapshots.watch()

            def secrets(self, _: Principal) -> AsyncIterator[SecretSet]:
                return workload.secrets.watch()

        class Rules:
            def current(_, __: Principal, service: str) -> InForce | None:  # noqa: N805
                found = versions_in_force(workload.sidecar).values()
                return next((rules for rules in found if rules.service == service), None)

            def version(_, version: str) -> InForce | None:  # noqa: N805
                return self.versions.get(version)

            def outgoing(_, __: Principal, service: str) -> Outgoing | None:  # noqa: N805
                found = any(one.service == service for one in workload.sidecar.outbound)
                return Outgoing(workload.sidecar.spiffe_id, workload.sidecar.version) if found else None

        def report(status: SidecarStatus) -> None:
            workload.status = status
            self._wake()

        def record(decisions: Sequence[Decision]) -> None:
            self.decisions.extend(decisions)
            self._wake()

        streams = ConfigStreams(Source(), identify, report)
        logs = AccessLogs(identify, Rules(), record, self.departed.left, peers=self.peers)
        socket_path = self.root / f"{name}-agent.sock"
        authorization = Authorization(identify, Rules(), self.token_uses.use_token, self.peers)
        self._services[socket_path] = lambda: [*streams.services(), *logs.services(), *authorization.services()]
        await self._listen(socket_path)
        workload.admin = self.root / f"{name}-admin.sock"
        file = self.root / f"{name}.json"
        file.write_bytes(
            bootstrap(
                node_id=name,
                spiffe_id=sidecar.spiffe_id,
                agent_socket=str(socket_path),
                admin_socket=str(workload.admin),
            )
        )
        self.publish(workload)
        log = (self.root / f"{name}.log").open("wb")
        workload.process = await asyncio.create_subprocess_exec(
            *sidecar_command(file), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )
        log.close()
        return workload

    def publish(self, workload: Workload, sidecar: Sidecar | None = None, identity: Identity | None = None) -> None:
        workload.sidecar = sidecar or workload.sidecar
        workload.identity = identity or workload.identity
        self.versions.update(versions_in_force(workload.sidecar))
        secrets = sidecar_secrets(workload.sidecar, workload.identity, self.bundles, self.post_quantum)
        keys, contained = self.token_keys, self.contained
        config = config_resources(workload.sidecar, workload.settings, keys, contained, canaries=workload.canaries)
        resources: list[Resource] = [*config, *secrets.resources()]
        workload.secrets.set(secrets)
        workload.snapshots.set(Snapshot.of(workload.sidecar.version, resources, contained=contained.generation))

    async def settled(self, *workloads: Workload) -> None:
        """Until all sidecars enforce the version they were given."""
        for workload in workloads or self.workloads.values():
            await self.until(
                lambda w=workload: w.status and w.status.session.version_acked == w.sidecar.version,
                lambda w=workload: f"{w.status}",
            )
            for inbound in workload.sidecar.inbound:
                await self.opened(inbound.port)

    async def opened(self, port: int) -> None:
        """Until something listens: Envoy acknowledges a listener's filters a moment before it opens the port."""
        async with asyncio.timeout(20):
            while True:
                try:
                    connection = await Http.tcp(port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)
                else:
                    return await connection.close()

    async def decision(self, match: Callable[[Decision], bool]) -> Decision:
        """The first decision, past or to come, that matches."""
        await self.until(lambda: any(map(match, self.decisions)), lambda: f"decisions: {self.decisions[-5:]}")
        return next(filter(match, self.decisions))

    async def until(self, condition: Callable[[], object], explain: Callable[[], str] = str) -> None:
        try:
            async with asyncio.timeout(20):
                while not condition():
                    changed = self._changed
                    await changed.wait()
        except TimeoutError:
            logs = "\n".join(p.read_text()[-3000:] for p in self.root.glob("*.log"))
            raise AssertionError(f"waited in vain: {explain()}\n{logs}") from None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        for connection in self._connections:
            connection.writer.transport.abort()
        for app in self._apps:
            await app.stop()
        for workload in self.workloads.values():
            process = workload.process
            if process and process.returncode is None:
                process.terminate()
                await process.wait()
        await self.stop_agent()
        self.peers.close()

    async def start_agent(self) -> None:
        """Open the agent's sockets again after ``stop_agent``."""
        for path in self._services:
            await self._listen(path)

    async def _listen(self, path: Path) -> None:
        listener = Listener(self._services[path]())
        await listener.listen_unix(path, 0o600)
        self._listeners.append(listener)

    async def stop_agent(self) -> None:
        """Close the agent's sockets and streams; the Envoys stay."""
        while self._listeners:
            await self._listeners.pop().close()
        while self._callers:
            with contextlib.suppress(OSError):
                self._callers.pop().shutdown(socket.SHUT_RDWR)  # as the end of a process would
