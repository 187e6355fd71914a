"""Permits that are wider than people mean: by who calls, by what is done, by where.

What counts is what a permit lets through, not how it is written: see ``newcomers``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from eastwest.policy.analysis import Analysis, Scope
from eastwest.policy.estate import Operation, Sensitivity, Service
from eastwest.policy.lint.finding import CHANGING, Finding, Ground, counted, some
from eastwest.policy.lint.held import Holding
from eastwest.policy.lint.newcomers import Entrants, Operations, beyond_open
from eastwest.policy.lint.tree import said_of
from eastwest.policy.schema import DOMAIN, ENVIRONMENT

_NOBODY_NEW = Entrants()
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
        entrants = ground.entrants.get(policy.policy.id, _NOBODY_NEW)
        if said_of(policy.policy).token or _everybody(ground, policy, entrants):
            continue  # is told as wide-caller, or has to bring something
        callers = [caller for h in ground.effective.get(policy.policy.id, ()) for caller in h.kind.callers]
        there = {caller.domain for caller in callers}
        read = sorted(
            (domain, operation.name, service.domain, service.service)
            for domain, places in entrants.unasked.items()
            for service, operation in beyond_open(places if domain in there else {})
            if operation.sensitivity is Sensitivity.RESTRICTED_READ and service.domain != domain
        )
        for domain, operation, where, service in read[:1]:
            caller = next(caller.spiffe_id for caller in callers if caller.domain == domain)
            yield ground.finding(
                "restricted-across-domains",
                ground.at_policy(policy.policy),
                f"policy {policy.policy.id!r} lets every caller of {_whom(policy, entrants.unasked)} read {operation}, "
                f"which is restricted and of domain {where}, and asks nothing of them",
                policy=policy.policy.id,
                service=service,
                pairs=[(caller, operation)],
            )


def _judged(ground: Ground, policy: Analysis, holdings: Sequence[Holding]) -> Finding | None:
    if said_of(policy.policy).token:
        return None  # whoever calls has to have been given something for it
    reached = list(_operations(holdings, lambda o: o.sensitivity is not Sensitivity.OPEN))
    if not reached:
        return None
    name = policy.policy.id
    entrants = ground.entrants.get(name, _NOBODY_NEW)
    if _everybody(ground, policy, entrants):
        return _finding(ground, "wide-caller", policy, holdings, reached, "permits every caller, whoever it is")
    groups = {domain: beyond_open(places) for domain, places in entrants.of_domain.items()}
    control = {
        domain for domain, found in groups.items() if any(o.sensitivity is Sensitivity.CONTROL for _, o in found)
    }
    if control and (there := _only(reached, {Sensitivity.CONTROL})):
        words = f"lets every caller of {_whom(policy, control)} control something"
        return _finding(ground, "wide-domain", policy, holdings, there, words)
    changing = {domain for domain, found in groups.items() if any(o.sensitivity in CHANGING for _, o in found)}
    wildcard = name in ground.to_come.changes
    whole = _of_environment(policy) and any(o.sensitivity in CHANGING for _, o in beyond_open(entrants.anybody))
    if changing and (wildcard or whole) and (there := _only(reached, CHANGING)):
        words = f"lets every caller of {_whom(policy, changing)} change things{' by a wildcard' if wildcard else ''}"
        return _finding(ground, "wide-domain", policy, holdings, there, words)
    who = f"every caller of {_whom(policy, groups)}" if groups else "its callers"
    if (policy.action == Scope() and not policy.uses_action) or name in ground.to_come.everything:
        return _finding(ground, "wide-action", policy, holdings, reached, f"permits {who} whatever can be done")
    if name in ground.to_come.elsewhere:
        return _finding(ground, "wide-resource", policy, holdings, reached, f"permits {who} the same everywhere")
    return None


def _everybody(ground: Ground, policy: Analysis, entrants: Entrants) -> Operations:
    """What the permit lets anybody do; one that names an environment is about a group, if a large one."""
    if _of_environment(policy):
        return ()
    found = beyond_open(entrants.anybody)
    if not found and len(entrants.of_domain) == len(ground.estate.settings.domains) > 1:
        # Every domain, one by one.
        everywhere = set.intersection(*(set(places) for places in entrants.of_domain.values()))
        first = next(iter(entrants.of_domain.values()))
        return beyond_open({key: first[key] for key in everywhere})
    return found


def _of_environment(policy: Analysis) -> bool:
    among = policy.principal.among
    return bool(among) and all(kind == ENVIRONMENT for kind, _ in among or ())


def _only(
    operations: Iterable[tuple[Service, Operation]], kinds: Collection[Sensitivity]
) -> list[tuple[Service, Operation]]:
    return [(service, operation) for service, operation in operations if operation.sensitivity in kinds]


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


def _operations(holdings: Iterable[Holding], keep: Callable[[Operation], bool]) -> Iterator[tuple[Service, Operation]]:
    seen: set[int] = set()
    for place in (place for holding in holdings for place in holding.places):
        if id(place) not in seen:
            seen.add(id(place))
            yield from ((service, operation) for service, operation in place.operations if keep(operation))


def _whom(policy: Analysis, domains: Iterable[str]) -> str:
    """The groups that its head names, else those that it lets through."""
    among = policy.principal.among or ()
    named = [f"{kind.lower()} {name}" for kind, name in among if kind in {DOMAIN, ENVIRONMENT}]
    return some(named or (f"domain {name}" for name in domains))
