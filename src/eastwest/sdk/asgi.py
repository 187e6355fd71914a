"""Enforcement as ASGI middleware: around the whole application, so that only what was allowed reaches it.

    source = RuleSource()
    app = EnforcementMiddleware(app, source, "billing")

The principal is whom the certificate of the TLS connection names (the ``tls`` extension of ASGI, which
``eastwest.sdk.uvicorn_tls`` and others provide), and nobody else: headers are never believed. The application sees the
request as it was decided: normalised, without headers that could be taken for ours, and with ``scope["eastwest"]``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import msgspec

from eastwest.errors import Unauthenticated
from eastwest.mesh.http import CALLER_HEADER
from eastwest.mesh.replies import CODE_HEADER, REQUEST_REFUSED, sentence
from eastwest.policy.enforcement import DecisionCode
from eastwest.policy.normalise import NEWER_VERSIONS
from eastwest.sdk import refusals
from eastwest.sdk.decide import CallInfo, Decision, OnDecision, decide, use_once
from eastwest.sdk.peers import Peer, Peers, chain_of_pem
from eastwest.sdk.recording import refused_certificate, told
from eastwest.sdk.source import RuleSource
from eastwest.sdk.underway import CutOff
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId

SCOPE_KEY = "eastwest"
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
_REFERENCE = b"x-request-id"
_TRACEPARENT = b"traceparent"
_FORBIDDEN, _BAD_REQUEST = 403, 400
_POLICY_VIOLATION = 1008  # RFC 6455, 7.4.1


class EnforcementMiddleware:
    """Decides every request of ``service`` before ``app`` sees it.

    ``on_decision`` is called with each decision and must not block; the agent is told of them besides.
    """

    def __init__(
        self, app: Application, source: RuleSource, service: str, *, on_decision: OnDecision | None = None
    ) -> None:
        self._app = app
        self._source = source
        self._service = service
        self._on_decision = on_decision
        self._peers = Peers()
        source.expect(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await _refuse_websocket(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        decision = await self._decide(scope)
        reference = refusals.reference(decision, _header(scope, _REFERENCE))
        if refusals.is_recorded(decision, known=self._source.rules is not None):
            address = str((scope.get("client") or ("",))[0])
            trace = _header(scope, _TRACEPARENT)
            now = self._source.now()
            self._source.report(told(decision, now, reference=reference, source_address=address, traceparent=trace))
        if self._on_decision is not None:
            self._on_decision(decision)
        if not decision.passes or decision.request is None:
            await _refuse(scope, decision, reference, send)
            return
        await self._serve(_handed_on(scope, decision), receive, send, decision, reference)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, decision: Decision, reference: str) -> None:
        """Have the application answer; who is contained meanwhile gets no more of it."""
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            call.check()
            begun = True
            await send(message)

        try:
            with self._source.underway.serving(decision.principal, decision.token) as call:
                await self._app(scope, receive, answer)
        except CutOff as cut_off:
            # An answer that is never completed: the server of ASGI then ends the connection.
            if not begun:
                await _refuse(scope, replace(decision, code=cut_off.code), reference, send)

    async def _decide(self, scope: Scope) -> Decision:
        rules, now = self._source.rules, self._source.now()
        peer: Peer | None = None
        refused: Unauthenticated | None = None
        try:
            chain = chain_of_pem(_shown(scope))
            if chain and rules is not None:
                peer = self._peers.verify(chain, rules.bundles, now)
        except Unauthenticated as error:
            refused = error
        decision = decide(
            rules,
            self._service,
            peer,
            scope["method"],
            _target(scope),
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
            now,
            http_version=scope.get("http_version", "1.1"),
            tls=scope.get("scheme") == "https",
            records=self._source.records,
        )
        if refused:
            return refused_certificate(decision, refused)
        return await use_once(decision, self._source.use_token)


class BehindSidecar:
    """For an application that an Envoy of ours guards: says who calls, and decides nothing.

    Only on a unix socket that nobody but the Envoy can open (mode 0600): there the header ``x-eastwest-caller`` is the
    Envoy's own word. A request that came in any other way has no principal.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"}:
            scope = {**scope, SCOPE_KEY: CallInfo(self._principal(scope))}
        await self._app(scope, receive, send)

    @staticmethod
    def _principal(scope: Scope) -> str:
        said = [value for name, value in scope["headers"] if name == CALLER_HEADER.encode()]
        if scope.get("client") is not None or len(said) != 1:
            return ""
        try:
            return str(SpiffeId.parse(said[0].decode("latin-1")))
        except MalformedSpiffeId:
            return ""


def _shown(scope: Scope) -> list[str]:
    """The chain that the connection's other end showed, in PEM; nothing without TLS."""
    tls: Mapping[str, Any] | None = (scope.get("extensions") or {}).get("tls")
    if tls is None:
        return []
    if tls.get("client_cert_error"):
        raise Unauthenticated(f"the certificate was refused: {tls['client_cert_error']}")
    return list(tls.get("client_cert_chain") or ())


def _target(scope: Scope) -> str:
    """The request target as it stood on the request line."""
    raw: bytes = scope.get("raw_path") or b""
    if scope.get("root_path"):
        # Servers differ in whether they put it before the path; what the caller sent cannot be told any more.
        return ""
    query: bytes = scope.get("query_string") or b""
    return (raw + b"?" + query if query else raw).decode("latin-1")


def _handed_on(scope: Scope, decision: Decision) -> Scope:
    request = decision.request
    assert request is not None
    headers = [(b"host", request.authority.encode("latin-1"))]
    headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers]
    if decision.principal:
        headers.append((CALLER_HEADER.encode(), decision.principal.encode()))
    return {
        **scope,
        "path": unquote(request.path),
        "raw_path": request.path.encode("latin-1"),
        "query_string": request.query[1:].encode("latin-1"),
        "headers": headers,
        SCOPE_KEY: decision.call,
    }


async def _refuse(scope: Scope, decision: Decision, reference: str, send: Send) -> None:
    """The answer that our Envoys give."""
    code = decision.code
    body = refusal_body(code, reference, refusals.said(decision))
    status = _FORBIDDEN if code in DecisionCode.__members__ else _BAD_REQUEST
    headers = _headers(code, body)
    if status == _BAD_REQUEST and scope.get("http_version", "1.1") not in NEWER_VERSIONS:
        # What can be read two ways may end in two places: nothing that follows is a request (RFC 9112, 6.3).
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def refusal_body(code: str, reference: str = "", message: str = "") -> bytes:
    """``{"error": {"code", "message", "reference"}}`` as JSON; the code's own sentence unless there is another."""
    told = {"code": code, "message": message or sentence(code), "reference": reference or None}
    return msgspec.json.encode({"error": told})


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """As our Envoys do: rules are of requests, and what goes through an upgraded connection could not be decided."""
    await receive()
    if "websocket.http.response" in (scope.get("extensions") or {}):
        body = refusal_body(REQUEST_REFUSED)
        headers = _headers(REQUEST_REFUSED, body)
        start = {"type": "websocket.http.response.start", "status": _FORBIDDEN, "headers": headers}
        await send(start)
        await send({"type": "websocket.http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})


def _headers(code: str, body: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (CODE_HEADER.encode(), code.encode()),
    ]


def _header(scope: Scope, name: bytes) -> str:
    values = [value for known, value in scope["headers"] if known == name]
    return values[0].decode("latin-1")[:256] if len(values) == 1 else ""
