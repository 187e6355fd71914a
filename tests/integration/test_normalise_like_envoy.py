"""``eastwest.policy.normalise`` against the connection manager it mirrors: thousands of requests by a real Envoy."""

import asyncio
import contextlib
import datetime as dt
import json
import random

import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from envoy_mesh import Ca, Mesh, free_port
from google.protobuf import any_pb2, json_format

from eastwest.agent.envoy import sidecar_command
from eastwest.mesh import http, replies
from eastwest.mesh.settings import Settings
from eastwest.policy.normalise import STRIPPED, STRIPPED_PREFIXES, Refused, Request, normalise


async def tell(reader, writer) -> None:
    """An application that answers with what it was handed, bodies read and left aside."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")[:-2]
            path = first.partition(" ")[2].rpartition(" ")[0]
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            if dict(headers).get("transfer-encoding") == "chunked":
                while size := int(await reader.readline(), 16):
                    await reader.readexactly(size + 2)
                await reader.readexactly(2)
            await reader.readexactly(int(dict(headers).get("content-length", "0")))
            body = json.dumps({"path": path, "headers": headers}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
    writer.close()


class Envoy:
    """One listener with our connection manager, before an application that tells what it was handed."""

    def __init__(self, root, *, tls: bool) -> None:
        self.root = root
        self.tls = tls
        self.port = free_port()
        self._mesh = Mesh(root, {})
        self._connection = None

    async def start(self) -> None:
        app = self.root / "app.sock"
        self._app = await asyncio.start_unix_server(tell, str(app))
        file = self.root / "envoy.json"
        file.write_text(json_format.MessageToJson(self._bootstrap(str(app))))
        with (self.root / "envoy.log").open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(*sidecar_command(file), stdout=log, stderr=log)
        await self._mesh.opened(self.port)

    async def close(self) -> None:
        await self._forget()
        self.process.terminate()
        await self.process.wait()
        self._app.close()
        await self._mesh.close()

    async def ask(self, raw: bytes):
        """(status, what the application was handed)."""
        for _ in range(2):
            if self._connection is None:
                options = {"ssl": self._mesh.context(None), "server_hostname": "x"} if self.tls else {}
                self._connection = await asyncio.open_connection("127.0.0.1", self.port, **options)
            reader, writer = self._connection
            writer.write(raw)
            try:
                async with asyncio.timeout(10):
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            except (asyncio.IncompleteReadError, ConnectionError):
                await self._forget()  # the answer before this one ended the connection
                continue
            first, *lines = head.split("\r\n")[:-2]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if headers.get("connection") == "close":
                await self._forget()
            status = int(first.split(" ")[1])
            return status, json.loads(body) if status == 200 else None
        raise AssertionError(f"no answer to {raw!r}")

    async def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection[1].transport.abort()
            with contextlib.suppress(Exception):
                await connection[1].wait_closed()

    def _bootstrap(self, app: str):
        manager = http.connection_manager(
            stat_prefix="x",
            routes="x",
            filters=[],
            replies=replies.inbound_replies(),
            logs=[],
            settings=Settings(egress_socket="/none", delayed_close=dt.timedelta(milliseconds=10)),
            inbound=True,
            certificate=False,
        )
        assert isinstance(manager, hcm_pb2.HttpConnectionManager)
        everything = {"match": {"prefix": ""}, "route": {"cluster": "app", "timeout": "0s"}}
        routes = {"virtual_hosts": [{"name": "x", "domains": ["*"], "routes": [everything]}]}
        manager.ClearField("rds")
        manager.route_config.CopyFrom(json_format.ParseDict(routes, route_pb2.RouteConfiguration()))
        config = bootstrap_pb2.Bootstrap()
        listener = config.static_resources.listeners.add(name="x")
        listener.address.socket_address.address = "127.0.0.1"
        listener.address.socket_address.port_value = self.port
        chain = listener.filter_chains.add()
        chain.filters.add(name="envoy.filters.network.http_connection_manager").typed_config.CopyFrom(_any(manager))
        if self.tls:
            identity = Ca().identity("spiffe://mesh.test/x")
            context = tls_pb2.DownstreamTlsContext()
            certificate = context.common_tls_context.tls_certificates.add()
            certificate.certificate_chain.inline_bytes = identity.chain
            certificate.private_key.inline_bytes = identity.key
            chain.transport_socket.name = "envoy.transport_sockets.tls"
            chain.transport_socket.typed_config.CopyFrom(_any(context))
        cluster = config.static_resources.clusters.add(name="app")
        cluster.load_assignment.cluster_name = "app"
        cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint.address.pipe.path = app
        return config


def _any(message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


@pytest.fixture
async def envoy(tmp_path):
    made = Envoy(tmp_path, tls=False)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def secure(tmp_path):
    made = Envoy(tmp_path, tls=True)
    await made.start()
    yield made
    await made.close()


PIECES = [
    *[
        "/",
        "/",
        "/",
        "..",
        ".",
        "%2e",
        "%2E",
        ";",
        "\\",
        "a",
        "b",
        "%",
        "%%",
        "2",
        "f",
        "e",
        "%32",
        "%46",
        "%66",
        "%65",
    ],
    *[
        "%41",
        "%2",
        "%25",
        "..;",
        "/..;x/",
        "?",
        "%2f",
        "%5c",
        "%00",
        "#",
        "%0a",
        "~",
        "%7e",
        "\x7f",
        "{",
        "|",
        "'",
        "*",
    ],
    *[
        "%3f",
        "%30",
        "0",
        "%35",
        "5c",
        "@",
        ":",
        "//",
        "^",
        "%c3%a9",
        "\t",
        "..%2f",
        ".%2e",
        "%e",
        "A",
        "\xe9",
        "<",
        "`",
    ],
]
SCHEMES = ["http://", "https://", "HTTP://", "Http://", "ws://", "http:/", "http:"]
HOSTS = [
    *["h", "h:80", "u@h", "", "h:99999", "[::1]", "h_h", "H.", "h%41", "a,b", "h:x", "@h", "u:p@h", "a@b@c", "[::1"],
    *["h;x", "h|", "1.2.3.4", "-h", "h..", ".", "%", "%00", "%2f", "h*", "h+", "h!", "h:0", "h:00080", "h:65535"],
    *["h:65536", "[::g]", "[1:2]", "[::1]:80", "[]", "h$&'()=~", "a." * 130, "a" * 256],
]


def random_target(rng: random.Random) -> str:
    path = "".join(rng.choices(PIECES, k=rng.randint(0, 10)))
    kind = rng.random()
    if kind < 0.85:
        return "/" + path
    if kind < 0.95:
        return rng.choice(SCHEMES) + rng.choice(HOSTS) + rng.choice(["", "/" + path, "?x", path])
    return path or "*"


NAMES = [
    *["x-tenant", "X-Tenant", "txn-token", "Txn-Token", "x-a", "x_tenant", "x-eastwest-caller", "X-EASTWEST-Foo"],
    *["x-eastwestfoo", "accept", "te", "connection", "Connection", "keep-alive", "upgrade", "proxy-connection"],
    *["http2-settings", "transfer-encoding", "content-length", "host", "cookie", "authorization", "x-envoy-foo"],
    *["trailer", "x\xe9", "x a", "x(", "", "!#$%&'*+-.^`|~9", ":path", "grpc-timeout", "content-type", "via"],
]
VALUES = [
    *[
        "a",
        "b",
        "a,b",
        " a ",
        "\ta\t",
        "",
        "a\tb",
        "\xe9",
        "\x01",
        "\x7f",
        "trailers",
        "gzip, trailers;q=1",
        "x-tenant",
    ],
    *["close, x-tenant", "close", "keep-alive", "X-Tenant, txn-token", "te", "host", "content-length"],
    *["x-forwarded-for", "X-Forwarded-Proto", ":path", "upgrade", "upgrade, x-tenant", "websocket", "h2c", "H2C"],
    *["chunked", "Chunked", "gzip", "0", "00", "+0", "0x0", "a,b,c,d,e,f,g,h,i", "a,b,c,d,e,f,g,h,i,j", ",,,,,,,,,,,"],
    *["connection", "cookie", "close;x-tenant", '"x-tenant"', "http2-settings", "transfer-encoding", "keep-alive, te"],
    *["svc2", "h_h", "a b", "a/b", "svc:80"],
]
# What every Envoy sets anew, and what delimits the body.
SET_ANEW = {
    *["host", "x-forwarded-proto", "x-request-id", "x-envoy-external-address", "x-envoy-internal"],
    *["content-length", "transfer-encoding", "expect"],
}


def random_header(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(NAMES) if rng.random() < 0.85 else rng.choice(sorted(STRIPPED))
    return name, rng.choice(VALUES) if name.lower() == "connection" or rng.random() < 0.6 else "a"


def joined(headers) -> dict[str, str]:
    """Headers as a matcher sees them: repeated ones in one value."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if name not in SET_ANEW and (value or name.startswith("x-")):  # Envoy leaves out some that are empty
            found.setdefault(name, []).append(value)
    glue = {"cookie": "; "}
    return {name: glue.get(name, ",").join(values).replace(", ", ",") for name, values in found.items()}


