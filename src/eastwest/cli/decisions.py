"""``eastwest decisions``: the ledger of calls that were allowed and refused."""

from __future__ import annotations

from typing import Annotated

import typer

from eastwest.cli.options import AsJson, DataDir, print_json, run


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
    """Show decisions, the newest last: caller, operation, tenant, verdict, code, policy and version."""
    from rich.console import Console
    from rich.table import Table

    from eastwest.cli.admin import AdminClient

    async def work() -> None:
        query = {"caller": caller, "service": service, "verdict": verdict, "code": code, "after": after, "limit": limit}
        async with AdminClient.connect(data) as admin:
            rows, lost = await admin.decisions(**query, newest_first=not after)
        rows.sort(key=lambda row: row["row"])
        if as_json:
            print_json({"decisions": rows, "lost": lost})
            return
        columns = ("row", "time", "caller", "operation", "tenant", "verdict", "code", "policy", "count")
        table = Table(*columns)
        for row in rows:
            table.add_row(*(str(row.get(name) or "") for name in columns))
        Console().print(table)
        if lost:
            print(f"{lost} decisions were lost by agents and are not shown")

    run(work)
