"""The Cedar schema and the Cedar entities of an estate: generated, never written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from eastwest.policy.estate import Estate, ForeignWorkload, Sensitivity, Service, Settings, Workload
from eastwest.policy.operations import tenant_source

WORKLOAD = "Workload"
SERVICE = "Service"
DOMAIN = "Domain"
ENVIRONMENT = "Environment"
ACTION = "Action"
RESERVED_ATTRIBUTES = frozenset({"environment", "domain", "owner"})

_ENTITY = "environment: Environment, domain: Domain, owner: String"
_CONTEXT = "path: String, method: String, step_up?: StepUp, approval?: Approval, transaction?: Transaction"
_TYPES = f"""\
type StepUp = {{ action: String, tenant?: String, resource?: String, approver: String }};
type Approval = {{ id: String, approver: String }};
type Transaction = {{ id: String, origin: String }};
type Call = {{ tenant?: String, {_CONTEXT} }};
type TenantCall = {{ tenant: String, {_CONTEXT} }};
"""


def cedar_schema(services: Iterable[Service], workloads: Iterable[Workload | ForeignWorkload]) -> str:
    """The schema in Cedar's own syntax: strict validation of policies is against this text."""
    attributes = "".join(f", {name}?: {kind}" for name, kind in attribute_types(workloads).items())
    lines = [
        "entity Environment;",
        "entity Domain;",
        f"entity Workload in [Domain, Environment] = {{ {_ENTITY}{attributes} }};",
        f"entity Service in [Domain, Environment] = {{ {_ENTITY} }};",
        _TYPES.rstrip(),
        " ".join(f"action {_quoted(s.value)};" for s in Sensitivity),
    ]
    for service in services:
        for operation in service.operations:
            context = "TenantCall" if tenant_source(service, operation) else "Call"
            sensitivity = operation.sensitivity
            group = "" if sensitivity is None else f" in [Action::{_quoted(sensitivity.value)}]"
            lines.append(
                f"action {_quoted(operation.name)}{group} "
                f"appliesTo {{ principal: Workload, resource: Service, context: {context} }};"
            )
    return "\n".join(lines) + "\n"


def attribute_types(workloads: Iterable[Workload | ForeignWorkload]) -> dict[str, str]:
    """Cedar types of the workloads' attributes by name, ``tenants`` first; lists are sets of strings."""
    types = {"tenants": "Set<String>"}
    for workload in workloads:
        for name, value in workload.attributes.items():
            types.setdefault(name, "String" if isinstance(value, str) else "Set<String>")
    return {"tenants": types.pop("tenants"), **dict(sorted(types.items()))}


def cedar_entities(estate: Estate) -> str:
    """Every environment, domain, workload and service as Cedar's entities JSON."""
    entities = [_entity(ENVIRONMENT, e.name) for e in estate.settings.environments]
    entities += [_entity(DOMAIN, d.name) for d in estate.settings.domains]
    entities += [
        _entity(WORKLOAD, w.spiffe_id, w.domain, w.environment, w.owner, _attributes(w)) for w in estate.callers
    ]
    environments = {w.spiffe_id: w.environment for w in estate.workloads}
    entities += [_entity(SERVICE, s.service, s.domain, environments[s.workload], s.owner, {}) for s in estate.services]
    return json.dumps(entities)


def known_ids(
    settings: Settings, workloads: Sequence[Workload | ForeignWorkload], services: Sequence[Service]
) -> dict[str, set[str]]:
    """Ids of the entities that policies may name, by entity type."""
    return {
        ENVIRONMENT: {e.name for e in settings.environments},
        DOMAIN: {d.name for d in settings.domains},
        WORKLOAD: {w.spiffe_id for w in workloads},
        SERVICE: {s.service for s in services},
        ACTION: {o.name for s in services for o in s.operations} | {s.value for s in Sensitivity},
    }


def uid(kind: str, name: str) -> dict[str, str]:
    """An entity's name in Cedar's JSON form."""
    return {"type": kind, "id": name}


def _entity(
    kind: str,
    name: str,
    domain: str = "",
    environment: str = "",
    owner: str = "",
    attributes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    if attributes is None:
        return {"uid": uid(kind, name), "attrs": {}, "parents": []}
    parents = [uid(DOMAIN, domain), uid(ENVIRONMENT, environment)]
    own = {"domain": {"__entity": parents[0]}, "environment": {"__entity": parents[1]}, "owner": owner}
    return {"uid": uid(kind, name), "attrs": {**attributes, **own}, "parents": parents}


def _attributes(workload: Workload | ForeignWorkload) -> dict[str, Any]:
    return {name: value if isinstance(value, str) else list(value) for name, value in workload.attributes.items()}


def _quoted(text: str) -> str:
    return json.dumps(text)
