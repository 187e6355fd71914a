"""``eastwest failures``: where identity fails, why, what mends it, and what that leaves of error budgets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.options import AsJson, examples, moment_of, print_json, run
from eastwest.clock import SystemClock

if TYPE_CHECKING:
    from eastwest.ledger.slo import Budget, Failure
    from eastwest.policy.failures import FailureClass

app = typer.Typer(
    add_completion=False,
    help="Failures of identity: their class, cause and fix, error budgets, alert rules and a dashboard.",
)

MAX_GROUPS = 5000
"""Of callers and causes in one answer; the largest come first."""
_COLUMNS = ("class", "domain", "service", "caller", "count", "last", "cause")
_BUDGETS = ("slo", "of", "objective", "window", "calls", "failed", "left", "burn 1h", "burn 6h", "burn 3d")

MaybeData = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", envvar="EASTWEST_DATA", readable=False, help="The data directory of the server."
    ),
]


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "eastwest failures --data data --from 6h",
        "eastwest failures --data data --class expired --class stale_bundle --domain commerce --json",
    ),
)
def failures(
    ctx: typer.Context,
    data: MaybeData = None,
    start: Annotated[
        str, typer.Option("--from", metavar="TIME", help="2026-11-22, 2026-11-22T10:00:00Z, or 90m, 24h, 7d ago.")
    ] = "24h",
    end: Annotated[
        str, typer.Option("--to", metavar="TIME", help="Up to, and without, this time; now by default.")
    ] = "",
    kinds: Annotated[
        list[str] | None, typer.Option("--class", metavar="CLASS", help="Only this class; may be given again.")
    ] = None,
    domain: Annotated[str, typer.Option(help="Only services of this domain.")] = "",
    service: Annotated[str, typer.Option(help="Only calls of this service.")] = "",
    caller: Annotated[str, typer.Option(help="Only this caller, proven or claimed.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Show failures by class, service and caller with what mends them, and what is left of error budgets.

    Exit 1 while a budget is spent or burns too fast.
    """
    if ctx.invoked_subcommand is not None:
        return
    if data is None:
        raise typer.BadParameter("give the server's data directory", param_hint="--data")
    now = SystemClock().now()
    window = moment_of(start, now, "--from"), moment_of(end, now, "--to") if end else now
    wanted = _classes(kinds or [])
    from eastwest.cli.failures_read import read
    from eastwest.policy.problems import suggest

    found, budgets, domain_of, more = run(
        lambda: read(data, window, now, service=service, caller=caller, domain=domain)
    )
    if service and domain_of and service not in domain_of:
        # No error: it may have been there when the rows were made.
        fix = suggest(service, domain_of, otherwise=", ".join(sorted(domain_of)[:10]))
        print(f"note: the estate in force has no service {service[:64]!r} ({fix})", file=sys.stderr)
    found = [
        one
        for one in found
        if (not wanted or one.kind in wanted) and (not domain or domain_of.get(one.service) == domain)
    ]
    if as_json:
        print_json(
            {
                "from": window[0],
                "to": window[1],
                "failures": [asdict(one) | {"domain": domain_of.get(one.service, "")} for one in found],
                "complete": not more,
                "budgets": [_budget_json(budget) for budget in budgets],
            }
        )
    else:
        _show(found, domain_of, complete=not more)
        _show_budgets(budgets)
    if any(budget.left <= 0 or budget.firing for budget in budgets):
        raise typer.Exit(1)


@app.command(epilog=examples("eastwest failures rules estate > eastwest-rules.yaml"))
def rules(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The directory that holds estate.yaml.")
    ],
) -> None:
    """Print Prometheus rules: burn-rate alerts for each SLO of an estate, and alerts for what ends or falls behind."""
    from eastwest.cli.estate import read_directory
    from eastwest.ledger.alerts import rule_file
    from eastwest.policy.load import load_estate

    print(rule_file(load_estate(read_directory(directory)).settings.slos), end="")


@app.command(epilog=examples("eastwest failures dashboard > eastwest-dashboard.json"))
def dashboard() -> None:
    """Print a Grafana dashboard of the metrics: import it, or put it into a provisioned directory."""
    from eastwest.cli.dashboard import dashboard as made

    print_json(made())


def _classes(names: Sequence[str]) -> frozenset[FailureClass]:
    from eastwest.errors import InvalidInput
    from eastwest.policy.failures import FailureClass
    from eastwest.policy.problems import suggest

    known = [kind.value for kind in FailureClass]
    for name in names:
        if name not in known:
            fix = suggest(name, known, otherwise=", ".join(known))
            raise InvalidInput(f"{name[:64]!r} is no class of failure", fix=fix)
    return frozenset(map(FailureClass, names))


def _show(found: Sequence[Failure], domain_of: dict[str, str], *, complete: bool) -> None:
    from eastwest.cli.table import print_table, printable

    if not found:
        print("no failures in this time")
        return
    print_table(_COLUMNS, [_row(one, domain_of.get(one.service, "")) for one in found])
    if not complete:
        print(f"only the {MAX_GROUPS} most frequent are shown; narrow the time, --service or --caller")
    print()
    for kind, what, fix in dict.fromkeys((one.kind.value, one.what, one.fix) for one in found):
        print(f"{kind}: {printable(what)}\n  → {fix}")


def _row(one: Failure, domain: str) -> tuple[str, ...]:
    count = f"{one.count} ({one.reported} reported only)" if one.reported else str(one.count)
    who = f"claims {one.caller}" if one.claimed and one.caller else one.caller
    return (one.kind.value, domain, one.service, who, count, one.last[:19] + "Z", one.cause or one.code)


def _show_budgets(budgets: Sequence[Budget]) -> None:
    from eastwest.cli.table import print_table
    from eastwest.ledger.slo import promql

    if not budgets:
        return
    print()
    rows = []
    for budget in budgets:
        slo = budget.slo
        burns = [f"{spent.burn(slo.objective):.2f}" for spent in budget.recent.values()]
        numbers = (str(budget.whole.calls), str(budget.whole.failed), f"{budget.left:.1%}")
        rows.append((slo.name, _scope(budget), f"{slo.objective:g} %", slo.window, *numbers, *burns))
    print_table(_BUDGETS, rows)
    for budget in budgets:
        for alert in budget.firing:
            limit = alert.burn(_window(budget))
            print(f"{budget.slo.name}: the last {promql(alert.long)} burn faster than {limit:g} ({alert.severity})")


def _scope(budget: Budget) -> str:
    slo = budget.slo
    if slo.edge is not None:
        return f"{slo.edge.caller} → {slo.edge.service}"
    return f"service {slo.service}" if slo.service is not None else f"domain {slo.domain}"


def _window(budget: Budget) -> timedelta:
    from eastwest.policy.forms import duration

    return duration(budget.slo.window)


def _budget_json(budget: Budget) -> dict[str, Any]:
    from eastwest.ledger.slo import promql

    slo = budget.slo
    return {
        "slo": slo.name,
        "domain": slo.domain,
        "service": slo.service,
        "edge": None if slo.edge is None else {"caller": slo.edge.caller, "service": slo.edge.service},
        "classes": [kind.value for kind in slo.classes],
        "objective": slo.objective,
        "window": slo.window,
        "calls": budget.whole.calls,
        "failed": budget.whole.failed,
        "left": round(budget.left, 6),
        "burn": {promql(window): round(spent.burn(slo.objective), 4) for window, spent in budget.recent.items()},
        "firing": [alert.severity for alert in budget.firing],
    }
