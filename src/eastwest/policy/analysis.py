"""What a policy looks at, read from its syntax tree: the ground on which its answers may be shared and tabled.

A table can hold an answer only if the question can be listed in advance. Callers, operations and tenants can;
paths and patterns over tenants cannot. Cedar compares texts only for equality (apart from ``like``), so every
tenant that no policy, caller or service mentions gets the same answer, and one such tenant stands for them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any

import cedarpy
from cedarpy import pst

from eastwest.policy.cedar import ANY_TENANT
from eastwest.policy.estate import Policy
from eastwest.policy.schema import ACTION, DOMAIN, ENVIRONMENT, SERVICE, WORKLOAD

_KNOWN_CONTEXT = frozenset({"tenant", "method", "step_up", "approval", "transaction"})
_VARIABLES = {
    ("tenant",): "tenant",
    ("step_up", "tenant"): "tenant",
    ("step_up", "approver"): "approver",
    ("approval", "approver"): "approver",
    ("transaction", "origin"): "origin",
}
"""What a call chooses freely among texts, by where policies read it."""
_RECORDS = frozenset({"step_up", "approval", "transaction"})
_UNIQUE = {("approval", "id"), ("transaction", "id")}
_RELATIONS = frozenset(
    {"eq", "neq", "less", "less_eq", "greater", "greater_eq", "contains", "contains_all", "contains_any"}
)
_PARSERS = frozenset({"datetime", "decimal", "duration", "ip"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a policy cannot be compiled; ``tokens`` are the words in its text that are to blame."""

    message: str
    fix: str
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """One line of a policy's head: entities (type and id) or groups of them; None is anything."""

    among: frozenset[tuple[str, str]] | None = None
    never: bool = False  # `is` of another type

    def covers(self, names: frozenset[tuple[str, str]]) -> bool:
        """Whether an entity, given as its own name and those of its groups, is in the scope."""
        return not self.never and (self.among is None or not self.among.isdisjoint(names))


@dataclass(frozen=True, slots=True)
class Analysis:
    """A policy and what its answer may depend on beyond the attributes of the caller and the service."""

    policy: Policy
    tree: pst.Template
    principal: Scope
    action: Scope
    resource: Scope
    is_bound: bool  # silent about tenants, and so to the caller's own
    uses_tenant: bool
    uses_method: bool
    uses_step_up: bool
    uses_approval: bool
    uses_transaction: bool
    reads_approver: bool
    reads_origin: bool
    reads_attributes: bool  # of any entity, or what the context has besides tenant, approver and origin
    uses_action: bool  # in a condition
    names_services: bool  # in a condition
    reads_others: bool  # reads an attribute of an entity that it names
    names_entities: bool  # workloads, services or actions, in a condition
    of_service: frozenset[str]  # which of environment, domain and owner of the service a condition may depend on
    texts: frozenset[str]  # string literals
    callers: frozenset[str]  # workloads that it names, scope included
    refusals: tuple[Refusal, ...]

    @property
    def uses_demands(self) -> bool:
        """Whether a transaction token can change the answer."""
        return self.uses_step_up or self.uses_approval or self.uses_transaction


