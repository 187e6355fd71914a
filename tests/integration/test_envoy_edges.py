"""One sidecar against peers that do not play by the rules: certificates, handshakes, paths and headers."""

import datetime as dt
import socket
import ssl

import msgspec
import pytest
from envoy_mesh import TD, Ca, Mesh, spiffe

from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    GrpcMatch,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Rule,
    Sidecar,
    TenantRules,
    TenantSource,
    Verdict,
)
from eastwest.testing.ports import free_port

CLIENT, SERVICE, FRIEND = spiffe("client"), spiffe("service"), spiffe("svc", "friend.test")
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")
WRONG_TENANT = Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_NOT_PERMITTED)


class Edge:
    """A service called ``svc`` and a way to be anybody."""

    def __init__(self, tmp_path) -> None:
        self.ca, self.friend = Ca(), Ca("friend.test")
        self.mesh = Mesh(tmp_path, {TD: self.ca.pem, "friend.test": self.friend.pem})
        self.port = free_port()

    async def start(self, *operations: OperationRules) -> None:
        self.app = await self.mesh.app("svc")
        inbound = Inbound(
            service="svc",
            address="127.0.0.1",
            port=self.port,
            protocol="http",
            mode=MtlsMode.STRICT,
            upstream=f"unix:{self.app.path}",
            operations=operations,
        )
        sidecar = Sidecar(
            spiffe_id=SERVICE,
            version="v1",
            known_callers=(CLIENT, FRIEND, SERVICE),
            inbound=(inbound,),
            federated_callers=("friend.test",),
        )
        self.workload = await self.mesh.add(sidecar, self.ca.identity(SERVICE))
        await self.mesh.settled()

    async def as_(self, *uris: str, ca: Ca | None = None, **options):
        return await self.mesh.tls(self.port, (ca or self.ca).identity(*uris, **options))


@pytest.fixture
async def edge(tmp_path):
    edge = Edge(tmp_path)
    try:
        yield edge
    finally:
        await edge.mesh.close()


def get(path: str, name: str = "svc:pub:read", **more) -> OperationRules:
    cells = (Cell(callers=(CLIENT, FRIEND), rule=ALLOW),)
    return OperationRules(name=name, match=HttpMatch(method="GET", path=path), **{"cells": cells, **more})


async def test_who_is_known(edge):
    await edge.start(get("/pub"))
    for known, ca in ((CLIENT, edge.ca), (FRIEND, edge.friend)):
        reply = await (await edge.as_(known, ca=ca)).ask("GET", "/pub")
        assert reply.status == 200
        assert dict(reply.seen["headers"])["x-eastwest-caller"] == known
    for unknown, ca in ((spiffe("stranger"), edge.ca), (spiffe("svc2", "friend.test"), edge.friend)):
        reply = await (await edge.as_(unknown, ca=ca)).ask("GET", "/pub")
        assert (reply.status, reply.code) == (403, "UNKNOWN_CALLER")
        row = await edge.mesh.decision(lambda d, u=unknown: d.caller == u)
        assert (row.code, row.enforced, row.claimed) == (DecisionCode.UNKNOWN_CALLER, True, False)


async def test_a_federated_leaf_that_also_claims_our_name_is_nobody(edge):
    await edge.start(get("/pub"))
    http = await edge.as_(FRIEND, CLIENT, ca=edge.friend)
    reply = await http.ask("GET", "/pub")
    assert (reply.status, reply.code) == (403, "UNKNOWN_CALLER")
    row = await edge.mesh.decision(lambda d: "," in d.caller)
    assert (row.caller, row.claimed) == (f"{FRIEND},{CLIENT}", True)


