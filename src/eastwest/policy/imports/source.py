"""A document in JSON or YAML as plain values that know their lines.

Unlike the estate's own files, foreign documents may use anchors: an alias is the same value again, never a copy, so
that its expansion costs nothing, as long as nobody writes it out: values are shown by ``shown`` alone. JSON is parsed
by hand only where positions matter; the rest is left to the fast decoder.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
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

from eastwest.policy.imports.model import DocumentInvalid
from eastwest.policy.problems import Findings, Position, Problem, Severity
from eastwest.policy.yamltree import read_text

MAX_DOCUMENT = 64 << 20  # bytes
MAX_DEPTH = 150
MAX_NODES = 5_000_000
MAX_MERGED = 200_000
"""Keys that merges (``<<``) may copy, which cost a document nothing."""
_JSON_LEVELS = 5  # of objects whose keys have positions: document, paths, path, operation, extension
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class Table(dict[str, Any]):
    """A mapping that remembers where its keys are."""

    __slots__ = ("places",)

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, tuple[int, int]] = {}


def shown(value: Any, most: int = 80) -> str:
    """A scalar as people are shown it; of anything else, which may repeat itself without end, only the kind."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return str(value)[:most]


class Document:
    """The value of a whole document. Scalars of YAML are texts, whatever they look like."""

    def __init__(self, file: str, value: Any) -> None:
        self.file = file
        self.value = value

    def where(self, *path: str) -> Position:
        """The nearest known position on the way to ``path``, keys from the top."""
        found = Position(self.file)
        value = self.value
        for key in path:
            if not isinstance(value, dict) or key not in value:
                break
            found = self.at(value, key, found)
            value = value[key]
        return found

    def at(self, table: dict[str, Any], key: str, otherwise: Position) -> Position:
        """Where ``key`` is written in ``table``, if that is known."""
        place = table.places.get(key) if isinstance(table, Table) else None
        return Position(self.file, *place) if place else otherwise


def read_document(file: str, data: bytes) -> Document:
    """Parse; raises ``DocumentInvalid`` with file and line."""
    findings = Findings()
    if len(data) > MAX_DOCUMENT:
        raise _refusal(Position(file), f"the document is larger than {MAX_DOCUMENT >> 20} MiB", "split it")
    text = read_text(file, data, findings)
    if text is None:
        raise DocumentInvalid(findings.all())
    try:
        reader = _Json(file, text) if text.lstrip()[:1] == "{" else _Yaml(file, text)
        value = reader.document()
    except RecursionError:
        raise _refusal(Position(file), f"nested deeper than {MAX_DEPTH} levels", "is this the right file?") from None
    return Document(file, value)


def _refusal(where: Position, message: str, fix: str = "") -> DocumentInvalid:
    return DocumentInvalid([Problem(Severity.ERROR, where, message, fix)])


