"""OpenAPI 3.0, 3.1 and 3.2 documents: their paths as operations.

Only what a request line says is read: method, path, servers' base paths, and our own extensions. Schemas, security
schemes and examples are not looked at. References are followed inside the document, never out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from eastwest.policy.forms import complaint
from eastwest.policy.imports.extensions import PREFIX, Extensions, is_true, read_extensions, read_tenant
from eastwest.policy.imports.model import MAX_OPERATIONS, Budget, Contents, Found, LeftOut, refuse
from eastwest.policy.imports.names import http_names, suggested_sensitivity
from eastwest.policy.imports.source import Document, read_document, shown
from eastwest.policy.imports.templates import Inexpressible, path_template
from eastwest.policy.paths import Template, template_problem
from eastwest.policy.problems import Findings, Position, Problem, Severity, suggest

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
MAX_REFERENCES = 32
"""In a chain."""
MAX_PARAMETERS = 1000
MAX_VALUE = 256
"""Characters of a server's variable."""
_STEPS = 20
"""Of the budget, for an operation or a server: as aliases and references, many may be written as one."""
_VERSION = re.compile(r"3\.[0-2](\.[0-9]+)?(-.*)?")
_VARIABLE = re.compile(r"\{([^{}]*)\}")
_PATH_KEYS = frozenset({"$ref", "summary", "description", "servers", "parameters", "additionalOperations"})
_CONVERT = "convert it to OpenAPI 3, for example with swagger2openapi"


def read_openapi(file: str, data: bytes, *, base_path: str | None = None) -> Contents:
    """Read a document in JSON or YAML; ``file`` names it in messages.

    ``base_path`` replaces the servers' ("/" for none). Raises ``DocumentInvalid`` with every mistake found;
    what is right and cannot be an operation of an estate is in ``left_out``.
    """
    document = read_document(file, data)
    reader = _Reader(document, base_path)
    contents = reader.contents()
    refuse(reader.findings)
    return contents


