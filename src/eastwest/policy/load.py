"""From the files of an estate to an ``Estate``: everything is checked, and all mistakes are told at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from eastwest.policy import cedar
from eastwest.policy.check import check_references
from eastwest.policy.check_federation import check_federation
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
from eastwest.policy.problems import Findings, Position, Severity, suggest
from eastwest.policy.schema import cedar_schema, known_ids
from eastwest.policy.yamltree import Mapping as YamlMapping
from eastwest.policy.yamltree import Node, Scalar, Sequence, read_text, read_yaml

T = TypeVar("T", bound=msgspec.Struct)

MAX_FILES = 20_000
MAX_FILE = 8 << 20  # bytes
MAX_TOTAL = 128 << 20  # bytes
MAX_NAME = 512

_FOLDERS: dict[str, tuple[type[msgspec.Struct], str]] = {
    "profiles": (Profile, "profile"),
    "workloads": (WorkloadsFile, "workloads"),
    "services": (Service, "service"),
    "waivers": (Waiver, "waiver"),
}
KINDS = ("estate", *_FOLDERS)
"""What ``json_schema`` knows."""

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


def is_estate_file(name: str) -> bool:
    """Whether a path belongs to an estate, so that a reader of directories knows what to pick up."""
    parts = name.split("/")
    return not any(part.startswith(".") for part in parts) and parts[-1] not in _IGNORED


def json_schema(kind: str | None = None) -> dict[str, Any]:
    """JSON Schema (2020-12) of the YAML files: of one kind, or of any.

    Kinds: ``estate`` (estate.yaml), ``profiles``, ``workloads``, ``services``, ``waivers``.
    """
    kinds: dict[str, type[msgspec.Struct]] = {"estate": Settings, **{name: cls for name, (cls, _) in _FOLDERS.items()}}
    chosen = kinds if kind is None else {kind: kinds[kind]}
    references, definitions = msgspec.json.schema_components(chosen.values(), ref_template="#/$defs/{name}")
    top = references[0] if kind else {"anyOf": list(references)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind or "estate",
        **top,
        "$defs": dict(sorted(definitions.items())),
    }


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
        if name == "estate.yaml":
            node = read_yaml(name, data, self.findings)
            if node is not None:
                self.settings, self.settings_places = decode(node, Settings, self.findings)
        elif folder == "policies" and rest.endswith(".cedar") and "/" not in rest:
            text = read_text(name, data, self.findings)
            if text is not None:
                self.policies += cedar.read_policies(name, text, self.findings)
        elif folder == _BUNDLES and rest.endswith(".json") and "/" not in rest:
            self.bundles[name] = data
        elif folder in _FOLDERS and rest.endswith(".yaml") and "/" not in rest:
            self._things(folder, read_yaml(name, data, self.findings))
        else:
            self._misplaced(name, folder, rest)

    def _things(self, folder: str, node: Node | None) -> None:
        if folder == "workloads":
            self._workloads(node)
        elif folder == "profiles":
            self._one(node, Profile, "profile", self.profiles)
        elif folder == "services":
            self._one(node, Service, "service", self.services)
        else:
            self._one(node, Waiver, "waiver", self.waivers)

    def _workloads(self, node: Node | None) -> None:
        rows = node.get("workloads") if isinstance(node, YamlMapping) else None
        if isinstance(node, YamlMapping) and isinstance(rows, Sequence) and len(node.entries) == 1:
            for row in rows.items:
                self._one(row, Workload, "spiffe_id", self.workloads)
            return
        self.workloads.complete = False
        if node is not None:
            decode(node, WorkloadsFile, self.findings)  # writes what is wrong

    def _one(self, node: Node | None, kind: type[T], key: str, parts: Parts[T]) -> None:
        if node is None:
            parts.complete = False
            return
        value, places = decode(node, kind, self.findings)
        named = node.get(key) if isinstance(node, YamlMapping) else None
        if not isinstance(named, Scalar):
            parts.complete = False
            return
        name = named.text
        if name in parts.named:
            self.findings.error(
                named.where, f"{key} {name!r} is declared twice", f"the first is at {parts.named[name]}; keep one"
            )
            return
        parts.named[name] = named.where
        if value is not None:
            parts.items[name] = value
            parts.places[name] = places

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
