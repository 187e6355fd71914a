"""Single facts: control without a token, owners nobody knows, modes past their end, what nobody classified."""

from __future__ import annotations

from collections.abc import Iterator

from eastwest.policy.cedar import ANY_TENANT
from eastwest.policy.enforcement import MtlsMode
from eastwest.policy.estate import Sensitivity
from eastwest.policy.lint.finding import Finding, Ground, counted, some
from eastwest.policy.lint.rules import Level
from eastwest.policy.reach import Held, demanded


def control(ground: Ground) -> Iterator[Finding]:
    """Neither the operation demands a token nor do all its policies."""
    for service in ground.estate.services:
        for operation in service.operations:
            if operation.sensitivity is not Sensitivity.CONTROL or demanded(operation.demands) is not Held.NOTHING:
                continue
            allowed = ground.allowed(operation.name)
            free = sorted(name for name, way in allowed.items() if way.held is Held.NOTHING)
            if free or not allowed:
                who = f"{some(free)} may do it with nothing but an identity" if free else "nobody may do it yet"
                yield ground.finding(
                    "control-without-step-up",
                    ground.estate.position("operation", operation.name),
                    f"{operation.name} controls and demands no token: {who}",
                    level=Level.ERROR if free else Level.WARNING,
                    service=service.service,
                    pairs=[(name, operation.name) for name in free[:3]],
                )


def owners(ground: Ground) -> Iterator[Finding]:
    """Owners that are no owner of a domain and no group."""
    settings = ground.estate.settings
    known = {owner for domain in settings.domains for owner in domain.owners}
    groups = {group.name: group for group in settings.groups}
    known |= set(groups)
    at = ground.estate.position
    for domain in settings.domains:
        if not domain.owners:
            where = at("settings", "domains")
            yield ground.finding("unowned", where, f"domain {domain.name!r} has no owners", fix="name its owners")
    for group in groups.values():
        if not group.members:
            where = at("settings", "groups")
            yield ground.finding("unowned", where, f"{group.name} has no members", fix="name its members")
    rows = [("service", s.service, s.owner, f"service {s.service!r}") for s in ground.estate.services]
    rows += [("workload", w.spiffe_id, w.owner, w.spiffe_id) for w in ground.estate.workloads]
    rows += [("policy", p.id, p.owner, f"policy {p.id!r}") for p in ground.estate.policies]
    rows += [("waiver", w.waiver, w.owner, f"waiver {w.waiver!r}") for w in ground.estate.waivers]
    rows += [("settings", "federation", w.owner, w.spiffe_id) for one in settings.federation for w in one.workloads]
    for kind, name, owner, words in rows:
        if owner not in known:
            yield ground.finding(
                "unowned",
                at(kind, name),
                f"{words} is owned by {owner}, which is no owner of a domain and no group",
                policy=name if kind == "policy" else "",
                service=name if kind == "service" else "",
                workloads=[name] if kind == "workload" else (),
            )


def modes(ground: Ground) -> Iterator[Finding]:
    """Permissive without an end, or past it; a policy that only reports past its end."""
    for service in ground.estate.services:
        until = service.listen.until
        if service.listen.mtls is not MtlsMode.PERMISSIVE or (until is not None and until >= ground.today):
            continue
        since = f"past {until}" if until is not None else "without an end"
        yield ground.finding(
            "mtls-strict",
            ground.estate.position("mode", service.service),
            f"service {service.service!r} is permissive {since}: whoever comes may do all of its "
            f"{counted(service.operations, 'operation')}",
            level=Level.ERROR if until is not None else Level.WARNING,
            service=service.service,
        )


def unclassified(ground: Ground) -> Iterator[Finding]:
    """Operations that nobody may do because nobody said how sensitive they are."""
    for service in ground.estate.services:
        for operation in service.operations:
            if operation.sensitivity is None:
                yield ground.finding(
                    "unclassified",
                    ground.estate.position("operation", operation.name),
                    f"{operation.name} has no sensitivity, so it is refused to everybody",
                    service=service.service,
                )


def free_tenants(ground: Ground) -> Iterator[Finding]:
    """Callers that serve tenants, and may name any other.

    In a header that is nothing but their word. Elsewhere a permit that is silent holds them to their own tenants; one
    that looks at the tenant and lets any through is hardly meant, unless it says so.
    """
    said_so = {p.policy.id for p in ground.analyses if p.tree.annotations.get("tenants") == ANY_TENANT}
    for service in ground.estate.services:
        if service.tenant is None or service.tenant.claim:
            continue
        for operation in service.operations:
            if operation.sensitivity in {None, Sensitivity.OPEN}:
                continue
            unbound = sorted(
                name
                for name, way in ground.allowed(operation.name).items()
                if way.tenants is not None
                and way.tenants.any_other
                and "tenants" in ground.callers[name].attributes
                and (service.tenant.header is not None or said_so.isdisjoint(way.policies))
            )
            if unbound:
                header = service.tenant.header
                where = f"that they write into the header {header}" if header is not None else "there is"
                yield ground.finding(
                    "free-tenant",
                    ground.estate.position("operation", operation.name),
                    f"{some(unbound)} may do {operation.name} for any tenant {where}",
                    service=service.service,
                    workloads=unbound,
                    pairs=[(name, operation.name) for name in unbound[:3]],
                )


def waivers(ground: Ground) -> Iterator[Finding]:
    """Waivers that have ended, or name a policy that is not there."""
    policies = {policy.id for policy in ground.estate.policies}
    for waiver in ground.estate.waivers:
        where = ground.estate.position("waiver", waiver.waiver)
        if waiver.until < ground.today:
            yield ground.finding("waiver-ended", where, f"waiver {waiver.waiver!r} ended on {waiver.until}")
        elif waiver.applies_to.policy and waiver.applies_to.policy not in policies:
            missing = waiver.applies_to.policy
            yield ground.finding("waiver-ended", where, f"waiver {waiver.waiver!r} is for {missing!r}, no policy here")