async def test_refused_handshakes_are_rows_with_causes(edge):
    await edge.start(get("/pub"))
    rogue = Ca()
    attempts = [
        ("expired", DecisionCode.CERTIFICATE_REFUSED, edge.ca.identity(CLIENT, not_after=dt.timedelta(minutes=-1))),
        ("unknown_authority", DecisionCode.CERTIFICATE_REFUSED, rogue.identity(CLIENT)),
        ("unknown_trust_domain", DecisionCode.CERTIFICATE_REFUSED, edge.ca.identity(spiffe("x", "far.test"))),
        ("no_certificate", DecisionCode.MTLS_REQUIRED, None),
    ]
    for cause, code, identity in attempts:
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            await (await edge.mesh.tls(edge.port, identity)).ask("GET", "/pub")
        row = await edge.mesh.decision(lambda d, c=cause: d.cause == c)
        assert (row.code, row.verdict, row.enforced) == (code, Verdict.DENY, True)
        assert row.claimed is (identity is not None)
        assert row.caller == (identity.spiffe_id if identity else "")
        assert row.source == "127.0.0.1"
    context = edge.mesh.context(edge.ca.identity(CLIENT))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        await edge.mesh.tls(edge.port, None, context=context)
    row = await edge.mesh.decision(lambda d: d.cause == "tls_version")
    assert row.code == DecisionCode.MTLS_REQUIRED
    assert not edge.app.seen


async def test_a_session_cannot_be_resumed(edge):
    await edge.start(get("/pub"))
    context = edge.mesh.context(edge.ca.identity(CLIENT))

    def connect(session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", edge.port), 10) as raw,
            context.wrap_socket(raw, server_hostname="x", session=session) as tls,
        ):
            tls.sendall(b"GET /pub HTTP/1.1\r\nhost: svc\r\n\r\n")
            assert tls.recv(12) == b"HTTP/1.1 200"
            return tls.session_reused, tls.session

    import asyncio

    _, session = await asyncio.to_thread(connect, None)
    assert session is None or not session.has_ticket
    reused, _ = await asyncio.to_thread(connect, session)
    assert not reused


async def test_paths_that_can_be_read_two_ways_do_not_pass(edge):
    await edge.start(get("/pub/{item}"), get("/pub", "svc:pub:list"), get("/pub/{item}/parts/{part}"))
    refused = (
        "/pub/..%2fadmin",
        "/pub/..%2Fadmin",
        "/pub/..%5cadmin",
        "/pub/%2e%2e/admin",
        "/pub/../admin",
        "/pub/..;/admin",
        "/pub/a;x=1",
        "/pub;x",
        "/pub/x%00",
        "/pub/x%0a",
        "/pub/x%0d%0a",
        "/pub/%252e%252e%252fadmin",
        "/pub/x%20y",
        "/pub/",
        "/pub/a/",
        "/pub/a/b",
        "/pub/%c0%ae%c0%ae/admin",
        "/admin",
        "/PUB/a",
        "/pub\\..\\admin",
        "/pub/a%3fb",
        "/pub/a%23b",
        "/pub/\xe9",
        "/pubs",
        "/",
        "//admin",
        "/pub/a/parts/",
    )
    for path in refused:
        reply = await (await edge.as_(CLIENT)).ask("GET", path)
        assert reply.status in {400, 403}, path
        assert reply.code in {"UNLISTED_OPERATION", "REQUEST_REFUSED"}, path
    assert not edge.app.seen
    for path, seen in (
        ("/pub//a", "/pub/a"),
        ("//pub/a", "/pub/a"),
        ("/pub/./a", "/pub/a"),
        ("/x/../pub/a", "/pub/a"),
        ("/%70ub/a", "/pub/a"),
        ("/pub/a?q=/../admin&r=%2f", "/pub/a?q=/../admin&r=%2f"),
        ("/pub/...", "/pub/..."),
        ("/pub/a/parts/b~1", "/pub/a/parts/b~1"),
    ):
        reply = await (await edge.as_(CLIENT)).ask("GET", path)
        assert (reply.status, reply.seen["path"] if reply.status == 200 else reply.code) == (200, seen), path
    row = await edge.mesh.decision(lambda d: d.cause != "")
    assert (row.code, row.enforced, row.caller) == (DecisionCode.UNLISTED_OPERATION, True, CLIENT)


