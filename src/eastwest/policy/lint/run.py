"""All rules on one estate, and the waivers that excuse what they find."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from eastwest.policy.estate import Estate, Waiver
from eastwest.policy.lint import remainder
from eastwest.policy.lint.dead import dead
from eastwest.policy.lint.environments import environments
from eastwest.policy.lint.finding import Finding, Ground, Registration
from eastwest.policy.lint.parity import parity
from eastwest.policy.lint.rules import Level
from eastwest.policy.lint.shared import shared
from eastwest.policy.lint.wide import restricted_across_domains, wide
from eastwest.policy.table import CompiledPolicy
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.pattern import matches

FAMILIES: tuple[Callable[[Ground], Iterator[Finding]], ...] = (
    wide,
    restricted_across_domains,
    parity,
    environments,
    dead,
    remainder.control,
    remainder.owners,
    shared,
    remainder.modes,
    remainder.unclassified,
    remainder.free_tenants,
    remainder.waivers,
)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, the worst first; ``waived`` is excused until its waiver ends."""

    findings: tuple[Finding, ...]
    waived: tuple[Finding, ...] = ()

    def at_least(self, level: Level) -> tuple[Finding, ...]:
        """Findings as bad as ``level`` or worse."""
        return tuple(finding for finding in self.findings if finding.level.rank >= level.rank)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold."""
        return {
            "findings": [_plain(finding) for finding in self.findings],
            "waived": [_plain(finding) | {"waiver": f.waiver} for f in self.waived for finding in (f,)],
            "counts": {level.value: sum(f.level is level for f in self.findings) for level in Level},
        }


def lint(
    estate: Estate, compiled: CompiledPolicy, today: dt.date, registrations: Iterable[Registration] = ()
) -> Report:
    """Judge an estate by every rule. ``registrations``: those of a server, where identities are given by API too."""
    ground = Ground(estate, compiled, today, registrations)
    found = sorted({f for family in FAMILIES for f in family(ground)}, key=_order)
    excused = [(finding, _waiver(finding, estate.waivers, ground)) for finding in found]
    return Report(
        tuple(finding for finding, waiver in excused if waiver is None),
        tuple(replace(f, waiver=w.waiver, reason=w.reason) for f, w in excused if w is not None),
    )


def only(report: Report, rules: Collection[str]) -> Report:
    """Those of some rules; of all where none is named."""
    if not rules:
        return report
    return Report(
        tuple(finding for finding in report.findings if finding.rule in rules),
        tuple(finding for finding in report.waived if finding.rule in rules),
    )


def _order(finding: Finding) -> tuple[object, ...]:
    return (-finding.level.rank, finding.where, finding.rule, finding.message)


def _waiver(finding: Finding, waivers: Iterable[Waiver], ground: Ground) -> Waiver | None:
    for waiver in waivers:
        scope = waiver.applies_to
        if scope.rule != finding.rule or waiver.until < ground.today:
            continue
        if scope.service is not None and scope.service == finding.service:
            return waiver
        if scope.policy and scope.policy == finding.policy:
            return waiver
        if scope.workload is not None and finding.workloads:
            pattern = scope.workload
            if all(matches(pattern, SpiffeId.parse(name)) for name in finding.workloads):
                return waiver
    return None


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "level": finding.level.value,
        "file": finding.where.file,
        "line": finding.where.line,
        "column": finding.where.column,
        "message": finding.message,
        "fix": finding.fix,
        "policy": finding.policy,
        "service": finding.service,
        "workloads": list(finding.workloads),
        "allowed": [{"caller": caller, "operation": operation} for caller, operation in finding.pairs],
    }
