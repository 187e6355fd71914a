"""What a mistake in a policy was most likely meant to be, and where it stands."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from cedarpy import pst

from eastwest.policy.estate import Sensitivity
from eastwest.policy.problems import Findings, Position, suggest, suggest_id

if TYPE_CHECKING:
    from eastwest.policy.cedar import ParsedPolicy, PolicyText, Token

CONTEXT: dict[str, tuple[str, ...]] = {
    "tenant": (),
    "method": (),
    "path": (),
    "step_up": ("action", "resource", "tenant", "approver"),
    "approval": ("id", "approver"),
    "transaction": ("id", "origin"),
}
"""What the context has, and what that has in turn (``eastwest.policy.schema``)."""


def entity_fix(source: PolicyText, literal: str) -> str:
    """What to write for a text that stands where an entity must."""
    words = [token.text for token in source.tokens]
    kinds = {"principal": ("Workload", "Domain"), "action": ("Action", "Action"), "resource": ("Service", "Domain")}
    at = words.index(literal) if literal in words else 0
    variable, relation = (words[at - 2], words[at - 1]) if at > 1 else ("", "")
    if variable not in kinds:
        return 'write a name such as Service::"billing"'
    return f"write {kinds[variable][relation == 'in']}::{literal}"


def unknown_entities(policy: ParsedPolicy, known: dict[str, set[str]], findings: Findings) -> bool:
    """A finding for every entity that the policy names and nobody declares; whether there was one."""
    found = False
    for kind, name in policy.names:
        if kind not in known:
            message, fix = f"policy {policy.policy.id!r} names an entity of type {kind!r}", suggest(kind, known)
        elif name not in known[kind]:
            what = "operation" if kind == "Action" else kind.lower()
            message = f"policy {policy.policy.id!r} names the {what} {name!r}, which nobody declares"
            fix = _meant(kind, name, known[kind])
        else:
            continue
        found = True
        findings.error(policy.source.find(kind, "::", f'"{name}"'), message, fix)
    return found


def _meant(kind: str, name: str, known: set[str]) -> str:
    """Sensitivities are actions too, so that ``in`` can name them: one may be meant, yet none is an operation."""
    if kind == "Workload":
        return suggest_id(name, known, otherwise="declare it in workloads/, or correct the name")
    if kind == "Action" and not difflib.get_close_matches(name, set(Sensitivity), n=1, cutoff=0.6):
        known = known - set(Sensitivity)
    return suggest(name, known, otherwise="declare it, or correct the name")


def unknown_context(policy: ParsedPolicy, findings: Findings) -> bool:
    """Attributes that the context never has. Cedar takes ``has`` of one for an honest question that is answered no."""
    found: dict[tuple[str, ...], str] = {}
    for path in _paths(policy.tree.clauses, "context"):
        if path[0] not in CONTEXT:
            found[path[:1]] = suggest(path[0], CONTEXT)
            if path[0] in {"time", "now", "date", "datetime"}:
                found[path[:1]] = "no answer depends on the time; known: " + ", ".join(sorted(CONTEXT))
        elif len(path) > 1 and path[1] not in CONTEXT[path[0]]:
            found[path[:2]] = suggest(path[1], CONTEXT[path[0]])
    for path, fix in found.items():
        where = policy.source.find(".", path[-1])
        if where == policy.source.where:
            where = policy.source.find(path[-1])
        whole = ".".join(("context", *path[:-1]))
        findings.error(where, f"policy {policy.policy.id!r}: {whole} has no {path[-1]!r}", fix)
    return bool(found)


def unknown_attributes(policy: ParsedPolicy, schema: str, findings: Findings) -> None:
    """Warn of ``principal has`` something that nobody has: it is never true, which a misspelt ``forbid`` hides."""
    for variable, kind in (("principal", "Workload"), ("resource", "Service")):
        declared = re.search(rf"entity {kind} [^{{]*{{([^}}]*)}}", schema)
        known = re.findall(r"(\w+)\??:", declared[1]) if declared else []
        for path in _paths(policy.tree.clauses, variable):
            if path[0] not in known:
                where = policy.source.find(variable, "has", path[0])
                message = f"policy {policy.policy.id!r}: {variable} never has {path[0]!r}"
                findings.warning(where, message, suggest(path[0], known))


def _paths(node: Any, variable: str) -> Iterator[tuple[str, ...]]:
    """What is read of a variable: ``("step_up", "tenant")`` for ``context.step_up.tenant``, with ``has`` too."""
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, pst.GetAttr | pst.HasAttr):
            names: tuple[str, ...] = ()
            inner: Any = item
            while isinstance(inner, pst.GetAttr | pst.HasAttr):
                names = (*(inner.attrs if isinstance(inner, pst.HasAttr) else (inner.attr,)), *names)
                inner = inner.base
            if isinstance(inner, pst.Var) and inner.name == variable:
                yield names
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, tuple):
            stack.extend(item)
        elif is_dataclass(item):
            stack.extend(getattr(item, f.name) for f in fields(item))


def never_applies(policy: ParsedPolicy, findings: Findings) -> None:
    """An estate may lack operations of a sensitivity; a sensitivity written as an operation is a mistake."""
    where = policy.source.find("action")
    action = policy.tree.action
    message = f"policy {policy.policy.id!r} applies to no operation"
    if isinstance(action, pst.ActionEq) and action.entity.id in set(Sensitivity):
        findings.error(where, message, f'write action in Action::"{action.entity.id}"')
    else:
        findings.warning(where, message, "no operation of the estate fits its action, principal and resource")


def validation_hint(policy: ParsedPolicy, message: str) -> tuple[Position, str]:
    """Place and fix for a complaint of Cedar's validator."""
    quoted = re.findall(r"`([^`]*)`", message)
    where = policy.source.where
    if quoted:
        where = policy.source.locate(quoted[0].rpartition(".")[2], where)
    if "optional attribute" in message and quoted:
        owner = "context" if "in context" in message else "principal"
        *path, last = quoted[0].split(".")
        if quoted[0] == "tenant" and owner == "context":
            return where, "name the operations that are per tenant, or test `context has tenant &&` before it"
        return where, f"test `{'.'.join([owner, *path])} has {last} &&` before it"
    if "not compatible" in message and "String" in message:
        kind = next(
            (kind for kind in ("Workload", "Service", "Domain", "Environment", "Action") if kind in message), ""
        )
        literal = _compared_text(policy.source, _SPELLED.get(kind, ())) if kind else None
        if literal is not None:
            return literal.where, f"write {kind}::{literal.text}"
    if "not found" in message and "attribute" in message:
        return where, "workloads and services have environment, domain, owner; workloads may have tenants"
    return where, "see the schema: eastwest estate schema --cedar DIR"


_SPELLED = {
    "Workload": ("principal",),
    "Action": ("action",),
    "Service": ("resource",),
    "Domain": ("domain",),
    "Environment": ("environment",),
}
"""How the variable or the attribute ends that holds an entity of a type."""


def _compared_text(source: PolicyText, spelled: tuple[str, ...]) -> Token | None:
    """The text that is compared with ``==`` or ``!=`` with one of these."""
    tokens = source.tokens
    for i, token in enumerate(tokens[1:-1], 1):
        if token.text not in {"==", "!="}:
            continue
        if tokens[i + 1].kind == "string" and tokens[i - 1].text in spelled:
            return tokens[i + 1]
        if tokens[i - 1].kind == "string":
            # On the other side it may be `principal.domain`: the last word of the row counts.
            after = i + 1
            while after + 2 < len(tokens) and tokens[after + 1].text == ".":
                after += 2
            if tokens[after].text in spelled:
                return tokens[i - 1]
    return None
