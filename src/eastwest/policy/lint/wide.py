"""Permits that are wider than people mean: by who calls, by what is done, by where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from eastwest.policy.analysis import Analysis, Scope
from eastwest.policy.estate import Operation, Sensitivity, Service
from eastwest.policy.lint.finding import CHANGING, Finding, Ground, counted, some
from eastwest.policy.lint.held import Holding
from eastwest.policy.lint.tree import Said, said_of
from eastwest.policy.schema import ACTION, DOMAIN, ENVIRONMENT

_GROUPS = frozenset((ACTION, sensitivity.value) for sensitivity in Sensitivity)
_LIGHT = frozenset({"environment", "tenants"})
"""Attributes by which a condition does not choose callers: everybody has the one and serves some of the other."""
MAX_PAIRS = 5


def wide(ground: Ground) -> Iterator[Finding]:
    """One finding for each permit that is too wide: the worst that is to be said of it."""
    for policy in ground.analyses:
        holdings = ground.effective.get(policy.policy.id, ())
        if policy.policy.effect != "permit" or not holdings:
            continue
        found = _judged(ground, policy, holdings)
        if found is not None:
            yield found


def restricted_across_domains(ground: Ground) -> Iterator[Finding]:
    """Whole groups of callers that read another domain's restricted data, and nothing is asked of them."""
    for policy in ground.analyses:
        if policy.policy.effect != "permit" or _names_workloads(policy) or said_of(policy.policy).conditions:
            continue
        if policy.principal == Scope():
            continue  # is told as wide-caller
        pairs = [
            (kind, service, operation)
            for holding in ground.effective.get(policy.policy.id, ())
            for kind in (holding.kind,)
            for service, operation in holding.operations
            if operation.sensitivity is Sensitivity.RESTRICTED_READ and service.domain != kind.first.domain
        ]
        if pairs:
            kind, service, operation = pairs[0]
            yield ground.finding(
                "restricted-across-domains",
                ground.at_policy(policy.policy),
                f"policy {policy.policy.id!r} lets every caller of {_whom(policy)} read {operation.name}, which is "
                f"restricted and of domain {service.domain}, and asks nothing of them",
                policy=policy.policy.id,
                service=service.service,
                pairs=[(kind.first.spiffe_id, operation.name)],
            )


def _judged(ground: Ground, policy: Analysis, holdings: Sequence[Holding]) -> Finding | None:
    said = said_of(policy.policy)
    if said.token:
        return None  # whoever calls has to have been given something for it
    beyond_open = list(_operations(holdings, lambda o: o.sensitivity is not Sensitivity.OPEN))
    if not beyond_open:
        return None
    changing = [(s, o) for s, o in beyond_open if o.sensitivity in CHANGING]
    control = [(s, o) for s, o in beyond_open if o.sensitivity is Sensitivity.CONTROL]
    anybody = policy.principal in (Scope(), _everything(policy)) and not _chooses_callers(said)
    group = _is_group(policy) and not _chooses_callers(said, and_domain=False)
    any_action = policy.action == Scope() and not policy.uses_action
    wildcard = any_action or bool((policy.action.among or frozenset()) & _GROUPS)
    any_resource = policy.resource == Scope() and wildcard and not _chooses_services(said, policy)
    whole_domain = not _single_service(policy) and not _chooses_services(said, policy)
    who = f"every caller of {_whom(policy)}" if group else "its callers"
    if anybody:
        return _finding(ground, "wide-caller", policy, holdings, beyond_open, "permits every caller, whoever it is")
    if group and control:
        return _finding(ground, "wide-domain", policy, holdings, control, f"lets {who} control something")
    if group and changing and (wildcard or whole_domain):
        return _finding(ground, "wide-domain", policy, holdings, changing, f"lets {who} change things by a wildcard")
    if any_action:
        return _finding(ground, "wide-action", policy, holdings, beyond_open, f"permits {who} whatever can be done")
    if any_resource:
        return _finding(ground, "wide-resource", policy, holdings, beyond_open, f"permits {who} the same everywhere")
    return None


def _finding(
    ground: Ground,
    rule: str,
    policy: Analysis,
    holdings: Sequence[Holding],
    operations: Sequence[tuple[Service, Operation]],
    words: str,
) -> Finding:
    wanted = {operation.name for _, operation in operations}
    callers = {caller.spiffe_id for holding in holdings for caller in holding.kind.callers}
    pairs: list[tuple[str, str]] = []
    for holding in holdings:
        there = next((o.name for _, o in holding.operations if o.name in wanted), None)
        if there is not None and len(pairs) < MAX_PAIRS:
            pairs.append((holding.kind.first.spiffe_id, there))
    return ground.finding(
        rule,
        ground.at_policy(policy.policy),
        f"policy {policy.policy.id!r} {words}: {counted(callers, 'caller')} x {counted(wanted, 'operation')} "
        f"({some(wanted)})",
        policy=policy.policy.id,
        pairs=pairs,
    )


def _operations(holdings: Iterable[Holding], keep: Any) -> Iterator[tuple[Service, Operation]]:
    seen: set[int] = set()
    for place in (place for holding in holdings for place in holding.places):
        if id(place) not in seen:
            seen.add(id(place))
            yield from ((service, operation) for service, operation in place.operations if keep(operation))


def _everything(policy: Analysis) -> Scope:
    """``principal is Workload``: the same as ``principal``."""
    return policy.principal if policy.principal.among is None and not policy.principal.never else Scope()


def _is_group(policy: Analysis) -> bool:
    among = policy.principal.among or frozenset()
    return bool(among) and all(kind in {DOMAIN, ENVIRONMENT} for kind, _ in among)


def _names_workloads(policy: Analysis) -> bool:
    among = policy.principal.among or frozenset()
    return bool(among) and not _is_group(policy)


def _single_service(policy: Analysis) -> bool:
    among = policy.resource.among
    if among is not None and all(kind not in {DOMAIN, ENVIRONMENT} for kind, _ in among):
        return True
    # Operations that are named say their service.
    actions = policy.action.among
    return actions is not None and not actions & _GROUPS


def _chooses_callers(said: Said, *, and_domain: bool = True) -> bool:
    """Whether a condition asks something of the caller that sets it apart from others."""
    light = _LIGHT if and_domain else _LIGHT | {"domain"}
    return said.principal_itself or bool(said.principal_attributes - light)


def _chooses_services(said: Said, policy: Analysis) -> bool:
    return policy.names_services or bool(said.resource_attributes - {"environment"})


def _whom(policy: Analysis) -> str:
    return some(f"{kind.lower()} {name}" for kind, name in policy.principal.among or ())
