"""Requests that try to be read in two ways: Cedar, the table, the SDK and a real Envoy give the answer that is written
beside each, and the application is handed what was decided on and nothing else. The cases are in ``tests/corpora``.
"""

import asyncio
import contextlib
import datetime as dt
import ssl
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from envoy_mesh import Ca
from equality_world import SERVER, Asked, World
from raw_http import Http1, Http2
from ruamel.yaml import YAML

from eastwest.errors import Unauthenticated
from eastwest.mesh.secrets import Identity
from eastwest.policy.transaction import HEADER, Token
from eastwest.rpc.workload_client import OwnSvid
from eastwest.sdk.asgi import EnforcementMiddleware
from eastwest.sdk.peers import verify_peer
from eastwest.sdk.source import RuleSource
from eastwest.sdk.tls import ServerTls
from eastwest.sdk.uvicorn_tls import TlsProtocol
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.testing.calls import Brought, Call, Defect, fingerprint
from eastwest.testing.estates import FOREIGN, TRUST_DOMAIN
from eastwest.testing.ports import free_port

CORPORA = Path(__file__).parents[1] / "corpora"
OURS = f"spiffe://{TRUST_DOMAIN}/prod/d1"
CALLERS = {
    "client": f"{OURS}/client",
    "admin": f"{OURS}/admin",
    "friend": f"spiffe://{FOREIGN}/friend",
    "stranger": f"{OURS}/nobody",
}
CLIENT = CALLERS["client"]


def cases(name: str) -> list[dict]:
    found = YAML(typ="safe").load(CORPORA / f"{name}.yaml")
    assert found
    return found


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    root = CORPORA / "estate"
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    try:
        world.evaded = await world.enforce(files)
        yield world
    finally:
        await world.close()


def call_of(case: dict, world: World, service: str, method: str, path: str) -> Call:
    caller = CALLERS[case.get("as", "client")]
    call = Call(
        caller,
        case.get("to", service),
        case.get("method", method),
        case.get("path", path),
        tuple((name, value) for name, value in case.get("headers", ())),
        host=case.get("host", "svc"),
    )
    tokens = tuple(brought_of(said, call, world) for said in case.get("tokens", ()))
    # A header with {} in it holds a good token, in a place that is not for one.
    if any("{}" in value for _, value in call.headers):
        text = world.mint.text(Brought(token_of({}, call, world)), int(dt.datetime.now(dt.UTC).timestamp()))
        headers = tuple((name, value.replace("{}", text)) for name, value in call.headers)
        call = Call(call.caller, call.service, call.method, call.target, headers, host=call.host)
    return Call(call.caller, call.service, call.method, call.target, call.headers, tokens, call.host)


_serial = count()


def token_of(said: dict, call: Call, world: World) -> Token:
    own = world.certificate(call.caller)
    return Token(
        id=f"e-{next(_serial)}",
        transaction="x-1",
        caller=said.get("caller", call.caller),
        certificate=fingerprint("another") if "certificate" in said else own,
        action=said.get("action", f"pay:{call.target.partition('?')[0].rpartition('/')[2]}:do"),
        resource=said.get("resource", call.service),
        origin=said.get("origin", call.caller),
        expires=int(dt.datetime.now(dt.UTC).timestamp()) + 120,
        tenant=said.get("tenant", ""),
        approval="a-1" if "approver" in said else "",
        approver=said.get("approver", ""),
    )


def brought_of(said: dict, call: Call, world: World) -> Brought:
    defect = Defect(said["defect"]) if "defect" in said else None
    header = said.get("header", HEADER)
    return Brought(token_of(said, call, world), defect, said.get("text"), header)


