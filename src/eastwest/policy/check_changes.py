"""Whether those who are to approve of changes can: members of groups, and a second one where two persons are a must."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from eastwest.policy.decode import Path
from eastwest.policy.estate import Administrator, Right, Service, Settings
from eastwest.policy.problems import Findings, Position

_DECIDING = frozenset({Right.EVERYTHING, Right.APPROVALS})


def check_changes(
    settings: Settings, places: dict[Path, Position], services: Collection[Service], findings: Findings
) -> None:
    """Write a finding for everything that does not fit.

    Callers whose registration says that they are administrators are not known here, so most of it is a warning.
    """
    deciding = [row for row in settings.administrators if _DECIDING & set(row.may)]
    _check_groups(settings, places, services, deciding, findings)
    if settings.changes.two_person == "always":
        _check_second(places["changes", "two_person"], services, deciding, findings)


def _check_groups(
    settings: Settings,
    places: dict[Path, Position],
    services: Collection[Service],
    deciding: Collection[Administrator],
    findings: Findings,
) -> None:
    names: set[str] = set()
    for index, group in enumerate(settings.groups):
        at = places["groups", index]
        if group.name in names:
            findings.error(at, f"{group.name} is declared twice under groups", "write its members together")
        names.add(group.name)
        for number, member in enumerate(group.members):
            where = places["groups", index, "members", number]
            if member in group.members[:number]:
                findings.warning(where, f"{member} stands twice in {group.name}", "remove one")
            elif all(row.who != member for row in deciding):
                message = f"{member} of {group.name} is no administrator who may approve"
                findings.warning(where, message, "name it under administrators with may: [approvals], or remove it")
        owned = sorted({service.domain for service in services if service.owner == group.name})
        if not owned:
            message = f"no service has {group.name} as its owner, so its members are asked for nothing"
            findings.warning(at, message, "remove it, or name it as the owner of a service")
        for domain in owned:
            if not set(_who(deciding, domain)) & set(group.members):
                message = f"nobody of {group.name} may approve for domain {domain}, so others decide about its services"
                findings.warning(at, message, f"give a member approvals for {domain} under administrators")


def _check_second(
    at: Position, services: Collection[Service], deciding: Collection[Administrator], findings: Findings
) -> None:
    everybody = sorted({row.who for row in deciding})
    if len(everybody) < 2:
        told = f"only {everybody[0]} may approve" if everybody else "no administrator may approve"
        message = f"two_person is always, and {told}: nothing risky could ever be changed"
        findings.error(at, message, "name a second administrator with may: [approvals]")
        return
    for domain in sorted({service.domain for service in services}):
        who = sorted(set(_who(deciding, domain)))
        if len(who) < 2:
            told = f"only {who[0]} may approve" if who else "nobody may approve"
            message = f"two_person is always, and {told} for domain {domain}"
            findings.warning(at, message, f"name another administrator with approvals for {domain}")


def _who(rows: Collection[Administrator], domain: str) -> Iterator[str]:
    return (row.who for row in rows if not row.domains or domain in row.domains)