@lru_cache(maxsize=4096)
def analyse(policy: Policy) -> Analysis:
    """Read a policy that has been validated."""
    written = next(iter(cedarpy.policies_to_pst(policy.text).static_policies.values()))
    tree = within_tenants(written)
    nodes = [node for clause in tree.clauses for node in _walk(clause.expr)]
    paths = {_context_path(n) for n in nodes} - {()}
    action_variable = any(n == pst.Var("action") for n in nodes)
    named = {n.value for n in nodes if isinstance(n, pst.EntityLit)}
    # `resource == Service::"x"` and `resource == context...` alike make the service itself matter.
    whole_resource = any(_compares(n, "resource") for n in nodes)
    return Analysis(
        policy=policy,
        tree=tree,
        principal=_scope(tree.principal, WORKLOAD),
        action=_action_scope(tree.action),
        resource=_scope(tree.resource, SERVICE),
        is_bound=tree is not written,
        uses_tenant=any(p[0] == "tenant" for p in paths),
        uses_method=any(p[0] == "method" for p in paths),
        uses_step_up=any(p[0] == "step_up" for p in paths),
        uses_approval=any(p[0] == "approval" for p in paths),
        uses_transaction=any(p[0] == "transaction" for p in paths),
        reads_approver=any(_VARIABLES.get(p) == "approver" for p in paths),
        reads_origin=any(_VARIABLES.get(p) == "origin" for p in paths),
        reads_attributes=any(_reads_attribute(n) for n in nodes),
        uses_action=action_variable,
        names_services=whole_resource or any(str(u.type) == SERVICE for u in named),
        reads_others=any(isinstance(n, pst.GetAttr | pst.HasAttr) and not isinstance(_root(n), pst.Var) for n in nodes),
        of_service=_of_service(nodes),
        names_entities=any(str(u.type) not in {DOMAIN, ENVIRONMENT} for u in named),
        texts=frozenset(n.value for n in nodes if isinstance(n, pst.StringLit)),
        callers=frozenset(u.id for u in pst.entity_uids(tree) if str(u.type) == WORKLOAD),
        refusals=tuple(dict.fromkeys(_refusals(tree))),
    )


def within_tenants(tree: pst.Template) -> pst.Template:
    """The policy as it counts: a permit that says nothing of the tenant is about the tenants that the caller serves.

    A caller without ``tenants`` is bound to none, and such a permit holds for it whatever the tenant is.
    """
    if tree.effect != "permit" or tree.annotations.get("tenants", "") == ANY_TENANT:
        return tree
    if any(_context_path(node) == ("tenant",) for clause in tree.clauses for node in _walk(clause.expr)):
        return tree
    return replace(tree, clauses=(*tree.clauses, *_own_tenants()))


@lru_cache(maxsize=1)
def _own_tenants() -> tuple[Any, ...]:
    text = """permit (principal, action, resource) when {
      if context has tenant && principal has tenants then principal.tenants.contains(context.tenant) else true
    };"""
    clauses: tuple[Any, ...] = next(iter(cedarpy.policies_to_pst(text).static_policies.values())).clauses
    return clauses


def _walk(node: Any) -> Iterator[Any]:
    """The expression and every expression in it."""
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, tuple):
            stack.extend(item)
        elif is_dataclass(item):
            yield item
            stack.extend(getattr(item, f.name) for f in fields(item))


def _root(node: Any) -> Any:
    while isinstance(node, pst.GetAttr | pst.HasAttr):
        node = node.base
    return node


def _context_path(node: Any) -> tuple[str, ...]:
    """``("step_up", "tenant")`` for ``context.step_up.tenant``, and for ``has`` the same; else empty."""
    names: list[str] = []
    while isinstance(node, pst.GetAttr | pst.HasAttr):
        names[:0] = node.attrs if isinstance(node, pst.HasAttr) else (node.attr,)
        node = node.base
    return tuple(names) if node == pst.Var("context") else ()


def _of_service(nodes: list[Any]) -> frozenset[str]:
    everything = frozenset({"environment", "domain", "owner"})
    read = [n.attr for n in nodes if isinstance(n, pst.GetAttr) and _is_variable(n.base, "resource")]
    # Whatever else is done with the service, such as asking for its groups, may depend on all of them.
    others = sum(_is_variable(n, "resource") for n in nodes) - len(read)
    return everything if others else everything & set(read)


def _compares(node: Any, variable: str) -> bool:
    """Whether the variable itself, not an attribute of it, is an operand."""
    if isinstance(node, pst.GetAttr | pst.HasAttr | pst.Is):
        return isinstance(node, pst.Is) and node.in_expr is not None and _is_variable(node.base, variable)
    return is_dataclass(node) and any(_holds(getattr(node, f.name), variable) for f in fields(node))


