"""OpenID Connect discovery: how services that know nothing of SPIFFE verify our JWT-SVIDs (OIDC Discovery 1.0).

Two documents, public by nature: ``/.well-known/openid-configuration`` and ``/keys``. A relying party compares the
token's ``iss`` with the issuer that it trusts, finds the key by ``kid``, and reads the workload from ``sub``.

Nothing here signs anybody in: there is no authorization endpoint, and tokens come from the Workload API only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from eastwest.clock import Clock
from eastwest.errors import InvalidInput
from eastwest.pki.jwks import export_signing_keys
from eastwest.spiffe.bundle import Bundle

KEYS_MAX_AGE = 60
"""Seconds that a relying party may keep the key set.

A new JWT key is in the set from its preparation on and signs only after its activation. As long as more than this lies
between the two, no relying party that heeds the header meets a ``kid`` that it does not have.
"""

_ALGORITHMS = ("ES256", "ES384", "RS256")
_CLAIMS = ("aud", "exp", "iat", "iss", "jti", "sub")


def check_issuer(issuer: str, *, where: str = "") -> None:
    """Raise ``InvalidInput`` unless ``issuer`` is an https URL without query, fragment, user or final slash."""
    try:
        parts = urlsplit(issuer)
        plain = parts.scheme == "https" and bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        plain = False
        parts = urlsplit("")
    printable = issuer.isascii() and issuer.isprintable() and " " not in issuer
    if not (plain and printable) or parts.query or parts.fragment or issuer.endswith(("/", "?", "#")):
        raise InvalidInput(
            f"jwt_issuer {issuer[:200]!r} cannot be an OpenID Connect issuer",
            where=where,
            fix="an https URL such as https://id.saas.example, without query, fragment or / at its end",
        )


def discovery(issuer: str) -> bytes:
    """The discovery document (OIDC Discovery 1.0, section 3), of what exists here."""
    return msgspec.json.encode(
        {
            "issuer": issuer,
            "jwks_uri": f"{issuer}/keys",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": _ALGORITHMS,
            "claims_supported": _CLAIMS,
        }
    )


def oidc_app(issuer: str, bundle: Callable[[], Bundle], clock: Clock) -> Starlette:
    """The two documents below the path of ``issuer``; ``bundle`` gives the trust domain's bundle of that moment."""
    configuration = discovery(issuer)

    async def configured(request: Request) -> Response:
        return _document(request, configuration, "application/json")

    async def keys(request: Request) -> Response:
        return _document(request, export_signing_keys(bundle(), clock.now()), "application/jwk-set+json")

    prefix = urlsplit(issuer).path
    app = Starlette(
        routes=[
            Route(f"{prefix}/.well-known/openid-configuration", configured),
            Route(f"{prefix}/keys", keys),
        ]
    )
    # A redirection would send callers to whatever host their request named.
    app.router.redirect_slashes = False
    return app


def _document(request: Request, body: bytes, media_type: str) -> Response:
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {
        "cache-control": f"public, max-age={KEYS_MAX_AGE}, must-revalidate",
        "etag": tag,
        "x-content-type-options": "nosniff",
    }
    known = {part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")}
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)
