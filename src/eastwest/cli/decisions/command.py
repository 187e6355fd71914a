"""The commands: search (also without a word), top, edges, export, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from eastwest.cli.decisions.filters import (
    After,
    AsJson,
    BreakGlass,
    Caller,
    Canary,
    Cause,
    Class,
    ClickHouse,
    Code,
    Data,
    First,
    From,
    Kind,
    Ledger,
    Operation,
    Reference,
    ReportCode,
    ReportPolicy,
    Service,
    Tenant,
    To,
    Verdict,
    asked,
)
from eastwest.cli.options import ensure_file, examples, print_json, run


class _Searching(TyperGroup):
    """What begins with an option, or is nothing, is a search."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["search", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(add_completion=False, cls=_Searching)

_EXAMPLES = examples(
    "eastwest decisions --data data --service orders --verdict deny",
    "eastwest decisions top --data data --by edge --from 24h",
    "eastwest decisions export --ledger copy/ledger --format parquet --out decisions.parquet",
)


@app.callback(epilog=_EXAMPLES)
def decisions() -> None:
    """Ask the ledger of decisions: who called what, for which tenant, with what answer.

    Without a command it is `search`, and takes its options.
    """


@app.command()
def search(
    data: Data = None,
    ledger: Ledger = None,
    clickhouse: ClickHouse = None,
    caller: Caller = "",
    service: Service = "",
    operation: Operation = "",
    tenant: Tenant = "",
    verdict: Verdict = "",
    code: Code = "",
    cause: Cause = "",
    report_code: ReportCode = "",
    report_policy: ReportPolicy = "",
    class_: Class = "",
    reference: Reference = "",
    start: From = "",
    end: To = "",
    kind: Kind = "decision",
    after: After = 0,
    limit: Annotated[int, typer.Option(min=1, max=5000, help="At most this many rows.")] = 50,
    *,
    first: First = False,
    break_glass: BreakGlass = False,
    canary: Canary = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show new rows as they come, until interrupted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show matching rows, the newest last; with --after the oldest of those that follow a row."""
    query = asked(locals(), newest_first=not after, limit=limit, after=after)
    _search(data, ledger, query, class_, follow=follow, as_json=as_json, clickhouse=clickhouse)


@app.command(epilog=examples("eastwest decisions top --data data --by caller --verdict deny --from 7d"))
def top(
    data: Data = None,
    ledger: Ledger = None,
    clickhouse: ClickHouse = None,
    by: Annotated[
        str,
        typer.Option(
            help="caller, service, operation, edge, code, cause, verdict, tenant, policy, agent, node, mode, sensor or "
            "failure."
        ),
    ] = "edge",
    caller: Caller = "",
    service: Service = "",
    operation: Operation = "",
    tenant: Tenant = "",
    verdict: Verdict = "",
    code: Code = "",
    cause: Cause = "",
    report_code: ReportCode = "",
    report_policy: ReportPolicy = "",
    class_: Class = "",
    start: From = "",
    end: To = "",
    kind: Kind = "decision",
    limit: Annotated[int, typer.Option(min=1, max=5000, help="At most this many lines.")] = 20,
    *,
    first: First = False,
    break_glass: BreakGlass = False,
    canary: Canary = False,
    as_json: AsJson = False,
) -> None:
    """Count calls by a dimension, the largest first. A row that stands for many calls counts as many."""
    from eastwest.cli.decisions.source import Source
    from eastwest.ledger.query import dimension

    dimension(by)
    query = asked(locals(), limit=limit)

    async def work() -> tuple[list[dict[str, Any]], int]:
        async with Source.open(data, ledger, clickhouse) as source:
            return await source.totals(await source.of_class(query, class_), by), await source.lost()

    _totals(*run(work), as_json=as_json, name="top")


@app.command(epilog=examples("eastwest decisions edges --data data --from 24h --csv"))
def edges(
    data: Data = None,
    ledger: Ledger = None,
    clickhouse: ClickHouse = None,
    caller: Caller = "",
    service: Service = "",
    operation: Operation = "",
    tenant: Tenant = "",
    verdict: Verdict = "",
    start: From = "",
    end: To = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many edges.")] = 100_000,
    *,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Who called what: each caller, service and operation with its calls, since when, and how they were secured."""
    from eastwest.cli.decisions.show import print_csv
    from eastwest.cli.decisions.source import Source

    query = asked(locals(), limit=5000)

    async def work() -> tuple[list[dict[str, Any]], int]:
        async with Source.open(data, ledger, clickhouse) as source:
            return await source.edges(query, limit), await source.lost()

    rows, lost = run(work)
    if csv:
        print_csv(rows)
        return
    _totals(rows, lost, as_json=as_json, name="edges")


@app.command(epilog=examples("eastwest decisions export --data data --from 2026-11-01 --format csv --out november.csv"))
def export(
    data: Data = None,
    ledger: Ledger = None,
    form: Annotated[str, typer.Option("--format", help="csv, json, jsonl or parquet.")] = "jsonl",
    out: Annotated[Path | None, typer.Option(help="The file to make; without it standard output.")] = None,
    caller: Caller = "",
    service: Service = "",
    operation: Operation = "",
    tenant: Tenant = "",
    verdict: Verdict = "",
    code: Code = "",
    cause: Cause = "",
    report_code: ReportCode = "",
    report_policy: ReportPolicy = "",
    start: From = "",
    end: To = "",
    kind: Kind = "",
    *,
    first: First = False,
    break_glass: BreakGlass = False,
    canary: Canary = False,
) -> None:
    """Write all matching rows, losses included, with every column."""
    from eastwest.cli.decisions.show import write_pieces
    from eastwest.cli.decisions.source import Source
    from eastwest.errors import InvalidInput
    from eastwest.store.ledger_reader import FORMATS

    if form not in FORMATS:
        raise InvalidInput(f"{form[:32]!r} is no format of an export", fix=f"one of {', '.join(FORMATS)}")
    if out is None and form == "parquet" and sys.stdout.isatty():
        raise InvalidInput("Parquet is nothing for a terminal", fix="give --out FILE")
    if out is not None:
        ensure_file(out)
    query = asked(locals())

    async def work() -> None:
        async with Source.open(data, ledger) as source:
            await write_pieces(source.export(query, form), out)

    run(work)


@app.command(
    epilog=examples(
        "eastwest decisions verify --data data",
        "eastwest decisions verify --ledger copy/ledger --log-dir copy/log --vkey copy/log.vkey",
    )
)
def verify(
    data: Data = None,
    ledger: Ledger = None,
    log_dir: Annotated[
        Path | None, typer.Option("--log-dir", metavar="DIR", help="The log's public directory.")
    ] = None,
    vkey: Annotated[str | None, typer.Option("--vkey", metavar="FILE|TEXT", help="The log's verifier key.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Hold every segment against its entry in the transparency log, which is verified first. Needs no server."""
    from eastwest.cli.decisions.verification import verify_ledger

    report, checkpoint = verify_ledger(data, ledger, log_dir, vkey)
    if as_json:
        from dataclasses import asdict

        print_json({"ok": report.ok, "checkpoint": checkpoint, **asdict(report)})
    else:
        if report.ok:
            print(
                f"the ledger is whole: {report.sealed} segments, {report.rows} rows of {report.decisions} decisions, "
                f"{report.lost} lost, {report.pruned} segments pruned; proven by the checkpoint of {checkpoint} entries"
            )
        for name in report.pending:
            print(f"note: {name} is not judged: the log's checkpoint does not cover its entry yet")
        for name in report.unproven:
            print(f"note: {name} is not judged: the log's retention has removed its entry")
        for problem in report.problems:
            print(problem)
    if not report.ok:
        raise typer.Exit(1)


def _search(
    data: Path | None,
    ledger: Path | None,
    query: Any,
    class_: str,
    *,
    follow: bool,
    as_json: bool,
    clickhouse: Path | None = None,
) -> None:
    from eastwest.cli.decisions.filters import without_canaries
    from eastwest.cli.decisions.show import print_lost, print_rows
    from eastwest.cli.decisions.source import Source

    async def work() -> None:
        async with Source.open(data, ledger, clickhouse) as source:
            wanted = without_canaries(await source.of_class(query, class_))
            rows, lost, notes = await source.rows(wanted)
            hidden = await source.canaries_beside(wanted, rows)
            if hidden and not as_json:
                notes = [*notes, f"{hidden} calls of `verify run` are left out; --canary shows them"]
            for note in notes:
                print(f"note: {note}", file=sys.stderr)
            if as_json and not follow:
                print_json({"decisions": rows, "lost": lost, "canaries_left_out": hidden})
                return
            print_rows(rows, as_json=as_json, follow=follow)
            if follow:
                async for more in source.follow(wanted, rows):
                    print_rows(more, as_json=as_json, follow=True)
            if wanted.kind == "decision":
                print_lost(lost)

    run(work)


def _totals(rows: list[dict[str, Any]], lost: int, *, as_json: bool, name: str) -> None:
    from eastwest.cli.decisions.show import print_lost, print_totals

    if as_json:
        print_json({name: rows, "lost": lost})
        return
    print_totals(rows)
    print_lost(lost)