def _holds(value: Any, variable: str) -> bool:
    if isinstance(value, tuple):
        return any(_is_variable(v, variable) for v in value)
    if isinstance(value, dict):
        return any(_is_variable(v, variable) for v in value.values())
    return _is_variable(value, variable)


def _reads_attribute(node: Any) -> bool:
    if not isinstance(node, pst.GetAttr):
        return False
    path = _context_path(node)
    return not path or ((len(path) != 1 or path[0] not in _RECORDS) and _VARIABLES.get(path) in {None, "tenant"})


def _is_variable(node: Any, variable: str) -> bool:
    return isinstance(node, pst.Var) and node.name == variable


def _refusals(tree: pst.Template) -> Iterator[Refusal]:
    for clause in tree.clauses:
        for node in _walk(clause.expr):
            path = _context_path(node)
            if path and path[0] not in _KNOWN_CONTEXT:
                yield Refusal(
                    f"context.{path[0]} cannot be compiled yet",
                    "make it an operation of its own, with its own path template",
                    (".", path[0]),
                )
            elif path in _UNIQUE and isinstance(node, pst.GetAttr):
                yield Refusal(
                    f"context.{'.'.join(path)} is different for every call and cannot be compiled",
                    f"test `context has {path[0]}`, or compare what lasts, such as the approver or the origin",
                    (".", path[-1]),
                )
            elif isinstance(node, pst.Like) and (touched := _variables(node.base)):
                yield Refusal(
                    f"a pattern over {touched[0]} cannot be compiled yet",
                    f"compare {touched[0]} with == or contains",
                    ("like",),
                )
            elif isinstance(node, pst.UnaryOp) and node.op in _PARSERS and (touched := _variables(node.arg)):
                yield Refusal(
                    f"{node.op}() of {touched[0]} cannot be compiled yet",
                    f"compare {touched[0]} with == or contains",
                    (node.op,),
                )
            elif _relates(node) and len(kinds := _variables(node, kinds=True)) > 1:
                yield Refusal(
                    f"a comparison of {' with '.join(kinds)} cannot be compiled yet",
                    "compare each with texts, or with attributes of the caller or the service",
                    (kinds[0],),
                )
            elif not isinstance(node, pst.GetAttr | pst.HasAttr) and _compares_context(node):
                yield Refusal(
                    "context as a whole cannot be compiled yet", "name the field, such as context.tenant", ("context",)
                )
        if clause.expr == pst.Var("context"):
            yield Refusal("context as a whole cannot be compiled yet", "name the field", ("context",))


def _compares_context(node: Any) -> bool:
    return any(_holds(getattr(node, f.name), "context") for f in fields(node))


def _variables(node: Any, *, kinds: bool = False) -> list[str]:
    """What a call chooses that an expression looks at: as policies write it, or its kinds."""
    paths = {path for n in _walk(node) if (path := _context_path(n)) in _VARIABLES}
    return sorted({_VARIABLES[path] if kinds else f"context.{'.'.join(path)}" for path in paths})


def _relates(node: Any) -> bool:
    return isinstance(node, pst.Set | pst.Record) or (isinstance(node, pst.BinaryOp) and node.op in _RELATIONS)


def _scope(constraint: Any, own: str) -> Scope:
    match constraint:
        case pst.ScopeEq(pst.EntityUid() as entity) | pst.ScopeIn(pst.EntityUid() as entity):
            return Scope(frozenset({(str(entity.type), entity.id)}))
        case pst.ScopeIs(kind):
            return Scope(never=str(kind) != own)
        case pst.ScopeIsIn(kind, pst.EntityUid() as entity):
            return Scope(frozenset({(str(entity.type), entity.id)}), never=str(kind) != own)
        case _:
            return Scope()


def _action_scope(constraint: Any) -> Scope:
    match constraint:
        case pst.ActionEq(entity):
            return Scope(frozenset({(ACTION, entity.id)}))
        case pst.ActionIn(entities):
            return Scope(frozenset((ACTION, e.id) for e in entities))
        case _:
            return Scope()
