"""``eastwest decisions``: the ledger of calls that were allowed and refused."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, print_json, run

COLUMNS = ("row", "time", "caller", "service", "operation", "tenant", "verdict", "code", "policy", "count")


def decisions(
    data: DataDir,
    caller: Annotated[str, typer.Option(help="Only this caller's SPIFFE ID.")] = "",
    service: Annotated[str, typer.Option(help="Only calls of this service.")] = "",
    verdict: Annotated[str, typer.Option(help="allow or deny.")] = "",
    code: Annotated[str, typer.Option(help="Only this decision code, such as TENANT_NOT_PERMITTED.")] = "",
    after: Annotated[int, typer.Option(min=0, help="Only rows after this row number, oldest first.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=5000, help="At most this many rows.")] = 50,
    *,
    as_json: AsJson = False,
) -> None:
    """Show decisions, the newest last: who called what, for which tenant, the verdict, its code and its policy."""
    from eastwest.cli.admin import AdminClient
    from eastwest.cli.table import print_table

    async def work() -> None:
        query = {"caller": caller, "service": service, "verdict": verdict, "code": code, "after": after, "limit": limit}
        async with AdminClient.connect(data) as admin:
            rows, lost = await admin.decisions(**query, newest_first=not after)
        rows.sort(key=lambda row: row["row"])
        if as_json:
            print_json({"decisions": rows, "lost": lost})
            return
        if rows:
            print_table(COLUMNS, [_shown(row) for row in rows])
        else:
            print("no decisions match; agents report them within a second")
        if lost:
            print(f"{lost} decisions were lost by agents and are not shown")

    run(work)


def _shown(row: dict[str, Any]) -> tuple[str, ...]:
    """One row's cells. A name that nobody verified is marked as one, and so is a refusal that was only reported."""
    told: dict[str, str] = {name: str(row.get(name, "")) for name in COLUMNS}
    if row.get("claimed"):
        told["caller"] = f"claims {told['caller']}"
    if row["verdict"] == "deny" and not row["enforced"]:
        told["verdict"] = "deny (reported only)"
    told["operation"] = told["operation"] or row.get("method", "")
    told["count"] = told["count"] or "1"
    return tuple(told.values())
