"""What our Envoy hands on of a raw request, so that those who decide without one decide about the same request.

A mirror of the connection manager that ``eastwest.mesh.http`` configures (Envoy 1.40: ``normalize_path``,
``merge_slashes``, escaped slashes and headers with underscores refused, headers stripped early) and of what its codecs
for HTTP/1.1 and HTTP/2, which are not equally strict, refuse before.
``tests/integration/test_normalise_like_envoy.py`` compares the two on thousands of requests.

All texts are bytes read as Latin-1, as WSGI and HTTP/1 parsers have them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from ipaddress import ip_address

from eastwest.policy.headers import KEPT_ONCE, is_stripped

MAX_BYTES = 60 * 1024
"""Of the request line and all headers together, as they are written; in HTTP/2 of names and values."""
NEWER_VERSIONS = frozenset({"2", "3"})
"""Of HTTP, beside 1.1; their requests are alike."""
MAX_HEADERS = 100
"""HTTP/2's pseudo-headers count as well."""
ONE_HOST = r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?"
"""An authority that names one host (RE2). Requests with any other are no operation's: Envoy joins repeated ``Host``
lines with a comma, and an application may take either.
"""
_METHODS = (
    "ACL BIND CHECKOUT CONNECT COPY DELETE GET HEAD LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE MSEARCH NOTIFY "
    "OPTIONS PATCH POST PROPFIND PROPPATCH PURGE PUT REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE UNBIND UNLINK UNLOCK "
    "UNSUBSCRIBE"
)
METHODS = frozenset(_METHODS.split())
"""Methods that Envoy's HTTP/1 parser knows."""
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as filters and the application see it. ``query`` has its question mark, "" without one.

    ``path`` "" only for CONNECT, which no operation matches. ``headers``: names in lower case, in order, repeated ones
    kept apart, stripped ones gone.
    """

    method: str
    path: str
    query: str
    authority: str
    headers: tuple[tuple[str, str], ...]

    @property
    def target(self) -> str:
        """Path and query."""
        return self.path + self.query

    @property
    def matched(self) -> str:
        """The path that operations are looked up by: "", which matches none, where the request is not of one host."""
        return self.path if _ONE_HOST.fullmatch(self.authority) else ""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request is not in a form that is accepted (``REQUEST_REFUSED``)."""

    reason: str


class _Refusal(Exception):
    pass


def normalise(
    method: str, target: str, headers: Headers, *, http_version: str = "1.1", tls: bool = True
) -> Request | Refused:
    """What is handed on of a request: ``target`` as it stood on the request line, headers as they came.

    HTTP/2 requests are given with ``:path`` as target ("" where there is none) and ``:authority`` as the first header
    ``host``, the others as they came; a name in capitals is the server's to refuse there, which may have rewritten it.
    """
    try:
        if http_version == "1.1":
            return _http1(method, target, headers, tls=tls)
        # Parsers of HTTP/1 hand on what stands on the request line, were it HTTP/1.2 or 2.0.
        if http_version not in NEWER_VERSIONS:
            raise _Refusal("HTTP/1.1 and HTTP/2 are the versions that are taken")
        return _http2(method, target, headers, tls=tls)
    except _Refusal as refusal:
        return Refused(str(refusal))


def normalise_path(path: str) -> str | None:
    """The path (without query) as it is matched and handed on; None where it is refused."""
    if _ESCAPED_SLASH.search(path):
        return None
    found = _canonical(_DOTS_WITH_PARAMETERS.sub(r"\1", path))
    return None if found is None else _merge_slashes(found)


def _http1(method: str, target: str, headers: Headers, *, tls: bool) -> Request:
    if method not in METHODS:
        raise _Refusal("the method is not known")
    fields = [(name.lower(), value.strip(" \t")) for name, value in headers]
    _check_fields(fields, len(fields), len(f"{method} {target} HTTP/1.1\r\n\r\n") + len(": \r\n") * len(fields))
    _check_codings(fields)
    kept = _without_hop_by_hop(fields)
    path, query, authority = _target(method, target, tls=tls)
    if authority is None:
        authority = _joined([value for name, value in kept if name == "host"])
    if authority is None:
        raise _Refusal("it names no host")
    if not _AUTHORITY.fullmatch(authority):
        raise _Refusal("the host has a character that hosts do not have")
    return Request(method, path, query, authority, _handed_on(kept))