@pytest.mark.parametrize(
    ("corpus", "service", "method", "path"),
    [
        ("paths", "shop", "GET", "/"),
        ("methods", "shop", "GET", "/pub/a"),
        ("headers", "shop", "GET", "/pub/a"),
        ("tokens", "pay", "POST", "/refund"),
    ],
)
async def test_every_decider_gives_the_answer_that_is_written(world, corpus, service, method, path):
    wrong, made, allowed = [], [], 0
    for case in cases(corpus):
        for http2 in (False, True):
            call = call_of(case, world, service, method, path)
            code = case.get("h2" if http2 else "h1", case.get("is", "ALLOWED"))
            if code == "none":
                continue
            asked = Asked(call, http2, world.headers(call))
            expected = world.expected(world.evaded, asked)
            if expected.code != code:
                wrong.append(f"HTTP/{asked.version} {case}: Cedar says {expected.code}")
            elif code == "ALLOWED":
                allowed += 1
                names = {name for name, _ in expected.request.headers}  # and the application's are the same, see below
                if not names.isdisjoint(case.get("gone", ())) or not names.issuperset(case.get("kept", ())):
                    wrong.append(f"HTTP/{asked.version} {case}: {names} are handed on")
                if expected.request.target != case.get("seen", call.target):
                    wrong.append(f"HTTP/{asked.version} {case}: {expected.request.target} is handed on")
            made.append((call, http2, case))
    await world.judge(world.evaded, [(call, http2) for call, http2, _ in made])
    wrong += [str(difference) for difference in world.count.differences]
    assert not wrong, "\n".join(wrong)
    assert world.count.requests == len(made) > 50
    again = world.count.codes["TOKEN_USED"]
    assert len(world.recorder.seen) == world.count.codes["ALLOWED"] == allowed > 10
    assert not world.recorder.unreadable
    assert (again > 0) == (corpus == "tokens")


async def test_nothing_is_smuggled_by_http1(world):
    wrong = []
    for case in cases("smuggling"):
        before = len(world.recorder.seen)
        connection = await Http1.tls(world.port("shop"), world.context(CLIENT, "http/1.1"))
        try:
            await connection.send(_bytes_of(case))
            codes = [world.told(await connection.answer())[0] for _ in case["answers"]]
            if codes != case["answers"]:
                wrong.append(f"{case['name']}: {codes} instead of {case['answers']}")
                continue
            stays = case.get("open", False)
            if stays is False and not await connection.closed():
                wrong.append(f"{case['name']}: what came after the refusal might be read as a request")
            # The next request of the connection is read where the last one ended.
            if stays is True and world.told(await connection.ask(b"DELETE", b"/pub/a"))[0] != "OPERATION_NOT_PERMITTED":
                wrong.append(f"{case['name']}: the next request was not read")
        finally:
            await connection.close()
        requests = world.recorder.seen[before:]
        seen = [f"{s.method.decode()} {s.target.decode('latin-1')} {s.body.decode('latin-1')}" for s in requests]
        if seen != case.get("seen", []):
            wrong.append(f"{case['name']}: the application saw {seen}")
        names = {name.lower().decode() for request in requests for name, _ in request.headers}
        if not names.isdisjoint(case.get("gone", ())):
            wrong.append(f"{case['name']}: the application saw headers {names}")
        for name, value in case.get("values", {}).items():
            if any(request.values(name) != [value.encode("latin-1")] for request in requests):
                wrong.append(f"{case['name']}: the application saw {[r.values(name) for r in requests]} for {name}")
        if any(request.values("x-eastwest-caller") != [CLIENT.encode()] for request in requests):
            wrong.append(f"{case['name']}: the application took somebody else for the caller")
    assert not wrong, "\n".join(wrong)
    assert not world.recorder.unreadable


LENIENT = {"two lengths that agree": "POST /pub/a abc", "a list of lengths": "POST /pub/a abc"}
"""What h11 takes for one request, and Envoy for none."""
LAST = b"GET /pub/a HTTP/1.1\r\nHost: svc\r\nX-Last: 1\r\nConnection: close\r\n\r\n"


