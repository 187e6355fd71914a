"""What ``eastwest failures`` asks of a running server."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from eastwest.cli.admin import AdminClient
from eastwest.cli.authority import AuthorityClient
from eastwest.cli.failures import MAX_GROUPS
from eastwest.ledger.query import DecisionQuery
from eastwest.ledger.slo import BURN_WINDOWS, Budget, Failure, Spent, domains, failures, spent
from eastwest.policy.estate import Estate, Slo
from eastwest.policy.forms import duration
from eastwest.policy.load import load_estate

Window = tuple[datetime, datetime]


async def read(
    data: Path, window: Window, now: datetime, *, service: str, caller: str, domain: str
) -> tuple[list[Failure], list[Budget], dict[str, str], bool]:
    """Failures in ``window``, budgets as of ``now``, the domain of each service, and whether failures were left out."""
    async with AuthorityClient.connect(data) as ca:
        state = await ca.state()
    ours = {item.id for item in state.items} | {one.id for one in state.revoked}
    async with AdminClient.connect(data) as admin:
        status = await admin.estate_status()
        estate = load_estate(status["files"]) if status is not None else None
        query = DecisionQuery(
            start=window[0], end=window[1], verdict="deny", service=service, caller=caller, limit=MAX_GROUPS
        )
        totals = await admin.count_decisions(query, "failure")
        budgets = []
        if estate is not None:
            reader = _Reader(admin, estate, ours, now)
            budgets = [
                await reader.budget(slo) for slo in estate.settings.slos if _is_shown(slo, service, domain, caller)
            ]
    return failures(totals, ours), budgets, domains(estate) if estate else {}, len(totals) >= MAX_GROUPS


def _is_shown(slo: Slo, service: str, domain: str, caller: str) -> bool:
    """Whether an objective is about what was asked for."""
    of_service = not service or service in {slo.service, slo.edge.service if slo.edge else None}
    of_caller = not caller or (slo.edge is not None and slo.edge.caller == caller)
    return of_service and of_caller and (not domain or slo.domain == domain)


class _Reader:
    """Looks each window up once, whatever number of objectives it serves."""

    def __init__(self, admin: AdminClient, estate: Estate, ours: Collection[str], now: datetime) -> None:
        self._admin = admin
        self._domains = domains(estate)
        self._ours = ours
        self._now = now
        self._kept: dict[tuple[timedelta, str, str], tuple[list[Failure], Mapping[str, int]]] = {}

    async def budget(self, slo: Slo) -> Budget:
        recent = {window: await self._spent(slo, window) for window in BURN_WINDOWS}
        return Budget(slo, await self._spent(slo, duration(slo.window)), recent)

    async def _spent(self, slo: Slo, window: timedelta) -> Spent:
        caller, service = (slo.edge.caller, slo.edge.service) if slo.edge is not None else ("", "")
        key = (window, caller, service)
        if key not in self._kept:
            self._kept[key] = await self._look(*key)
        found, calls = self._kept[key]
        return spent(slo, found, calls, self._domains)

    async def _look(self, window: timedelta, caller: str, service: str) -> tuple[list[Failure], Mapping[str, int]]:
        query = DecisionQuery(
            start=self._now - window, end=self._now, caller=caller, service=service, limit=MAX_GROUPS, kind="decision"
        )
        if caller:
            rows = await self._admin.count_decisions(query, "failure")
            # Whoever makes a name up does not make calls of it more numerous.
            proven = sum(row["count"] for row in rows if not row["claimed"])
            return failures(rows, self._ours), {"": proven}
        denied = DecisionQuery(start=query.start, end=query.end, verdict="deny", limit=MAX_GROUPS)
        rows = await self._admin.count_decisions(denied, "failure")
        calls = await self._admin.count_decisions(query, "service")
        return failures(rows, self._ours), {row["service"]: row["count"] for row in calls}
