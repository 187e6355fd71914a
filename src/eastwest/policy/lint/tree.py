"""What the conditions of a policy, as it was written, look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any

import cedarpy
from cedarpy import pst

from eastwest.policy.estate import Policy

_TOKENS = frozenset({"step_up", "approval", "transaction"})
_TENANT = pst.GetAttr(pst.Var("context"), "tenant")
_STEP_UP = pst.GetAttr(pst.Var("context"), "step_up")
_ALWAYS = (pst.When(pst.BoolLit(True)), pst.Unless(pst.BoolLit(False)))


@dataclass(frozen=True, slots=True)
class Said:
    """``principal_itself``: a condition compares the caller itself, or asks for its groups."""

    conditions: bool
    principal_itself: bool
    principal_attributes: frozenset[str]
    resource_attributes: frozenset[str]
    token: bool


@lru_cache(maxsize=4096)
def said_of(policy: Policy) -> Said:
    """Read a policy that has been validated."""
    tree = next(iter(cedarpy.policies_to_pst(policy.text).static_policies.values()))
    clauses = [clause for clause in tree.clauses if clause not in _ALWAYS]
    attributes: dict[str, set[str]] = {"principal": set(), "resource": set(), "context": set()}
    bare: set[str] = set()
    for clause in clauses:
        _walk(clause.expr, attributes, bare)
    return Said(
        conditions=bool(clauses),
        principal_itself="principal" in bare,
        principal_attributes=frozenset(attributes["principal"]),
        resource_attributes=frozenset(attributes["resource"]),
        token=bool(attributes["context"] & _TOKENS),
    )


@dataclass(frozen=True, slots=True)
class Compared:
    """With what a policy compares the tenant: texts, and attributes of the caller."""

    texts: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()


def compared_with_tenant(policy: pst.Template) -> Compared | None:
    """None where it does something with the tenant that is not told apart here."""
    texts: set[str] = set()
    attributes: set[str] = set()
    known = 0
    nodes = [node for clause in policy.clauses for node in _nodes(clause.expr)]
    for node in nodes:
        if not isinstance(node, pst.BinaryOp) or _TENANT not in (node.left, node.right):
            continue
        other = node.right if node.left == _TENANT else node.left
        match other:
            case pst.StringLit():
                texts.add(other.value)
            case pst.Set():
                named = [one.value for one in other.elements if isinstance(one, pst.StringLit)]
                if len(named) < len(other.elements):
                    return None
                texts.update(named)
            case pst.GetAttr(base=pst.Var("principal")):
                attributes.add(other.attr)
            case _:
                return None
        known += 1
    if known != sum(node == _TENANT for node in nodes) or any(node == _STEP_UP for node in nodes):
        return None
    return Compared(frozenset(texts), frozenset(attributes))


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in _children(node):
        yield from _nodes(child)


def _walk(node: Any, attributes: dict[str, set[str]], bare: set[str]) -> None:
    if isinstance(node, pst.GetAttr | pst.HasAttr) and isinstance(node.base, pst.Var):
        names = node.attrs[:1] if isinstance(node, pst.HasAttr) else (node.attr,)
        attributes.setdefault(node.base.name, set()).update(names)
        return
    if isinstance(node, pst.Var):
        bare.add(node.name)
        return
    for child in _children(node):
        _walk(child, attributes, bare)


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.values()
    elif isinstance(node, tuple):
        yield from node
    elif is_dataclass(node):
        yield from (getattr(node, f.name) for f in fields(node))