async def test_headers_that_speak_for_others_are_gone(edge):
    await edge.start(get("/pub"))
    spoofs = [
        ("x-eastwest-caller", spiffe("admin")),
        ("X-Eastwest-Caller", spiffe("admin")),
        ("x-eastwest-anything", "1"),
        ("x-forwarded-client-cert", f"URI={spiffe('admin')}"),
        ("x-original-url", "/admin"),
        ("x-rewrite-url", "/admin"),
        ("x-http-method-override", "DELETE"),
        ("x-http-method", "DELETE"),
        ("x-method-override", "DELETE"),
        ("forwarded", "for=1.2.3.4"),
        ("x-envoy-original-path", "/admin"),
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-upstream-rq-timeout-ms", "1"),
        ("x-forwarded-host", "admin"),
        ("x-forwarded-prefix", "/admin"),
        ("x-mine", "stays"),
    ]
    reply = await (await edge.as_(CLIENT)).ask("GET", "/pub", *spoofs)
    assert reply.status == 200
    headers = reply.seen["headers"]
    assert [value for name, value in headers if name == "x-eastwest-caller"] == [CLIENT]
    (xfcc,) = [value for name, value in headers if name == "x-forwarded-client-cert"]
    assert xfcc.endswith(f"URI={CLIENT}")
    allowed = {"host", "x-eastwest-caller", "x-forwarded-client-cert", "x-request-id", "x-forwarded-proto"}
    assert {name for name, _ in headers} - {"content-length"} == allowed | {"x-mine"}
    for name in ("x_eastwest_caller", "transfer_encoding", "x_forwarded_client_cert"):
        reply = await (await edge.as_(CLIENT)).ask("GET", "/pub", (name, "a"))
        assert (reply.status, reply.code) == (400, "REQUEST_REFUSED")


@pytest.mark.parametrize("how", ["certificates", "origins"])
async def test_headers_by_which_applications_are_led_astray_are_gone(edge, how):
    await edge.start(get("/pub"))
    names = {
        "certificates": "client-cert client-cert-chain x-client-cert x-ssl-client-cert ssl-client-subject-dn",
        "origins": "forwarded-for x-forwarded x-forwarded-ssl x-forwarded-server front-end-https x-url-scheme x-host "
        "x-http-host-override x-override-url true-client-ip x-client-ip x-cluster-client-ip proxy",
    }[how].split()
    http = await edge.as_(CLIENT)
    reply = await http.ask("GET", "/pub", *((spelt, "x") for name in names for spelt in (name, name.title())))
    assert not {name for name, _ in reply.seen["headers"]} & set(names)
    reply = await http.ask("GET", "/pub", ("x-forwarded-proto", "http"))
    assert ("x-forwarded-proto", "https") in map(tuple, reply.seen["headers"])


async def raw(edge, text: bytes):
    """The answer to exactly these bytes on a connection of their own, and what the application saw of it."""
    http, before = await edge.as_(CLIENT), len(edge.app.seen)
    http.writer.write(text)
    return await http.reply(), edge.app.seen[before:]


async def test_requests_that_can_be_delimited_two_ways_do_not_pass(edge):
    await edge.start(get("/pub"), get("/pub/{x}", "svc:pub:one"))
    for head in (
        b"GET /pub HTTP/1.1\r\nhost: svc\r\ncontent-length: 4\r\ntransfer-encoding: chunked",
        b"GET /pub HTTP/1.1\r\nhost: svc\r\ncontent-length: 0\r\ncontent-length: 4",
        b"GET /pub HTTP/1.1\r\nhost: svc\r\ncontent-length: 0\r\ncontent-length: 0",
        b"GET /pub HTTP/1.1\r\nhost: svc\r\ncontent-length: +0",
        b"GET /pub HTTP/1.1\r\nhost: svc\r\ntransfer-encoding: xchunked",
        b"GET /pub HTTP/1.1\r\nhost: svc\r\ntransfer-encoding: identity, chunked",
        b"GET /pub HTTP/1.1\r\nhost: svc\r\nx-a: b\0c",
        b"GET /pub HTTP/1.1\r\nhost: svc\r\nx-tenant : acme",
        b"GET /pub HTTP/1.1\r\nhost: svc\r\n:path: /admin",
        b"GET /pub HTTP/1.1",
        b"GET /pub HTTP/1.0\r\nhost: svc",
        b"GET /pub HTTP/2.0\r\nhost: svc",
        b"GET /pub /x HTTP/1.1\r\nhost: svc",
        b"GET pub HTTP/1.1\r\nhost: svc",
        b"GET /pub#/x HTTP/1.1\r\nhost: svc",
        b"get /pub HTTP/1.1\r\nhost: svc",
        b"Get /pub HTTP/1.1\r\nhost: svc",
        b"GETS /pub HTTP/1.1\r\nhost: svc",
        b"OPTIONS * HTTP/1.1\r\nhost: svc",
        b"GET /pub HTTP/1.1\r\nhost: svc\r\nconnection: upgrade\r\nupgrade: websocket",
    ):
        reply, seen = await raw(edge, head + b"\r\n\r\n")
        assert (reply.status >= 400, reply.code, seen) == (True, "REQUEST_REFUSED", []), head
    reply, seen = await raw(edge, b"CONNECT svc:80 HTTP/1.1\r\nhost: svc\r\n\r\n")
    assert (reply.code, seen) == ("UNLISTED_OPERATION", [])


