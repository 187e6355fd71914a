"""How strictly operations were classed in earlier versions, so that two steps open no more than one.

What is taken away narrows and asks nobody. What comes back later is judged by the strictest class that anything of its
name, or for the same requests to the same application, ever had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from eastwest.policy.applications import Application, application
from eastwest.policy.enforcement import GrpcMatch, HttpMatch, TcpMatch
from eastwest.policy.estate import Sensitivity, Service
from eastwest.policy.operations import matcher, wire_form
from eastwest.policy.paths import Template

MAX_ROUTES = 100_000
"""Routes that are remembered; of those beyond it only the names are."""
_RANK = {one: rank for rank, one in enumerate(Sensitivity)}
_Place = tuple[str, ...] | Application  # a service by name, a workload and an address, or an application
_Form = tuple[str, int]  # HTTP method and number of segments
_Routes = Mapping[_Place, Mapping[tuple[_Form, Template] | None, Sensitivity]]


@dataclass(frozen=True, slots=True)
class Version:
    """What an earlier version said of its services, and ``nodes`` of its workloads by SPIFFE ID."""

    services: tuple[Service, ...]
    nodes: Mapping[str, str]


class Past:
    """The strictest classes that there were; a value."""

    def __init__(self, names: Mapping[str, Sensitivity] | None = None, routes: _Routes | None = None) -> None:
        """Without arguments: of nothing."""
        self._names: Mapping[str, Sensitivity] = names or MappingProxyType({})
        self._routes: _Routes = routes or MappingProxyType({})

    def joined(self, versions: Iterable[Version]) -> Past:
        """With what more versions said."""
        names, routes = dict(self._names), {place: dict(found) for place, found in self._routes.items()}
        count = sum(map(len, routes.values()))
        for service, nodes in ((service, version.nodes) for version in versions for service in version.services):
            for operation in service.operations:
                if operation.sensitivity is None:
                    continue
                names[operation.name] = _stricter(names.get(operation.name), operation.sensitivity)
                key = _key(matcher(operation))
                for place in (*_places(service), application(service, nodes)):
                    known = routes.setdefault(place, {})
                    if key in known or count < MAX_ROUTES:
                        count += key not in known
                        known[key] = _stricter(known.get(key), operation.sensitivity)
        return Past(names, routes)

    def of_name(self, name: str) -> Sensitivity | None:
        """The strictest class that an operation of this name had; None where there was none."""
        return self._names.get(name)

    def of_requests(
        self, service: Service, nodes: Mapping[str, str], match: HttpMatch | GrpcMatch | TcpMatch
    ) -> Sensitivity | None:
        """The strictest class that requests had which the operation takes, by this service or before its application.

        ``nodes`` are those of the workloads now. A connection (TCP) carries whatever requests there are.
        """
        key = _key(match)
        found: Sensitivity | None = None
        here = application(service, nodes)
        shared = (place for place in self._routes if isinstance(place, Application) and place.may_be(here))
        for place in (*_places(service), *shared):
            for other, sensitivity in self._routes.get(place, {}).items():
                if key is None or other is None or (key[0] == other[0] and key[1].overlaps(other[1])):
                    found = _stricter(found, sensitivity)
        return found


def _places(service: Service) -> Iterator[_Place]:
    yield (service.service,)
    yield service.workload, service.upstream.unix or "", service.upstream.tcp or ""


def _key(match: HttpMatch | GrpcMatch | TcpMatch) -> tuple[_Form, Template] | None:
    form = wire_form(match)
    if form is None:
        return None
    # Parameters' names do not matter.
    template = Template(tuple(("", "x") if parameter else (text, "") for text, parameter in form[1].segments))
    return (form[0], len(template.segments)), template


def _stricter(one: Sensitivity | None, other: Sensitivity) -> Sensitivity:
    return other if one is None or _RANK[other] > _RANK[one] else one
