"""A policy taken apart as it was written: the lines of its head and the clauses of its conditions, each with its place.

A policy applies when every part holds, so a part that does not is why it did not apply. Cedar is asked about each:
nothing here knows what an expression means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import cedarpy
import msgspec
from cedarpy import pst

from eastwest.policy.analysis import Analysis, analyse, within_tenants
from eastwest.policy.cedar import PolicyText, Token, words
from eastwest.policy.estate import Policy
from eastwest.policy.judge import Entities
from eastwest.policy.problems import Position

Kind = Literal["principal", "action", "resource", "when", "unless", "tenants"]
_OPEN, _CLOSE = frozenset("({["), frozenset(")}]")
_OWN_TENANTS = (
    "if context has tenant && principal has tenants then principal.tenants.contains(context.tenant) else true"
)
OWN_TENANTS = "the tenant is one of the caller's own (the policy says nothing of tenants)"
MAX_VALUE = 200
"""Characters of a value that are told."""


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One part of a policy, and whether it holds for a call. ``values``: what the call has for what the part reads."""

    kind: Kind
    text: str
    where: str  # file:line:column
    holds: bool
    fails: bool = False  # it cannot be answered for this call: an attribute is absent, arithmetic overflows
    values: dict[str, str] = {}


class _Piece(msgspec.Struct, frozen=True):
    """A part as it stands in a policy; ``condition`` is the Cedar expression that must be true."""

    kind: Kind
    text: str
    line: int
    column: int
    condition: str = ""


def parts_of(policy: Policy, start: Position, names: Mapping[str, frozenset[tuple[str, str]]]) -> list[Part]:
    """The lines of the head; ``names`` are those of the call's principal, action and resource, groups included."""
    analysis = analyse(policy)
    return [
        Part(
            kind=piece.kind,
            text=piece.text,
            where=_place(start, piece),
            holds=_scope(analysis, piece.kind).covers(names[piece.kind]),
        )
        for piece in _pieces(policy)
        if not piece.condition
    ]


def conditions_of(
    policies: Sequence[tuple[Policy, Position]], request: Mapping[str, Any], entities: Entities, said: Mapping[str, Any]
) -> dict[str, list[Part]]:
    """By policy id, its conditions, each asked by itself. ``said``: what principal, resource and context have."""
    asked: dict[str, pst.Template] = {}
    for policy, _ in policies:
        for number, piece in enumerate(_pieces(policy)):
            if piece.condition:
                asked[f"{policy.id}#{number}"] = replace(_alone(piece.condition), id=f"{policy.id}#{number}")
    if not asked:
        return {policy.id: [] for policy, _ in policies}
    every = cedarpy.PolicySet.from_pst(pst.PolicySet(templates={}, static_policies=asked, template_links=()))
    [answer] = cedarpy.is_authorized_batch([dict(request)], every, entities.handle, None)
    held = set(answer.diagnostics.reasons)
    errors = "\n".join(answer.diagnostics.errors)
    found: dict[str, list[Part]] = {}
    for policy, start in policies:
        found[policy.id] = [
            Part(
                kind=piece.kind,
                text=piece.text,
                where=_place(start, piece),
                holds=name in held,
                fails=f"`{name}`" in errors,
                values=_values(asked[name], said),
            )
            for number, piece in enumerate(_pieces(policy))
            if piece.condition and (name := f"{policy.id}#{number}")
        ]
    return found


@lru_cache(maxsize=4096)
def _pieces(policy: Policy) -> tuple[_Piece, ...]:
    source = words(policy.text)
    return (*_head(source), *_clauses(source), *_implied(policy, source))


def _scope(analysis: Analysis, kind: str) -> Any:
    return {"principal": analysis.principal, "action": analysis.action, "resource": analysis.resource}[kind]


def _head(source: PolicyText) -> Iterator[_Piece]:
    tokens = source.tokens
    effect = next(i for i, t in enumerate(tokens) if t.text in {"permit", "forbid"} and tokens[i - 1].text != "@")
    end = _closing(tokens, effect + 1)
    kinds: tuple[Kind, ...] = ("principal", "action", "resource")
    for kind, part in zip(kinds, _split(tokens[effect + 2 : end], ","), strict=False):
        yield _piece(source, kind, part)


def _clauses(source: PolicyText) -> Iterator[_Piece]:
    tokens = source.tokens
    i = 0
    while i < len(tokens) - 1:
        word = tokens[i].text
        if word in {"when", "unless"} and tokens[i].kind == "word" and tokens[i + 1].text == "{":
            end = _closing(tokens, i + 1)
            kind: Kind = "when" if word == "when" else "unless"
            for part in _conjuncts(tokens[i + 2 : end], "&&" if kind == "when" else "||"):
                yield _piece(source, kind, part, condition=True)
            i = end
        elif tokens[i].text == "(":
            i = _closing(tokens, i)
        i += 1


