"""Failures as metrics: counted by service and class as rows are stored, and by objective of the estate in force.

A caller's name is never a label; a service's is, since an agent is believed only about services of the estate.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from eastwest.ledger.failure import class_of
from eastwest.ledger.record import Decision
from eastwest.ledger.slo import Call, concerns, domains
from eastwest.policy.estate import Estate
from eastwest.server.telemetry import Metrics


class FailureMeter:
    """Counts decisions. ``estate``: the one in force; ``ours``: key identifiers of authorities, as for ``classify``."""

    def __init__(
        self, metrics: Metrics, estate: Callable[[], Estate | None], ours: Callable[[], Container[str]]
    ) -> None:
        self._metrics = metrics
        self._estate_now = estate
        self._ours = ours
        self._estate: Estate | None = None
        self._domains: dict[str, str] = {}

    def took(self, rows: Iterable[Decision]) -> None:
        """Count rows that were stored."""
        self.follow()
        metrics, ours = self._metrics, self._ours()
        slos = self._estate.settings.slos if self._estate is not None else ()
        for row in rows:
            kind = class_of(row, ours)
            metrics.calls.labels(row.service, row.verdict).inc(row.count)
            if kind is not None:
                metrics.failures.labels(row.service, kind, str(row.enforced).lower()).inc(row.count)
            call = Call(row.caller, row.claimed, row.service)
            for slo in slos:
                if concerns(slo, call, kind, self._domains):
                    metrics.slo_calls.labels(slo.name).inc(row.count)
                    if row.enforced and kind in slo.classes:
                        metrics.slo_failures.labels(slo.name).inc(row.count)

    def follow(self) -> None:
        """Take the objectives of a new estate; series begin at 0, or the first failure would be no increase."""
        estate = self._estate_now()
        if estate is self._estate:
            return
        self._estate = estate
        self._domains = domains(estate) if estate is not None else {}
        self._metrics.slo_objective.clear()
        for slo in estate.settings.slos if estate is not None else ():
            self._metrics.slo_objective.labels(slo.name).set(round(slo.objective / 100, 8))
            self._metrics.slo_calls.labels(slo.name)
            self._metrics.slo_failures.labels(slo.name)
