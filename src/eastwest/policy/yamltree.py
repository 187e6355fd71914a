"""YAML as a tree of texts with positions: the safe half of YAML 1.2, bounded.

Anchors, aliases, tags, repeated keys and several documents in one file are refused; plain scalars stay text, so
that the fields, not the parser, decide what is a number (``eastwest.policy.decode``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from eastwest.policy.problems import Findings, Position, Problem, Severity

MAX_DEPTH = 20
MAX_NODES = 1_000_000


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text; ``plain`` when it was written without quotes."""

    text: str
    plain: bool
    where: Position


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    items: tuple[Node, ...]
    where: Position


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping; keys are texts and differ."""

    entries: tuple[tuple[Scalar, Node], ...]
    where: Position

    def get(self, key: str) -> Node | None:
        """The value of ``key``, if it is there."""
        return next((value for name, value in self.entries if name.text == key), None)


Node = Scalar | Sequence | Mapping


class _Refused(Exception):
    """A jump to the one place that reports, never seen outside."""

    def __init__(self, where: Position, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.where = where
        self.message = message
        self.fix = fix


def read_text(file: str, data: bytes, findings: Findings) -> str | None:
    """The file as text; a finding and ``None`` when it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        findings.error(Position(file, line, column), "the file is not UTF-8", "save it as UTF-8")
        return None


def read_yaml(file: str, data: bytes, findings: Findings) -> Node | None:
    """The one document of ``file``; a finding and ``None`` when it is not the YAML that is accepted."""
    text = read_text(file, data, findings)
    if text is None:
        return None
    found = _parse(file, text)
    if isinstance(found, Problem):
        findings.error(found.where, found.message, found.fix)
        return None
    return found


def _parse(file: str, text: str) -> Node | Problem:
    try:
        return _Builder(file, text).document()
    except _Refused as refused:
        return Problem(Severity.ERROR, refused.where, refused.message, refused.fix)
    except YAMLError as error:
        where, message = _syntax_error(file, text, error)
        return Problem(Severity.ERROR, where, message, _syntax_fix(message))


class _Builder:
    """Builds the tree from the parser's events, without recursion into the parser."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._events: Iterator[Any] = iter(YAML(typ="safe", pure=True).parse(text))
        self._nodes = 0

    def document(self) -> Node:
        root: Node | None = None
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                if root is not None:
                    raise _Refused(self._where(event), "the file holds two documents", "split it, or remove the ---")
                root = self._node(next(self._events), 0)
        if root is None:
            raise _Refused(Position(self._file, 1, 1), "the file is empty")
        return root

    def _node(self, event: Any, depth: int) -> Node:
        where = self._where(event)
        self._nodes += 1
        if depth > MAX_DEPTH:
            raise _Refused(where, f"nested deeper than {MAX_DEPTH} levels")
        if self._nodes > MAX_NODES:
            raise _Refused(where, f"more than {MAX_NODES} values in one file", "split the file")
        if isinstance(event, AliasEvent) or event.anchor is not None:
            raise _Refused(where, "anchors and aliases (& and *) are not read here", "write the value out")
        if event.tag is not None:
            raise _Refused(where, f"tags such as {str(event.tag)[:80]} are not read here", "remove the tag")
        if isinstance(event, ScalarEvent):
            return Scalar(event.value, event.style is None, where)
        if isinstance(event, SequenceStartEvent):
            return Sequence(tuple(self._items(depth)), where)
        if isinstance(event, MappingStartEvent):
            return Mapping(tuple(self._entries(depth)), where)
        raise _Refused(where, "this is not a value")

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := next(self._events), SequenceEndEvent):
            yield self._node(event, depth + 1)

    def _entries(self, depth: int) -> Iterator[tuple[Scalar, Node]]:
        seen: dict[str, Position] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._node(event, depth + 1)
            if not isinstance(key, Scalar):
                raise _Refused(key.where, "a key must be a plain text")
            if key.text in seen:
                raise _Refused(
                    key.where,
                    f"{key.text[:80]!r} is written twice",
                    f"keep one; the first is in line {seen[key.text].line}",
                )
            seen[key.text] = key.where
            yield key, self._node(next(self._events), depth + 1)

    def _where(self, event: Any) -> Position:
        return Position(self._file, event.start_mark.line + 1, event.start_mark.column + 1)


def _syntax_error(file: str, text: str, error: YAMLError) -> tuple[Position, str]:
    """Position and sentence of a parser's error; its own texts span lines and quote the file."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
    problem = str(problem)[:200]
    if mark is not None:
        return Position(file, mark.line + 1, mark.column + 1), f"not YAML: {problem}"
    offset = getattr(error, "position", None)
    if isinstance(offset, int):
        before = text[:offset]
        return Position(file, before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1), f"not YAML: {problem}"
    return Position(file, 1, 1), f"not YAML: {problem}"


def _syntax_fix(message: str) -> str:
    if r"'\t'" in message:
        return "indent with spaces"
    if "mapping values are not allowed" in message:
        return "check the indentation, and quote values that contain ': '"
    if "special characters are not allowed" in message:
        return "remove the control character"
    return "check brackets, quotes and indentation here"
