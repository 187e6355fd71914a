"""``eastwest decisions``: the ledger of calls that were allowed and refused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, print_json, run

if TYPE_CHECKING:
    from eastwest.cli.admin import AdminClient

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

    _check_code(code)

    async def work() -> None:
        query = {"caller": caller, "service": service, "verdict": verdict, "code": code, "after": after, "limit": limit}
        async with AdminClient.connect(data) as admin:
            rows, lost = await admin.decisions(**query, newest_first=not after)
            notes = [] if rows else await _unknown(admin, caller, service)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
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


def _check_code(code: str) -> None:
    """A misspelt code would match nothing, as a call that was never made."""
    from eastwest.errors import InvalidInput
    from eastwest.policy.enforcement import DecisionCode
    from eastwest.policy.problems import suggest

    if code and code not in DecisionCode.__members__:
        fix = suggest(code, DecisionCode.__members__, otherwise="see docs/reference/codes.md")
        raise InvalidInput(f"{code[:64]!r} is no decision code", fix=fix)


async def _unknown(admin: AdminClient, caller: str, service: str) -> list[str]:
    """What was asked for and the estate does not have: a reason why nothing was found."""
    from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
    from eastwest.policy.load import load_estate
    from eastwest.policy.problems import suggest, suggest_id

    status = await admin.estate_status()
    if status is None or not (caller or service):
        return []
    estate = load_estate(status["files"])
    notes = []
    services = [one.service for one in estate.services]
    if service and service not in services:
        notes.append(f"the estate has no service {service[:64]!r} ({suggest(service, services, otherwise='see plan')})")
    callers = [one.spiffe_id for one in estate.callers]
    if caller and caller not in callers and not await admin.entries(pb.ListEntriesRequest(spiffe_id=caller)):
        near = suggest_id(caller, callers, otherwise="give a whole SPIFFE ID")
        notes.append(f"nobody is registered as {caller[:300]!r} ({near})")
    return notes


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
