"""How reliably identity works: failures gathered from totals of the ledger, and what they leave of error budgets.

Burn rates and their windows are those of Google's Site Reliability Workbook, chapter 5 (alerting on SLOs), method 6:
a burn rate of 1 uses the budget up exactly at the end of its window.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from eastwest.ledger.failure import advice, classify
from eastwest.policy.estate import Estate, Slo
from eastwest.policy.failures import PROVEN_CLASSES, FailureClass
from eastwest.policy.forms import duration


def promql(window: timedelta) -> str:
    """A duration as PromQL writes it: ``5m``, ``6h``, ``3d``."""
    seconds = int(window.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: fires while ``long`` and ``short`` both burn so fast that ``share`` of the budget goes in ``long``."""

    long: timedelta
    short: timedelta
    share: float  # of the whole budget, used up within ``long``
    severity: str

    def burn(self, window: timedelta) -> float:
        """The burn rate at which it fires, for a budget of ``window``: 14.4, 6 and 1 for 30 days."""
        return self.share * (window / self.long)


ALERTS = (
    Alert(timedelta(hours=1), timedelta(minutes=5), 0.02, "page"),
    Alert(timedelta(hours=6), timedelta(minutes=30), 0.05, "page"),
    Alert(timedelta(days=3), timedelta(hours=6), 0.10, "ticket"),
)
BURN_WINDOWS = tuple(alert.long for alert in ALERTS)


@dataclass(frozen=True, slots=True)
class Failure:
    """Failures of one caller at one service for one cause. ``reported`` of them were let through (permissive mode)."""

    service: str
    caller: str
    claimed: bool
    kind: FailureClass
    code: str
    cause: str
    count: int
    reported: int
    first: str
    last: str
    what: str
    fix: str

    @property
    def enforced(self) -> int:
        """Calls that failed."""
        return self.count - self.reported


def failures(totals: Iterable[Mapping[str, Any]], ours: Container[str] = ()) -> list[Failure]:
    """Failures out of totals by the dimension ``failure``; ``ours`` as for ``classify``. Allowed calls are left out."""
    found = []
    for row in totals:
        kind = classify(row["code"], row["cause"], ours)
        if kind is None:
            continue
        told = advice(kind, row["code"], row["cause"])
        numbers = int(row["count"]), int(row.get("reported", 0))
        names = str(row["service"]), str(row["caller"]), bool(row["claimed"])
        times = str(row["first"]), str(row["last"])
        found.append(Failure(*names, kind, row["code"], row["cause"], *numbers, *times, told.what, told.fix))
    return found


def domains(estate: Estate) -> dict[str, str]:
    """Service → domain."""
    return {service.service: service.domain for service in estate.services}


@dataclass(frozen=True, slots=True)
class Call:
    """Whom a call concerned."""

    caller: str
    claimed: bool
    service: str


def concerns(slo: Slo, call: Call, kind: FailureClass | None, domain_of: Mapping[str, str]) -> bool:
    """Whether an objective is about a call; ``kind``: how it failed.

    To that of an edge belong calls whose caller's name nobody can have made up: it was proven, or an authority signed
    it that is or was trusted.
    """
    if slo.edge is not None:
        sure = not call.claimed or kind in PROVEN_CLASSES
        return sure and (call.caller, call.service) == (slo.edge.caller, slo.edge.service)
    if slo.service is not None:
        return call.service == slo.service
    return domain_of.get(call.service) == slo.domain


@dataclass(frozen=True, slots=True)
class Spent:
    """Calls and failures of one objective in one window."""

    calls: int
    failed: int

    def burn(self, objective: float) -> float:
        """How many times faster than allowed the budget goes; 0 where nothing was called."""
        return (self.failed / self.calls) / (1 - objective / 100) if self.calls else 0.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What one objective has left: ``whole`` over its window, ``recent`` over the windows of burn rates."""

    slo: Slo
    whole: Spent
    recent: Mapping[timedelta, Spent]

    @property
    def left(self) -> float:
        """The part of the budget that is left: 1 is all of it, below 0 more was spent than there was."""
        return 1.0 - self.whole.burn(self.slo.objective)

    @property
    def firing(self) -> Sequence[Alert]:
        """Alerts whose long window burns too fast; whether the short one still does, the monitoring says."""
        window, objective = duration(self.slo.window), self.slo.objective
        return [alert for alert in ALERTS if self.recent[alert.long].burn(objective) >= alert.burn(window)]


def spent(slo: Slo, found: Sequence[Failure], calls: Mapping[str, int], domain_of: Mapping[str, str]) -> Spent:
    """What an objective has spent, out of failures and of how many calls each service had.

    For an edge ``calls`` has, under ``""``, those of its caller to its service that were not merely claimed.
    """
    mine = [one for one in found if concerns(slo, Call(one.caller, one.claimed, one.service), one.kind, domain_of)]
    failed = sum(one.enforced for one in mine if one.kind in slo.classes)
    if slo.edge is not None:
        total = calls.get("", 0) + sum(one.count for one in mine if one.claimed)
    elif slo.service is not None:
        total = calls.get(slo.service, 0)
    else:
        total = sum(count for service, count in calls.items() if domain_of.get(service) == slo.domain)
    return Spent(max(total, failed), failed)
