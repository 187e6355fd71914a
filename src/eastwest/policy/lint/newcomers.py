"""Callers, operations and services that the estate does not have yet, and what permits would let them do.

However a wildcard is written (a head left open, ``like "*"``, ``unless`` one name, a list of every group), it is known
by what it lets through that nobody named. Newcomers are imagined, and Cedar is asked about them as about all others;
what a ``forbid`` takes away is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from eastwest.policy.analysis import Analysis, analyse
from eastwest.policy.estate import (
    Domain,
    Environment,
    Estate,
    ForeignWorkload,
    Match,
    Operation,
    Policy,
    Sensitivity,
    Service,
    Settings,
    TenantFrom,
)
from eastwest.policy.judge import fresh_text
from eastwest.policy.lint.held import Alike, Caller, Holding, what_holds
from eastwest.policy.schema import ACTION, WORKLOAD, cedar_schema

MAX_TENANTS = 50
"""Tenants that a newcomer serves: those that policies name, up to this many."""
MAX_CALLERS = 2
"""Kinds of callers of one permit that are asked about operations to come."""
GROUPS = frozenset((ACTION, sensitivity.value) for sensitivity in Sensitivity)
_TO_COME = tuple(sensitivity for sensitivity in Sensitivity if sensitivity is not Sensitivity.OPEN)
_CHANGES = frozenset({Sensitivity.MUTATE, Sensitivity.CONTROL})
_OWNER = "group:newcomers"
_PARAMETER = "tenant"

Operations = tuple[tuple[Service, Operation], ...]


@dataclass(slots=True)
class Entrants:
    """What one permit lets callers do of whom nothing is known but their environment, domain and tenants.

    ``anybody``: of a domain that nobody has named; ``of_domain``: of one of the estate's; ``unasked``: the same where
    they serve no tenants either.
    """

    anybody: dict[int, Alike] = field(default_factory=dict)
    of_domain: dict[str, dict[int, Alike]] = field(default_factory=dict)
    unasked: dict[str, dict[int, Alike]] = field(default_factory=dict)


def beyond_open(places: Mapping[int, Alike]) -> Operations:
    """Operations of places that are more than ``open``."""
    return tuple(
        (service, operation)
        for place in places.values()
        for service, operation in place.operations
        if operation.sensitivity is not Sensitivity.OPEN
    )


def entrants(estate: Estate, policies: Iterable[Analysis]) -> Mapping[str, Entrants]:
    """By permit, where it lets any newcomer through."""
    asked = [p for p in policies if p.policy.effect == "forbid" or _admits_unnamed(p)]
    if not any(p.policy.effect == "permit" for p in asked):
        return {}
    settings = estate.settings
    nowhere = fresh_text("nowhere-yet", {domain.name for domain in settings.domains})
    tenants = _named_tenants(estate)
    callers = tuple(
        ForeignWorkload(
            spiffe_id=f"spiffe://newcomer.invalid/{environment.name}/{domain}/{'any' if served else 'none'}",
            environment=environment.name,
            domain=domain,
            owner=_OWNER,
            attributes={"tenants": tenants} if served else {},
        )
        for environment in settings.environments
        for domain in (nowhere, *(domain.name for domain in settings.domains))
        for served in (True, False)
    )
    imagined = msgspec.structs.replace(
        estate,
        settings=_with_domain(estate, nowhere),
        policies=tuple(p.policy for p in asked),
        registered=(*estate.registered, *callers),
    )
    found: dict[str, Entrants] = {}
    for name, holding in _allowed(what_holds(imagined, callers).holdings):
        here = found.setdefault(name, Entrants())
        caller = holding.kind.first
        places = {id(place): place for place in holding.places}
        if caller.domain == nowhere:
            here.anybody |= places
        else:
            here.of_domain.setdefault(caller.domain, {}).update(places)
            if not caller.attributes:
                here.unasked.setdefault(caller.domain, {}).update(places)
    return found


@dataclass(frozen=True, slots=True)
class ToCome:
    """Permits that hold for operations to come: of every sensitivity, for changes, at services that nobody named."""

    everything: frozenset[str]
    changes: frozenset[str]
    elsewhere: frozenset[str]


def to_come(estate: Estate, policies: Iterable[Analysis], effective: Mapping[str, tuple[Holding, ...]]) -> ToCome:
    """Ask permits about operations to come of a service where each of them counts, and of services to come."""
    every = tuple(policies)
    permits = [p for p in every if p.policy.effect == "permit" and _names_a_group(p) and effective.get(p.policy.id)]
    if not permits:
        return ToCome(frozenset(), frozenset(), frozenset())
    services: dict[str, Service] = {}
    callers: dict[str, Caller] = {}
    for permit in permits:
        holdings = effective[permit.policy.id]
        service, _ = next(holdings[0].operations)
        services[service.service] = _with_operations(service)
        for holding in holdings[:MAX_CALLERS]:
            callers[holding.kind.first.spiffe_id] = holding.kind.first
    nowhere = fresh_text("nowhere-yet", {domain.name for domain in estate.settings.domains})
    fresh = tuple(_services(estate, nowhere))
    forbids = [p.policy for p in every if p.policy.effect == "forbid"]
    found = _held(
        estate, nowhere, (*services.values(), *fresh), [p.policy for p in permits] + forbids, tuple(callers.values())
    )
    names = frozenset(service.service for service in fresh)
    known = {key: said for key, said in found.items() if key[1] not in names}
    return ToCome(
        everything=frozenset(policy for (policy, _), said in known.items() if said.issuperset(_TO_COME)),
        changes=frozenset(policy for (policy, _), said in known.items() if said & _CHANGES),
        elsewhere=frozenset(policy for policy, service in found if service in names),
    )


def _held(
    estate: Estate, nowhere: str, services: tuple[Service, ...], policies: Iterable[Policy], callers: tuple[Caller, ...]
) -> Mapping[tuple[str, str], set[Sensitivity]]:
    """By permit and service the sensitivities of the operations at which it holds for one of ``callers``."""
    hosts = {service.workload for service in services}
    template = estate.workloads[0]
    workloads = tuple(
        msgspec.structs.replace(template, spiffe_id=_host(environment), environment=environment.name)
        for environment in estate.settings.environments
        if _host(environment) in hosts
    )
    imagined = msgspec.structs.replace(
        estate,
        settings=_with_domain(estate, nowhere),
        services=services,
        workloads=(*estate.workloads, *workloads),
        policies=tuple(policies),
        schema=cedar_schema(services, estate.callers),
    )
    found: dict[tuple[str, str], set[Sensitivity]] = {}
    for name, holding in _allowed(what_holds(imagined, callers).holdings):
        for service, operation in holding.operations:
            if operation.sensitivity is not None:
                found.setdefault((name, service.service), set()).add(operation.sensitivity)
    return found


def _allowed(holdings: Iterable[Holding]) -> Iterator[tuple[str, Holding]]:
    return ((name, holding) for holding in holdings if holding.allowed for name in holding.permits)


def _admits_unnamed(policy: Analysis) -> bool:
    among = policy.principal.among
    return among is None or any(kind != WORKLOAD for kind, _ in among)


def _names_a_group(policy: Analysis) -> bool:
    return policy.action.among is None or bool(policy.action.among & GROUPS)


def _with_operations(service: Service) -> Service:
    """The service with operations to come in place of those that it has."""
    parameter = service.tenant.path if service.tenant is not None else None
    path = f"/to-come/{{{parameter}}}" if parameter else "/to-come"
    operations = tuple(
        Operation(
            name=f"{service.service}:to-come:{sensitivity}",
            match=Match(method="POST" if sensitivity in _CHANGES else "GET", path=path),
            sensitivity=sensitivity,
        )
        for sensitivity in _TO_COME
    )
    return msgspec.structs.replace(service, operations=operations)


def _services(estate: Estate, nowhere: str) -> Iterator[Service]:
    """Services to come: in each environment one that knows tenants, and one that does not."""
    taken: Collection[str] = {service.service for service in estate.services}
    template = estate.services[0]
    for environment in estate.settings.environments:
        for tenant in (None, TenantFrom(path=_PARAMETER)):
            yield _with_operations(
                msgspec.structs.replace(
                    template,
                    service=fresh_text(f"to-come-{environment.name}-{'with' if tenant else 'without'}", taken),
                    workload=_host(environment),
                    owner=_OWNER,
                    domain=nowhere,
                    tenant=tenant,
                )
            )


def _host(environment: Environment) -> str:
    return f"spiffe://newcomer.invalid/{environment.name}/to-come"


def _with_domain(estate: Estate, name: str) -> Settings:
    settings = estate.settings
    return msgspec.structs.replace(settings, domains=(*settings.domains, Domain(name=name, owners=())))


def _named_tenants(estate: Estate) -> tuple[str, ...]:
    served: set[str] = set()
    for caller in estate.callers:
        said = caller.attributes.get("tenants", ())
        served |= {said} if isinstance(said, str) else set(said)
    named = {text for policy in estate.policies for text in analyse(policy).texts}
    return ("newcomers", *sorted(served & named)[:MAX_TENANTS])
