"""Names for operations (``service:resource:verb``), made from what a document says and from nothing else.

The same method, path and operation id give the same candidates in the same order, whatever else is in the document.
"""

from __future__ import annotations

import hashlib
import re

from eastwest.policy.paths import Template

MAX_PART = 60
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_OTHER = re.compile(r"[^a-z0-9]+")
_VERSION = re.compile(r"api|rest|v[0-9]+([a-z]+[0-9]*)?|[0-9]{4}-[0-9]{2}-[0-9]{2}")
_VERBS = frozenset(
    [
        *("add", "apply", "approve", "archive", "assign", "attach", "batch", "bulk", "cancel", "check", "clear"),
        *("close", "connect", "copy", "count", "create", "delete", "describe", "detach", "disable", "download"),
        *("enable", "export", "fetch", "find", "generate", "get", "grant", "has", "head", "import", "insert", "invoke"),
        *("is", "list", "lookup", "merge", "modify", "move", "open", "options", "patch", "pause", "post", "publish"),
        *("purge", "put", "query", "read", "redeliver", "refresh", "register", "reject", "release", "remove", "rename"),
        *("render", "replace", "request", "reset", "resolve", "restore", "resume", "retrieve", "retry", "revoke"),
        *("rotate", "run", "save", "search", "send", "set", "show", "sign", "start", "stop", "stream", "submit"),
        *("subscribe", "suspend", "sync", "test", "trigger", "unassign", "unsubscribe", "update", "upload", "upsert"),
        *("validate", "verify", "watch", "write"),
    ]
)
_READING = frozenset(
    [
        *("check", "count", "describe", "download", "export", "fetch", "find", "get", "has", "head", "is", "list"),
        *("lookup", "options", "query", "read", "retrieve", "search", "show", "stream", "subscribe", "watch"),
    ]
)
_BY_METHOD = {"POST": "create", "PUT": "replace", "PATCH": "update", "DELETE": "delete"}


def http_names(method: str, path: str, operation_id: str) -> tuple[tuple[str, str], ...]:
    """Candidates for an operation; ``path`` is a template without the server's base path."""
    template = Template.parse(path)
    literals = [part for part in (slug(literal) for literal, _ in template.segments) if part]
    while len(literals) > 1 and _VERSION.fullmatch(literals[0]):
        literals.pop(0)
    everything = [part for part in (slug(literal or parameter) for literal, parameter in template.segments) if part]
    verb = _path_verb(method, template)
    short = _part(literals or everything or ["root"])
    whole = _part(everything or ["root"])
    said = _said(operation_id)
    mark = hashlib.sha256(f"{method} {path}".encode()).hexdigest()[:8]
    names = [
        *([said] if said else []),
        (short, verb),
        (whole, verb),
        (whole, _part([method.lower()])),
        (_part([whole, mark]), _part([method.lower()])),
    ]
    return tuple(dict.fromkeys(names))


def grpc_names(service: str, method: str) -> tuple[tuple[str, str], ...]:
    """Candidates for a gRPC method; ``service`` is the full name, such as ``notify.v1.Notify``."""
    first, _, rest = slug(method).partition("-")
    short = slug(service.rpartition(".")[2]).removesuffix("-service") or "service"
    whole = slug(service) or "service"
    mark = hashlib.sha256(f"{service}/{method}".encode()).hexdigest()[:8]
    verb = first or "call"
    whole_verb = _part([slug(method) or "call"])
    return tuple(
        dict.fromkeys(
            [
                (_part([rest or short]), _part([verb])),
                (_part([short, rest] if rest else [short]), _part([verb])),
                (_part([whole]), whole_verb),
                (_part([whole, mark]), whole_verb),
            ]
        )
    )


def suggested_sensitivity(method: str, path: str, names: tuple[tuple[str, str], ...]) -> str:
    """What a person may want to confirm; a guess from method and name, never put in force."""
    last = path.rstrip("/").rpartition("/")[2]
    if method in {"GET", "HEAD"} and last in {"health", "healthz", "livez", "readyz", "ping", "version"}:
        return "open"
    if method == "OPTIONS":
        return "open"
    return "read" if method in {"GET", "HEAD", "QUERY", "TRACE"} or (not method and is_reading(names)) else "mutate"


def is_reading(names: tuple[tuple[str, str], ...]) -> bool:
    """Whether the first name's verb only reads."""
    return names[0][1] in _READING


def slug(text: str) -> str:
    """Lower-case words of a-z and 0-9, joined by ``-``; "" when nothing is left."""
    return _OTHER.sub("-", _CAMEL.sub("-", text).lower()).strip("-")


def _said(operation_id: str) -> tuple[str, str] | None:
    """Resource and verb of an operation id such as ``repos/list-for-org``, ``pets.list`` or ``listPets``."""
    parts = [part for part in (slug(part) for part in re.split(r"[/.:]+", operation_id)) if part]
    if len(parts) > 1:
        return _part(parts[:-1]), _part(parts[-1:])
    words = slug(operation_id).split("-")
    if len(words) > 1 and words[0] in _VERBS:
        return _part(words[1:]), _part(words[:1])
    if len(words) > 1 and words[-1] in _VERBS:
        return _part(words[:-1]), _part(words[-1:])
    return None


def _path_verb(method: str, template: Template) -> str:
    literal, parameter = template.segments[-1]
    if method == "GET":
        return "list" if not parameter and literal.endswith("s") and not literal.endswith("ss") else "read"
    if method == "POST" and parameter:
        return "post"
    return _BY_METHOD.get(method, slug(method))


def _part(words: list[str]) -> str:
    """One part of a name, at most ``MAX_PART`` long; what is cut off is kept apart by a hash."""
    text = "-".join(words)
    if len(text) <= MAX_PART:
        return text
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[: MAX_PART - 9].rstrip('-')}-{mark}"