def _implied(policy: Policy, source: PolicyText) -> Iterator[_Piece]:
    written = next(iter(cedarpy.policies_to_pst(policy.text).static_policies.values()))
    if within_tenants(written) is not written:
        where = source.find("permit")
        yield _Piece("tenants", OWN_TENANTS, where.line, where.column, _OWN_TENANTS)


def _conjuncts(tokens: Sequence[Token], joiner: str) -> Iterator[Sequence[Token]]:
    """The expressions that ``joiner`` joins on the outermost level, brackets around the whole taken off."""
    while tokens and tokens[0].text == "(" and _closing(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    outer = _outermost(tokens)
    # An `if` takes all that follows it, and `||` binds less than `&&`.
    whole = "if" in outer or (joiner == "&&" and "||" in outer)
    if whole or joiner not in outer:
        yield tokens
        return
    for part in _split(tokens, joiner):
        yield from _conjuncts(part, joiner)


def _outermost(tokens: Sequence[Token]) -> set[str]:
    depth, found = 0, set()
    for token in tokens:
        if token.kind == "string":
            continue
        depth -= token.text in _CLOSE
        if depth == 0:
            found.add(token.text)
        depth += token.text in _OPEN
    return found


def _split(tokens: Sequence[Token], separator: str) -> list[Sequence[Token]]:
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        bracket = token.kind != "string"
        depth -= bracket and token.text in _CLOSE
        if depth == 0 and bracket and token.text == separator:
            parts.append([])
        else:
            parts[-1].append(token)
        depth += bracket and token.text in _OPEN
    return [part for part in parts if part]


def _closing(tokens: Sequence[Token], opening: int) -> int:
    """The index of the bracket that closes the one at ``opening``."""
    depth = 0
    for i in range(opening, len(tokens)):
        if tokens[i].kind == "string":
            continue
        depth += (tokens[i].text in _OPEN) - (tokens[i].text in _CLOSE)
        if depth == 0:
            return i
    raise AssertionError("the brackets of a policy that Cedar has read are closed")


def _piece(source: PolicyText, kind: Kind, tokens: Sequence[Token], *, condition: bool = False) -> _Piece:
    lines = source.text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    first, last = tokens[0].where, tokens[-1].where
    begin = starts[first.line - 1] + first.column - 1
    end = starts[last.line - 1] + last.column - 1 + len(tokens[-1].text)
    written = source.text[begin:end]
    text = " ".join(line.partition("//")[0].strip() for line in written.splitlines()) if "\n" in written else written
    asked = "" if not condition else f"!({written}\n)" if kind == "unless" else written
    return _Piece(kind, text.strip(), first.line, first.column, asked)


def _place(start: Position, piece: _Piece) -> str:
    column = piece.column + (start.column - 1 if piece.line == 1 else 0)
    return str(Position(start.file, start.line + piece.line - 1, column))


@lru_cache(maxsize=16_384)
def _alone(condition: str) -> pst.Template:
    text = f"permit (principal, action, resource) when {{ {condition}\n}};"
    return next(iter(cedarpy.policies_to_pst(text).static_policies.values()))


def _values(tree: pst.Template, said: Mapping[str, Any]) -> dict[str, str]:
    """What the call has for each attribute that the part reads."""
    found: dict[str, str] = {}
    for path in sorted(set(_read(tree.clauses))):
        value: Any = said
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        shown = "absent" if value is None else json.dumps(value, ensure_ascii=False)
        found[".".join(path)] = shown if len(shown) <= MAX_VALUE else shown[: MAX_VALUE - 1] + "…"
    return found


def _read(node: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(node, pst.GetAttr | pst.HasAttr):
        path: tuple[str, ...] = ()
        inner: Any = node
        while isinstance(inner, pst.GetAttr | pst.HasAttr):
            path = (*(inner.attrs if isinstance(inner, pst.HasAttr) else (inner.attr,)), *path)
            inner = inner.base
        if isinstance(inner, pst.Var):
            yield (inner.name, *path)
            return
    if isinstance(node, Mapping):
        for each in node.values():
            yield from _read(each)
    elif isinstance(node, tuple):
        for each in node:
            yield from _read(each)
    elif hasattr(node, "__dataclass_fields__"):
        for name in node.__dataclass_fields__:
            yield from _read(getattr(node, name))
