"""A plan as plain text, for logs and terminals without colour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from eastwest.policy.diff import ANY_OTHER, Access, Difference
from eastwest.policy.plan import Plan
from eastwest.policy.problems import Severity

MAX_ROWS = 50


def render(plan: Plan) -> str:
    """The whole plan as lines, problems first; ends with a newline."""
    return "\n".join(_lines(plan)) + "\n"


def summary_line(plan: Plan) -> str:
    """What the estate amounts to, in one sentence; "" when it has errors."""
    counts = plan.summary
    if counts is None:
        return ""
    return (
        f"{counts.workloads} workloads, {counts.services} services, {counts.operations} operations, "
        f"{counts.policies} policies{_in_report_mode(counts.report)}: of {counts.operations * counts.callers} pairs of "
        f"caller and operation {counts.allowed} are allowed, {counts.by_tenant} for some tenants, "
        f"{counts.with_token} only with a token or an approval, {counts.denied} denied"
    )


def _in_report_mode(count: int) -> str:
    return f" ({count} in report mode)" if count else ""


def tenant_text(tenant: str) -> str:
    """A tenant as people read it."""
    return {"": "-", ANY_OTHER: "any"}.get(tenant, tenant)


def problem_lines(plan: Plan, prefix: str = "") -> Iterator[str]:
    """One line for each problem, errors last so that they are seen; ``prefix`` goes before file names."""
    order = [Severity.NOTE, Severity.WARNING, Severity.ERROR]
    for problem in sorted(plan.problems, key=lambda p: order.index(p.severity)):
        yield prefix + str(problem)


def verdict_lines(plan: Plan) -> Iterator[str]:
    """What the plan comes to, without its changes."""
    if not plan.ok:
        count = len(plan.errors)
        yield f"{count} error{'s' if count != 1 else ''}: nothing can be applied"
        return
    warnings = sum(p.severity is Severity.WARNING for p in plan.problems)
    yield f"{summary_line(plan)}; {warnings} warning{'s' if warnings != 1 else ''}"
    yield f"version {plan.version}"
    if plan.difference is None:
        yield "nothing to compare with"
    elif plan.difference.is_empty:
        yield f"enforcement stays as in version {plan.previous}"
    else:
        yield f"compared with version {plan.previous}:"


def change_lines(difference: Difference) -> Iterator[str]:
    """Everything that changes, apart from who may newly do what."""
    for change in difference.modes:
        yield f"  ~ mode      {change.service}: {change.before} -> {change.after}"
    yield from _names("+ workload ", difference.workloads_added)
    yield from _names("- workload ", difference.workloads_removed)
    for registration in difference.registrations_changed:
        yield f"  ~ {registration.kind:9} {registration.name}: {', '.join(registration.changed)}"
    yield from _names("+ service  ", difference.services_added)
    yield from _names("- service  ", difference.services_removed)
    for service in difference.services_changed:
        yield f"  ~ service   {service.service}: {', '.join(service.changed)}"
    yield from _names("+ operation", difference.operations_added)
    yield from _names("- operation", difference.operations_removed)
    for operation in difference.operations_changed:
        what = f"{operation.field} " if operation.field != "match" else ""
        yield f"  ~ operation {operation.operation}: {what}{operation.before} -> {operation.after}"


def access_lines(difference: Difference) -> Iterator[str]:
    """Who may newly do what, and who no longer may."""
    yield from _rows("allowed", difference.newly_allowed)
    yield from _rows("denied ", difference.newly_denied)


def _lines(plan: Plan) -> Iterator[str]:
    yield from problem_lines(plan)
    yield from verdict_lines(plan)
    if plan.ok and plan.difference is not None:
        yield from change_lines(plan.difference)
        yield from access_lines(plan.difference)


def _names(label: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        yield f"  {label} {name}"


def _rows(label: str, rows: tuple[Access, ...]) -> Iterator[str]:
    for row in rows[:MAX_ROWS]:
        why = f" ({row.policy})" if row.policy else f" ({row.code})"
        tenant = f" tenant {tenant_text(row.tenant)}" if row.tenant else ""
        brings = f" with {row.brings}" if row.brings else ""
        yield f"  newly {label} {row.caller} {row.operation}{tenant}{brings}{why}"
    if len(rows) > MAX_ROWS:
        yield f"  ... and {len(rows) - MAX_ROWS} more newly {label.strip()}"
