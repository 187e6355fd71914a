"""Whether the reliability objectives of an estate are about things that exist, and can be met at all."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from eastwest.policy.decode import Path
from eastwest.policy.estate import Service, Settings, Slo, Workload
from eastwest.policy.forms import duration
from eastwest.policy.parts import Parts
from eastwest.policy.problems import Findings, Position, suggest, suggest_id

SHORTEST, LONGEST = timedelta(days=1), timedelta(days=90)
"""Windows of a budget. A day has room for the windows that burn rates are looked at in."""


def check_slos(
    settings: Settings,
    places: dict[Path, Position],
    workloads: Parts[Workload],
    services: Parts[Service],
    findings: Findings,
) -> None:
    """Write a finding for everything that does not fit."""
    foreign = [workload.spiffe_id for one in settings.federation for workload in one.workloads]
    checker = _Checker(settings, places, workloads, services, foreign, findings)
    names: set[str] = set()
    for index, slo in enumerate(settings.slos):
        if slo.name in names:
            findings.error(places["slos", index, "name"], f"slo {slo.name!r} is declared twice", "rename one")
        names.add(slo.name)
        checker.scope(index, slo)
        checker.numbers(index, slo)


class _Checker:
    def __init__(
        self,
        settings: Settings,
        places: dict[Path, Position],
        workloads: Parts[Workload],
        services: Parts[Service],
        foreign: Collection[str],
        findings: Findings,
    ) -> None:
        self._domains = [domain.name for domain in settings.domains]
        self._places = places
        self._workloads = workloads
        self._services = services
        self._foreign = foreign
        self._findings = findings

    def scope(self, index: int, slo: Slo) -> None:
        at = self._places
        given = [name for name in ("domain", "service", "edge") if getattr(slo, name) is not None]
        if len(given) != 1:
            self._findings.error(at["slos", index], "an slo needs exactly one of domain, service and edge", "keep one")
            return
        if slo.domain is not None and slo.domain not in self._domains:
            self._unknown("domain", slo.domain, self._domains, at["slos", index, "domain"])
        if slo.service is not None and self._services.lacks(slo.service):
            self._unknown("service", slo.service, self._services.named, at["slos", index, "service"])
        if slo.edge is not None:
            if self._services.lacks(slo.edge.service):
                where = at["slos", index, "edge", "service"]
                self._unknown("service", slo.edge.service, self._services.named, where)
            if self._workloads.lacks(slo.edge.caller) and slo.edge.caller not in self._foreign:
                known = [*self._workloads.named, *self._foreign]
                fix = suggest_id(slo.edge.caller, known, otherwise="declare the workload, or correct the name")
                where = at["slos", index, "edge", "caller"]
                self._findings.error(where, f"unknown caller {slo.edge.caller!r}", fix)

    def numbers(self, index: int, slo: Slo) -> None:
        at = self._places
        for i, kind in enumerate(slo.classes):
            if kind in slo.classes[:i]:
                self._findings.error(
                    at["slos", index, "classes", i], f"class {kind.value!r} is listed twice", "keep one"
                )
        if not SHORTEST <= duration(slo.window) <= LONGEST:
            where = at.get(("slos", index, "window"), at["slos", index])
            self._findings.error(where, f"a window of {slo.window} is not between 1d and 90d", "write 30d")

    def _unknown(self, what: str, name: str, known: Collection[str], where: Position) -> None:
        fix = suggest(name, known, otherwise=f"declare the {what}, or correct the name")
        self._findings.error(where, f"unknown {what} {name!r}", fix)
