"""From the files of an estate to an ``Estate``: everything is checked, and all mistakes are told at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from eastwest.policy import cedar
from eastwest.policy.case_files import FOLDER as CASES
from eastwest.policy.case_files import CasesFile
from eastwest.policy.check import check_references
from eastwest.policy.check_changes import check_changes
from eastwest.policy.check_federation import check_federation
from eastwest.policy.check_rollout import check_rollout
from eastwest.policy.check_slos import check_slos
from eastwest.policy.decode import Path, decode
from eastwest.policy.estate import (
    Estate,
    ForeignWorkload,
    Profile,
    Service,
    Settings,
    Waiver,
    Workload,
    WorkloadsFile,
)
from eastwest.policy.parts import Parts
from eastwest.policy.problems import Findings, Position, Problem, Severity, suggest
from eastwest.policy.schema import cedar_schema, known_ids
from eastwest.policy.yamltree import Mapping as YamlMapping
from eastwest.policy.yamltree import Node, Scalar, Sequence, read_text, read_yaml

T = TypeVar("T", bound=msgspec.Struct)

MAX_FILES = 20_000
MAX_FILE = 8 << 20  # bytes
MAX_TOTAL = 128 << 20  # bytes
MAX_NAME = 512
REMEMBERED = 32 << 20  # bytes of files of which it is remembered what they say

_FOLDERS: dict[str, tuple[type[msgspec.Struct], str]] = {
    "profiles": (Profile, "profile"),
    "workloads": (WorkloadsFile, "workloads"),
    "services": (Service, "service"),
    "waivers": (Waiver, "waiver"),
}
KINDS = ("estate", *_FOLDERS, CASES)
"""What ``json_schema`` knows."""

_NAMED_BY = {"workloads": "spiffe_id"}
_BUNDLES = "federation"
"""The folder of bundles to begin with; their content is checked by who puts them in force."""
_IGNORED = ("README.md", "schema.cedarschema", "schema.json", "LICENSE")


def load_estate(files: Mapping[str, bytes]) -> Estate:
    """Read an estate from its files by relative path (``services/billing.yaml``).

    Raises ``EstateInvalid`` with every error, warning and note found. Warnings and notes of a good estate are in
    its ``notes``. Files that are no part of the format (a README, dot files) are ignored.
    """
    findings = Findings()
    if _too_much(files, findings):
        findings.raise_errors()
    read = _Read(findings)
    for name in sorted(files):
        read.file(name, files[name])
    if "estate.yaml" not in files:
        fix = "write trust_domain, environments and domains there"
        if any(n.endswith("/estate.yaml") for n in files):
            fix = "give the directory that holds estate.yaml"
        findings.error(Position("estate.yaml"), "there is no estate.yaml", fix)
    if read.settings is None:
        findings.raise_errors()
    settings = read.settings
    if settings is None:
        raise AssertionError("a missing estate.yaml is an error")
    return _assemble(settings, read, findings)


def load_parts(files: Mapping[str, bytes]) -> tuple[tuple[Service, ...], tuple[Workload, ...]]:
    """Services and workloads alone, of files that were an estate once; what this version cannot read is left out."""
    folders = ("services/", "workloads/")
    names = [name for name in sorted(files) if name.startswith(folders) and name.endswith(".yaml")]
    values = [thing.value for name in names for thing in _files.read(name, files[name]).things]
    services = tuple(value for value in values if isinstance(value, Service))
    return services, tuple(value for value in values if isinstance(value, Workload))


def is_estate_file(name: str) -> bool:
    """Whether a path belongs to an estate, so that a reader of directories knows what to pick up."""
    parts = name.split("/")
    # Cases are run where they are written (``eastwest policy test``); nobody applies them.
    return not any(part.startswith(".") for part in parts) and parts[-1] not in _IGNORED and parts[0] != CASES


def json_schema(kind: str | None = None) -> dict[str, Any]:
    """JSON Schema (2020-12) of the YAML files: of one kind, or of any.

    Kinds: ``estate`` (estate.yaml), ``profiles``, ``workloads``, ``services``, ``waivers``, ``tests``.
    """
    kinds: dict[str, type[msgspec.Struct]] = {"estate": Settings, **{name: cls for name, (cls, _) in _FOLDERS.items()}}
    kinds[CASES] = CasesFile
    chosen = kinds if kind is None else {kind: kinds[kind]}
    references, definitions = msgspec.json.schema_components(chosen.values(), ref_template="#/$defs/{name}")
    top = references[0] if kind else {"anyOf": list(references)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind or "estate",
        **top,
        "$defs": dict(sorted(definitions.items())),
    }


@dataclass(frozen=True, slots=True)
class _Thing:
    """Something that a file declares; ``value`` None when a finding says why not."""

    name: str
    where: Position
    value: msgspec.Struct | None
    places: dict[Path, Position]


@dataclass(frozen=True, slots=True)
class _File:
    """What one file says by itself. ``complete`` is false when not even all names could be read."""

    problems: tuple[Problem, ...] = ()
    things: tuple[_Thing, ...] = ()
    complete: bool = True
    settings: Settings | None = None
    places: dict[Path, Position] = field(default_factory=dict)
    policies: tuple[cedar.ParsedPolicy, ...] = ()


class _Files:
    """What files said, by name and content: from one plan to the next most files stay the same."""

    def __init__(self, limit: int) -> None:
        """``limit``: bytes of files of which it is remembered what they say."""
        self._limit = limit
        self._size = 0
        self._known: OrderedDict[tuple[str, bytes], _File] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, data: bytes) -> _File:
        key = name, data
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
        found = _read_file(name, data)
        with self._lock:
            if key not in self._known and len(data) <= self._limit:
                self._known[key] = found
                self._size += len(data)
            while self._size > self._limit:
                (_, oldest), _ = self._known.popitem(last=False)
                self._size -= len(oldest)
        return found


_files = _Files(REMEMBERED)


def _read_file(name: str, data: bytes) -> _File:
    findings = Findings()
    folder = name.partition("/")[0]
    if folder == "policies":
        text = read_text(name, data, findings)
        policies = () if text is None else tuple(cedar.read_policies(name, text, findings))
        return _File(findings.all(), policies=policies)
    node = read_yaml(name, data, findings)
    if folder == "estate.yaml":
        settings, places = (None, {}) if node is None else decode(node, Settings, findings)
        return _File(findings.all(), settings=settings, places=places)
    kind, key = _FOLDERS[folder]
    rows: Iterable[Node] = () if node is None else (node,)
    complete = node is not None
    if kind is WorkloadsFile:
        kind, key = Workload, "spiffe_id"
        listed = node.get("workloads") if isinstance(node, YamlMapping) and len(node.entries) == 1 else None
        if isinstance(listed, Sequence):
            rows = listed.items
        else:
            rows, complete = (), False
            if node is not None:
                decode(node, WorkloadsFile, findings)  # writes what is wrong
    things = []
    for row in rows:
        value, places = decode(row, kind, findings)
        named = row.get(key) if isinstance(row, YamlMapping) else None
        if isinstance(named, Scalar):
            things.append(_Thing(named.text, named.where, value, places))
        else:
            complete = False
    return _File(findings.all(), tuple(things), complete)


class _Read:
    """What the files said, before it is held against each other."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.settings: Settings | None = None
        self.settings_places: dict[Path, Position] = {}
        self.profiles: Parts[Profile] = Parts()
        self.workloads: Parts[Workload] = Parts()
        self.services: Parts[Service] = Parts()
        self.waivers: Parts[Waiver] = Parts()
        self.policies: list[cedar.ParsedPolicy] = []
        self.bundles: dict[str, bytes] = {}

    def file(self, name: str, data: bytes) -> None:
        if not is_estate_file(name):
            return
        folder, _, rest = name.partition("/")
        flat = "/" not in rest
        if name == "estate.yaml":
            read = self._said(name, data)
            self.settings, self.settings_places = read.settings, read.places
        elif folder == "policies" and rest.endswith(".cedar") and flat:
            self.policies += self._said(name, data).policies
        elif folder == _BUNDLES and rest.endswith(".json") and flat:
            self.bundles[name] = data
        elif folder in _FOLDERS and rest.endswith(".yaml") and flat:
            self._things(_FOLDERS[folder][1], self._said(name, data), getattr(self, folder))
        else:
            self._misplaced(name, folder, rest)

    def _said(self, name: str, data: bytes) -> _File:
        read = _files.read(name, data)
        self.findings.take(read.problems)
        return read

    def _things(self, key: str, read: _File, parts: Parts[Any]) -> None:
        parts.complete = parts.complete and read.complete
        for thing in read.things:
            first = parts.named.get(thing.name)
            if first is not None:
                message = f"{_NAMED_BY.get(key, key)} {thing.name!r} is declared twice"
                self.findings.error(thing.where, message, f"the first is at {first}; keep one")
                continue
            parts.named[thing.name] = thing.where
            if thing.value is not None:
                parts.items[thing.name] = thing.value
                parts.places[thing.name] = thing.places

    def _misplaced(self, name: str, folder: str, rest: str) -> None:
        where = Position(name)
        if folder in _FOLDERS or folder == "policies":
            wanted = ".cedar" if folder == "policies" else ".yaml"
            if rest.endswith(wanted):
                self.findings.error(where, "folders within folders are not read", f"move it to {folder}/")
            elif rest.endswith((".yml", ".yaml", ".json", ".cedar", ".txt")):
                self.findings.error(where, f"{folder}/ holds {wanted} files only", f"rename or move it: *{wanted}")
            else:
                self.findings.warning(where, "this file is not read", f"{folder}/ holds {wanted} files")
        elif not rest:
            fix = suggest(name, ["estate.yaml"], otherwise="the only file at the top is estate.yaml")
            self.findings.warning(where, "this file is not read", fix)
        else:
            fix = suggest(folder, [*_FOLDERS, "policies", _BUNDLES])
            close = fix.startswith("did you mean")
            (self.findings.error if close else self.findings.warning)(where, "this folder is not read", fix)


