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
from envoy_mesh import Ca, Mesh
from google.protobuf import any_pb2, json_format
from raw_http import Http2

from eastwest.agent.envoy import sidecar_command
from eastwest.mesh import http, replies
from eastwest.mesh.settings import Settings
from eastwest.policy.headers import ENVOYS_OWN, KEPT_ONCE, REMOVED, REMOVED_PREFIXES
from eastwest.policy.normalise import MAX_HEADERS, Refused, Request, normalise
from eastwest.testing.ports import free_port

STRIPPED = sorted(ENVOYS_OWN.union(REMOVED))


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
        self._http2 = None

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
        if self._http2 is not None:
            await self._http2.close()
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

    async def ask2(self, method: str, target: str, headers):
        """The same over HTTP/2, field by field: (status, what the application was handed); 0 where the stream ends.

        ``host`` as the first header is the authority.
        """
        if self._http2 is None or not self._http2.open:
            if self._http2 is not None:
                await self._http2.close()
            options = {"ssl": self._mesh.context(None), "server_hostname": "x"} if self.tls else {}
            if self.tls:
                options["ssl"].set_alpn_protocols(["h2"])
            self._http2 = Http2(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        fields = [(":method", method)]
        if method != "CONNECT" or target:
            fields += [(":scheme", "https" if self.tls else "http"), (":path", target)]
        if headers and headers[0][0] == "host":
            headers = [(":authority", headers[0][1]), *headers[1:]]
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in [*fields, *headers]]
        answer = await self._http2.exchange(fields)
        return answer.status, json.loads(answer.body) if answer.status == 200 else None

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
    *["svc2", "h_h", "a b", "a/b", "svc:80", "Trailers", "trailers;q=1", "trailers ,x", "u@h", "svc,b"],
]
# What every Envoy sets anew, and what delimits the body.
SET_ANEW = {
    *["host", "x-forwarded-proto", "x-request-id", "x-envoy-external-address", "x-envoy-internal"],
    *["content-length", "transfer-encoding", "expect"],
}


