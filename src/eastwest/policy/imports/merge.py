"""Putting the operations of a document into a service file, so that nothing of what people wrote there is lost.

Operations are the same when they match the same requests, whatever their parameters are called; what is left over on
both sides is the same when it has the same name. People's words win: a document never overrides what the file says.
One word does not last: a sensitivity that was given to a milder method (GET) than the operation has now (DELETE).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from eastwest.errors import Internal
from eastwest.policy.estate import Sensitivity
from eastwest.policy.imports.model import Contents, Found, refuse
from eastwest.policy.imports.outcome import Appeared, Change, Outcome, Vanished
from eastwest.policy.imports.renames import Renames
from eastwest.policy.imports.servicefile import SUGGESTED, ServiceFile, Span
from eastwest.policy.operations import likely_tenant
from eastwest.policy.paths import Template
from eastwest.policy.problems import Findings, Position, Problem, Severity

_STRENGTH = {sensitivity.value: i for i, sensitivity in enumerate(Sensitivity)}
_PLAIN = re.compile(r"[/A-Za-z_][A-Za-z0-9._/-]*")
Key = tuple[object, ...]


def merge(file: ServiceFile, service: str, contents: Contents, *, prune: bool = False) -> Outcome:
    """Bring the file up to the document; raises ``DocumentInvalid`` when they contradict each other."""
    return _Merge(file, service, contents, prune).outcome()


class _Merge:
    def __init__(self, file: ServiceFile, service: str, contents: Contents, prune: bool) -> None:
        self._file = file
        self._service = service
        self._contents = contents
        self._prune = prune
        self._edits: list[tuple[int, int, str]] = []
        self._done = Outcome(before=file.mark + file.text, left_out=contents.left_out, notes=list(contents.notes))
        self._names = {operation.said("name") for operation in file.operations}
        self._removed: set[str] = set()
        self._outgrown: set[tuple[str, str]] = set()

    def outcome(self) -> Outcome:
        self._check_service()
        pairs, missing, unmatched = self._paired()
        renames = Renames(self._file.root.said("tenant", "path"))
        for found, operation in pairs:
            renames.learn(found.path, operation.said("match", "path"))
        missing, unmatched = self._moved(missing, unmatched, renames)
        missing = [replace(found, path=renames.apply(found.path)) for found in missing]
        for found, operation in pairs:
            self._update(found, operation)
        for operation in unmatched:
            self._vanish(operation)
        self._say_tenant()
        self._append(missing)
        text = self._file.text
        # From the end, so that offsets stay true; at one place the earlier edit comes before the later.
        for (start, end, replacement), _ in sorted(
            zip(self._edits, range(len(self._edits)), strict=True), key=lambda e: (*e[0][:2], e[1]), reverse=True
        ):
            text = text[:start] + replacement.replace("\n", self._file.newline) + text[end:]
        self._done.text = self._file.mark + text
        self._done.total = len(self._names) - len(self._removed)
        self._verify()
        return self._done

    def _check_service(self) -> None:
        said = self._file.root.said("service")
        if said and said != self._service:
            findings = Findings()
            span = self._file.root.children["service"]
            findings.error(
                self._file.where(span), f"this is service {said!r}, not {self._service!r}", f"give --service {said}"
            )
            refuse(findings)

    def _paired(self) -> tuple[list[tuple[Found, Span]], list[Found], list[Span]]:
        """Operations of the document with those of the file for the same requests, then the rest of both."""
        there = {key: o for o in self._file.operations if (key := _key_of(o)) is not None and self._is_ours(o)}
        pairs: list[tuple[Found, Span]] = []
        rest: list[Found] = []
        for found in self._contents.operations:
            operation = there.pop(_key(found), None)
            if operation is None:
                rest.append(found)
            else:
                pairs.append((found, operation))
        return pairs, rest, list(there.values())

    def _moved(self, rest: list[Found], unmatched: list[Span], renames: Renames) -> tuple[list[Found], list[Span]]:
        """Take those that have a name of the file and other requests as changed; returns what is left of both."""
        by_name = {o.said("name"): o for o in unmatched if not self._file.is_kept(o)}
        wanted = [found.name or f"{self._service}:{':'.join(found.names[0])}" for found in rest]
        missing: list[Found] = []
        for found, name in zip(rest, wanted, strict=True):
            # Only where exactly one operation of the document would get the name, so that their order is all one.
            operation = by_name.get(name) if wanted.count(name) == 1 else None
            path = "" if operation is None else renames.carried(operation.said("match", "path"), found.path)
            if operation is None or path is None:
                missing.append(found)
                continue
            del by_name[name]
            self._update(found, operation, path or found.path)
        return missing, list(by_name.values())

    def _is_ours(self, operation: Span) -> bool:
        """Whether the document speaks about operations of its kind."""
        grpc = operation.get("match", "grpc") is not None
        return grpc == (self._contents.kind == "grpc") and operation.get("match", "tcp") is None

    def _update(self, found: Found, operation: Span, path: str = "") -> None:
        """What the document says and the file does not; ``path`` where the requests are other ones now."""
        name = operation.said("name")
        moved = (("path", path), ("method", found.method), ("grpc", found.grpc)) if path or found.grpc else ()
        for key, value in moved:
            scalar = operation.get("match", key)
            if scalar is not None and value and scalar.text != value:
                if key == "method":
                    self._weigh(found, operation, scalar.text or "")
                self._done.changed.append(Change(name, key, scalar.text or "", value))
                self._edits.append((scalar.start, scalar.end, _like(scalar, value)))
        for key, value in _said(found):
            there = operation.get(key)
            if there is None:
                self._done.changed.append(Change(name, key, "", value))
                self._insert(operation, key, value)
            elif _shown(there) != value and (name, key) not in self._outgrown:
                self._done.notes.append(
                    Problem(
                        Severity.NOTE,
                        self._file.where(there),
                        f"{name}: the document says {key}: {value}, the file {_shown(there)}: the file is kept",
                    )
                )

    def _weigh(self, found: Found, operation: Span, before: str) -> None:
        """What was said of a milder method is no word about this one: then nobody has classified the operation."""
        said = operation.get("sensitivity")
        new = found.sensitivity or found.suggestion
        if said is None or _STRENGTH.get(said.text or "", -1) >= _STRENGTH[new]:
            return
        name, old = operation.said("name"), said.text or ""
        self._outgrown.add((name, "sensitivity"))
        if found.sensitivity:
            self._done.changed.append(Change(name, "sensitivity", old, new))
            self._edits.append((said.start, said.end, new))
            return
        self._done.changed.append(Change(name, "sensitivity", old, ""))
        self._done.notes.append(
            Problem(
                Severity.WARNING,
                self._file.where(said),
                f"{name} was classified as {old} when it was {before}; now it is {found.method}, "
                "and refused to everybody until it is classified again",
                f"suggested: {new}",
            )
        )
        was, indent = f"# when it was {before}: sensitivity: {old}", " " * (operation.column - 1)
        suggestion = f"{indent}{SUGGESTED}{new}\n"
        text = self._file.text
        if operation.flow:
            start, end = _entry(text, operation.start, said)
            self._edits.append((start, end, ""))
            after, suggestion = self._file.line_end(operation.end), f"{indent}{was}\n{suggestion}"
        else:
            start = text.rindex("sensitivity", operation.start, said.start)
            start -= text[start - 1] in "'\""
            self._edits.append((start, said.end, was))
            after = self._file.line_end(said.end)
        if text[after - 1] != "\n":
            suggestion = "\n" + suggestion
        self._edits.append((after, after, suggestion))

    def _insert(self, operation: Span, key: str, value: str) -> None:
        if operation.flow:
            self._edits.append((operation.end - 1, operation.end - 1, f", {key}: {value}"))
            return
        match = operation.children["match"]
        end = self._file.line_end(match.end)
        indent = " " * (operation.column - 1)
        break_before = "" if self._file.text[end - 1 : end] == "\n" else "\n"
        self._edits.append((end, end, f"{break_before}{indent}{key}: {value}\n"))
        if key == "sensitivity":
            start, stop = self._file.block(operation)
            for line_start, line_end in _lines(self._file.text, start, stop):
                if self._file.text[line_start:line_end].strip().startswith(SUGGESTED):
                    self._edits.append((line_start, line_end, ""))

    def _vanish(self, operation: Span) -> None:
        what = operation.said("match", "grpc") or " ".join(
            filter(None, (operation.said("match", "method"), operation.said("match", "path")))
        )
        name = operation.said("name")
        self._done.vanished.append(Vanished(name, what, self._file.where(operation)))
        if self._prune:
            self._done.pruned = True
            self._removed.add(name)
            start, end = self._file.block(operation)
            self._edits.append((start, end, ""))

    def _append(self, missing: Sequence[Found]) -> None:
        if not missing:
            return
        named = self._name(missing)
        rows = [(found, named[id(found)]) for found in missing]
        for found, name in rows:
            self._done.appeared.append(Appeared(name, found.what, found.sensitivity, found.suggestion))
        operations = self._file.operations
        if operations:
            last = operations[-1]
            dash, key = self._file.dash(last), last.column - 1 if not last.flow else self._file.dash(last) + 2
            at = self._file.block(last)[1]
        else:
            dash, key = 2, 4
            at = len(self._file.text)
        text = "".join(entry_text(found, name, dash, key) for found, name in rows)
        span = self._file.root.get("operations")
        if span is None:
            text = "operations:\n" + text
        elif not operations:
            self._edits.append((span.start, span.end, ""))
            at = self._file.line_end(span.end)
        if at and self._file.text[at - 1] != "\n":
            text = "\n" + text
        self._edits.append((at, at, text))

    def _name(self, missing: Sequence[Found]) -> dict[int, str]:
        """A name for each that nothing else has; the order of the document makes no difference."""
        taken = set(self._names)
        named: dict[int, str] = {}
        for found in sorted(
            missing, key=lambda one: (not one.name, one.path.count("{"), one.path.count("/"), one.what)
        ):
            if found.name:
                self._check_name(found, taken)
                name = found.name
            else:
                candidates = [f"{self._service}:{':'.join(pair)}" for pair in found.names]
                name = next((c for c in candidates if c not in taken), "")
            if not name:
                raise Internal(f"{found.what} has no name of its own")
            taken.add(name)
            named[id(found)] = name
        self._names = taken
        return named

    def _check_name(self, found: Found, taken: set[str]) -> None:
        findings = Findings()
        if found.name.partition(":")[0] != self._service:
            findings.error(
                found.where,
                f"operation {found.name!r} does not begin with its service's name",
                f"write {self._service}:{found.name.partition(':')[2]}",
            )
        elif found.name in taken:
            findings.error(found.where, f"operation {found.name!r} is there already", "rename one")
        refuse(findings)

    def _say_tenant(self) -> None:
        if self._contents.tenant is None:
            self._suggest_tenant()
            return
        kind, name = self._contents.tenant
        there = self._file.root.get("tenant")
        if there is not None:
            if there.said(kind) != name:
                shown = ", ".join(f"{key}: {value.text}" for key, value in there.children.items())
                self._done.notes.append(
                    Problem(
                        Severity.NOTE,
                        self._file.where(there),
                        f"the document says tenant: {kind}: {name}, the file {shown}: the file is kept",
                    )
                )
            return
        self._done.changed.append(Change(self._service, "tenant", "", f"{kind}: {name}"))
        line = f"tenant: {{{kind}: {name}}}\n"
        upstream = self._file.root.get("upstream") or self._file.root.get("service")
        at = self._file.line_end(upstream.end) if upstream is not None else 0
        if at and self._file.text[at - 1] != "\n":
            line = "\n" + line
        self._edits.append((at, at, line))

    def _suggest_tenant(self) -> None:
        """Without ``tenant:`` every caller may act for every tenant; only a person knows whether there are any."""
        likely = tenant_parameter(self._contents)
        if likely and self._file.root.get("tenant") is None:
            self._done.notes.append(
                Problem(
                    Severity.WARNING,
                    Position(self._file.name),
                    f"paths have {{{likely}}}, and nothing says that this is the tenant",
                    f"write tenant: {{path: {likely}}}, so that calls are held to their caller's tenants",
                )
            )

    def _verify(self) -> None:
        """The text says what was meant: it is read again."""
        again = ServiceFile(self._file.name, self._done.text.encode())
        names = [operation.said("name") for operation in again.operations]
        there = {_key_of(operation) for operation in again.operations}
        lost = [found.what for found in self._contents.operations if _key(found) not in there]
        if sorted(names) != sorted(self._names - self._removed) or lost:
            raise Internal(f"{self._file.name} could not be edited; nothing was written: {', '.join(lost[:3])}")


def tenant_parameter(contents: Contents) -> str:
    """The parameter of the document's paths that by its name is the tenant; "" without one, or if it says itself."""
    paths = [Template.parse(found.path) for found in contents.operations if found.path]
    return "" if contents.tenant else likely_tenant({name for path in paths for name in path.parameters})


