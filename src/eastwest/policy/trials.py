"""What is not enforced yet, and until when that was meant to last: permissive services, and rules in report mode.

Nothing turns strict by itself on that day: a date that passes unseen must not refuse calls. It is told, everywhere.
"""

from __future__ import annotations

import datetime as dt
from typing import Literal

import msgspec

from eastwest.policy.cedar import locate
from eastwest.policy.enforcement import MtlsMode
from eastwest.policy.estate import Estate, Policy, Service


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A service that is permissive, or a policy that only reports. ``until`` is the last day that was meant."""

    kind: Literal["service", "policy"]
    name: str
    owner: str
    until: dt.date | None  # None: nobody said; estates of before may lack it
    where: str  # file:line:column
    overdue: bool

    @property
    def sentence(self) -> str:
        """What is overdue about it; "" where nothing is."""
        if not self.overdue:
            return ""
        if self.kind == "policy":
            return f"policy {self.name!r} was to report only until {self.until}, which has passed: nothing is enforced"
        if self.until is None:
            return f"service {self.name!r} is permissive without an end: nothing is enforced there"
        return f"service {self.name!r} was to be permissive until {self.until}, which has passed: nothing is enforced"


def trials(estate: Estate, today: dt.date) -> tuple[Trial, ...]:
    """All of them, services first, by name. ``today`` is a day in UTC."""
    services = (s for s in estate.services if s.listen.mtls is MtlsMode.PERMISSIVE)
    return (
        *(_trial(estate, service, today) for service in services),
        *(_trial(estate, policy, today) for policy in estate.policies if policy.report),
    )


def _trial(estate: Estate, one: Service | Policy, today: dt.date) -> Trial:
    if isinstance(one, Service):
        kind, name, until, where = "service", one.service, one.listen.until, estate.position("mode", one.service)
    else:
        where = locate(estate.position("policy", one.id), one.text, "@", "until")
        kind, name, until = "policy", one.id, one.until
    return Trial(
        kind="service" if kind == "service" else "policy",
        name=name,
        owner=one.owner,
        until=until,
        where=str(where),
        overdue=until is None or until < today,
    )
