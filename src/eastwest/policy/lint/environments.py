"""Rights in production that come from outside of it: by policy, by administration, by names and by node groups."""

from __future__ import annotations

from collections.abc import Iterator

from eastwest.policy.estate import Administrator, Right, Sensitivity
from eastwest.policy.lint.finding import Finding, Ground, some
from eastwest.policy.lint.rules import Level
from eastwest.spiffe.id import SpiffeId

_HARMLESS = frozenset({Right.READ, Right.LOGS})


def environments(ground: Ground) -> Iterator[Finding]:
    """Which environments are production is said in ``estate.yaml``, or told by their names."""
    settings = ground.estate.settings
    production = [environment for environment in settings.environments if environment.is_production]
    if not production:
        if len(settings.environments) > 1:
            names = ", ".join(environment.name for environment in settings.environments)
            where = ground.estate.position("settings", "environments")
            message = f"none of {names} is production, so nothing is known of rights in it"
            yield ground.finding("environment-unsaid", where, message)
        return
    yield from _policies(ground)
    yield from _administrators(ground)
    yield from _names(ground)
    yield from _groups(ground)


def _policies(ground: Ground) -> Iterator[Finding]:
    """By policy and caller: what somebody from outside may do, with a token or without."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for holding in ground.held.holdings:
        if not holding.allowed or ground.is_production(holding.kind.first.environment):
            continue
        for service, operation in holding.operations:
            if operation.sensitivity is Sensitivity.OPEN or not ground.is_production(
                ground.environment_of[service.service]
            ):
                continue
            for policy in holding.permits:
                for member in holding.kind.callers:
                    found.setdefault((policy, member.spiffe_id), []).append((operation.name, service.service))
    for (policy, caller), reached in sorted(found.items()):
        operations = sorted({operation for operation, _ in reached})
        here = ground.callers[caller]
        foreign = "" if caller.startswith(f"spiffe://{ground.estate.settings.trust_domain}/") else "federated "
        yield ground.finding(
            "environment-inheritance",
            ground.estate.position("policy", policy),
            f"{foreign}{caller} of {here.environment} may do {some(operations)} in production, by policy {policy!r}",
            policy=policy,
            service=reached[0][1],
            workloads=[caller],
            pairs=[(caller, operation) for operation in operations[:3]],
        )


def _administrators(ground: Ground) -> Iterator[Finding]:
    for row in ground.estate.settings.administrators:
        if not row.who.startswith("spiffe://") or not _reaches_production(ground, row):
            continue
        environment = _environment(ground, row.who)
        if environment and not ground.is_production(environment):
            rights = ", ".join(right for right in row.may if right not in _HARMLESS)
            yield ground.finding(
                "environment-administrator",
                ground.estate.position("settings", "administrators"),
                f"{row.who} is of {environment} and may {rights} in production",
                workloads=[row.who],
            )


def _reaches_production(ground: Ground, row: Administrator) -> bool:
    if not set(row.may) - _HARMLESS:
        return False
    return not row.environments or any(ground.is_production(name) for name in row.environments)


def _environment(ground: Ground, spiffe_id: str) -> str:
    """Of which environment an identity is: by its registration, else by what its path says; "" where nothing tells."""
    known = ground.callers.get(spiffe_id)
    if known is not None:
        return known.environment
    segments = SpiffeId.parse(spiffe_id).path.split("/")
    return next((name for name in ground.environments if name in segments), "")


def _names(ground: Ground) -> Iterator[Finding]:
    """Registered as production, while the name says another environment of the estate."""
    others = [name for name in ground.environments if not ground.is_production(name)]
    for caller in ground.estate.callers:
        if not ground.is_production(caller.environment):
            continue
        spiffe_id = SpiffeId.parse(caller.spiffe_id)
        words = {*spiffe_id.path.split("/"), *spiffe_id.trust_domain.name.split(".")}
        said = next((name for name in others if name in words), None)
        if said is not None:
            yield ground.finding(
                "environment-name",
                ground.estate.position("workload", caller.spiffe_id)
                if caller in ground.estate.workloads
                else ground.estate.position("settings", "federation"),
                f"{caller.spiffe_id} is registered as {caller.environment}, and its name says {said}",
                workloads=[caller.spiffe_id],
            )


def _groups(ground: Ground) -> Iterator[Finding]:
    groups = ground.estate.settings.node_groups
    for inner in groups:
        for outer in groups:
            if ground.is_production(inner.environment) or not ground.is_production(outer.environment):
                continue
            # A node is in a group when it has all its selectors: who has more is in the one with fewer too.
            small, large = sorted((set(inner.selectors), set(outer.selectors)), key=len)
            if small <= large and small:
                yield ground.finding(
                    "environment-groups",
                    ground.estate.position("settings", "node_groups"),
                    f"nodes of {inner.name} ({inner.environment}) and of {outer.name} ({outer.environment}) are told "
                    f"apart by nothing: {', '.join(sorted(small))}",
                    level=Level.ERROR if set(outer.selectors) <= set(inner.selectors) else Level.WARNING,
                )