def _entry(text: str, begin: int, value: Span) -> tuple[int, int]:
    """From where to where the sensitivity stands in braces that ``begin`` there, with one of the commas beside it."""
    key = re.search(r"(,\s*)?[\"']?sensitivity[\"']?\s*:\s*\Z", text[begin : value.start])
    if key is None:
        raise Internal("a value in braces has no key before it")
    start = begin + key.start()
    if key[1]:
        return start, value.end
    after = re.compile(r"\s*,\s*").match(text, value.end)
    return start, after.end() if after else value.end


def entry_text(found: Found, name: str, dash: int, key: int) -> str:
    """A new operation as text, its dash and its keys in the columns given (from 0)."""
    indent = " " * key
    match = f"{{grpc: {found.grpc}}}" if found.grpc else f"{{method: {found.method}, path: {_quoted(found.path)}}}"
    lines = [f"{' ' * dash}-{' ' * (key - dash - 1)}name: {name}", f"{indent}match: {match}"]
    lines += [f"{indent}{said}: {value}" for said, value in _said(found)]
    if not found.sensitivity:
        lines.append(f"{indent}{SUGGESTED}{found.suggestion}")
    return "\n".join(lines) + "\n"


def _said(found: Found) -> Iterator[tuple[str, str]]:
    if found.sensitivity:
        yield "sensitivity", found.sensitivity
    if found.data:
        yield "data", found.data
    if found.demands:
        yield "demands", f"[{', '.join(found.demands)}]"


def _shown(span: Span) -> str:
    if span.items is not None:
        return f"[{', '.join(item.text or '' for item in span.items)}]"
    return span.text or ""


def _key(found: Found) -> Key:
    return ("grpc", found.grpc) if found.grpc else (found.method, Template.parse(found.path).shape)


def _key_of(operation: Span) -> Key | None:
    grpc, method, path = (operation.said("match", key) for key in ("grpc", "method", "path"))
    if grpc:
        return ("grpc", grpc)
    return (method, Template.parse(path).shape) if method and path else None


def _quoted(path: str) -> str:
    return path if _PLAIN.fullmatch(path) else f'"{path}"'


def _like(scalar: Span, value: str) -> str:
    """``value`` with the quotes that the old value has, or those that it needs."""
    if scalar.style == "'":
        return "'" + value.replace("'", "''") + "'"
    return f'"{value}"' if scalar.style == '"' else _quoted(value)


def _lines(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        stop = text.find("\n", start, end)
        stop = end if stop < 0 else stop + 1
        yield start, stop
        start = stop
