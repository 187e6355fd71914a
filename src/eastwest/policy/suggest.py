"""Least-privilege policies from observed calls: what was called and allowed, and nothing else.

One permit for each service and group of callers with equal needs. It names callers, operations and tenants one by one;
the caller's own tenants stand for them only where every one of these was seen. Forbids, and rules in report mode, stay
as they are; permits that decide about services looked at are replaced (``superseded``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from eastwest.policy.estate import Estate, Service, Workload
from eastwest.policy.superseded import Superseded, without_permits

MAX_TENANTS = 200
"""Tenants that one permit names; more cannot be told apart in a table at a reasonable price."""
MAX_CALLERS = 500
STEADY_DAYS = 7
"""Days with calls that make a permit's evidence strong."""
_DAY = timedelta(days=1)
_PLAIN = re.compile(r"[A-Za-z0-9-]+")
STEP_UP, APPROVAL = "step_up", "approval"


@dataclass(slots=True)
class Seen:
    """Allowed calls of one caller, operation and tenant. Times are aware; ``days``: ordinals of days with calls."""

    caller: str
    service: str
    operation: str
    tenant: str
    calls: int
    first: datetime
    last: datetime
    token: bool = False  # every call brought a token that counted
    approved: bool = False  # and every token an approval
    approvers: set[str] | None = None  # who approved, where the permits that decided all tell them apart
    origins: set[str] | None = None  # likewise who began the transactions


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What the evidence covers. ``days``: for caller, service and operation the days (ordinals) with calls."""

    start: datetime
    end: datetime
    days: Mapping[tuple[str, str, str], Collection[int]] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    """Decisions that are missing from the record, by service; "" where it is not known of which."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One permit and the evidence for it."""

    id: str
    service: str
    owner: str
    callers: tuple[str, ...]
    operations: tuple[str, ...]
    tenants: tuple[str, ...] | None  # None: the operations are not per tenant
    own: bool  # the tenants are exactly those that each caller serves
    brings: str  # "", step_up or approval: what every call brought
    calls: int
    coverage: float  # of the service's observed allowed calls
    confidence: str  # high, medium, low
    why: tuple[str, ...]  # what keeps it from being high
    days: int
    first: datetime
    last: datetime
    text: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "id": self.id,
            "service": self.service,
            "owner": self.owner,
            "callers": list(self.callers),
            "operations": list(self.operations),
            "tenants": None if self.tenants is None else list(self.tenants),
            "own_tenants": self.own,
            "brings": self.brings,
            "calls": self.calls,
            "coverage": round(self.coverage, 6),
            "confidence": self.confidence,
            "why": list(self.why),
            "days": self.days,
            "first": _rfc3339(self.first),
            "last": _rfc3339(self.last),
            "policy": self.text,
        }


@dataclass(frozen=True, slots=True)
class Suggested:
    """Permits, the files of the estate with them, and what could not be put into a permit."""

    permits: tuple[Suggestion, ...]
    superseded: Superseded  # with the files, suggestions included
    left_out: tuple[str, ...]