async def compare_targets(envoy: Envoy, count: int, seed: int) -> set[int]:
    rng = random.Random(seed)
    statuses = set()
    for _ in range(count):
        target = random_target(rng)
        status, seen = await envoy.ask(f"GET {target} HTTP/1.1\r\nhost: svc\r\n\r\n".encode("latin-1"))
        ours = normalise("GET", target, [("host", "svc")], tls=envoy.tls)
        statuses.add(status)
        if status == 200:
            assert isinstance(ours, Request), (target, seen, ours)
            assert (ours.target, ours.authority) == (seen["path"], dict(seen["headers"])["host"]), (target, seen, ours)
        elif status == 404:  # the filters, which decide, have seen it by then; no route has a path without a slash
            assert isinstance(ours, Request), (target, ours)
            assert not ours.path.startswith("/"), (target, ours)
        else:
            assert isinstance(ours, Refused), (target, status, ours)
    return statuses


async def test_targets(envoy):
    assert await compare_targets(envoy, 4000, 1) >= {200, 400, 404}


async def test_targets_over_tls(secure):
    assert await compare_targets(secure, 600, 2) >= {200, 400}


async def test_every_character(envoy):
    for number in range(1, 256):
        for text in (chr(number), f"%{number:02x}", f"%{number:02X}"):
            if text in {"\n", "\r", " "}:
                continue  # these end the target, and then it is another one
            for target in (f"/a{text}b", f"/a?b{text}c"):
                _, seen = await envoy.ask(f"GET {target} HTTP/1.1\r\nhost: svc\r\n\r\n".encode("latin-1"))
                ours = normalise("GET", target, [("host", "svc")], tls=False)
                assert (ours.target if isinstance(ours, Request) else None) == (seen and seen["path"]), target


