"""A real `eastwest server` process for tests, and an agent made of nothing but calls."""

import os
import resource
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.main import get_command

from eastwest.api.spire.api.server.agent.v1 import agent_pb2
from eastwest.api.spire.api.server.svid.v1 import svid_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.cli import server
from eastwest.cli.admin import AdminClient
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.csr import make_csr
from eastwest.rpc.client import Channel, method
from eastwest.rpc.tls import client_context, expect_server
from eastwest.spiffe.id import SpiffeId, TrustDomain

EASTWEST = [sys.executable, "-m", "eastwest.cli.main"]
AGENT = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
SVID = svid_pb2.DESCRIPTOR.services_by_name["SVID"]


def eastwest(*words, seconds=60, **options):
    """Run a command to its end."""
    return subprocess.run(
        [*EASTWEST, *map(str, words)], capture_output=True, text=True, timeout=seconds, check=False, **options
    )


class ServerProcess:
    """`eastwest server run` on a data directory; started and stopped by its own pid."""

    def __init__(self, data: Path, trust_domain: str = "td.test") -> None:
        self.data = data
        self.trust_domain = TrustDomain.parse(trust_domain)
        self.process: subprocess.Popen[bytes] | None = None

    def init(self, *flags: str) -> None:
        """Run ``server init``, but in a thread of this process: one of its own would do little else than start."""
        where = ("--data", self.data, "--trust-domain", self.trust_domain, "--port", 0)
        words = ["init", *map(str, (*where, *flags))]
        with ThreadPoolExecutor(1) as thread:
            assert not thread.submit(get_command(server.app).main, words, standalone_mode=False).result()

    def start(self, *, file_size: int | None = None, seconds: float = 30) -> None:
        def limit() -> None:
            if file_size is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

        errors = (self.data / "server.err").open("ab")
        self.process = subprocess.Popen(
            [*EASTWEST, "server", "run", "--data", str(self.data)],
            stdout=subprocess.PIPE,
            stderr=errors,
            preexec_fn=limit if file_size is not None else None,  # noqa: PLW1509 - the test has no other threads here
        )
        errors.close()
        readable, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline().decode() if readable else ""
        if "server ready" not in line:
            self.kill()
            raise AssertionError(f"the server did not start: {line}{(self.data / 'server.err').read_text()[-3000:]}")

    @property
    def port(self) -> int:
        return int((self.data / "server" / "agent.port").read_text())

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, number) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        status = process.wait(30)
        process.stdout.close()
        return status

    def admin(self) -> AdminClient:
        return AdminClient.connect(self.data)

    async def join(self, *, group: str = "") -> "BareAgent":
        """Attest a new node with a join token."""
        async with self.admin() as admin:
            token = await admin.create_join_token(group=group)
            roots = [authority.asn1 for authority in (await admin.bundle()).x509_authorities]
        return await BareAgent.attest(self, token.value, roots)


class BareAgent:
    """An attested node: just a channel with its certificate."""

    def __init__(self, server: ServerProcess, svid: types_pb2.X509SVID, key, roots: list[bytes]) -> None:
        self.server = server
        self.id = SpiffeId.parse(f"spiffe://{svid.id.trust_domain}{svid.id.path}")
        self.svid = svid
        self.roots = roots
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._tls = client_context(roots, dump_chain_pem(svid.cert_chain), pem)
        self.channel = self.connect()

    @classmethod
    async def attest(cls, server: ServerProcess, token: str, roots: list[bytes]) -> "BareAgent":
        key = ec.generate_private_key(ec.SECP256R1())
        csr = make_csr(key, server.trust_domain.id("/spire/agent/x"))
        channel = Channel(
            host="127.0.0.1", port=server.port, tls=client_context(roots), check=expect_server(server_id(server))
        )
        request = agent_pb2.AttestAgentRequest()
        request.params.data.type = "join_token"
        request.params.data.payload = token.encode()
        request.params.params.csr = csr
        try:
            async with channel.stream(method(AGENT, "AttestAgent"), deadline=20) as stream:
                await stream.send_message(request, end=True)
                reply = await stream.recv_message()
                if reply is None:
                    await stream.recv_trailing_metadata()
        finally:
            channel.close()
        return cls(server, reply.result.svid, key, roots)

    def connect(self) -> Channel:
        return Channel(
            host="127.0.0.1", port=self.server.port, tls=self._tls, check=expect_server(server_id(self.server))
        )

    async def issue(self, *entry_ids: str, channel: Channel | None = None) -> svid_pb2.BatchNewX509SVIDResponse:
        """Ask for an SVID under each entry, with a new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        csr = make_csr(key, self.server.trust_domain.id("/any"))
        request = svid_pb2.BatchNewX509SVIDRequest(
            params=[svid_pb2.NewX509SVIDParams(entry_id=entry_id, csr=csr) for entry_id in entry_ids]
        )
        return await (channel or self.channel).unary(method(SVID, "BatchNewX509SVID"), request)

    def reconnect(self) -> None:
        self.channel.close()
        self.channel = self.connect()

    def close(self) -> None:
        self.channel.close()


def server_id(server: ServerProcess) -> SpiffeId:
    return server.trust_domain.id("/spire/server")


def serial(der: bytes) -> int:
    return x509.load_der_x509_certificate(der).serial_number


def wait_gone(pid: int, seconds: float = 10) -> None:
    """Wait until a process that is not ours to reap is gone."""
    descriptor = os.pidfd_open(pid)
    try:
        select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    time.sleep(0)
