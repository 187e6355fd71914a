"""The token endpoint: who calls by its certificate, how often it may, and errors in OAuth's words.

    POST /token     with a client certificate: an X.509-SVID of this trust domain

Errors are JSON (RFC 6749, 5.2) with a stable ``code`` beside OAuth's ``error``, and ``fix``: what would mend it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec
import structlog
from cryptography import x509
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eastwest.clock import Clock
from eastwest.errors import Code, Error, Exhausted, InvalidInput, PermissionDenied, Unauthenticated, Unavailable
from eastwest.issuance.transaction import Caller, TokenRefused
from eastwest.policy.enforcement import DecisionCode
from eastwest.rpc.tls import certificate_id
from eastwest.server.public.https import bounded_body
from eastwest.server.tokens.buckets import Buckets
from eastwest.server.tokens.exchange import Exchange, PendingApproval
from eastwest.server.tokens.http2 import MAX_BODY, Answer, Asked, Handler
from eastwest.spiffe.id import TrustDomain

PATH = "/token"
FORM = "application/x-www-form-urlencoded"
_STATUS = {"invalid_client": 401, "access_denied": 403, "approval_required": 403}
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rates:
    """Requests a second, and at once, of one certificate; and a second of all certificates of one SPIFFE ID."""

    rate: float = 5.0
    burst: float = 50.0
    caller_rate: float = 50.0

    @property
    def caller_burst(self) -> float:
        """As much larger as the rate is."""
        return self.burst * max(1.0, self.caller_rate / self.rate)


class Endpoint:
    """Serves ``eastwest.server.tokens.http2.Handler``."""

    def __init__(self, trust_domain: TrustDomain, exchange: Exchange, clock: Clock, rates: Rates) -> None:
        self._trust_domain = trust_domain
        self._exchange = exchange
        self._clock = clock
        self._of_certificate = Buckets(rates.rate, rates.burst, clock)
        self._of_caller = Buckets(rates.caller_rate, rates.caller_burst, clock)
        self.on_outcome: Callable[[str], None] = lambda _outcome: None
        """Hears ``issued``, or the code of the refusal."""

    async def __call__(self, certificate: bytes, asked: Asked) -> Answer:
        answer = await self._serve(certificate, asked)
        told: dict[str, str] = {} if answer.status == 200 else msgspec.json.decode(answer.body)
        self.on_outcome(told.get("code", "issued"))
        return answer

    async def _serve(self, certificate: bytes, asked: Asked) -> Answer:
        try:
            caller = self._caller(certificate)
            if asked.path.partition("?")[0] != PATH:
                return _answer(404, "invalid_request", Code.NOT_FOUND, f"there is only {PATH}")
            if asked.method != "POST":
                return _answer(405, "invalid_request", Code.INVALID_INPUT, "ask by POST", ("allow", "POST"))
            if asked.too_large:
                return _answer(413, "invalid_request", Code.EXHAUSTED, f"a request has at most {MAX_BODY} bytes")
            if asked.content_type.partition(";")[0].strip().lower() != FORM:
                return _answer(415, "invalid_request", Code.INVALID_INPUT, f"the request is {FORM}")
            # Whatever comes of it: a token that no rule demands costs a signature and a line in the log as any other.
            self._of_certificate.take(caller.certificate, f"requests by one certificate of {caller.spiffe_id}")
            self._of_caller.take(caller.spiffe_id, f"requests by {caller.spiffe_id}")
            return Answer(200, msgspec.json.encode(await self._exchange.answer(caller, asked.body)))
        except Error as error:
            return refusal(error)
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer and the log the cause
            _log.exception("tokens.failed")
            return _answer(500, "server_error", Code.INTERNAL, "internal error; the server's log says more")

    def _caller(self, certificate: bytes) -> Caller:
        shown = _shown(certificate)
        if shown.spiffe_id is None or not shown.spiffe_id.startswith(f"{self._trust_domain.uri}/"):
            raise Unauthenticated(f"the certificate names no workload of {self._trust_domain}")
        if self._clock.now() > shown.not_after:
            raise Unauthenticated("the certificate of this connection has ended", fix="connect again with the new one")
        return Caller(shown.spiffe_id, shown.sha256)


def application(handler: Handler) -> Starlette:
    """The same over HTTP/1.1."""

    async def serve(request: Request) -> Response:
        body, too_large = b"", False
        try:
            body = await bounded_body(request, MAX_BODY)
        except Exhausted:
            too_large = True
        except InvalidInput:  # went away; nobody reads the answer
            return Response(status_code=400)
        kind = request.headers.get("content-type", "")
        asked = Asked(request.method, request.url.path, kind, body, too_large)
        answer = await handler(request.scope["certificate"], asked)
        headers = {"cache-control": "no-store", **dict(answer.headers)}
        return Response(answer.body, answer.status, headers, "application/json")

    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    app = Starlette(routes=[Route("/{path:path}", serve, methods=methods)])
    app.router.redirect_slashes = False
    return app


def refusal(error: Error) -> Answer:
    """An error as the caller sees it."""
    if isinstance(error, PendingApproval):
        return _answer(403, error.error, error.reason, error.message, fix=error.fix, approval=error.approval)
    status, word, code = _named(error)
    if status == 500:
        _log.error("tokens.failed", error=str(error))
        return _answer(status, word, code, "the server cannot make tokens now; its log says more")
    again = [("retry-after", "1")] if status in {429, 503} else []
    return _answer(status, word, code, error.message, *again, fix=error.fix)


def _named(error: Error) -> tuple[int, str, str]:
    """HTTP status, OAuth's word and the stable code."""
    match error:
        case TokenRefused():
            return _STATUS.get(error.error, 400), error.error, error.reason
        case Unauthenticated():
            return 401, "invalid_client", DecisionCode.CERTIFICATE_REFUSED
        case Exhausted():
            return 429, "temporarily_unavailable", error.code
        case Unavailable():
            return 503, "temporarily_unavailable", error.code
        case PermissionDenied():
            return 403, "access_denied", error.code
        case InvalidInput():
            return 400, "invalid_request", error.code
    return 500, "server_error", error.code


def _answer(
    status: int, error: str, code: str, text: str, *headers: tuple[str, str], fix: str = "", approval: str = ""
) -> Answer:
    # What error_description may hold (RFC 6749, 5.2).
    plain = "".join(c if " " <= c <= "~" and c not in '"\\' else "'" for c in text)
    said = {"error": error, "error_description": plain, "code": code}
    said |= {name: value for name, value in (("fix", fix), ("approval", approval)) if value}
    return Answer(status, msgspec.json.encode(said), headers)


@dataclass(frozen=True, slots=True)
class _Shown:
    spiffe_id: str | None
    sha256: str
    not_after: datetime


@lru_cache(maxsize=4096)
def _shown(certificate: bytes) -> _Shown:
    spiffe_id = certificate_id(certificate)
    loaded: Any = x509.load_der_x509_certificate(certificate)
    return _Shown(
        None if spiffe_id is None else str(spiffe_id),
        hashlib.sha256(certificate).hexdigest(),
        loaded.not_valid_after_utc,
    )