async def test_what_is_spelt_oddly_reaches_the_application_as_it_was_decided(edge):
    await edge.start(get("/pub"), get("/pub/{x}", "svc:pub:one"))
    for head, path in (
        (b"GET /pub HTTP/1.1\nhost: svc\nx-a: b\n\n", "/pub"),  # bare line feeds
        (b"\r\n\r\nGET /pub HTTP/1.1\r\nhost: svc\r\nx-a: b\r\n\r\n", "/pub"),
        (b"GET  /pub\t HTTP/1.1\r\nhost: svc\r\nx-a: b\r\n\r\n", "/pub"),
        (b"GET http://svc/x/../pub HTTP/1.1\r\nhost: other\r\nx-a: b\r\n\r\n", "/pub"),
        (b"GET /pub HTTP/1.1\r\nhost: svc\r\nx-a:\r\n b\r\n\r\n", "/pub"),  # a folded line
    ):
        reply, seen = await raw(edge, head)
        assert reply.status == 200, head
        ((method, seen_path, headers),) = seen
        assert (method, seen_path) == ("GET", path)
        assert [value for name, value in headers if name == "host"] == ["svc"]
        assert [value for name, value in headers if name == "x-a"] == ["b"]
    # What a client declares to belong to its hop goes no further, and is not decided by either.
    nominated = b"GET /pub HTTP/1.1\r\nhost: svc\r\nx-a: b\r\nconnection: close, x-a, x-eastwest-caller\r\n\r\n"
    reply, ((_, _, headers),) = await raw(edge, nominated)
    assert [(n, v) for n, v in headers if n in {"x-a", "x-eastwest-caller"}] == [("x-eastwest-caller", CLIENT)]


async def test_a_request_has_one_host(edge):
    await edge.start(get("/pub"))
    for hosts in (["svc"], ["svc."], ["SVC"], ["svc:80"], ["a_b.c-d:8443"], ["[::1]:80"], ["10.0.0.1"]):
        reply, ((_, _, headers),) = await raw(edge, request(*hosts))
        assert (reply.status, [value for name, value in headers if name == "host"]) == (200, hosts)
    two_ways = ["a,b", "svc@evil", "", "svc/x", "a b", "svc:80:80", "svc:x", "%73vc"]
    for hosts in (["a", "b"], ["svc", "svc"], *([one] for one in two_ways)):
        reply, seen = await raw(edge, request(*hosts))
        assert reply.code in {"UNLISTED_OPERATION", "REQUEST_REFUSED"}, hosts
        assert not seen


def request(*hosts: str) -> bytes:
    return b"GET /pub HTTP/1.1\r\n" + b"".join(b"host: %s\r\n" % host.encode() for host in hosts) + b"\r\n"