async def test_a_server_with_the_sdk_reads_no_request_that_a_sidecar_would_not(world):
    """Uvicorn reads them, the middleware decides. It may refuse more than Envoy does, and hands on nothing else."""
    ours = world.authorities[TRUST_DOMAIN]
    own = ours.identity(SERVER)
    roots = (_der(ours.pem),)
    source = RuleSource("/nowhere.sock")
    source.rules = replace(world.evaded.rules, bundles={TrustDomain.parse(TRUST_DOMAIN): roots})
    source.identity = OwnSvid(SpiffeId.parse(SERVER), (_der(own.chain),), own.key, roots)
    seen: list[tuple[str, dict]] = []

    async def application(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return  # a body that never came whole
            body, more = body + message.get("body", b""), message.get("more_body", False)
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        target = (scope["raw_path"] + query).decode("latin-1")
        seen.append((f"{scope['method']} {target} {body.decode('latin-1')}", dict(scope["headers"])))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    port, tls = free_port(), ServerTls(source)
    config = uvicorn.Config(
        EnforcementMiddleware(application, source, "shop"),
        host="127.0.0.1",
        port=port,
        http=TlsProtocol,
        ssl_context_factory=lambda *_: tls.listening,
        log_level="critical",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await world.mesh.opened(port)
    wrong, whole = [], 0
    context = world.context(CLIENT, "http/1.1")
    for case in cases("smuggling"):
        seen.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="x")
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            writer.write(_bytes_of(case) + LAST)
            # Where the last request was taken for the rest of a body, more is waited for.
            await asyncio.wait_for(reader.read(-1), 1)
        writer.transport.abort()
        requests = [what for what, headers in seen if b"x-last" not in headers]
        whole += requests == case.get("seen", [])
        allowed = [*case.get("seen", []), *([LENIENT[case["name"]]] if case["name"] in LENIENT else [])]
        if any(what not in allowed for what in requests) or len(requests) > len(allowed):
            wrong.append(f"{case['name']}: the application saw {requests}")
        if case["answers"] == ["REQUEST_REFUSED"] and len(seen) > len(requests) and case["name"] not in LENIENT:
            wrong.append(f"{case['name']}: what came after it was read as a request")
        for _, headers in seen:
            if headers[b"x-eastwest-caller"] != CLIENT.encode() or any(
                name.decode() in case.get("gone", ()) for name in headers
            ):
                wrong.append(f"{case['name']}: the application saw {headers}")
    server.should_exit = True
    await serving
    assert not wrong, "\n".join(wrong)
    assert whole > len(cases("smuggling")) // 2


def _der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def _bytes_of(case: dict) -> bytes:
    lines = [line.encode("latin-1") for line in case.get("send", ())]
    if "repeat" in case:
        text, size = case["repeat"]
        lines += [text.replace("{}", "a" * size).encode(), b"", b""]
    if "lines" in case:
        text, size = case["lines"]
        lines += [*(text.replace("{}", str(n)).encode() for n in range(size)), b"", b""]
    if "target" in case:
        lines = [b"GET /pub/" + b"a" * case["target"] + b" HTTP/1.1", b"Host: svc", b"", b""]
    return b"\r\n".join(lines)


async def test_nothing_is_smuggled_by_http2(world):
    wrong = []
    for case in cases("http2"):
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in case["fields"]]
        if "large" in case:
            fields.append((b"x-mine", b"a" * case["large"]))
        body = case["body"].encode("latin-1") if "body" in case else None
        before = len(world.recorder.seen)
        connection = await Http2.tls(world.port("shop"), world.context(CLIENT, "h2"))
        try:
            code, seen = world.told(await connection.exchange(fields, body))
        finally:
            await connection.close()
        expected = case.get("is", "ALLOWED")
        if code != expected:
            wrong.append(f"{case['name']}: {code} instead of {expected}")
        handed_on = [f"{s.method.decode()} {s.target.decode('latin-1')}" for s in world.recorder.seen[before:]]
        # A body that turns out wrong is refused when it comes; the request before it was decided, and may be handed on.
        if handed_on != ([case["seen"]] if "seen" in case else []) and handed_on != case.get("begun"):
            wrong.append(f"{case['name']}: the application saw {handed_on}")
        elif seen is not None:
            if seen.body != (body or b""):
                wrong.append(f"{case['name']}: the body was {seen.body!r}")
            if seen.values("x-eastwest-caller") != [CLIENT.encode()]:
                wrong.append(f"{case['name']}: the caller was {seen.values('x-eastwest-caller')}")
    assert not wrong, "\n".join(wrong)
    assert not world.recorder.unreadable


