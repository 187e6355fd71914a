"""The forms that texts of an estate must have, each with the sentence and the fix for one that has not."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

from eastwest.errors import InvalidInput
from eastwest.policy.headers import has_another_meaning
from eastwest.policy.paths import template_problem
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.pattern import check_pattern
from eastwest.spiffe.selector import Selector

Complaint = tuple[str, str]  # what is wrong, and the fix

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_DURATION = timedelta(days=3650)
_MAX_SOCKET_PATH = 107  # sun_path of Linux, with room for the closing NUL
_DURATION_PART = re.compile(r"([0-9]+)([smhd])")
_NAMING_SEGMENT = re.compile(r"\{(environment|domain|service|namespace|serviceaccount)\}|[a-zA-Z0-9._-]+")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def complaint(form: str, text: str) -> Complaint | None:
    """Why ``text`` does not have the named form, or ``None`` when it has."""
    return _FORMS[form](text)


def duration(text: str) -> timedelta:
    """The length of a checked duration such as ``90d``."""
    return timedelta(seconds=sum(int(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text)))


def _pattern(pattern: str, message: str, fix: str) -> Callable[[str], Complaint | None]:
    compiled = re.compile(pattern)
    return lambda text: None if compiled.fullmatch(text) else (f"{_shown(text)} is not {message}", fix)


def _parsed(parse: Callable[[str], object]) -> Callable[[str], Complaint | None]:
    def check(text: str) -> Complaint | None:
        try:
            parse(text)
        except InvalidInput as error:
            return error.message, error.fix
        return None

    return check


def _spiffe_id(text: str) -> Complaint | None:
    problem = _parsed(SpiffeId.parse)(text)
    if problem is None and not SpiffeId.parse(text).path:
        return f"{_shown(text)} names a trust domain, not a workload", "add a path such as /prod/commerce/billing"
    return problem


def _duration(text: str) -> Complaint | None:
    fix = "write a number and s, m, h or d, such as 1h or 90d"
    if not re.fullmatch(r"([1-9][0-9]{0,8}[smhd]){1,4}", text):
        return f"{_shown(text)} is not a duration", fix
    if duration(text) > _MAX_DURATION:
        return f"{_shown(text)} is longer than ten years", fix
    return None


def _naming(text: str) -> Complaint | None:
    fix = "write something like /{environment}/{domain}/{service}"
    segments = text[1:].split("/") if text.startswith("/") else []
    if not segments or not all(_NAMING_SEGMENT.fullmatch(s) for s in segments):
        return f"{_shown(text)} is not a naming template", fix
    variables = [s for s in segments if s.startswith("{")]
    if len(set(variables)) != len(variables):
        return f"{_shown(text)} uses a variable twice", fix
    return None


def _ip(text: str) -> Complaint | None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return f"{_shown(text)} is not an IP address", "write an address to listen on, such as 127.0.0.1 or 0.0.0.0"
    return None


def _endpoint(text: str) -> Complaint | None:
    fix = "write host:port, such as 127.0.0.1:8443"
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        return f"{_shown(text)} is not host:port", fix
    if host.startswith("[") and host.endswith("]"):
        return _ip(host[1:-1])
    if re.fullmatch(r"[0-9.]+", host):
        return _ip(host)
    return _dns(host)


def _dns(text: str) -> Complaint | None:
    if len(text) <= 253 and text and all(_DNS_LABEL.fullmatch(label) for label in text.split(".")):
        return None
    return f"{_shown(text)} is not a DNS name", "write lower-case labels of letters, digits and -, joined by dots"


def _dns_pattern(text: str) -> Complaint | None:
    return None if text == "*" else _dns(text.removeprefix("*."))


def _https_url(text: str) -> Complaint | None:
    fix = "write https://host:port/path"
    try:
        parts = urlsplit(text)
        whole = parts.scheme == "https" and parts.hostname and parts.port != 0
    except ValueError:
        return f"{_shown(text)} is not a URL", fix
    if not whole or not re.fullmatch(r"[!-~]{1,2048}", text):
        return f"{_shown(text)} is not an https URL", fix
    if parts.query or parts.fragment or "@" in parts.netloc:
        return f"{_shown(text)} has a user, a query or a fragment", fix
    return None


def _socket_path(text: str) -> Complaint | None:
    if not text.startswith("/") or "\0" in text:
        return f"{_shown(text)} is not an absolute path", "write the socket's whole path, such as /run/billing/app.sock"
    if len(text.encode()) > _MAX_SOCKET_PATH:
        return f"the path is longer than the {_MAX_SOCKET_PATH} bytes a unix socket may have", "use a shorter path"
    return None


def _node(text: str) -> Complaint | None:
    if re.fullmatch(r"group:[a-z0-9][a-z0-9-]*", text):
        return None
    if text.startswith("spiffe:"):
        return _spiffe_id(text)
    return f"{_shown(text)} names no node", "write group:NAME of a node group, or the SPIFFE ID of a node"


def _administrator(text: str) -> Complaint | None:
    if text.startswith("spiffe:"):
        return _spiffe_id(text)
    if re.fullmatch(r"unix:uid:(0|[1-9][0-9]{0,9})", text):
        return None
    return f"{_shown(text)} names no administrator", "write unix:uid:NUMBER, or the SPIFFE ID that calls"


def _header(text: str) -> Complaint | None:
    if "_" in text:
        return f"header {_shown(text)} has an underscore, which proxies refuse", "use - in its place"
    if text != text.lower():
        return f"header {_shown(text)} is not in lower case", f"write {text.lower()}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", text):
        return f"{_shown(text)} is not a header name", "write a name such as x-tenant"
    if has_another_meaning(text):
        told = f"header {_shown(text)} has a meaning of its own to HTTP or to proxies, and cannot name a tenant"
        return told, "use a header of your own, such as x-tenant"
    return None


def _shown(text: str) -> str:
    return repr(text[:80] + ("..." if len(text) > 80 else ""))


_FORMS: dict[str, Callable[[str], Complaint | None]] = {
    "spiffe-id": _spiffe_id,
    "trust-domain": _parsed(TrustDomain.parse),
    "selector": _parsed(Selector.parse),
    "name": _pattern(r"[a-z0-9][a-z0-9-]{0,62}", "a name", "use a-z, 0-9 and -, at most 63 characters"),
    "owner": _pattern(r"[a-z]+:\S+", "an owner", "write kind:name, such as group:commerce"),
    "operation": _pattern(
        r"[a-z0-9][a-z0-9-]*:[a-z0-9][a-z0-9-]*:[a-z0-9][a-z0-9-]*",
        "an operation name",
        "write service:resource:verb, such as billing:invoices:read",
    ),
    "method": _pattern(r"[A-Z]{1,16}", "an HTTP method", "write it in capitals, such as GET"),
    "grpc-method": _pattern(
        r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*/[A-Za-z_][A-Za-z0-9_]*",
        "a gRPC method",
        "write package.Service/Method, such as notify.v1.Notify/Send",
    ),
    "parameter": _pattern(
        r"[A-Za-z][A-Za-z0-9_-]*", "a path parameter", "write its name without braces, such as tenant"
    ),
    "path": template_problem,
    "header": _header,
    "naming": _naming,
    "duration": _duration,
    "ip": _ip,
    "endpoint": _endpoint,
    "https-url": _https_url,
    "bundle-file": _pattern(
        r"federation/[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.json", "a bundle's file", "write federation/NAME.json"
    ),
    "socket-path": _socket_path,
    "dns": _dns,
    "dns-pattern": _dns_pattern,
    "node": _node,
    "administrator": _administrator,
    "id-pattern": _parsed(check_pattern),
    "policy-id": _pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "a policy id", "use letters, digits, ., _ and -"),
}