_Form = tuple[tuple[str, ...] | None, bool, str, tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Needs:
    """What makes callers equal: a condition, and the operations under it."""

    tenants: tuple[str, ...] | None
    own: bool
    brings: str
    approvers: tuple[str, ...]
    origins: tuple[str, ...]
    operations: tuple[str, ...]


def suggest_policies(
    estate: Estate,
    files: Mapping[str, bytes],
    seen: Iterable[Seen],
    window: Window,
    *,
    only: Collection[str] | None = None,
    narrow: bool = True,
) -> Suggested:
    """Permits for ``seen``, and ``files`` with them in place of those that there are.

    ``only``: about these services; permits that are about others too then hold for those alone, or without ``narrow``
    for both as before.
    """
    services = {s.service: s for s in estate.services if only is None or s.service in only}
    workloads = {w.spiffe_id: w for w in estate.callers}
    left_out: dict[str, int] = {}
    by_service: dict[str, list[Seen]] = {name: [] for name in services}
    for each in seen:
        if each.service not in services:
            continue
        if each.caller not in workloads:
            why = f"{each.caller} calls {each.service} and is registered no more"
            left_out[why] = left_out.get(why, 0) + each.calls
            continue
        by_service[each.service].append(each)
    superseded = without_permits(estate, files, None if only is None else services, narrow=narrow)
    edited = superseded.files
    taken = {p.id for p in estate.policies if p.id not in superseded.replaced}
    permits: list[Suggestion] = []
    for name, rows in sorted(by_service.items()):
        made = _of_service(services[name], workloads, rows, window, taken, left_out)
        permits += made
        if made:
            path = _free(f"policies/suggested-{name}.cedar", edited)
            edited[path] = "\n".join(one.text for one in made).encode()
    missing = tuple(f"{why} ({calls} calls)" for why, calls in sorted(left_out.items()))
    return Suggested(tuple(permits), superseded, missing)


def _of_service(
    service: Service,
    workloads: Mapping[str, Any],
    rows: Sequence[Seen],
    window: Window,
    taken: set[str],
    left_out: dict[str, int],
) -> list[Suggestion]:
    names = {o.name for o in service.operations}
    per_operation: dict[tuple[str, str], list[Seen]] = {}
    for row in rows:
        if row.operation in names:
            per_operation.setdefault((row.caller, row.operation), []).append(row)
    wanted: dict[str, dict[_Form, set[str]]] = {}
    for (caller, operation), each in per_operation.items():
        for token in sorted({_token(row) for row in each}):
            tenants: tuple[str, ...] | None = tuple(sorted({row.tenant for row in each if _token(row) == token}))
            own = False
            if tenants == ("",):
                tenants = None
            elif tenants is not None:
                own = set(tenants) == set(_tenants(workloads[caller])) and bool(tenants)
                if len(tenants) > MAX_TENANTS and not own:
                    why = f"{caller} calls {operation} for {len(tenants)} tenants, more than a permit can name"
                    left_out[why] = left_out.get(why, 0) + sum(row.calls for row in each)
                    continue
            same = [row for row in each if _token(row) == token]
            approvers = _united(row.approvers for row in same) if token == APPROVAL else ()
            origins = _united(row.origins for row in same) if token else ()
            form = (None if own else tenants, own, token, approvers, origins)
            wanted.setdefault(caller, {}).setdefault(form, set()).add(operation)
    groups: dict[_Needs, list[str]] = {}
    for caller, forms in wanted.items():
        for form, operations in forms.items():
            groups.setdefault(_Needs(*form, tuple(sorted(operations))), []).append(caller)
    total = sum(row.calls for row in rows)
    found = []
    for needs, callers in sorted(
        groups.items(), key=lambda item: (sorted(item[1]), item[0].operations, item[0].brings)
    ):
        for start in range(0, len(callers), MAX_CALLERS):
            some = tuple(sorted(callers)[start : start + MAX_CALLERS])
            found.append(_permit(service, workloads, needs, some, per_operation, total, window, taken))
    return found


def _permit(
    service: Service,
    workloads: Mapping[str, Any],
    needs: _Needs,
    callers: tuple[str, ...],
    per_operation: Mapping[tuple[str, str], Sequence[Seen]],
    total: int,
    window: Window,
    taken: set[str],
) -> Suggestion:
    own = {tenant for caller in callers for tenant in _tenants(workloads[caller])} if needs.own else set()
    rows = [
        row
        for caller in callers
        for operation in needs.operations
        for row in per_operation[caller, operation]
        if _token(row) == needs.brings
        and (needs.tenants is None or row.tenant in needs.tenants)
        and (not needs.own or row.tenant in own)
    ]
    calls, first, last = sum(r.calls for r in rows), min(r.first for r in rows), max(r.last for r in rows)
    edges = {(caller, service.service, operation) for caller in callers for operation in needs.operations}
    days = {day for edge in edges for day in window.days.get(edge, ())}
    confidence, why = _confidence(service.service, rows, days, window)
    number = 1
    while (name := f"suggested-{service.service}-{number}") in taken:
        number += 1
    taken.add(name)
    reason = (
        f"seen {first:%Y-%m-%d} to {last:%Y-%m-%d}: {calls} calls on {_days(len(days))}, "
        f"{calls / total:.1%} of the service's; confidence {confidence}"
    )
    return Suggestion(
        id=name,
        service=service.service,
        owner=service.owner,
        callers=callers,
        operations=needs.operations,
        tenants=tuple(sorted(own)) if needs.own else needs.tenants,
        own=needs.own,
        brings=needs.brings,
        calls=calls,
        coverage=calls / total,
        confidence=confidence,
        why=why,
        days=len(days),
        first=first,
        last=last,
        text=_text(name, service, needs, callers, reason),
    )


def _confidence(service: str, rows: Sequence[Seen], days: set[int], window: Window) -> tuple[str, tuple[str, ...]]:
    """How far what was seen is likely all that there is."""
    span = window.end - window.start
    recent = window.end - span / 4
    why = []
    if len(days) < STEADY_DAYS:
        why.append(f"calls on {_days(len(days))} only")
    new = sum(1 for row in rows if row.first >= recent)
    if new:
        why.append(f"{new} of {len(rows)} kinds of calls were first seen in the last quarter of the window")
    lost = window.lost.get(service, 0) + window.lost.get("", 0)
    if lost:
        why.append(f"{lost} decisions of the window may be missing from the record")
    if not why:
        return "high", ()
    return ("medium" if len(why) == 1 and len(days) > 1 else "low"), tuple(why)


def _text(name: str, service: Service, needs: _Needs, callers: Sequence[str], reason: str) -> str:
    principal = f"principal == Workload::{_quoted(callers[0])}" if len(callers) == 1 else "principal"
    actions = ",\n    ".join(f"Action::{_quoted(operation)}" for operation in needs.operations)
    conditions = []
    if len(callers) > 1:
        listed = ",\n    ".join(f"Workload::{_quoted(caller)}" for caller in callers)
        conditions.append(f"principal in [\n    {listed}\n  ]")
    if needs.own:
        conditions.append("principal has tenants && principal.tenants.contains(context.tenant)")
    elif needs.tenants is not None:
        listed = ", ".join(map(_quoted, needs.tenants))
        conditions.append(f"context has tenant && [{listed}].contains(context.tenant)")
    if needs.brings:
        conditions.append("context has step_up")
    if needs.brings == APPROVAL:
        conditions.append("context has approval")
    if needs.approvers:
        listed = ", ".join(map(_quoted, needs.approvers))
        conditions.append(f"context has approval && [{listed}].contains(context.approval.approver)")
    if needs.origins:
        listed = ", ".join(map(_quoted, needs.origins))
        conditions.append(f"context has transaction && [{listed}].contains(context.transaction.origin)")
    joined = " &&\n  ".join(conditions)
    when = f"\nwhen {{\n  {joined}\n}}" if conditions else ""
    return (
        f"@id({_quoted(name)})\n@owner({_quoted(service.owner)})\n@reason({_quoted(reason)})\n"
        f"permit (\n  {principal},\n  action in [\n    {actions}\n  ],\n"
        f"  resource == Service::{_quoted(service.service)}\n){when};\n"
    )


def _united(found: Iterable[set[str] | None]) -> tuple[str, ...]:
    """All names; none where some are not told apart."""
    sets = list(found)
    return () if any(one is None for one in sets) else tuple(sorted({name for one in sets for name in one or ()}))


def _token(row: Seen) -> str:
    if not row.token:
        return ""
    return APPROVAL if row.approved else STEP_UP


def _tenants(caller: Any) -> tuple[str, ...]:
    value = caller.tenants if isinstance(caller, Workload) else caller.attributes.get("tenants", ())
    return (value,) if isinstance(value, str) else tuple(value)


def _free(path: str, files: Mapping[str, bytes]) -> str:
    number, found = 1, path
    while found in files:
        number += 1
        found = path.replace(".cedar", f"-{number}.cedar")
    return found


def _days(number: int) -> str:
    return "1 day" if number == 1 else f"{number} days"


def _quoted(text: str) -> str:
    """A string of Cedar."""
    escaped = (
        f"\\{each}" if each in '"\\' else each if each.isprintable() else f"\\u{{{ord(each):x}}}" for each in text
    )
    return f'"{"".join(escaped)}"'


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