def _http2(method: str, target: str, headers: Headers, *, tls: bool) -> Request:
    if not _METHOD.fullmatch(method):
        raise _Refusal("the method has a character that methods do not have")
    fields = [(name.lower(), value) for name, value in headers]
    _check_fields(fields, len(fields) + _OTHER_PSEUDO_HEADERS, _PSEUDO + tls + len(method) + len(target))
    hosts = [value for name, value in fields if name == "host"]
    if not hosts:
        raise _Refusal("it names no host")
    if len(hosts) > _AUTHORITY_AND_HOST:
        raise _Refusal("there is more than one host header")
    if not all(host and "@" not in host and _AUTHORITY.fullmatch(host) for host in hosts):
        raise _Refusal("the host is empty or has a character that hosts do not have")
    kept = []
    for name, value in fields:
        if name in _NOT_IN_HTTP2:
            raise _Refusal(f"there is a header {name}, which this version of HTTP does not have")
        if name != "te":
            kept.append((name, value))
        elif value.lower() != "trailers":
            raise _Refusal("te says more than trailers")
    crumbs = [value for name, value in kept if name == "cookie"]
    if crumbs:
        # They may come in several headers, which are one (RFC 9113, section 8.2.3).
        kept = [pair for pair in kept if pair[0] != "cookie"]
        joined = reduce(lambda before, crumb: f"{before}; {crumb}" if before else crumb, crumbs)
        kept += [("cookie", joined)] if joined else []
    if ("te", "trailers") in fields:
        kept.append(("te", "trailers"))
    if method == "QUERY" and not any(name == "content-type" and value for name, value in fields):
        raise _Refusal("a query does not say what type it is of")
    if method == "CONNECT":
        if target:
            raise _Refusal("this is no proxy")
        return Request(method, "", "", hosts[0], _handed_on(kept))
    if not _PATH_OF_BYTES.fullmatch(target):
        raise _Refusal("the path does not begin with a slash or has a character that paths do not have")
    return Request(method, *_split(target), hosts[0], _handed_on(kept))


def _target(method: str, target: str, *, tls: bool) -> tuple[str, str, str | None]:
    """Path, query, and the authority where the target names one (RFC 9112, section 3.2)."""
    target = target.strip("\t")
    if method == "CONNECT":
        named = _HOST_AND_PORT.fullmatch(target)
        if named is None or not named["port"] or not _is_address(named):
            raise _Refusal("this is no proxy")
        return "", "", target
    if not _VISIBLE.fullmatch(target):
        raise _Refusal("the target has a character that targets do not have")
    authority: str | None = None
    if not target.startswith("/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or not _is_address(absolute):
            raise _Refusal("the target is neither a path nor a whole http URL")
        if absolute["scheme"].lower() == "https" and not tls:
            raise _Refusal("the target says https on a connection without TLS")
        authority, target = absolute["authority"], absolute["rest"] or "/"
    return *_split(target), authority


def _split(target: str) -> tuple[str, str]:
    """Path and query of a target in the form of a path."""
    if "#" in target:
        raise _Refusal("the target has a fragment")
    raw, mark, query = target.partition("?")
    if not raw:
        raise _Refusal("the target is a URL without a path")
    path = normalise_path(raw)
    if path is None:
        raise _Refusal("the path has an escaped slash, backslash or NUL")
    return path, mark + query


def _is_address(absolute: re.Match[str]) -> bool:
    if absolute["ip"] is not None:
        try:
            ip_address(absolute["ip"])
        except ValueError:
            return False
    return int(absolute["port"] or 0) < 1 << 16


def _check_fields(fields: Headers, count: int, others: int) -> None:
    """``others``: bytes of the request beside ``fields``."""
    if count > MAX_HEADERS:
        raise _Refusal("there are too many headers")
    if others + sum(len(name) + len(value) for name, value in fields) > MAX_BYTES:
        raise _Refusal("target and headers are too long")
    for name, value in fields:
        if not _NAME.fullmatch(name):
            raise _Refusal("a header's name has a character that names do not have")
        if "_" in name:
            raise _Refusal("a header's name has an underscore")
        if _CONTROL.search(value):
            raise _Refusal("a header's value has a control character")
    lengths = [value for name, value in fields if name == "content-length"]
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(value) for value in lengths):
        raise _Refusal("the content length is not one number")


