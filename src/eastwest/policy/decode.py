"""From a YAML tree to a struct, led by the struct's types, telling every mistake with its position.

``msgspec.convert`` stops at the first mistake and knows no positions; people who edit files need both.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from eastwest.policy.forms import complaint
from eastwest.policy.problems import Findings, Position, suggest
from eastwest.policy.yamltree import Mapping, Node, Scalar, Sequence

T = TypeVar("T", bound=msgspec.Struct)
Path = tuple[str | int, ...]

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "false": False, "False": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MAX_ITEMS = 100_000


class _Bad:
    """Stands for a value that was refused; its finding has been written."""


_BAD: Final = _Bad()


def decode(node: Node, kind: type[T], findings: Findings) -> tuple[T | None, dict[Path, Position]]:
    """The struct that ``node`` describes and where each of its fields is; ``None`` when a finding says why not."""
    decoder = _Decoder(findings)
    value = decoder.value(node, _type_info(kind), (), "this")
    return (None if isinstance(value, _Bad) else value), decoder.positions


@cache
def _type_info(kind: type) -> inspect.Type:
    return inspect.type_info(kind)


class _Decoder:
    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.positions: dict[Path, Position] = {}

    def value(self, node: Node, kind: inspect.Type, path: Path, label: str) -> Any:
        self.positions[path] = node.where
        form = None
        while isinstance(kind, inspect.Metadata):
            form = (kind.extra or {}).get("form", form)
            kind = kind.type
        if isinstance(kind, inspect.UnionType):
            return self._union(node, kind, path, label)
        return self._plain(node, kind, path, label, form)

    def _plain(self, node: Node, kind: inspect.Type, path: Path, label: str, form: str | None) -> Any:
        if isinstance(kind, inspect.StructType):
            return self._struct(node, kind, path, label)
        if isinstance(kind, inspect.VarTupleType):
            return self._list(node, kind, path, label)
        if isinstance(kind, inspect.DictType):
            return self._dict(node, kind, path, label)
        if not isinstance(node, Scalar):
            return self._bad(node, f"{label} must be one value, not a {_noun(node)}")
        return _SCALARS[type(kind)](self, node, kind, label, form)

    def _struct(self, node: Node, kind: inspect.StructType, path: Path, label: str) -> Any:
        if not isinstance(node, Mapping):
            names = ", ".join(f.encode_name for f in kind.fields if f.required) or "its fields"
            return self._bad(node, f"{label} must be a mapping, not a {_noun(node)}", f"write {names}")
        fields = {f.encode_name: f for f in kind.fields}
        values: dict[str, Any] = {}
        good = True
        for key, child in node.entries:
            field = fields.get(key.text)
            if field is None:
                self._bad(key, f"unknown field {key.text[:80]!r}", suggest(key.text, fields))
                good = False
                continue
            if isinstance(child, Scalar) and child.plain and child.text in _NULL and not _takes_null(field.type):
                self._bad(child, f"field {key.text!r} has no value", "write one, or remove the field")
                values[field.name] = _BAD
                continue
            values[field.name] = self.value(child, field.type, (*path, key.text), f"field {key.text!r}")
        for field in kind.fields:
            if field.required and field.name not in values:
                self._bad(node, f"field {field.encode_name!r} is missing", f"add {field.encode_name}: ...")
                good = False
        if not good or any(isinstance(v, _Bad) for v in values.values()):
            return _BAD
        return kind.cls(**values)

    def _list(self, node: Node, kind: inspect.VarTupleType, path: Path, label: str) -> Any:
        if not isinstance(node, Sequence):
            return self._bad(node, f"{label} must be a list, not a {_noun(node)}", "write [value, ...]")
        if len(node.items) > _MAX_ITEMS:
            return self._bad(node, f"{label} has more than {_MAX_ITEMS} items", "split the file")
        if len(node.items) < (kind.min_length or 0):
            return self._bad(node, f"{label} is empty", f"list at least {kind.min_length}")
        items = [self.value(item, kind.item_type, (*path, i), _item(label)) for i, item in enumerate(node.items)]
        return _BAD if any(isinstance(i, _Bad) for i in items) else tuple(items)

    def _dict(self, node: Node, kind: inspect.DictType, path: Path, label: str) -> Any:
        if not isinstance(node, Mapping):
            return self._bad(node, f"{label} must be a mapping, not a {_noun(node)}", "write {name: value}")
        values = {
            key.text: self.value(child, kind.value_type, (*path, key.text), f"{label}, {key.text!r},")
            for key, child in node.entries
        }
        return _BAD if any(isinstance(v, _Bad) for v in values.values()) else values

    def _union(self, node: Node, kind: inspect.UnionType, path: Path, label: str) -> Any:
        if isinstance(node, Scalar) and node.plain and node.text in _NULL and _takes_null(kind):
            return None
        parts = [part for part in kind.types if not isinstance(part, inspect.NoneType)]
        for part in parts:
            if len(parts) == 1 or _shape(part) is type(node):
                return self.value(node, part, path, label)
        return self._bad(node, f"{label} cannot be a {_noun(node)}", "write a text or a list of texts")

    def _text(self, node: Scalar, kind: inspect.StrType, label: str, form: str | None) -> Any:
        if node.plain and (node.text in _BOOL or node.text in _NULL or _NUMBER.fullmatch(node.text)):
            return self._bad(node, f"{label} must be a text, not {node.text or 'nothing'}", f'write "{node.text}"')
        if form is not None and (found := complaint(form, node.text)):
            return self._bad(node, f"{label}: {found[0]}", found[1])
        if kind.min_length and len(node.text) < kind.min_length:
            return self._bad(node, f"{label} is empty", "write a text")
        if kind.max_length and len(node.text) > kind.max_length:
            return self._bad(node, f"{label} is longer than {kind.max_length} characters", "shorten it")
        return node.text

    def _integer(self, node: Scalar, kind: inspect.IntType, label: str, _form: str | None) -> Any:
        low = kind.ge if kind.ge is not None else -(2**53)
        high = kind.le if kind.le is not None else 2**53
        if not node.plain or not _INTEGER.fullmatch(node.text):
            return self._bad(node, f"{label} must be a whole number, not {node.text[:80]!r}", f"write {low} to {high}")
        number = int(node.text)
        if not low <= number <= high:
            return self._bad(node, f"{label} is {number}, outside {low} to {high}", f"write {low} to {high}")
        return number

    def _decimal(self, node: Scalar, kind: inspect.FloatType, label: str, _form: str | None) -> Any:
        low, high = kind.ge, kind.le
        if not node.plain or not _NUMBER.fullmatch(node.text):
            return self._bad(node, f"{label} must be a number, not {node.text[:80]!r}", f"write {low} to {high}")
        number = float(node.text)
        if (low is not None and number < low) or (high is not None and number > high):
            wrong = f"{label} is {node.text[:32]}, outside {low} to {high}"
            return self._bad(node, wrong, f"write {low} to {high}")
        return number

    def _boolean(self, node: Scalar, _kind: inspect.BoolType, label: str, _form: str | None) -> Any:
        if not node.plain or node.text not in _BOOL:
            return self._bad(node, f"{label} must be true or false, not {node.text[:80]!r}", "write true or false")
        return _BOOL[node.text]

    def _date(self, node: Scalar, _kind: inspect.DateType, label: str, _form: str | None) -> Any:
        try:
            if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", node.text):
                return dt.date.fromisoformat(node.text)
        except ValueError:
            pass
        return self._bad(node, f"{label}: {node.text[:80]!r} is not a date", "write year-month-day, such as 2027-03-31")

    def _choice(self, node: Scalar, kind: inspect.EnumType | inspect.LiteralType, label: str, _form: str | None) -> Any:
        known = [m.value for m in kind.cls] if isinstance(kind, inspect.EnumType) else list(kind.values)
        if node.text not in known:
            wrong = f"{label} cannot be {node.text[:80]!r}"
            return self._bad(node, wrong, suggest(node.text, [str(k) for k in known]))
        return kind.cls(node.text) if isinstance(kind, inspect.EnumType) else node.text

    def _bad(self, node: Node, message: str, fix: str = "") -> _Bad:
        self._findings.error(node.where, message, fix)
        return _BAD


_SCALARS: dict[type, Callable[..., Any]] = {
    inspect.StrType: _Decoder._text,  # noqa: SLF001 - the class's own dispatch table
    inspect.IntType: _Decoder._integer,  # noqa: SLF001 - as above
    inspect.FloatType: _Decoder._decimal,  # noqa: SLF001 - as above
    inspect.BoolType: _Decoder._boolean,  # noqa: SLF001 - as above
    inspect.DateType: _Decoder._date,  # noqa: SLF001 - as above
    inspect.EnumType: _Decoder._choice,  # noqa: SLF001 - as above
    inspect.LiteralType: _Decoder._choice,  # noqa: SLF001 - as above
}


def _takes_null(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.UnionType) and any(isinstance(t, inspect.NoneType) for t in kind.types)


def _shape(kind: inspect.Type) -> type:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.StructType | inspect.DictType):
        return Mapping
    return Sequence if isinstance(kind, inspect.VarTupleType) else Scalar


def _item(label: str) -> str:
    return label if label.startswith("an item of ") else f"an item of {label}"


def _noun(node: Node) -> str:
    if isinstance(node, Mapping):
        return "mapping"
    return "list" if isinstance(node, Sequence) else "single value"