def _too_much(files: Mapping[str, bytes], findings: Findings) -> bool:
    """Bounds come first, so that nothing is parsed that is too big."""
    if len(files) > MAX_FILES:
        findings.error(Position("estate.yaml"), f"the estate has more than {MAX_FILES} files")
    if sum(map(len, files.values())) > MAX_TOTAL:
        findings.error(Position("estate.yaml"), f"the estate is larger than {MAX_TOTAL >> 20} MiB")
    for name, data in sorted(files.items()):
        if len(name) > MAX_NAME:
            findings.error(Position(name[:80]), "the file's name is too long")
        if len(data) > MAX_FILE:
            findings.error(Position(name), f"the file is larger than {MAX_FILE >> 20} MiB", "split it")
    return findings.failed


def _assemble(settings: Settings, read: _Read, findings: Findings) -> Estate:
    check_references(
        settings, read.settings_places, read.profiles, read.workloads, read.services, read.waivers, findings
    )
    check_federation(settings, read.settings_places, read.workloads, read.services.named.keys(), read.bundles, findings)
    check_slos(settings, read.settings_places, read.workloads, read.services, findings)
    check_rollout(settings, read.settings_places, findings)
    check_changes(settings, read.settings_places, read.services.items.values(), findings)
    profiles, workloads = _sorted(read.profiles), _sorted(read.workloads)
    services, waivers = _sorted(read.services), _sorted(read.waivers)
    policies = _unique(read.policies, findings)
    schema = ""
    if _whole(read) and not _services_broken(findings):
        callers: list[Workload | ForeignWorkload] = [*workloads]
        callers += [workload for one in settings.federation for workload in one.workloads]
        schema = cedar_schema(services, callers)
        cedar.validate(policies, schema, known_ids(settings, callers, services), findings)
    findings.raise_errors()
    return Estate(
        settings=settings,
        profiles=profiles,
        workloads=workloads,
        services=services,
        policies=tuple(sorted((p.policy for p in policies), key=lambda p: p.id)),
        waivers=waivers,
        schema=schema,
        positions=_positions(read, policies),
        notes=findings.all(),
        bundles={name: read.bundles[name] for name in _named_bundles(settings) if name in read.bundles},
    )