class _Reader:
    def __init__(self, document: Document, base_path: str | None) -> None:
        self.findings = Findings()
        self._document = document
        self._base_path = base_path
        self._budget = Budget()
        self._operations: list[Found] = []
        self._left_out: list[LeftOut] = []
        self._notes: list[Problem] = []
        self._shapes: dict[tuple[str, tuple[str | None, ...]], int] = {}  # places in operations
        self._tenant: tuple[str, str] | None = None
        self._callbacks = 0
        self._elsewhere: list[Position] = []  # operations that are references which lead nowhere here
        self._version = ""

    def contents(self) -> Contents:
        """Everything of the document."""
        top = self._top()
        if top is None:
            return Contents(())
        start = Position(self._document.file)
        root = read_extensions(self._document, top, "document", Extensions(), start, self.findings)
        if PREFIX + "tenant" in top:
            where = self._document.where(PREFIX + "tenant")
            self._tenant = read_tenant(top[PREFIX + "tenant"], where, self.findings)
        if self._base_path is not None:
            self._check_base(self._base_path, Position("--base-path"))
        base = self._base(top, start) or ""
        paths = top.get("paths", {})
        if not isinstance(paths, dict):
            self.findings.error(self._document.where("paths"), "paths must be a mapping", "write /path: {get: ...}")
            return Contents(())
        for path, item in paths.items():
            if path.startswith("x-"):
                continue
            if not self._budget.spend():
                break
            self._path(path, item, self._document.at(paths, path, start), root, base)
        self._remarks(top, paths)
        return Contents(tuple(self._operations), tuple(self._left_out), tuple(self._notes), self._tenant)

    def _top(self) -> dict[str, Any] | None:
        top, start = self._document.value, Position(self._document.file, 1, 1)
        if not isinstance(top, dict):
            self.findings.error(start, "this is not an OpenAPI document", "it must begin with openapi: 3.1.0")
            return None
        if "swagger" in top:
            self.findings.error(
                self._document.where("swagger"), f"Swagger {shown(top['swagger'], 20)} is not read", _CONVERT
            )
            return None
        self._version = version = shown(top.get("openapi", ""))
        if not _VERSION.fullmatch(version):
            told = f"OpenAPI {version[:20]!r} is not read" if version else "this is not an OpenAPI document"
            self.findings.error(self._document.where("openapi"), told, "3.0, 3.1 and 3.2 are; " + _CONVERT)
            return None
        return top

    def _path(self, path: str, item: Any, where: Position, above: Extensions, base: str) -> None:
        item = self._resolved(item, where, path)
        if item is None or not self._budget.spend(len(item)):
            return
        said = read_extensions(self._document, item, "path", above, where, self.findings)
        here = self._base(item, where)
        base = base if here is None else here
        for key, value in item.items():
            at = self._document.at(item, key, where)
            if key in METHODS or (key == "query" and self._version.startswith("3.2")):
                self._operation(key.upper(), path, item, value, at, said, base)
            elif key == "additionalOperations" and isinstance(value, dict):
                for method, operation in value.items():
                    if self._budget.exhausted:
                        return
                    self._operation(method, path, item, operation, self._document.at(value, method, at), said, base)
            elif key not in _PATH_KEYS and not key.startswith("x-"):
                fix = suggest(key[:80].lower(), METHODS, otherwise=f"methods are {', '.join(METHODS)}")
                self._leave(at, f"{key[:80]} {path[:200]}", f"{key[:80]!r} is not a method of OpenAPI", fix)

    def _operation(
        self, method: str, path: str, item: dict[str, Any], value: Any, where: Position, above: Extensions, base: str
    ) -> None:
        what = f"{method[:40]} {base}{path[:200]}"
        if not isinstance(value, dict):
            self.findings.error(where, f"{what} must be a mapping", "write the operation, such as {responses: {}}")
            return
        if not self._budget.spend(_STEPS + len(value)):
            return
        if "$ref" in value:
            target = self._followed(value)
            if not isinstance(target, dict):
                self._elsewhere.append(where)
            elif self._budget.spend(len(target)):
                value = {**target, **value}
        self._callbacks += bool(value.get("callbacks"))
        said = read_extensions(self._document, value, "operation", above, where, self.findings)
        if said.ignore:
            self._leave(where, what, f"the document says {PREFIX}ignore")
            return
        wrong = complaint("method", method)
        if wrong is not None:
            self._leave(where, what, wrong[0], wrong[1])
            return
        here = self._base(value, where)
        base = base if here is None else here
        try:
            relative, _ = path_template(path)
            template, names = path_template(base + path if base else path)
        except Inexpressible as error:
            self._leave(where, what, error.message, error.fix)
            return
        operation_id = value.get("operationId")
        candidates = http_names(method, relative, operation_id if isinstance(operation_id, str) else "")
        found = Found(
            where=where,
            names=candidates,
            suggestion=suggested_sensitivity(method, template, candidates),
            method=method,
            path=template,
            name=said.name,
            sensitivity=said.sensitivity,
            data=said.data,
            demands=said.demands,
        )
        if self._new(found):
            self._parameters(item, value, names, where)

    def _new(self, found: Found) -> bool:
        """Keep it, unless another operation has the same requests: then the first by path, in any order."""
        key = (found.method, Template.parse(found.path).shape)
        place = self._shapes.get(key)
        if place is not None:
            first = self._operations[place]
            kept, left = sorted((first, found), key=lambda one: one.path)
            self._leave(left.where, left.what, f"the same requests as {kept.what} in line {kept.where.line}")
            if kept is first:
                return False
            self._operations[place] = found
        elif len(self._operations) == MAX_OPERATIONS:
            if not self.findings.failed:
                self.findings.error(found.where, f"more than {MAX_OPERATIONS} operations", "import in parts")
            return False
        else:
            self._shapes[key] = len(self._operations)
            self._operations.append(found)
        return True

    def _parameters(self, item: dict[str, Any], value: dict[str, Any], names: dict[str, str], where: Position) -> None:
        """A parameter may say that it names the tenant; the whole document must agree about which."""
        for table in (item, value):
            listed = table.get("parameters")
            if not isinstance(listed, list):
                continue
            for one in listed[:MAX_PARAMETERS]:
                if not self._budget.spend():
                    return
                at = self._document.at(table, "parameters", where)
                parameter = self._followed(one)
                if not isinstance(parameter, dict) or not is_true(parameter.get(PREFIX + "tenant")):
                    continue
                kind, name = shown(parameter.get("in"), 20), parameter.get("name")
                name = name if isinstance(name, str) else ""
                tenant = ("path", names.get(name, name)) if kind == "path" else ("header", name.lower())
                if kind not in {"path", "header"}:
                    self.findings.error(
                        at, f"a tenant cannot be in the {kind}", "only a path or header parameter says one"
                    )
                elif self._tenant not in (None, tenant):
                    self.findings.error(
                        at, f"two parameters name the tenant: {self._shown()} and {name[:80]}", "a service has one"
                    )
                elif (wrong := complaint("parameter" if kind == "path" else "header", tenant[1])) is not None:
                    self.findings.error(at, wrong[0], wrong[1])
                else:
                    self._tenant = tenant

    def _shown(self) -> str:
        return self._tenant[1] if self._tenant else ""

    def _remarks(self, top: dict[str, Any], paths: dict[str, Any]) -> None:
        def note(where: Position, message: str) -> None:
            self._notes.append(Problem(Severity.NOTE, where, message))

        if top.get("webhooks"):
            where = self._document.where("webhooks")
            note(where, f"{len(top['webhooks'])} webhooks are calls that the service makes: not imported")
        if self._callbacks:
            note(Position(self._document.file), f"{self._callbacks} operations have callbacks: not imported")
        if self._elsewhere:
            told = "operations are references out of the document, so nothing of them was read but method and path"
            note(self._elsewhere[0], f"{len(self._elsewhere)} {told}: bundle it into one file")
        if not paths:
            note(Position(self._document.file), "the document has no paths")
        if self._budget.exhausted:
            self.findings.error(Position(self._document.file), "the document refers to itself too often to be read")

    def _leave(self, where: Position, what: str, reason: str, fix: str = "") -> None:
        self._left_out.append(LeftOut(where, what, reason, fix))

    def _base(self, table: dict[str, Any], where: Position) -> str | None:
        """The path before all paths, without a closing slash; None where the table has no servers."""
        if self._base_path is not None:
            return self._base_path.rstrip("/")
        servers = table.get("servers")
        if not isinstance(servers, list) or not servers:
            return None
        at = self._document.at(table, "servers", where)
        found = [base for server in servers[:MAX_PARAMETERS] if (base := self._server(server, at)) is not None]
        if len(set(found)) > 1:
            several = ", ".join(sorted({base or "/" for base in found})[:5])
            self.findings.error(at, f"servers have different base paths: {several}", "say which by --base-path")
        return found[0] if found else None

    def _server(self, server: Any, where: Position) -> str | None:
        if not self._budget.spend(_STEPS):
            return None
        url = server.get("url") if isinstance(server, dict) else None
        if not isinstance(url, str):
            self.findings.error(where, "a server has no url", "write url: /, or a whole URL")
            return None
        variables = server.get("variables") if isinstance(server.get("variables"), dict) else {}

        def default(found: re.Match[str]) -> str:
            one = variables.get(found[1])
            value = one.get("default") if isinstance(one, dict) else None
            said = isinstance(value, str | int | float) and len(str(value)) <= MAX_VALUE
            return str(value) if said else found[0]

        filled = _VARIABLE.sub(default, url[:4096])
        try:
            path = urlsplit(filled).path.rstrip("/")
        except ValueError:
            self.findings.error(where, f"{filled[:80]!r} is not a URL", "write url: /, or a whole URL")
            return None
        return path if not path or self._check_base(path, where) else None

    def _check_base(self, path: str, where: Position) -> bool:
        fix = "write a path such as /v1; --base-path replaces what the document says"
        wrong = template_problem(path) if path.startswith("/") else ("", "")
        if wrong is not None or "{" in path:
            self.findings.error(where, f"{path[:80]!r} is not a base path", fix)
            return False
        return True

    def _resolved(self, item: Any, where: Position, path: str) -> dict[str, Any] | None:
        """A path item with its reference followed; its own keys win."""
        if isinstance(item, dict) and "$ref" in item:
            target = self._followed(item)
            if not isinstance(target, dict):
                reason = f"{shown(item['$ref'])!r} {self._why(item)}"
                self._leave(where, path[:200], reason, "bundle the document into one file")
                return None
            if len(item) == 1 or not self._budget.spend(len(target)):
                return target
            return {**target, **{key: value for key, value in item.items() if key != "$ref"}}
        if item is None or item in ("", "null", "~"):
            return None
        if not isinstance(item, dict):
            self.findings.error(where, f"{path[:80]!r} must be a mapping", "write its methods, such as get:")
            return None
        return item

    def _followed(self, value: Any) -> Any:
        """What a reference leads to inside this document; None where it leads nowhere."""
        for _ in range(MAX_REFERENCES):
            if not isinstance(value, dict) or "$ref" not in value:
                return value
            reference = value["$ref"]
            if not isinstance(reference, str) or not reference.startswith("#"):
                return None
            value = self._document.value
            for key in _pointer(reference):
                if not self._budget.spend():
                    return None
                if isinstance(value, list) and key.isdecimal() and len(key) < 8 and int(key) < len(value):
                    value = value[int(key)]
                elif isinstance(value, dict) and key in value:
                    value = value[key]
                else:
                    return None
        return None

    def _why(self, item: dict[str, Any]) -> str:
        reference = item["$ref"]
        if isinstance(reference, str) and reference.startswith("#"):
            return "leads nowhere in this document, or round in a circle"
        return "is in another document, which is not read"


def _pointer(reference: str) -> Iterator[str]:
    """The keys of a JSON pointer (RFC 6901) in a fragment."""
    from urllib.parse import unquote

    for part in unquote(reference[1:])[:4096].split("/")[1:]:
        yield part.replace("~1", "/").replace("~0", "~")
