"""Foreign clients against our HTTP/2 server: grpcio's C core here; Go's and Envoy's in the interop tests."""

import asyncio
import datetime as dt

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from eastwest import errors
from eastwest.api.grpc.health.v1 import health_pb2 as pb
from eastwest.rpc.service import IMPLEMENTATIONS, Listener, Service
from eastwest.rpc.tls import certificate_id, server_context

HEALTH = pb.DESCRIPTOR.services_by_name["Health"]
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


class Handlers:
    """Echoes in every shape that the Health service has."""

    def __init__(self):
        self.seen = []
        self.ended = asyncio.Event()

    def service(self):
        return Service(HEALTH, {"Check": self.check, "Watch": self.watch})

    async def check(self, request, call):
        der = call.peer_certificate
        self.seen.append((None if der is None else str(certificate_id(der)), call.peer_address, dict(call.metadata)))
        if request.service == "missing":
            raise errors.NotFound("no such thing: ü", fix="100 % sure")
        if request.service == "wait":
            await asyncio.Event().wait()
        return pb.HealthCheckResponse(status=len(request.service) % 4)

    async def watch(self, request, call):
        try:
            for number in range(int(request.service)):
                await call.send(pb.HealthCheckResponse(status=number % 4))
            await asyncio.Event().wait()
        finally:
            self.ended.set()


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture
def handlers():
    return Handlers()


@pytest.fixture
async def path(tmp_path, handlers, implementation):
    listener = Listener([handlers.service()], implementation=implementation)
    await listener.listen_unix(tmp_path / "s", 0o600)
    yield tmp_path / "s"
    await listener.close()


@pytest.fixture
async def channel(path):
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        yield channel


def check(channel):
    encode, decode = pb.HealthCheckRequest.SerializeToString, pb.HealthCheckResponse.FromString
    return channel.unary_unary(CHECK, request_serializer=encode, response_deserializer=decode)


def watch(channel):
    encode, decode = pb.HealthCheckRequest.SerializeToString, pb.HealthCheckResponse.FromString
    return channel.unary_stream(WATCH, request_serializer=encode, response_deserializer=decode)


async def test_calls_many_at_once_and_large_ones(channel):
    sizes = [number % 7 for number in range(300)] + [3_000_000] * 5
    replies = await asyncio.gather(
        *(check(channel)(pb.HealthCheckRequest(service="x" * size), timeout=30) for size in sizes)
    )
    assert [reply.status for reply in replies] == [size % 4 for size in sizes]


async def test_errors_metadata_and_deadlines(channel, handlers):
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await check(channel)(
            pb.HealthCheckRequest(service="missing"), metadata=[("who", "me"), ("raw-bin", b"\x00\xff")], timeout=10
        )
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    assert missing.value.details() == "no such thing: ü (100 % sure)"
    assert handlers.seen[0][2]["who"] == "me"
    assert handlers.seen[0][2]["raw-bin"] == b"\x00\xff"
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await check(channel)(pb.HealthCheckRequest(service="wait"), timeout=0.05)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_stream_of_many_messages_and_a_caller_that_cancels(channel, handlers):
    call = watch(channel)(pb.HealthCheckRequest(service="20000"))
    received = [(await call.read()).status for _ in range(20_000)]
    assert received == [number % 4 for number in range(20_000)]
    call.cancel()
    async with asyncio.timeout(5):
        await handlers.ended.wait()


async def test_compression_is_refused(channel):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await check(channel)(pb.HealthCheckRequest(service="x" * 1000), compression=grpc.Compression.Gzip, timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_unknown_method(channel):
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await channel.unary_unary("/x.Y/Z")(b"", timeout=10)
    assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_tls_with_a_client_certificate(handlers, implementation):
    """C core takes no server without a DNS name it knows, so the server's certificate has one."""
    root = Root()
    chain, key = root.leaf(x509.UniformResourceIdentifier("spiffe://td.test/spire/server"), x509.DNSName("server"))
    listener = Listener([handlers.service()], implementation=implementation)
    await listener.listen_tcp("127.0.0.1", 0, server_context(chain, key, [root.der]))
    mine, my_key = root.leaf(x509.UniformResourceIdentifier("spiffe://td.test/me"))
    credentials = grpc.ssl_channel_credentials(root.pem, my_key, mine)
    options = [("grpc.ssl_target_name_override", "server")]
    async with grpc.aio.secure_channel(f"127.0.0.1:{listener.port}", credentials, options) as channel:
        reply = await check(channel)(pb.HealthCheckRequest(service="abc"), timeout=10)
    await listener.close()
    assert reply.status == 3
    who, address, _ = handlers.seen[0]
    assert who == "spiffe://td.test/me"
    assert address.startswith("127.0.0.1:")


async def test_a_server_that_comes_back_is_found_again(tmp_path, handlers, implementation):
    quickly = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50)]
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}", quickly) as channel:
        for _ in range(2):
            listener = Listener([handlers.service()], implementation=implementation)
            await listener.listen_unix(tmp_path / "s", 0o600)
            try:
                assert (await until_answered(channel)).status == 2
            finally:
                await listener.close()


async def until_answered(channel):
    """A call that left before the client had read that its connection was closed fails; the next one does not."""
    for _ in range(3):
        try:
            return await check(channel)(pb.HealthCheckRequest(service="ab"), timeout=10, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - one kind of failure is expected here
    return None


class Root:
    """An authority for one test."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(self.key, [], ca=True)
        self.der = self.certificate.public_bytes(Encoding.DER)
        self.pem = self.certificate.public_bytes(Encoding.PEM)

    def leaf(self, *names):
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self._sign(key, names, ca=False).public_bytes(Encoding.PEM), pem

    def _sign(self, key, names, *, ca):
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root" if ca else "leaf")])
        root = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder(root, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(minutes=1)).not_valid_after(now + dt.timedelta(hours=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())