def _check_codings(fields: Headers) -> None:
    """Where the body ends must be said once: two readings of it make two requests out of one."""
    codings = [value.lower() for name, value in fields if name == "transfer-encoding"]
    if codings and (codings != ["chunked"] or any(name == "content-length" for name, _ in fields)):
        raise _Refusal("the body's length is said in a way that can be read differently")


def _handed_on(fields: Headers) -> tuple[tuple[str, str], ...]:
    kept = [(name, value) for name, value in fields if name != "host" and not is_stripped(name)]
    repeated = {name for name, count in Counter(name for name, _ in kept).items() if count > 1 and name in KEPT_ONCE}
    for once in repeated:
        joined = _joined([value for name, value in kept if name == once])
        place = next(place for place, (name, _) in enumerate(kept) if name == once)
        kept[place] = once, joined or ""
        kept = [pair for at, pair in enumerate(kept) if at <= place or pair[0] != once]
    # A caller that waits to be told so is told by whoever decides.
    return tuple(pair for pair in kept if pair[0] != "expect" or pair[1].lower() != "100-continue")


def _without_hop_by_hop(fields: Headers) -> list[tuple[str, str]]:
    """Without what is meant for the next hop only (RFC 9110, section 7.6.1), as we are that hop."""
    connection = [value for name, value in fields if name == "connection"]
    options = [option.strip(" \t").lower() for option in ",".join(connection).split(",")]
    nominated = {option for option in options if option}
    if "upgrade" in nominated and any(n == "upgrade" and v.lower() != "h2c" for n, v in fields):
        raise _Refusal("the protocol is not to be changed")
    if not nominated.isdisjoint(_NEVER_NOMINATED) or any(option.startswith(":") for option in nominated):
        raise _Refusal("the connection header names a header that is not the connection's")
    if len([option for option in options if option]) >= _MAX_NOMINATED:
        raise _Refusal("the connection header names too many headers")
    changing = "upgrade" in nominated and any(name == "upgrade" for name, _ in fields)
    gone = _HOP_BY_HOP | (nominated - _NOT_NAMES) | ({"http2-settings"} if changing else set())
    kept = [(name, value) for name, value in fields if name not in gone]
    codings = _joined([value for name, value in fields if name == "te"])
    if codings is not None:
        if "trailers" in [coding.strip(" \t") for coding in codings.split(",")]:
            kept.append(("te", "trailers"))
        elif not codings and "te" not in nominated:
            kept.append(("te", ""))
    return kept


def _joined(values: Sequence[str]) -> str | None:
    """Repeated values of a header that is kept once; None where it did not come at all."""
    return ",".join(value for value in values if value) if values else None


def _canonical(path: str) -> str | None:
    """Dot segments resolved, backslashes turned, unreserved characters unescaped and others escaped.

    As Chromium's URL library does it, which Envoy carries.
    """
    written: list[str] = ["/"] if not path.startswith(("/", "\\")) else []
    stray = -1  # where the last "%" stands in ``written`` that begins no escape sequence
    at, end = 0, len(path)
    while at < end:
        character = path[at]
        dot = _dot_length(path, at)
        if dot:
            step, kind = _after_dot(path, at + dot) if written and written[-1] == "/" else (0, _NAME_PART)
            if kind == _NAME_PART:
                written.append(".")
                step = 0
            elif kind == _PARENT:
                _to_parent(written)
                stray = -1 if stray >= len(written) else stray
            at += dot + step
        elif character == "%":
            escape = _ESCAPE.match(path, at)
            if escape is None:
                stray = len(written)
                written.append("%")
                at += 1
                continue
            value = chr(int(escape[1], 16))
            if value == "\0":
                return None
            at += 3
            if value not in _UNRESERVED:
                written.extend(escape[0])
            else:
                written.append(value)
                if stray >= 0 and stray + 3 >= len(written):
                    _escape_stray(written, stray, path[at : at + 1])
        else:
            written.extend(_ESCAPED.get(character, character))
            at += 1
    return "".join(written)