def _whole(read: _Read) -> bool:
    """Whether everything that a policy may name could be read."""
    return all(parts.complete and len(parts.items) == len(parts.named) for parts in (read.workloads, read.services))


def _named_bundles(settings: Settings) -> list[str]:
    return sorted({one.bundle for one in settings.federation if one.bundle is not None})


def _services_broken(findings: Findings) -> bool:
    """A schema made from wrong services would only add wrong complaints about policies."""
    return any(p.severity is Severity.ERROR and p.where.file.startswith("services/") for p in findings.all())


def _unique(policies: Iterable[cedar.ParsedPolicy], findings: Findings) -> list[cedar.ParsedPolicy]:
    seen: dict[str, cedar.ParsedPolicy] = {}
    for policy in policies:
        first = seen.setdefault(policy.policy.id, policy)
        if first is not policy:
            findings.error(
                policy.source.where,
                f"policy id {policy.policy.id!r} is used twice",
                f"the first is at {first.source.where}; rename one",
            )
    return list(seen.values())


def _sorted(parts: Parts[T]) -> tuple[T, ...]:
    return tuple(parts.items[name] for name in sorted(parts.items))


def _positions(read: _Read, policies: Iterable[cedar.ParsedPolicy]) -> dict[tuple[str, str], Position]:
    places = {("settings", str(path[0])): where for path, where in read.settings_places.items() if len(path) == 1}
    if read.settings is not None:
        for i, environment in enumerate(read.settings.environments):
            places["environment", environment.name] = read.settings_places["environments", i]
    kinds: tuple[tuple[str, Parts[Any]], ...] = (
        ("profile", read.profiles),
        ("workload", read.workloads),
        ("service", read.services),
        ("waiver", read.waivers),
    )
    for kind, parts in kinds:
        places.update({(kind, name): where for name, where in parts.named.items()})
    for name, service in read.services.items.items():
        for i, operation in enumerate(service.operations):
            places["operation", operation.name] = read.services.at(name, "operations", i)
        places["mode", name] = read.services.at(name, "listen", "mtls")
    places.update({("policy", p.policy.id): p.source.where for p in policies})
    return places
