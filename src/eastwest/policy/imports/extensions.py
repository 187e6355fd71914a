"""``x-eastwest-*``: what a document may say about its operations beyond what OpenAPI knows.

Each holds for an operation, and said at a path or at the top of the document for all below that say nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eastwest.policy.estate import Demand, Sensitivity
from eastwest.policy.forms import complaint
from eastwest.policy.imports.source import Document, shown
from eastwest.policy.problems import Findings, Position, suggest

PREFIX = "x-eastwest-"
MAX_DEMANDS = 20
"""Of one operation."""
INHERITED = ("sensitivity", "data", "demands", "ignore")
_OPERATION = (*INHERITED, "name")
_TOP = (*INHERITED, "tenant")
_PARAMETER = ("tenant",)
KNOWN = {"document": _TOP, "path": INHERITED, "operation": _OPERATION, "parameter": _PARAMETER}


@dataclass(frozen=True, slots=True)
class Extensions:
    """What was said; empty where nothing was."""

    sensitivity: str = ""
    data: str = ""
    demands: tuple[str, ...] = ()
    ignore: bool = False
    name: str = ""


def read_extensions(
    document: Document, table: Mapping[str, Any], level: str, above: Extensions, where: Position, findings: Findings
) -> Extensions:
    """The extensions of a ``document``, ``path`` or ``operation``, with those from above; mistakes are findings."""
    said: dict[str, Any] = {}
    for key in table:
        if not key.startswith(PREFIX):
            continue
        at = document.at(table, key, where) if isinstance(table, dict) else where
        short = key.removeprefix(PREFIX)
        if short not in KNOWN[level]:
            known = [PREFIX + name for name in KNOWN[level]]
            findings.error(at, f"{key[:80]!r} is not known at this place", suggest(key[:80], known))
        elif short != "tenant":
            _read(short, table[key], at, said, findings)
    return Extensions(
        sensitivity=said.get("sensitivity", above.sensitivity),
        data=said.get("data", above.data),
        demands=said.get("demands", above.demands),
        ignore=said.get("ignore", above.ignore),
        name=said.get("name", ""),
    )


def read_tenant(value: Any, where: Position, findings: Findings) -> tuple[str, str] | None:
    """``x-eastwest-tenant`` of the document: ``path: PARAMETER`` or ``header: NAME``."""
    fix = "write path: PARAMETER, or header: NAME"
    if not isinstance(value, dict) or len(value) != 1:
        findings.error(where, f"{PREFIX}tenant must be a mapping with one key", fix)
        return None
    (kind, name), *_ = value.items()
    if kind not in {"path", "header"} or not isinstance(name, str):
        findings.error(where, f"{PREFIX}tenant cannot be {shown(kind)!r}", fix)
        return None
    wrong = complaint("parameter" if kind == "path" else "header", name)
    if wrong is not None:
        findings.error(where, f"{PREFIX}tenant: {wrong[0]}", wrong[1])
        return None
    return kind, name


def is_true(value: Any) -> bool:
    """Scalars of YAML arrive as texts."""
    return value is True or value in ("true", "True", "TRUE")


def _read(short: str, value: Any, at: Position, said: dict[str, Any], findings: Findings) -> None:
    if short == "ignore":
        if not (is_true(value) or value in (False, "false", "False", "FALSE")):
            findings.error(at, f"{PREFIX}ignore must be true or false", "write true or false")
        said[short] = is_true(value)
        return
    if short == "demands":
        values = value if isinstance(value, list) else [value]
        if len(values) > MAX_DEMANDS:
            findings.error(at, f"{PREFIX}demands names more than {MAX_DEMANDS}", "name each once")
            return
        good = tuple(v for v in values if isinstance(v, str) and v in set(Demand))
        for wrong in (v for v in values if v not in good):
            findings.error(at, f"{PREFIX}demands cannot be {shown(wrong)!r}", suggest(shown(wrong), list(Demand)))
        said[short] = good
        return
    if not isinstance(value, str):
        findings.error(at, f"{PREFIX}{short} must be a text", "write a text")
        return
    if short == "sensitivity":
        if value not in set(Sensitivity):
            findings.error(at, f"{PREFIX}sensitivity cannot be {value[:80]!r}", suggest(value[:80], list(Sensitivity)))
            return
    elif (problem := complaint("operation" if short == "name" else "name", value)) is not None:
        findings.error(at, f"{PREFIX}{short}: {problem[0]}", problem[1])
        return
    said[short] = value
