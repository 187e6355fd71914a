"""CRLs and OCSP over plain HTTP, as RFC 5280 (8) asks: what is fetched is signed, and TLS would need it itself."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from eastwest.clock import Clock
from eastwest.errors import Error, Exhausted, InvalidInput
from eastwest.pki.revocation import MAX_OCSP_REQUEST_BYTES, RevocationUrls
from eastwest.server.public.https import bounded_body
from eastwest.server.public.revocation import OcspReply, Revocations, decode_get

CRL_MAX_AGE = 300
OCSP_MAX_AGE = 300
"""Seconds that a cache on the way may keep an answer, so that a revocation is soon seen through it."""

CRL_TYPE = "application/pkix-crl"
OCSP_TYPE = "application/ocsp-response"


def revocation_app(revocations: Revocations, urls: RevocationUrls, clock: Clock) -> Starlette:
    """``crl/<key id>/<shard>.crl`` and ``ocsp`` (GET and POST) below the path of ``urls.base``."""

    async def crl(request: Request) -> Response:
        try:
            found = await revocations.crl(request.path_params["issuer"], request.path_params["shard"])
        except Error as error:
            return PlainTextResponse(error.message, 503)
        if found is None:
            return PlainTextResponse("there is no such CRL", 404)
        return Response(
            found.der,
            media_type=CRL_TYPE,
            headers={"cache-control": _caching(clock.now(), found.next_update), "etag": f'"{found.number}"'},
        )

    async def ask(request: Request) -> Response:
        try:
            query = await bounded_body(request, MAX_OCSP_REQUEST_BYTES)
        except (Exhausted, InvalidInput) as error:
            return PlainTextResponse(error.message, 413)
        return _ocsp(await revocations.answer(query))

    async def ask_by_path(request: Request) -> Response:
        try:
            query = decode_get(request.path_params["query"])
        except InvalidInput as error:
            return PlainTextResponse(error.message, 400)
        return _ocsp(await revocations.answer(query))

    prefix = urlsplit(urls.base).path
    app = Starlette(
        routes=[
            Route(f"{prefix}/crl/{{issuer}}/{{shard}}.crl", crl),
            Route(f"{prefix}/ocsp", ask, methods=["POST"]),
            Route(f"{prefix}/ocsp/{{query:path}}", ask_by_path),
        ]
    )
    # A redirection would send callers to whatever host their request named.
    app.router.redirect_slashes = False
    return app


def _ocsp(reply: OcspReply) -> Response:
    age = min(reply.max_age, OCSP_MAX_AGE)
    caching = f"public, max-age={age}, no-transform, must-revalidate" if age else "no-store"
    return Response(reply.der, media_type=OCSP_TYPE, headers={"cache-control": caching})


def _caching(now: datetime, end: datetime) -> str:
    left = max(0, min(CRL_MAX_AGE, int((end - now).total_seconds())))
    return f"public, max-age={left}, no-transform, must-revalidate"