async def test_a_tenant_in_a_header_is_one_value_or_none(edge):
    cells = (Cell(callers=(CLIENT,), tenants=TenantRules(by_tenant={"acme": ALLOW}, otherwise=WRONG_TENANT)),)
    await edge.start(get("/pub", tenant=TenantSource(header="x-tenant"), cells=cells))
    http = await edge.as_(CLIENT)
    missing, wrong = "TENANT_MISSING", "TENANT_NOT_PERMITTED"
    for headers, code, tenant in (
        (["acme"], "", "acme"),
        (["globex"], wrong, "globex"),
        ([], missing, ""),
        ([""], missing, ""),
        (["acme", "acme"], missing, "acme,acme"),
        (["acme", "globex"], missing, "acme,globex"),
        (["acme,globex"], missing, "acme,globex"),
        (["ACME"], wrong, "ACME"),
        (["acme globex"], missing, "acme globex"),
        (["  acme \t "], "", "acme"),
        (["acm\xe9"], missing, "acm!"),  # as the log gives what is no UTF-8
    ):
        reply = await http.ask("GET", "/pub", *(("x-tenant", value) for value in headers))
        assert reply.code == code, headers
        row = await edge.mesh.decision(lambda d, r=reply.headers["x-request-id"]: d.reference == r)
        assert row.tenant == tenant
        assert row.code == (code or "ALLOWED")


async def test_grpc_methods_are_operations(edge):
    send = OperationRules(
        name="svc:messages:send",
        match=GrpcMatch(method="notify.v1.Notify/Send"),
        cells=(Cell(callers=(CLIENT,), rule=ALLOW),),
    )
    await edge.start(send)
    http = await edge.as_(CLIENT)
    assert (await http.ask("POST", "/notify.v1.Notify/Send")).status == 200
    assert (await http.ask("GET", "/notify.v1.Notify/Send")).code == "UNLISTED_OPERATION"
    assert (await http.ask("POST", "/notify.v1.Notify/SendX")).code == "UNLISTED_OPERATION"
    refused = await http.ask("POST", "/notify.v1.Notify/Read", ("content-type", "application/grpc"))
    assert (refused.headers["grpc-status"], refused.headers["x-eastwest-code"]) == ("7", "UNLISTED_OPERATION")


async def test_the_more_literal_template_wins_and_longer_prefixes_keep_shorter_templates(edge):
    deny = Rule(verdict=Verdict.DENY, code=DecisionCode.FORBIDDEN_BY_POLICY)
    await edge.start(
        get("/{a}/{b}/x", "svc:wide:read"),
        get("/users/{user}", "svc:user:read"),
        get("/users/me", "svc:me:read", cells=(), otherwise=deny),
        get("/users/{user}/x", "svc:users:x"),
    )
    http = await edge.as_(CLIENT)
    for path, operation in (
        ("/users/me", "svc:me:read"),
        ("/users/mel", "svc:user:read"),
        ("/users/me/x", "svc:users:x"),
        ("/user/me/x", "svc:wide:read"),
        ("/users/bob/x?y", "svc:users:x"),
    ):
        reply = await http.ask("GET", path)
        row = await edge.mesh.decision(lambda d, r=reply.headers["x-request-id"]: d.reference == r)
        assert row.operation == operation, path


async def test_without_policy_the_port_does_not_open(edge):
    await edge.start(get("/pub"))
    from eastwest.mesh import names
    from eastwest.mesh.snapshot import Snapshot

    other = free_port()
    inbound = msgspec.structs.replace(edge.workload.sidecar.inbound[0], service="late", port=other)
    sidecar = msgspec.structs.replace(
        edge.workload.sidecar, version="v2", inbound=(*edge.workload.sidecar.inbound, inbound)
    )
    edge.mesh.publish(edge.workload, sidecar)
    whole = edge.workload.snapshots.value
    held_back = names.operations_filter("late")
    edge.workload.snapshots.set(
        Snapshot.of("v2", [r for named in whole.resources.values() for r in named.values() if r.name != held_back])
    )
    asked = (names.EXTENSION, names.plaintext_filter("late"))
    await edge.mesh.until(lambda: asked in {a[:2] for a in edge.workload.status.session.acked})
    with pytest.raises(ConnectionRefusedError):
        await edge.mesh.plain(other)
    edge.workload.snapshots.set(whole)
    await edge.mesh.settled()
    await edge.mesh.opened(other)
    reply = await (await edge.mesh.plain(other)).ask("GET", "/pub")
    assert (reply.status, reply.code) == (403, "MTLS_REQUIRED")
