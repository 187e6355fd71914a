"""The middleware: whom it believes, what it answers, and what it hands on."""

import asyncio
import json
import re
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy_mesh import Ca

from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    HttpMatch,
    Inbound,
    MtlsMode,
    OperationRules,
    Rule,
    Sidecar,
    Verdict,
)
from eastwest.registry.containment import Contained
from eastwest.sdk.asgi import BehindSidecar, EnforcementMiddleware
from eastwest.sdk.decide import CallInfo
from eastwest.sdk.peers import pem
from eastwest.sdk.source import Rules, RuleSource
from eastwest.spiffe.id import TrustDomain

WEB = "spiffe://td.test/web"
CA = Ca("td.test")
ALLOW = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy="p")


def shown(*uris: str, ca: Ca = CA) -> dict:
    """The ``tls`` extension as a server gives it."""
    certificates = x509.load_pem_x509_certificates(ca.identity(*uris).chain)
    return {"tls": {"client_cert_chain": [pem(c.public_bytes(Encoding.DER)) for c in certificates]}}


def source(mode: MtlsMode = MtlsMode.STRICT, *, empty: bool = False) -> RuleSource:
    made = RuleSource("/nowhere.sock")
    if not empty:
        operation = OperationRules(
            name="svc:open:read",
            match=HttpMatch(method="GET", path="/open/{item}"),
            cells=(Cell(callers=(WEB,), rule=ALLOW),),
        )
        inbound = Inbound(
            service="svc",
            address="127.0.0.1",
            port=1,
            protocol="http",
            mode=mode,
            upstream="tcp:127.0.0.1:2",
            operations=(operation,),
        )
        sidecar = Sidecar(spiffe_id="spiffe://td.test/svc", version="v", known_callers=(WEB,), inbound=(inbound,))
        roots = (CA.certificate.public_bytes(Encoding.DER),)
        made.rules = Rules(TrustDomain("td.test"), sidecar, {TrustDomain("td.test"): roots})
    return made


async def ask(app, path: str = "/open/a", *headers, kind: str = "http", **scope):
    """What an ASGI server would see: (status, headers, body), and the scope that the application was given."""
    sent, given = [], SimpleNamespace(scope=None)

    async def application(scope, receive, send):
        given.scope = scope
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    raw, _, query = path.partition("?")
    whole = {
        "type": kind,
        "method": "GET",
        "http_version": "1.1",
        "scheme": "https",
        "path": raw,
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"svc"), *((n.encode(), v.encode()) for n, v in headers)],
        "client": ("127.0.0.1", 5),
        **scope,
    }
    await app(application)(whole, receive, send)
    return sent, given.scope


def enforced(source: RuleSource, **options):
    return lambda app: EnforcementMiddleware(app, source, "svc", **options)


def code(sent) -> str:
    start, body = sent
    said = json.loads(body["body"])["error"]
    headers = dict(start["headers"])
    assert headers[b"x-eastwest-code"].decode() == said["code"]
    assert start["status"] == (400 if said["code"] == "REQUEST_REFUSED" else 403)
    return said["code"]


async def test_what_is_handed_on():
    seen = []
    sent, scope = await ask(
        enforced(source(), on_decision=seen.append),
        "/x/../open//%61?b=%2f",
        ("x-eastwest-caller", "spiffe://td.test/admin"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-mine", "1"),
        extensions=shown(WEB),
    )
    assert sent[0]["status"] == 200
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/open/a", b"/open/a", b"b=%2f")
    assert scope["headers"] == [(b"host", b"svc"), (b"x-mine", b"1"), (b"x-eastwest-caller", WEB.encode())]
    assert scope["eastwest"] == CallInfo(WEB, "svc:open:read")
    assert [decision.code for decision in seen] == ["ALLOWED"]


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ({}, "MTLS_REQUIRED"),
        ({"tls": {"client_cert_chain": []}}, "MTLS_REQUIRED"),
        (shown("spiffe://td.test/other"), "UNKNOWN_CALLER"),
        (shown(WEB, "spiffe://td.test/admin"), "CERTIFICATE_REFUSED"),
        (shown(WEB, ca=Ca("td.test")), "CERTIFICATE_REFUSED"),
        (shown("spiffe://friend.test/web", ca=Ca("friend.test")), "CERTIFICATE_REFUSED"),
        ({"tls": {"client_cert_chain": ["x"]}}, "CERTIFICATE_REFUSED"),
        ({"tls": {**shown(WEB)["tls"], "client_cert_error": "expired"}}, "CERTIFICATE_REFUSED"),
    ],
)
async def test_who_is_believed(extensions, expected):
    spoofs = [("x-eastwest-caller", WEB), ("x-forwarded-client-cert", f"Hash=aa;URI={WEB}")]
    sent, scope = await ask(enforced(source()), "/open/a", *spoofs, extensions=extensions)
    assert (code(sent), scope) == (expected, None)
    # A bad certificate does not pass in report mode either; a missing one does.
    sent, scope = await ask(enforced(source(MtlsMode.PERMISSIVE)), "/open/a", extensions=extensions)
    assert (scope is None) == (expected == "CERTIFICATE_REFUSED")
    if scope is not None:
        assert scope["eastwest"].principal in {"", "spiffe://td.test/other"}