def random_header(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(NAMES) if rng.random() < 0.85 else rng.choice(STRIPPED)
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
        else:
            assert isinstance(ours, Refused), (target, status, ours)
    return statuses


async def compare_targets_of_http2(envoy: Envoy, count: int, seed: int) -> set[int]:
    rng = random.Random(seed)
    statuses = set()
    for _ in range(count):
        target = random_target(rng)
        host = rng.choice(HOSTS) if rng.random() < 0.2 else "svc"
        status, seen = await envoy.ask2("GET", target, [("host", host)])
        ours = normalise("GET", target, [("host", host)], http_version="2", tls=envoy.tls)
        statuses.add(status)
        if status == 200:
            assert isinstance(ours, Request), (target, host, seen, ours)
            assert (ours.target, ours.authority) == (seen["path"], dict(seen["headers"])["host"]), (target, seen, ours)
        else:
            assert isinstance(ours, Refused), (target, host, status, ours)
    return statuses


async def test_targets(envoy):
    assert await compare_targets(envoy, 4000, 1) >= {200, 400, 404}


async def test_targets_over_tls(secure):
    assert await compare_targets(secure, 600, 2) >= {200, 400}


async def test_targets_over_http2(envoy):
    assert await compare_targets_of_http2(envoy, 3000, 4) >= {0, 200, 400}


async def test_targets_over_http2_and_tls(secure):
    assert await compare_targets_of_http2(secure, 500, 5) >= {0, 200, 400}


async def test_every_character(envoy):
    for number in range(1, 256):
        for text in (chr(number), f"%{number:02x}", f"%{number:02X}"):
            if text in {"\n", "\r", " "}:
                continue  # these end the target, and then it is another one
            for target in (f"/a{text}b", f"/a?b{text}c"):
                _, seen = await envoy.ask(f"GET {target} HTTP/1.1\r\nhost: svc\r\n\r\n".encode("latin-1"))
                ours = normalise("GET", target, [("host", "svc")], tls=False)
                assert (ours.target if isinstance(ours, Request) else None) == (seen and seen["path"]), target


async def test_every_character_over_http2(envoy):
    for number in range(256):
        text = chr(number)
        for target in (f"/a{text}b", f"/a?b{text}c"):
            _, seen = await envoy.ask2("GET", target, [("host", "svc")])
            ours = normalise("GET", target, [("host", "svc")], http_version="2", tls=False)
            assert (ours.target if isinstance(ours, Request) else None) == (seen and seen["path"]), target
        for method, headers in (
            (f"G{text}", [("host", "svc")]),
            ("GET", [("host", f"s{text}c")]),
            ("GET", [("host", "svc"), ("host", f"s{text}c")]),
            ("GET", [("host", "svc"), (f"x{text.lower()}a", "a")]),
            ("GET", [("host", "svc"), ("x-a", f"a{text}b")]),
        ):
            status, _ = await envoy.ask2(method, "/a", headers)
            ours = normalise(method, "/a", headers, http_version="2", tls=False)
            assert isinstance(ours, Request) == (status == 200), (method, headers, status, ours)


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


async def test_headers_over_http2(envoy):
    rng = random.Random(6)
    statuses = set()
    for _ in range(4000):
        made = [random_header(rng) for _ in range(rng.randint(0, 3))]
        headers = [("host", "svc")] * (rng.random() < 0.97)
        headers += [(name.lower(), value) for name, value in made]
        # There is no body.
        if any(name == "content-length" and value.strip("0") for name, value in headers):
            continue
        status, seen = await envoy.ask2("POST", "/a", headers)
        ours = normalise("POST", "/a", headers, http_version="2", tls=False)
        statuses.add(status)
        if status == 200:
            assert isinstance(ours, Request), (headers, seen, ours)
            # The application is spoken to in HTTP/1.1, which has no blanks around values.
            assert joined((name, value.strip(" \t")) for name, value in ours.headers) == joined(seen["headers"]), (
                headers
            )
            assert ours.authority == dict(seen["headers"])["host"], headers
        else:
            assert isinstance(ours, Refused), (status, headers)
    assert statuses >= {0, 200}


async def test_the_number_of_headers(envoy):
    for count in range(MAX_HEADERS - 6, MAX_HEADERS + 3):
        headers = [("host", "svc"), *((f"x-{number}", "a") for number in range(count))]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        status, _ = await envoy.ask(f"GET /a HTTP/1.1\r\n{lines}\r\n".encode())
        status2, _ = await envoy.ask2("GET", "/a", headers)
        for version, found in (("1.1", status), ("2", status2)):
            ours = normalise("GET", "/a", headers, http_version=version, tls=False)
            assert isinstance(ours, Request) == (found == 200), (version, count, found)


async def test_repeated_headers(envoy):
    """What is kept once arrives once; cookies are one header in HTTP/2; all others come as often as they came."""
    names = (*sorted(KEPT_ONCE - {"x-request-id"}), "cookie", "accept-language", "priority", "date", "x-mine", "prefer")
    for name in names:
        for values in (("b", "a"), ("", "b"), ("b", ""), ("",), ("b", "", "a"), ("", "")):
            headers = [("host", "svc"), *((name, value) for value in values)]
            lines = "".join(f"{one}: {value}\r\n" for one, value in headers)
            _, seen = await envoy.ask(f"GET /a HTTP/1.1\r\n{lines}\r\n".encode())
            _, seen2 = await envoy.ask2("GET", "/a", headers)
            for version, found in (("1.1", seen), ("2", seen2)):
                ours = normalise("GET", "/a", headers, http_version=version, tls=False)
                assert isinstance(ours, Request)
                told = [value for one, value in found["headers"] if one == name]
                assert [value.strip() for one, value in ours.headers if one == name] == told, (version, name, values)


async def test_who_waits_for_leave_to_go_on(envoy):
    for values in (("100-continue",), ("100-Continue",), ("100-continue", "100-continue"), ("other",)):
        headers = [("host", "svc"), *(("expect", value) for value in values)]
        # Two answers come where the first is the leave: on a connection of its own, which ends with them.
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        reader, writer = await asyncio.open_connection("127.0.0.1", envoy.port)
        writer.write(f"GET /a HTTP/1.1\r\nconnection: close\r\n{lines}\r\n".encode())
        told = json.loads((await asyncio.wait_for(reader.read(), 10)).rpartition(b"\r\n\r\n")[2])
        writer.close()
        ours = normalise("GET", "/a", headers, tls=False)
        assert isinstance(ours, Request)
        handed_on = [value for name, value in told["headers"] if name == "expect"]
        assert [value for name, value in ours.headers if name == "expect"] == handed_on, values


async def test_the_size_of_a_request(envoy):
    """Both versions are counted to the byte, each in its own way."""
    for version, largest in (("1.1", 61_405), ("2", 61_398)):
        for size, status in ((largest, 200), (largest + 1, 0)):
            headers = [("host", "svc"), ("x", "y" * size)]
            if version == "2":
                found, _ = await envoy.ask2("GET", "/a", headers)
            else:
                lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
                found, _ = await envoy.ask(f"GET /a HTTP/1.1\r\n{lines}\r\n".encode())
            ours = normalise("GET", "/a", headers, http_version=version, tls=False)
            assert isinstance(ours, Request) == (found == 200) == (status == 200), (version, size, found)


METHODS = (
    *["GET", "POST", "get", "Get", "PATCH", "OPTIONS", "TRACE", "FOO", "PROPFIND", "M-SEARCH", "PURGE", "LINK"],
    *["QUERY", "PRI", "SOURCE", "DELETE", "GETX", "CONNECT", "ACL", "G,T", "G/", "a" * 200, "!#$%&'*+-.^_`|~9"],
)


async def test_methods(envoy):
    for method in METHODS:
        status, _ = await envoy.ask(f"{method} /a HTTP/1.1\r\nhost: svc\r\n\r\n".encode())
        assert isinstance(normalise(method, "/a", [("host", "svc")]), Request if status == 200 else Refused), method
        status, _ = await envoy.ask2(method, "/a", [("host", "svc")])
        ours = normalise(method, "/a", [("host", "svc")], http_version="2")
        assert isinstance(ours, Request if status == 200 else Refused), method
    for value in ("text/plain", "", " "):
        headers = [("host", "svc"), ("content-type", value)]
        status, _ = await envoy.ask2("QUERY", "/a", headers)
        ours = normalise("QUERY", "/a", headers, http_version="2")
        assert isinstance(ours, Request if status == 200 else Refused), value


async def test_connect(envoy):
    """No operation is of this method, so that it is refused in any case; 404 says that the filters were asked."""
    targets = ["", "svc", "svc:443", "svc:", ":443", "svc:x", "svc:0", "svc:65535", "svc:65536", "[::1]:443", "[::1]"]
    targets += ["[zz]:1", "u@h:1", "*", "/a", "http://h/a", "svc/x", "a,b:1", "a_b:1", "svc:1:2", "svc:443#", "h%41:1"]
    found = set()
    for target in targets:
        for host in ("svc", "a,b", "", "u@h", "a|"):
            headers = [("host", host)]
            if target:
                status, _ = await envoy.ask(f"CONNECT {target} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
                ours = normalise("CONNECT", target, headers)
                assert isinstance(ours, Request if status == 404 else Refused), (target, host, status, ours)
                found.add(("1.1", status))
            status, _ = await envoy.ask2("CONNECT", target, headers)
            ours = normalise("CONNECT", target, headers, http_version="2")
            assert isinstance(ours, Request if status == 404 else Refused), (target, host, status, ours)
            assert not isinstance(ours, Request) or not ours.matched
            found.add(("2", status))
    assert found == {("1.1", 400), ("1.1", 404), ("2", 0), ("2", 404)}


async def test_older_http(envoy):
    status, _ = await envoy.ask(b"GET /a HTTP/1.0\r\nhost: svc\r\n\r\n")
    assert status == 426
    assert isinstance(normalise("GET", "/a", [("host", "svc")], http_version="1.0"), Refused)


async def test_stripped_headers(envoy):
    """Beside what our connection manager is told to remove there is what Envoy removes by itself."""
    for name in (*STRIPPED, *(f"{prefix}anything" for prefix in REMOVED_PREFIXES)):
        status, seen = await envoy.ask(f"GET /a HTTP/1.1\r\nhost: svc\r\n{name}: forged\r\n\r\n".encode())
        assert status == 200, name
        assert "forged" not in [value for _, value in seen["headers"]], name