class _Json:
    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._text = text
        self._lines: list[int] | None = None

    def document(self) -> Any:
        if sum(map(self._text.count, ",[{")) > MAX_NODES:
            raise _refusal(Position(self._file), f"more than {MAX_NODES} values", "split the document")
        try:
            value, end = self._value(self._skip(0), 0)
            end = self._skip(end)
        except json.JSONDecodeError as error:
            raise _refusal(self._position(error.pos), f"not JSON: {error.msg.lower()}") from None
        except ValueError:  # Python's own bound, as long numbers take quadratic time
            raise _refusal(Position(self._file), "a number has too many digits", "write it as a text") from None
        if end != len(self._text):
            raise _refusal(self._position(end), "not JSON: something follows the document")
        return value

    def _value(self, at: int, level: int) -> tuple[Any, int]:
        if level >= _JSON_LEVELS or self._text[at : at + 1] != "{":
            return _DECODER.raw_decode(self._text, at)
        table = Table()
        at = self._skip(at + 1)
        if self._text[at : at + 1] == "}":
            return table, at + 1
        while True:
            self._expect(at, '"')
            start = at
            key, at = _DECODER.raw_decode(self._text, at)
            at = self._skip(at)
            self._expect(at, ":")
            position = self._position(start)
            if key in table:
                raise _refusal(position, f"{key[:80]!r} is written twice", "keep one")
            table.places[key] = (position.line, position.column)
            table[key], at = self._value(self._skip(at + 1), level + 1)
            at = self._skip(at)
            if self._text[at : at + 1] == "}":
                return table, at + 1
            self._expect(at, ",")
            at = self._skip(at + 1)

    def _skip(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        return found.end() if found else at

    def _expect(self, at: int, character: str) -> None:
        if self._text[at : at + 1] != character:
            raise json.JSONDecodeError(f"expecting {character}", self._text, at)

    def _position(self, offset: int) -> Position:
        if self._lines is None:
            self._lines = [0, *(found.end() for found in re.finditer("\n", self._text))]
        line = bisect_right(self._lines, offset)
        return Position(self._file, line, offset - self._lines[line - 1] + 1)


class _Yaml:
    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._events: Iterator[Any] = iter(YAML(typ="safe", pure=True).parse(text))
        self._anchors: dict[str, Any] = {}
        self._nodes = 0
        self._merged = 0

    def document(self) -> Any:
        value: Any = None
        seen = False
        try:
            for event in self._events:
                if isinstance(event, DocumentStartEvent):
                    if seen:
                        raise _refusal(self._position(event), "the file holds two documents", "split it")
                    value, seen = self._value(next(self._events), 0), True
        except YAMLError as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            where = Position(self._file, mark.line + 1, mark.column + 1) if mark else Position(self._file)
            problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not a document"
            raise _refusal(
                where, f"not YAML: {str(problem)[:200]}", "check brackets, quotes and indentation here"
            ) from None
        if not seen:
            raise _refusal(Position(self._file, 1, 1), "the document is empty")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        self._count(self._position(event))
        if depth > MAX_DEPTH:
            raise _refusal(self._position(event), f"nested deeper than {MAX_DEPTH} levels", "is this the right file?")
        if isinstance(event, AliasEvent):
            if event.anchor not in self._anchors:
                raise _refusal(self._position(event), f"*{event.anchor[:80]} is not known here", "write the value out")
            return self._anchors[event.anchor]
        value: Any
        if isinstance(event, ScalarEvent):
            value = event.value
        elif isinstance(event, SequenceStartEvent):
            value = []
            while not isinstance(item := next(self._events), SequenceEndEvent):
                value.append(self._value(item, depth + 1))
        elif isinstance(event, MappingStartEvent):
            value = self._table(depth)
        else:
            raise _refusal(self._position(event), "this is not a value")
        if event.anchor is not None:  # known only once it is whole, so that no value can contain itself
            self._anchors[event.anchor] = value
        return value

    def _table(self, depth: int) -> Table:
        table = Table()
        merged: list[tuple[Table, Position]] = []
        while not isinstance(event := next(self._events), MappingEndEvent):
            position = self._position(event)
            key = self._value(event, depth + 1)
            if not isinstance(key, str):
                raise _refusal(position, "a key must be a text")
            if key in table:
                raise _refusal(position, f"{key[:80]!r} is written twice", "keep one")
            value = self._value(next(self._events), depth + 1)
            if key == "<<" and isinstance(event, ScalarEvent) and event.style is None:
                merged += self._merges(value, position)
                continue
            table.places[key] = (position.line, position.column)
            table[key] = value
        for other, position in merged:
            self._count_merged(len(other), position)
            for key, value in other.items():
                if key not in table:
                    table[key] = value
                    if key in other.places:
                        table.places[key] = other.places[key]
        return table

    def _merges(self, value: Any, where: Position) -> list[tuple[Table, Position]]:
        """What a merge names: a mapping, or a list of them, which costs the document nothing where it is an alias."""
        others = value if isinstance(value, list) else [value]
        self._count_merged(len(others), where)
        if not all(isinstance(other, Table) for other in others):
            raise _refusal(where, "<< must name a mapping, or a list of mappings", "write the keys out")
        return [(other, where) for other in others]

    def _count_merged(self, items: int, where: Position) -> None:
        self._count(where, items)
        self._merged += items
        if self._merged > MAX_MERGED:
            raise _refusal(where, f"merges (<<) of more than {MAX_MERGED} keys", "use $ref, or write the keys out")

    def _count(self, where: Position, values: int = 1) -> None:
        self._nodes += values
        if self._nodes > MAX_NODES:
            raise _refusal(where, f"more than {MAX_NODES} values", "split the document")

    def _position(self, event: Any) -> Position:
        return Position(self._file, event.start_mark.line + 1, event.start_mark.column + 1)