class Authorities:
    """Who signs the certificates of the corpus."""

    def __init__(self, world: World) -> None:
        self.known = {**world.authorities, "rogue": Ca()}

    def identity(self, case: dict) -> Identity | None:
        by = case.get("by")
        if by is None:
            return None
        if case.get("root"):
            ca = self.known[by]
            return _identity(ca.certificate, ca.key)
        key = ec.generate_private_key(ec.SECP256R1())
        if by == "itself":
            return _identity(self._leaf(case, key, key, _name("itself")), key)
        if by == "leaf":
            parent_key = ec.generate_private_key(ec.SECP256R1())
            ca = self.known[TRUST_DOMAIN]
            parent = self._leaf({**case, "uris": [CLIENT]}, parent_key, ca.key, ca.certificate.subject)
            leaf = self._leaf(case, key, parent_key, parent.subject)
            return _identity(leaf, key, parent)
        ca = self.known[by]
        return _identity(self._leaf(case, key, ca.key, ca.certificate.subject), key)

    @staticmethod
    def _leaf(case: dict, key, signer, issuer: x509.Name) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in case.get("uris", ())]
        names += [x509.DNSName(name) for name in case.get("dns", ())]
        ca, signs = case.get("ca", False), case.get("ca", False) or case.get("signs", False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(case.get("common_name", "leaf")))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(seconds=case.get("from", -300)))
            .not_valid_after(now + dt.timedelta(seconds=case.get("until", 3600)))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(_usage(signs=signs), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(signer, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _identity(certificate: x509.Certificate, key, *above: x509.Certificate) -> Identity:
    pem = serialization.Encoding.PEM
    chain = b"".join(one.public_bytes(pem) for one in (certificate, *above))
    plain = serialization.NoEncryption()
    return Identity(
        "spiffe://of.no/importance", chain, key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    )


async def test_certificates_say_who_calls_or_nobody_does(world):
    wrong = []
    authorities = Authorities(world)
    der = serialization.Encoding.DER
    roots = {TrustDomain.parse(name): (ca.certificate.public_bytes(der),) for name, ca in world.authorities.items()}
    for case in cases("certificates"):
        identity = authorities.identity(case)
        expected = case.get("is", "ALLOWED")
        code = await asked_as(world, identity)
        if code != expected:
            wrong.append(f"{case['name']}: Envoy says {code} instead of {expected}")
        if identity is None:
            continue
        chain = [one.public_bytes(der) for one in x509.load_pem_x509_certificates(identity.chain)]
        try:
            peer = str(verify_peer(chain, roots, dt.datetime.now(dt.UTC)).id)
        except Unauthenticated:
            peer = ""
        # Where Envoy knows a caller, the SDK knows the same; where it knows none, the SDK knows nobody registered.
        if (peer in world.evaded.callers) != (expected == "ALLOWED") or (
            expected == "ALLOWED" and [peer] != case["uris"]
        ):
            wrong.append(f"{case['name']}: the SDK takes it for {peer!r}, Envoy says {expected}")
    assert not wrong, "\n".join(wrong)
    allowed = [seen for seen in world.recorder.seen if seen.target == b"/pub/a"]
    assert [seen.values("x-eastwest-caller") for seen in allowed] == [
        [case["uris"][0].encode()] for case in cases("certificates") if "is" not in case
    ]


async def asked_as(world: World, identity: Identity | None) -> str:
    """The code of the answer to who shows ``identity``; REFUSED where there is no answer."""
    context = world.mesh.context(identity)
    try:
        connection = await Http1.tls(world.port("shop"), context)
    except (ssl.SSLError, ConnectionError):
        return "REFUSED"
    try:
        answer = await connection.ask(b"GET", b"/pub/a")
    finally:
        await connection.close()
    return world.told(answer)[0] if answer.status else "REFUSED"
