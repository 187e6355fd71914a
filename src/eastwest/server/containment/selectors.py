"""Whom a selector means now: SPIFFE IDs, shown to people before anything happens to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from eastwest.errors import InvalidInput, NotFound
from eastwest.policy.estate import Estate
from eastwest.registry.containment import containable
from eastwest.registry.entry import Entry
from eastwest.registry.registry import Registry
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.selector import Selector

FORMS = "a SPIFFE ID, domain:NAME, environment:NAME, service:NAME, node:SPIFFE-ID, or a selector such as unix:uid:1001"


class Selectors:
    """Reads selectors by the registry and the estate in force."""

    def __init__(self, registry: Registry, estate: Callable[[], Estate | None]) -> None:
        self._registry = registry
        self._estate = estate

    def resolve(self, text: str) -> tuple[str, ...]:
        """The SPIFFE IDs, sorted. Raises ``NotFound`` for nobody, ``InvalidInput`` for what is no selector."""
        if text.startswith("spiffe://"):
            return containable([text])
        kind, found, value = text.partition(":")
        if not found or not kind or not value:
            raise InvalidInput(f"{text[:200]!r} is no selector", fix=FORMS)
        names = tuple({str(one) for one in self._found(kind, value) if not one.is_reserved})
        if not names:
            raise NotFound(f"{text[:200]} means nobody who is registered", fix=FORMS)
        return containable(names)

    def _found(self, kind: str, value: str) -> Iterable[SpiffeId]:
        match kind:
            case "node":
                return self._of_node(value)
            case "domain":
                return self._of_domain(value)
            case "environment":
                return self._of_environment(value)
            case "service":
                services = estate.services if (estate := self._estate()) is not None else ()
                return [SpiffeId.parse(one.workload) for one in services if one.service == value]
            case _:
                wanted = Selector.parse(f"{kind}:{value}")
                return [entry.spiffe_id for entry in self._entries() if wanted in entry.selectors]

    def _of_node(self, value: str) -> Iterable[SpiffeId]:
        """All that the node may have had: whoever holds it may hold these keys, wherever else they are used."""
        node = SpiffeId.parse(value)
        known = self._registry.nodes.get(node)
        if known is None:
            raise NotFound(f"no node {node} is known", fix="see eastwest node list")
        return [entry.spiffe_id for entry in self._registry.reachable(known)]

    def _of_domain(self, domain: str) -> Iterable[SpiffeId]:
        estate, rules = self._estate(), self._registry.entries.rules
        declared = [one for one in estate.workloads if one.domain == domain] if estate is not None else []
        yield from (SpiffeId.parse(one.spiffe_id) for one in declared)
        yield from (one.spiffe_id for one in self._entries() if rules.domain_of(one.spiffe_id) == domain)

    def _of_environment(self, environment: str) -> Iterable[SpiffeId]:
        estate = self._estate()
        declared = [one for one in estate.workloads if one.environment == environment] if estate is not None else []
        yield from (SpiffeId.parse(one.spiffe_id) for one in declared)
        yield from (one.spiffe_id for one in self._entries() if one.environment == environment)

    def _entries(self) -> Iterable[Entry]:
        return (entry for entry in self._registry.entries.list().items if not entry.is_node_alias)