async def test_before_the_first_word_of_the_agent_nothing_passes():
    sent, scope = await ask(enforced(source(empty=True)), extensions=shown(WEB))
    assert (code(sent), scope) == ("CHECK_UNAVAILABLE", None)


async def test_a_service_that_the_workload_does_not_serve(caplog):
    kept = source()
    told = "this workload serves no service 'scv' (it serves: svc)"
    sent, scope = await ask(lambda app: EnforcementMiddleware(app, kept, "scv"), extensions=shown(WEB))
    assert (code(sent), scope) == ("CHECK_UNAVAILABLE", None)
    message = json.loads(sent[1]["body"])["error"]["message"]
    assert message == "this service has no rules to decide calls by"
    assert kept.problem == told
    assert told in caplog.text
    assert not kept._waiting, "the agent takes no decisions of others' services"
    right = source()
    EnforcementMiddleware(None, right, "svc")
    assert right.problem == ""


UUID = "98087af3-a847-4b13-b662-6fc46dcb1b2e"


@pytest.mark.parametrize(
    ("request_id", "extensions", "taken"),
    [
        (UUID, shown("spiffe://td.test/other"), True),
        ("x" * 36, shown("spiffe://td.test/other"), False),
        ("", shown("spiffe://td.test/other"), False),
        (UUID, {}, False),
        (UUID, shown(WEB, ca=Ca("td.test")), False),
    ],
)
async def test_a_refusal_can_be_found_by_its_reference(request_id, extensions, taken):
    kept = source()
    headers = [("x-request-id", request_id)] if request_id else []
    sent, _ = await ask(enforced(kept), "/open/a", *headers, extensions=extensions)
    [decision] = kept._waiting
    reference = json.loads(sent[1]["body"])["error"]["reference"]
    assert reference == decision.reference
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", reference)
    assert (reference == UUID) is taken


async def test_requests_in_no_accepted_form():
    odd = [{"http_version": version} for version in ("1.0", "1.2", "2.0", "")]
    for path, more in (("/open%2fa", {}), ("/open/a", {"root_path": "/x"}), *(("/open/a", version) for version in odd)):
        sent, scope = await ask(enforced(source()), path, extensions=shown(WEB), **more)
        assert (code(sent), scope) == ("REQUEST_REFUSED", None)


async def test_what_follows_a_request_in_no_accepted_form_is_not_read():
    async def closes(path, *headers, **more) -> bool:
        sent, _ = await ask(enforced(source()), path, *headers, extensions=shown(WEB), **more)
        return (b"connection", b"close") in sent[0]["headers"]

    both = (("content-length", "5"), ("transfer-encoding", "chunked"))
    assert await closes("/open/a", *both)
    assert await closes("/open/a", http_version="2.0"), "there is no such version: it stood on a request line"
    assert not await closes("/open/a", *both, http_version="2"), "it has no such header"
    assert await closes("/open%2fa")
    assert not await closes("/elsewhere")


async def test_websockets_are_refused():
    sent, scope = await ask(enforced(source(MtlsMode.PERMISSIVE)), kind="websocket", extensions=shown(WEB))
    assert (sent, scope) == ([{"type": "websocket.close", "code": 1008}], None)
    extensions = {**shown(WEB), "websocket.http.response": {}}
    sent, scope = await ask(enforced(source()), kind="websocket", extensions=extensions)
    assert (sent[0]["status"], scope) == (403, None)


async def test_behind_a_sidecar_the_header_counts_on_a_unix_socket_only():
    header = ("x-eastwest-caller", WEB)
    for client, headers, principal in (
        (None, [header], WEB),
        (("127.0.0.1", 5), [header], ""),
        (None, [header, header], ""),
        (None, [("x-eastwest-caller", "nobody")], ""),
        (None, [], ""),
    ):
        _, scope = await ask(BehindSidecar, "/anything", *headers, client=client)
        assert scope["eastwest"] == CallInfo(principal)


async def test_an_expired_certificate_on_an_old_connection():
    late = source()
    late.now = lambda: datetime(2100, 1, 1, tzinfo=UTC)
    sent, scope = await ask(enforced(late), extensions=shown(WEB))
    assert (code(sent), scope) == ("CERTIFICATE_REFUSED", None)


@pytest.mark.parametrize("begun", [True, False])
async def test_a_response_that_lasts_ends_when_its_caller_is_contained(begun: bool) -> None:
    kept, sent, waits = source(), [], asyncio.Event()

    async def application(scope, receive, send):
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a part", "more_body": True})
        waits.set()
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "raw_path": b"/open/a", "query_string": b"", "headers": [(b"host", b"svc")],
        "scheme": "https", "http_version": "1.1", "extensions": shown(WEB),
    }  # fmt: skip
    serving = asyncio.create_task(EnforcementMiddleware(application, kept, "svc")(scope, None, send))
    async with asyncio.timeout(5):
        await waits.wait()
        kept.underway.follow("spiffe://td.test/svc", Contained(1, (WEB,)))
        await serving
    if begun:
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        assert sent[-1]["more_body"], "never completed, so that the connection is ended"
    else:
        assert (sent[0]["status"], dict(sent[0]["headers"])[b"x-eastwest-code"]) == (403, b"CALLER_CONTAINED")
