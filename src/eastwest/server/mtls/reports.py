"""Reports about services: what is on record of each, judged by what the estate in force says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog

from eastwest.clock import Clock
from eastwest.errors import Error, FailedPrecondition, NotFound
from eastwest.ledger.breaks import Evidence, Report, Seen, habits, report
from eastwest.ledger.query import MAX_PAGE, DecisionQuery
from eastwest.ledger.sensors import Span, recording_since
from eastwest.policy.enforcement import MtlsMode
from eastwest.policy.estate import Estate, Service
from eastwest.policy.problems import suggest
from eastwest.policy.table import CompiledPolicy
from eastwest.server.control import ControlHub
from eastwest.server.estate import EstateKeeper
from eastwest.server.ledger.keeper import Ledger
from eastwest.server.mtls.facts import StrictRules, subject_of
from eastwest.server.mtls.sensors import SensorHistory
from eastwest.store.ledger_callers import MAX_CALLERS
from eastwest.store.sensors import SqliteSensors

LONGEST = timedelta(days=62)
"""How far back is looked unless said otherwise: twice the longest month."""
_log = structlog.get_logger()


class Reports:
    """Makes reports; reads only."""

    def __init__(
        self,
        estate: EstateKeeper,
        ledger: Ledger,
        sensors: SqliteSensors,
        history: SensorHistory,
        hub: ControlHub,
        clock: Clock,
    ) -> None:
        self._estate = estate
        self._ledger = ledger
        self._sensors = sensors
        self._history = history
        self._hub = hub
        self._clock = clock

    def service(self, name: str) -> Service:
        """A service of the estate in force; raises ``NotFound`` with the nearest name."""
        estate, _ = self._in_force()
        found = next((one for one in estate.services if one.service == name), None)
        if found is None:
            known = [one.service for one in estate.services]
            raise NotFound(
                f"the estate has no service {name[:64]!r}",
                fix=suggest(name, known, otherwise="see eastwest mtls status"),
            )
        return found

    async def of(
        self, services: Sequence[Service], start: datetime | None = None, end: datetime | None = None
    ) -> list[Report]:
        """A report for each service. ``start`` None: since recording began, but at most ``LONGEST``."""
        now = self._clock.now()
        until = end or now
        since = start or until - LONGEST
        kept = await self._ledger.kept_since()
        if kept is not None:  # of what was before nobody can say that it was not there
            since = max(since, min(kept, until))
        estate, compiled = self._in_force()
        names = [one.service for one in services]
        seen, complete = await self._seen(names, since, until)
        # A narrow window does not make a rare caller a frequent one.
        whole = (await self._seen(names, until - LONGEST, until))[0] if since > until - LONGEST else {}
        lost = await self._ledger.search(DecisionQuery(kind="lost", start=since, end=until, limit=MAX_PAGE))
        nodes = self._nodes()
        made = []
        for service in services:
            rows = seen.get(service.service, [])
            spans = await self._sensors.spans(service.workload, since, until)
            if not spans:  # no sidecar: applications that enforce by the SDK report through their agents
                spans = await self._sensors.agents(sorted({row.agent for row in rows}), since, until)
            spans = self._history.known(spans)
            missing = [row for row in lost if _concerns(row, service.service, spans)]
            begun = recording_since(spans)
            evidence = Evidence(
                start=max(since, begun) if start is None and begun is not None else since,
                end=until,
                seen=rows,
                spans=spans,
                lost=sum(int(row.get("count", 0)) for row in missing),
                lost_unknown=any(not row.get("count", 0) for row in missing),
                complete=complete,
                habits=habits(whole.get(service.service, ())),
            )
            subject = subject_of(estate, compiled, service, nodes, now.date())
            made.append(report(subject, evidence, StrictRules(compiled, service)))
        return made

    async def warnings(self, before: Estate | None, after: Estate) -> list[str]:
        """What those should know who turn services strict by ``apply``, past the gate."""
        if before is None:
            return []
        modes = {one.service: one.listen.mtls for one in before.services}
        strict = [
            one
            for one in before.services
            if modes[one.service] is MtlsMode.PERMISSIVE
            and any(new.service == one.service and new.listen.mtls is MtlsMode.STRICT for new in after.services)
        ]
        try:
            found = await self.of(strict) if strict else []
        except Error as error:
            return [f"{one.service} turns strict; who would break cannot be said: {error.message}" for one in strict]
        return [_warning(one) for one in found if not one.ready]

    async def _seen(
        self, names: Sequence[str], start: datetime, end: datetime
    ) -> tuple[Mapping[str, list[Seen]], bool]:
        """Totals by service, and whether they are all. Many services are asked about at once where that does."""
        query = DecisionQuery(start=start, end=end, service=names[0] if len(names) == 1 else "")
        rows = await self._ledger.callers(query) if names else []
        complete = len(rows) < MAX_CALLERS
        if not complete and len(names) > 1:
            parts = [await self._ledger.callers(msgspec.structs.replace(query, service=name)) for name in names]
            complete = all(len(part) < MAX_CALLERS for part in parts)
            rows = [row for part in parts for row in part]
        found: dict[str, list[Seen]] = defaultdict(list)
        for row in msgspec.convert(rows, list[Seen]):
            found[row.service].append(row)
        return found, complete

    def _in_force(self) -> tuple[Estate, CompiledPolicy]:
        table = self._estate.tables.newest
        if table is None:
            raise FailedPrecondition("no estate is in force", fix="eastwest apply DIR")
        registered = table.registered
        return msgspec.structs.replace(table.estate, registered=registered), table.whole

    def _nodes(self) -> dict[str, str]:
        """Which node is at an address, where just one is."""
        found: dict[str, str] = {}
        for agent, stream in self._hub.streams.items():
            if stream.address:
                found[stream.address] = "" if stream.address in found else str(agent)
        return {address: agent for address, agent in found.items() if agent}


def _concerns(row: Mapping[str, Any], service: str, spans: Iterable[Span]) -> bool:
    if row.get("service"):
        return bool(row["service"] == service)
    node = row.get("node", "")
    return any(span.agent == row["agent"] and (not node or span.node == node) for span in spans)


def _warning(found: Report) -> str:
    against = "; ".join(reason.text for reason in found.reasons[:3])
    more = f"; and {len(found.reasons) - 3} more" if len(found.reasons) > 3 else ""
    return f"{found.service} turns strict and is NOT READY: {against}{more} (eastwest mtls who-breaks {found.service})"
