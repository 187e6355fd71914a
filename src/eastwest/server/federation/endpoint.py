"""The bundle endpoint: this trust domain's bundle over HTTPS, for whoever federates with it (SPIFFE Federation).

Read-only and the same for everybody. A caller that has the bundle already is told so by its ETag; the document is made
once for each bundle, so that looking often costs next to nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eastwest.pki.jwks import export_bundle
from eastwest.registry.federation import MIN_REFRESH, refresh_seconds
from eastwest.spiffe.bundle import Bundle

MEDIA_TYPE = "application/json"


def bundle_endpoint(bundle: Callable[[], Bundle]) -> Starlette:
    """The application; ``bundle`` gives the own bundle as it is now."""
    document = _Document()

    async def get(request: Request) -> Response:
        current = bundle()
        body, etag = document.of(current)
        # A cache may not delay the news beyond what the bundle itself asks for.
        age = int(max(MIN_REFRESH, refresh_seconds(current) / 2))
        headers = {"etag": etag, "cache-control": f"public, max-age={age}"}
        if etag in _asked(request):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=MEDIA_TYPE, headers=headers)

    return Starlette(routes=[Route("/", get)])


class _Document:
    """The newest bundle as bytes, made once."""

    def __init__(self) -> None:
        self._of: Bundle | None = None
        self._made = (b"", "")

    def of(self, bundle: Bundle) -> tuple[bytes, str]:
        if self._of is not bundle:
            body = export_bundle(bundle)
            self._made = (body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
            self._of = bundle
        return self._made


def _asked(request: Request) -> set[str]:
    values = request.headers.get("if-none-match", "").split(",")
    return {value.strip().removeprefix("W/") for value in values}
