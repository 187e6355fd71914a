"""The witness's doors: ``POST /add-checkpoint`` and ``GET /<origin hash>/checkpoint`` (C2SP tlog-witness)."""

from __future__ import annotations

import asyncio

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from eastwest.errors import Error, Exhausted, InvalidInput
from eastwest.log.witness import MAX_REQUEST_BYTES, SIZE_TYPE
from eastwest.server.public.https import bounded_body
from eastwest.server.witness.service import WitnessService

AT_ONCE = 16
"""Requests that are judged in the same moment; others wait."""
_log = structlog.get_logger()


def witness_app(service: WitnessService) -> Starlette:
    """The application for ``PublicListener``."""
    few = asyncio.Semaphore(AT_ONCE)

    async def add_checkpoint(request: Request) -> Response:
        try:
            body = await bounded_body(request, MAX_REQUEST_BYTES)
        except (Exhausted, InvalidInput) as error:
            return PlainTextResponse(f"{error.message}\n", 413 if isinstance(error, Exhausted) else 400)
        try:
            async with few:
                answer = await asyncio.to_thread(service.add_checkpoint, body)
        except Error as error:
            _log.error("witness.failed", error=str(error))
            return PlainTextResponse("the witness cannot store anything now\n", 503)
        if answer.status == 409:
            # As a media type it would get a charset, which the standard does not have there.
            return Response(answer.text, 409, headers={"content-type": SIZE_TYPE})
        return PlainTextResponse(answer.text, answer.status)

    async def checkpoint(request: Request) -> Response:
        try:
            async with few:
                note = await asyncio.to_thread(service.checkpoint, request.path_params["origin"])
        except Error as error:
            _log.error("witness.failed", error=str(error))
            return PlainTextResponse("the witness cannot read anything now\n", 503)
        if note is None:
            return PlainTextResponse("no checkpoint of such a log has been signed here\n", 404)
        return PlainTextResponse(note, headers={"cache-control": "no-cache"})

    app = Starlette(
        routes=[
            Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
            Route("/{origin}/checkpoint", checkpoint),
        ]
    )
    # A redirection would send callers to whatever host their request named.
    app.router.redirect_slashes = False
    return app
