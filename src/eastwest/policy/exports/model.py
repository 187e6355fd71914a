"""What an export is: files, and what they do not say."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from eastwest.errors import NotFound
from eastwest.policy.enforcement import Inbound, Sidecar
from eastwest.policy.problems import suggest
from eastwest.policy.table import CompiledPolicy

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9._/-]*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})  # some YAML takes them for values
MAX_ANNOTATION = 20
"""How many things left out an annotation lists; comments list all of them."""


@dataclass(frozen=True, slots=True)
class Narrower:
    """Calls that the table allows, or would allow with a token, and that the export denies."""

    service: str
    operation: str
    callers: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        who = f"{len(self.callers)} caller{'s' if len(self.callers) != 1 else ''}"
        return f"{self.operation} is denied to {who} that may call it: {self.reason}"


@dataclass(frozen=True, slots=True)
class Exported:
    """Texts by file name, and what they leave out."""

    files: Mapping[str, str]
    narrower: tuple[Narrower, ...] = ()


def chosen(compiled: CompiledPolicy, services: Collection[str]) -> Iterator[tuple[Sidecar, Inbound]]:
    """The services to export by name, all when none are named; raises ``NotFound`` for one that is not there."""
    there = {i.service: (sidecar, i) for sidecar in compiled.sidecars.values() for i in sidecar.inbound}
    for name in services:
        if name not in there:
            raise NotFound(f"there is no service {name[:80]!r}", fix=suggest(name, there))
    for name, found in sorted(there.items()):
        if not services or name in services:
            yield found


def yaml_text(documents: Iterable[tuple[Sequence[str], Mapping[str, Any]]]) -> str:
    """YAML documents, each after its comment lines. Texts that are not plain words are quoted as in JSON."""
    lines: list[str] = []
    for comments, document in documents:
        lines += ["---", *(f"# {printable(line)}" for line in comments), *_block(document, "")]
    return "\n".join(lines) + "\n" if lines else ""


def printable(text: str) -> str:
    """``text`` on one line: names of tenants and policies come from people."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def metadata(name: str, version: str, narrower: Sequence[Narrower], **annotations: str) -> dict[str, Any]:
    """The metadata of a Kubernetes object: its name, the policy version, and what it leaves out."""
    said = {"eastwest/policy-version": version, **annotations}
    if narrower:
        listed = [str(one) for one in narrower[:MAX_ANNOTATION]]
        if len(narrower) > MAX_ANNOTATION:
            listed.append(f"and {len(narrower) - MAX_ANNOTATION} more")
        said["eastwest/narrower"] = "; ".join(listed)
    return {"name": name, "labels": {"app.kubernetes.io/managed-by": "eastwest"}, "annotations": said}


def preamble(format_name: str, compiled: CompiledPolicy, *sentences: str) -> list[str]:
    """The first comment of a file."""
    made = f"Made by eastwest policy export --format {format_name} from policy version {compiled.version}."
    report = reported(compiled)
    return [made, *sentences, *([report] if report else [])]


def reported(compiled: CompiledPolicy) -> str:
    """That rules in report mode are left out, where there are any."""
    count = compiled.summary.report
    if not count:
        return ""
    what = "policy is" if count == 1 else "policies are"
    return f"{count} {what} left out: in report mode they decide nothing, and nothing here would record them."


def _block(value: Any, indent: str) -> Iterator[str]:
    """A mapping or list that is not empty, in lines."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            if isinstance(one, Mapping | list) and one:
                yield f"{indent}{_scalar(key)}:"
                yield from _block(one, indent if isinstance(one, list) else indent + "  ")
            else:
                yield f"{indent}{_scalar(key)}: {_scalar(one)}"
        return
    for one in value:
        if isinstance(one, Mapping | list) and one:
            first, *rest = _block(one, indent + "  ")
            yield f"{indent}- {first[len(indent) + 2 :]}"
            yield from rest
        else:
            yield f"{indent}- {_scalar(one)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return msgspec.json.encode(value).decode()
