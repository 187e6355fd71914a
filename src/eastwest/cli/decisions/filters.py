"""Options that say which decisions, spelled once, and the query that they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.options import moment_of

if TYPE_CHECKING:
    from eastwest.ledger.query import DecisionQuery

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR", envvar="EASTWEST_DATA", readable=False, help="The data directory of a running server."
    ),
]
Ledger = Annotated[
    Path | None,
    typer.Option(
        "--ledger", metavar="DIR", help="A directory of segments, DATA/server/ledger or a copy: no server is asked."
    ),
]
ClickHouse = Annotated[
    Path | None,
    typer.Option(
        "--clickhouse", metavar="FILE", help="A server.toml, whose export.clickhouse names the table that is asked."
    ),
]
Caller = Annotated[str, typer.Option(help="Only this caller's SPIFFE ID.")]
Service = Annotated[str, typer.Option(help="Only calls of this service.")]
Operation = Annotated[str, typer.Option(help="Only calls of this operation.")]
Tenant = Annotated[str, typer.Option(help="Only calls for this tenant.")]
Verdict = Annotated[str, typer.Option(help="allow or deny.")]
Code = Annotated[str, typer.Option(help="Only this decision code, such as TENANT_NOT_PERMITTED.")]
ReportCode = Annotated[
    str, typer.Option(help="Only calls of which rules in report mode would have made this, such as ALLOWED.")
]
ReportPolicy = Annotated[str, typer.Option(help="Only calls that this rule in report mode would have decided.")]
Canary = Annotated[bool, typer.Option("--canary", help="Only calls of `verify run`, which are left out otherwise.")]
Cause = Annotated[str, typer.Option(help="Only refusals for this cause, such as expired.")]
Class = Annotated[str, typer.Option("--class", help="Only this class of failure, such as expired or stale_bundle.")]
Reference = Annotated[str, typer.Option(help="Only the call whose caller was given this reference.")]
From = Annotated[
    str, typer.Option("--from", metavar="TIME", help="2026-11-22, 2026-11-22T10:00:00Z, or 90m, 24h, 7d ago.")
]
To = Annotated[str, typer.Option("--to", metavar="TIME", help="Up to, and without, this time.")]
Kind = Annotated[str, typer.Option(help="decision or lost.")]
After = Annotated[int, typer.Option(min=0, help="Only rows after this row number, oldest first.")]
First = Annotated[bool, typer.Option("--first", help="Only first calls of a caller, service and operation.")]
BreakGlass = Annotated[bool, typer.Option("--break-glass", help="Only calls that an emergency grant allowed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

_TEXTS = (
    *("caller", "service", "operation", "tenant", "verdict", "code", "cause", "reference", "kind"),
    *("report_code", "report_policy"),
)


def asked(options: Mapping[str, Any], **more: Any) -> DecisionQuery:
    """The query of a command's options; raises ``InvalidInput`` for what could match nothing by mistake."""
    from eastwest.clock import SystemClock
    from eastwest.ledger.query import DecisionQuery

    now = SystemClock().now()
    fields: dict[str, Any] = {name: options[name] for name in _TEXTS if name in options}
    fields |= {name: options.get(name, False) for name in ("first", "break_glass", "canary")}
    for name, option in (("start", "--from"), ("end", "--to")):
        if text := options.get(name):
            fields[name] = moment_of(text, now, option)
    return DecisionQuery(**fields, **more).checked()


def without_canaries(query: DecisionQuery) -> DecisionQuery:
    """The query for calls that somebody made who is no canary, unless it asks for canaries, or for one call."""
    import msgspec

    from eastwest.policy.canary import PREFIX

    asked_for = query.canary or query.reference or PREFIX in query.caller or query.kind != "decision"
    return query if asked_for else msgspec.structs.replace(query, no_canary=True)