async def test_headers(envoy):
    rng = random.Random(3)
    statuses = set()
    for _ in range(4000):
        headers = [("host", "svc")] * (rng.random() < 0.97) + [random_header(rng) for _ in range(rng.randint(0, 4))]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        body = "0\r\n\r\n" if any(name == "transfer-encoding" for name, _ in headers) else ""
        status, seen = await envoy.ask(f"POST /a HTTP/1.1\r\n{lines}\r\n{body}".encode("latin-1"))
        ours = normalise("POST", "/a", headers, tls=False)
        statuses.add(status)
        if status == 200:
            assert isinstance(ours, Request), (headers, seen, ours)
            assert joined(ours.headers) == joined(seen["headers"]), headers
            assert ours.authority == dict(seen["headers"])["host"], headers
        else:
            assert isinstance(ours, Refused), (status, headers)
    assert statuses >= {200, 400, 501}


METHODS = (
    "GET POST get Get PATCH OPTIONS TRACE FOO PROPFIND M-SEARCH PURGE LINK QUERY PRI SOURCE DELETE GETX CONNECT ACL"
)


async def test_methods(envoy):
    for method in METHODS.split():
        status, _ = await envoy.ask(f"{method} /a HTTP/1.1\r\nhost: svc\r\n\r\n".encode())
        assert isinstance(normalise(method, "/a", [("host", "svc")]), Request if status == 200 else Refused), method


async def test_older_http(envoy):
    status, _ = await envoy.ask(b"GET /a HTTP/1.0\r\nhost: svc\r\n\r\n")
    assert status == 426
    assert isinstance(normalise("GET", "/a", [("host", "svc")], http_version="1.0"), Refused)


def test_nothing_that_envoy_strips_is_missing():
    """Beside what our connection manager is told to remove there is what Envoy removes by itself."""
    assert set(http.STRIPPED) <= STRIPPED
    assert set(http._STRIPPED_PREFIXES) == set(STRIPPED_PREFIXES)


async def test_stripped_headers(envoy):
    for name in (*sorted(STRIPPED), *(f"{prefix}anything" for prefix in STRIPPED_PREFIXES)):
        status, seen = await envoy.ask(f"GET /a HTTP/1.1\r\nhost: svc\r\n{name}: forged\r\n\r\n".encode())
        assert status == 200, name
        assert "forged" not in [value for _, value in seen["headers"]], name
