"""An immutable set of named resources: everything one sidecar is told, in one version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from google.protobuf import any_pb2

from eastwest.errors import Internal

Named = Mapping[str, "Resource"]
_NOTHING: Named = MappingProxyType({})


class DanglingReference(Internal):
    """A snapshot refers to a resource that it does not hold: publishing it would leave an Envoy waiting."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource, serialised once. ``version`` is a hash of its bytes, so equal content is never resent."""

    name: str
    type_url: str
    version: str
    body: bytes = field(repr=False)  # of the message inside the Any
    needs: tuple[tuple[str, str], ...] = ()  # (type URL, name) of what must be there for this to work

    @classmethod
    def of(cls, name: str, type_url: str, message: Any, needs: Iterable[tuple[str, str]] = ()) -> Resource:
        """Serialise ``message`` (deterministically) under ``name``."""
        body: bytes = message.SerializeToString(deterministic=True)
        return cls(name, type_url, hashlib.sha256(body).hexdigest()[:16], body, tuple(needs))

    def as_any(self) -> any_pb2.Any:
        """The resource as it travels."""
        return any_pb2.Any(type_url=self.type_url, value=self.body)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Resources by type URL and name. ``version`` names the policy version these enforce."""

    version: str
    resources: Mapping[str, Named]
    marker: object = None
    """What its secrets stand for, to be told once they are acknowledged; snapshots that differ in it are different."""
    contained: int = 0
    """The generation of containments that its config enforces."""
    requires: frozenset[str] = frozenset()
    """Extensions that an Envoy must know to take this as it is meant, by the names it tells of itself."""
    instead: Snapshot | None = None
    """For an Envoy that knows them not: the last config that required none, with the containments of now."""

    @classmethod
    def of(cls, version: str, resources: Iterable[Resource], marker: object = None, contained: int = 0) -> Snapshot:
        """Group ``resources``; a name given twice keeps its last resource."""
        by_type: dict[str, dict[str, Resource]] = {}
        for resource in resources:
            by_type.setdefault(resource.type_url, {})[resource.name] = resource
        grouped = MappingProxyType({kind: MappingProxyType(named) for kind, named in by_type.items()})
        return cls(version, grouped, marker, contained)

    def of_type(self, type_url: str) -> Named:
        """The resources of one type by name."""
        return self.resources.get(type_url, _NOTHING)

    def check(self) -> None:
        """Raise ``DanglingReference`` where a resource needs one that is not here."""
        for named in self.resources.values():
            for resource in named.values():
                for type_url, name in resource.needs:
                    if name not in self.of_type(type_url):
                        raise DanglingReference(f"{resource.name} needs {name}, which the snapshot does not hold")

    def changed_from(self, earlier: Snapshot) -> dict[str, tuple[str, ...]]:
        """Names that were added, changed or removed, by type URL; types without a change are left out."""
        changes: dict[str, tuple[str, ...]] = {}
        for type_url in sorted({*self.resources, *earlier.resources}):
            now, then = self.of_type(type_url), earlier.of_type(type_url)
            if now is then:
                continue
            names = tuple(sorted(n for n in {*now, *then} if _version(now, n) != _version(then, n)))
            if names:
                changes[type_url] = names
        return changes


def _version(named: Named, name: str) -> str:
    resource = named.get(name)
    return "" if resource is None else resource.version