def _escape_stray(written: list[str], stray: int, following: str) -> None:
    """Keep an unescaped character from completing an escape sequence: ``%%32f`` must not become ``%2f``."""
    one_short = stray == len(written) - 2
    candidate = "".join(written[stray:]) + (following if one_short else "")
    if _ESCAPE.fullmatch(candidate):
        written[stray + 1 : stray + 1] = "25"


def _dot_length(path: str, at: int) -> int:
    if path.startswith(".", at):
        return 1
    return 3 if path[at : at + 3].lower() == "%2e" else 0


def _after_dot(path: str, at: int) -> tuple[int, int]:
    """How much belongs to the dot segment whose first dot ended before ``at``, and what it is."""
    if at == len(path) or path[at] in "/\\":
        return (1 if at < len(path) else 0), _SELF
    second = _dot_length(path, at)
    if second:
        after = at + second
        if after == len(path) or path[after] in "/\\":
            return second + (1 if after < len(path) else 0), _PARENT
    return 0, _NAME_PART


def _to_parent(written: list[str]) -> None:
    if len(written) > 1:
        written.pop()
        while len(written) > 1 and written[-1] != "/":
            written.pop()


def _merge_slashes(path: str) -> str:
    if "//" not in path:
        return path
    segments = [segment for segment in path.split("/") if segment]
    # A path of slashes alone stays two of them, as Envoy has it.
    return "/" + "/".join(segments) + ("/" if path.endswith("/") else "")


def _escapes(characters: Iterable[str]) -> dict[str, str]:
    return {character: f"%{ord(character):02X}" for character in characters}


_NAME_PART, _SELF, _PARENT = range(3)
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPED = {**_escapes('"<>^`{|}'), **_escapes(map(chr, range(0x80, 0x100))), "\\": "/"}
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_ESCAPED_SLASH = re.compile("%(?:2[Ff]|5[Cc])")
_DOTS_WITH_PARAMETERS = re.compile(r"(?<=/)(\.\.?);[^/]*")
_VISIBLE = re.compile("[!-~]+")
_PATH_OF_BYTES = re.compile("/[!-~\x80-\xff]*")
_HOST = r"(?P<authority>(?:[a-z0-9.-]+|\[(?P<ip>[0-9a-f:.]+)\])(?::(?P<port>[0-9]{1,5}))?)"
_HOST_AND_PORT = re.compile(_HOST, re.IGNORECASE)
_ABSOLUTE = re.compile(
    r"(?P<scheme>https?)://(?:[a-z0-9!$%&'()*+,.:;=\[\]_~-]*@)?" + _HOST + r"(?P<rest>[/?].*)?", re.IGNORECASE
)
_ONE_HOST = re.compile(ONE_HOST)
_AUTHORITY = re.compile(r"[A-Za-z0-9!$%&'()*+,.:;=@\[\]_~-]*")
_METHOD = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile("[0-9]{1,18}")
_MAX_NOMINATED = 10
_NEVER_NOMINATED = frozenset({"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"})
_NOT_NAMES = frozenset({"close", "http2-settings", "keep-alive", "upgrade"})  # options of the connection itself
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te"})
_NOT_IN_HTTP2 = _HOP_BY_HOP - {"te"}
_OTHER_PSEUDO_HEADERS = 3  # beside the authority
_PSEUDO = len(":method:path:scheme:authority") - len("host") + len("http")  # bytes beside values that vary
_AUTHORITY_AND_HOST = 2
