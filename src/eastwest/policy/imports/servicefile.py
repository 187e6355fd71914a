"""The text of a service file as places that can be edited: what is not edited stays as it is, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import (
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from eastwest.policy.imports.model import DocumentInvalid, refuse
from eastwest.policy.problems import Findings, Position
from eastwest.policy.yamltree import Mapping, read_text, read_yaml

KEEP = "# keep"
"""A comment that says that an operation is no document's, so that none misses it."""
SUGGESTED = "# suggested: sensitivity: "
"""How a comment begins that an import writes where nobody has said a sensitivity."""


@dataclass(slots=True)
class Span:
    """A node of the file, from ``start`` to ``end`` (offsets); ``text`` of scalars, children by key of mappings."""

    start: int
    end: int
    line: int
    column: int
    text: str | None = None
    style: str | None = None
    flow: bool = False
    children: dict[str, Span] = field(default_factory=dict)
    items: list[Span] | None = None

    def get(self, *keys: str) -> Span | None:
        """The node below, by keys."""
        found: Span | None = self
        for key in keys:
            found = found.children.get(key) if found is not None else None
        return found

    def said(self, *keys: str) -> str:
        """The text of the scalar below; "" where there is none."""
        found = self.get(*keys)
        return found.text or "" if found is not None else ""


class ServiceFile:
    """A service file that exists, read for editing; raises ``DocumentInvalid`` where it is no YAML of the estate."""

    def __init__(self, name: str, data: bytes) -> None:
        findings = Findings()
        text = read_text(name, data, findings)
        tree = read_yaml(name, data, findings)
        if text is None or tree is None:
            raise DocumentInvalid(findings.all())
        if not isinstance(tree, Mapping):
            findings.error(tree.where, "this is no service file", "give services/NAME.yaml of an estate")
            raise DocumentInvalid(findings.all())
        self.name = name
        self.text = text
        self.mark = "\ufeff" if data.startswith(b"\xef\xbb\xbf") else ""
        self.newline = "\r\n" if "\r\n" in text else "\n"
        self.root = _Spans(text).root()
        operations = self.root.get("operations")
        self.operations = operations.items or [] if operations is not None else []
        if operations is not None and operations.items is None and operations.text not in ("", "~", "null"):
            findings.error(self.where(operations), "operations must be a list", "write - name: ...")
        elif operations is not None and operations.flow and self.operations:
            findings.error(
                self.where(operations), "operations are written in [ ]", "write each on a line of its own, after a -"
            )
        refuse(findings)

    def where(self, span: Span) -> Position:
        """The place of a node, for messages."""
        return Position(self.name, span.line, span.column)

    def line_end(self, offset: int) -> int:
        """The offset after the line that holds the character before ``offset``."""
        if offset and self.text[offset - 1] == "\n":
            return offset
        end = self.text.find("\n", offset)
        return len(self.text) if end < 0 else end + 1

    def line_start(self, offset: int) -> int:
        """The offset where the line of ``offset`` begins."""
        return self.text.rfind("\n", 0, offset) + 1

    def block(self, operation: Span) -> tuple[int, int]:
        """The whole lines of an operation, with the comments inside and below that are indented like it."""
        start, end = self.line_start(operation.start), self.line_end(operation.end)
        dash = self.dash(operation)
        while end < len(self.text):
            line_end = self.line_end(end + 1)
            line = self.text[end:line_end]
            bare = line.lstrip(" ")
            if not bare.startswith("#") or len(line) - len(bare) <= dash:
                break
            end = line_end
        return start, end

    def dash(self, operation: Span) -> int:
        """The column of the operation's dash."""
        start = self.line_start(operation.start)
        return max(0, self.text.rfind("-", start, operation.start) - start)

    def comments(self, operation: Span) -> str:
        """The lines of an operation with the comment lines directly above it."""
        start, end = self.block(operation)
        while start:
            above = self.line_start(start - 1)
            if not self.text[above:start].lstrip().startswith("#"):
                break
            start = above
        return self.text[start:end]

    def is_kept(self, operation: Span) -> bool:
        """Whether a comment ``# keep`` says that no document needs to have it."""
        return any(line.rstrip().endswith(KEEP) for line in self.comments(operation).splitlines())


class _Spans:
    """Offsets of everything in a file whose YAML has been found good."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = iter(YAML(typ="safe", pure=True).parse(text))

    def root(self) -> Span:
        for event in self._events:
            if isinstance(event, MappingStartEvent):
                return self._node(event)
        raise AssertionError("a good file has a mapping")

    def _node(self, event: Any) -> Span:
        mark = event.start_mark
        span = Span(mark.index, event.end_mark.index, mark.line + 1, mark.column + 1)
        if isinstance(event, ScalarEvent):
            span.text, span.style = event.value, event.style
            return span
        span.flow = bool(event.flow_style)
        last = span
        if isinstance(event, SequenceStartEvent):
            span.items = []
            while not isinstance(item := next(self._events), SequenceEndEvent):
                last = self._node(item)
                span.items.append(last)
        else:
            while not isinstance(item := next(self._events), MappingEndEvent):
                key = self._node(item)
                last = span.children[key.text or ""] = self._node(next(self._events))
        # A block ends with its last part: the event's own end is where the next token begins, after comments.
        span.end = item.end_mark.index if span.flow else last.end
        return span
