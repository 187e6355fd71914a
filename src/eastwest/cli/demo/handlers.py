"""What the five services answer: a little made-up data, enough to see whose it is.

The services do not decide who may call. In the weak outcome they check the one key that all of them share;
in the strong one their sidecar has decided before a request arrives, and names the caller.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping

from eastwest.cli.demo.http1 import Request, Response

KEY_HEADER = "x-internal-key"
ACCEPTED_KEY_HEADER = "x-accepted-key"
CALLER_HEADER = "x-eastwest-caller"
TENANT_HEADER = "x-tenant"

Handler = Callable[[Request], Response]
_INVOICES = {
    "acme": [{"id": "INV-1001", "amount": 12_400}, {"id": "INV-1002", "amount": 830}],
    "globex": [{"id": "INV-2001", "amount": 99_000}, {"id": "INV-2002", "amount": 51_250}],
    "initech": [{"id": "INV-3001", "amount": 7_700}],
}
_USERS = {"u-17": {"id": "u-17", "name": "Robin Ito", "email": "robin@globex.example"}}


def fingerprint(key: str) -> str:
    """How the demo speaks of a key without telling it: the start of its SHA-256."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()[:12]


def handler(service: str, key: str) -> Handler:
    """The handler of ``service``; with a ``key``, requests must carry it, and anyone who does is trusted."""
    answer = _SERVICES[service]

    def handle(request: Request) -> Response:
        if not key:
            return answer(request)
        if not hmac.compare_digest(request.headers.get(KEY_HEADER, "").encode(), key.encode()):
            return _json(401, {"error": "the internal key is wrong"})
        response = answer(request)
        return Response(response.status, {**response.headers, ACCEPTED_KEY_HEADER: fingerprint(key)}, response.body)

    return handle


def _storefront(request: Request) -> Response:
    if (request.method, _parts(request)) == ("GET", ["catalog"]):
        return _json(200, {"plans": ["basic", "team"]})
    return _health(request)


def _billing(request: Request) -> Response:
    match request.method, _parts(request):
        case "GET", ["api", "v2", "tenants", tenant, "invoices"]:
            return _json(200, {"tenant": tenant, "invoices": _INVOICES.get(tenant, []), **_seen(request)})
        case "GET", ["api", "v2", "tenants", tenant, "invoices", invoice]:
            found = [i for i in _INVOICES.get(tenant, []) if i["id"] == invoice]
            return _json(200 if found else 404, {"tenant": tenant, "invoices": found, **_seen(request)})
        case "GET", ["internal", "export"]:  # left over from a migration; on nobody's list of operations
            return _json(200, {"tenants": _INVOICES})
    return _health(request)


def _reporting(request: Request) -> Response:
    match request.method, _parts(request):
        case "GET", ["reports", tenant]:
            total = sum(int(str(invoice["amount"])) for invoice in _INVOICES.get(tenant, []))
            return _json(200, {"tenant": tenant, "total": total})
    return _health(request)


def _notification(request: Request) -> Response:
    match request.method, _parts(request):
        case "POST", ["messages"]:
            return _json(200, {"queued": True, "tenant": request.headers.get(TENANT_HEADER, ""), **_seen(request)})
        case "POST", ["users", user, "mute"]:
            return _json(200, {"user": user, "queued": True, **_seen(request)})
        case "GET", ["templates", name]:
            return _json(200, {"template": name, "text": "Hello"})
    return _health(request)


def _admin(request: Request) -> Response:
    match request.method, _parts(request):
        case "POST", ["admin", "users", user, "disable"]:
            return _json(200, {"user": user, "disabled": True, **_seen(request)})
        case "POST", ["admin", "users", user, "mute"]:
            return _json(200, {"user": user, "muted": True, **_seen(request)})
        case "GET", ["admin", "users", user]:
            return _json(200 if user in _USERS else 404, _USERS.get(user, {}))
    return _health(request)


def _health(request: Request) -> Response:
    if (request.method, _parts(request)) == ("GET", ["healthz"]):
        return _json(200, {"status": "ok"})
    return _json(404, {"error": "no such thing"})


_SERVICES: Mapping[str, Handler] = {
    "storefront": _storefront,
    "billing": _billing,
    "reporting": _reporting,
    "notification": _notification,
    "admin": _admin,
    "console": _health,
}


def _parts(request: Request) -> list[str]:
    return request.path.partition("?")[0].strip("/").split("/")


def _seen(request: Request) -> dict[str, str]:
    """Who the service believes is calling: its sidecar says so, or nobody does."""
    return {"caller": request.headers.get(CALLER_HEADER, "")}


def _json(status: int, value: object) -> Response:
    return Response(status, {"content-type": "application/json"}, json.dumps(value).encode())
