"""``eastwest policy impact``: recorded calls, and what a candidate makes of them.

Exit codes: 0 nothing to find, 1 what ``--fail-on`` names was found, 2 wrong usage, 3 the server does not answer.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.decisions.filters import Data, From, Ledger, To
from eastwest.cli.options import AsJson, counted, examples, moment_of, print_json, run

if TYPE_CHECKING:
    from eastwest.ledger.query import DecisionQuery

EXIT_FOUND = 1
SHOWN = 40
"""Rows of each kind that people see; ``--json`` has them all."""
IMPACT_EXAMPLES = examples(
    "eastwest policy impact estate --data data --window 7d",
    "eastwest policy impact estate --data data --fail-on widened",
    "eastwest policy impact new --ledger copy/ledger --against estate --json",
)
Window = Annotated[str, typer.Option("--window", metavar="TIME", help="How far back, such as 24h or 7d.")]
OneService = Annotated[str, typer.Option("--service", metavar="NAME", help="Only calls of this service.")]
Against = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="With --ledger: the estate to compare with; else what was recorded is.",
    ),
]
_HEADINGS = {
    "newly_allowed": "newly allowed",
    "newly_denied": "newly denied",
    "unsure": "cannot be told from the record",
    "reported_denied": "only reported: would be denied in strict mode",
    "reported_allowed": "only reported: would be allowed in strict mode",
}
_COLUMNS = (
    "CALLER",
    "SERVICE",
    "OPERATION",
    "TENANT",
    "CALLS",
    "LAST",
    "OWNER",
    "SENSITIVITY",
    "WAS",
    "BECOMES",
    "SAMPLE",
)


def impact(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The candidate: holds estate.yaml.")
    ],
    data: Data = None,
    ledger: Ledger = None,
    against: Against = None,
    window: Window = "7d",
    start: From = "",
    end: To = "",
    service: OneService = "",
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="KIND",
            help="Exit with 1 where there is any: widened, denied or unsure; may be repeated.",
        ),
    ] = None,
    *,
    json: AsJson = False,
) -> None:
    """Replay every recorded decision on a candidate estate: what it would newly allow, and whom it would break."""
    from eastwest.cli.estate import read_directory
    from eastwest.policy.load import load_estate

    failing = _failing(fail_on or ())
    if against is not None and ledger is None:
        raise typer.BadParameter("a server compares with what is in force there", param_hint="--against")
    query = question(window, start, end, service)
    files = read_directory(directory)
    load_estate(files)  # its errors are told here, with their places
    before = read_directory(against) if against is not None else None
    report = ask("impact", data, ledger, files, before, query)
    known_service(report, service, files, before or {})
    if json:
        print_json(report)
    else:
        _show(report)
    if any(report["totals"][kind] for kind in failing):
        raise typer.Exit(EXIT_FOUND)


def ask(
    task: str,
    data: Path | None,
    ledger: Path | None,
    files: Mapping[str, bytes],
    before: Mapping[str, bytes] | None,
    query: DecisionQuery,
) -> Any:
    """The report of a job, from a server or from segments, with progress on standard error."""
    from eastwest.cli.impact_client import Shown, ask_files, ask_server

    with Shown() as shown:
        if ledger is not None:
            return run(lambda: ask_files(ledger, task, files, before, query, shown.tell))
        if data is not None:
            return run(lambda: ask_server(data, task, files, query, shown.tell))
    raise typer.BadParameter("say which ledger: --data DIR of a server, or --ledger DIR of files", param_hint="--data")


def known_service(report: Mapping[str, Any], service: str, *estates: Mapping[str, bytes]) -> None:
    """Wrong usage where ``service`` is in none of the estates and no call of it is on record: a slip of the pen."""
    from eastwest.policy.load import load_estate
    from eastwest.policy.problems import suggest

    if not service or report["calls"]:
        return
    known = {one.service for files in estates if files for one in load_estate(files).services}
    if service not in known:
        raise typer.BadParameter(
            f"there is no service {service[:64]!r} ({suggest(service, known, otherwise='see eastwest plan')})",
            param_hint="--service",
        )


def question(window: str, start: str, end: str, service: str) -> DecisionQuery:
    """Which rows."""
    from eastwest.clock import SystemClock
    from eastwest.ledger.query import DecisionQuery

    now = SystemClock().now()
    begin = moment_of(start, now, "--from") if start else moment_of(window, now, "--window")
    until = moment_of(end, now, "--to") if end else now
    return DecisionQuery(start=begin, end=until, service=service).checked()


def _failing(wanted: Sequence[str]) -> list[str]:
    kinds = {"widened": "newly_allowed", "denied": "newly_denied", "unsure": "unsure"}
    for each in wanted:
        if each not in kinds:
            raise typer.BadParameter(f"{each[:32]!r} is none of {', '.join(kinds)}", param_hint="--fail-on")
    return [kinds[each] for each in wanted]


def _show(report: Mapping[str, Any]) -> None:
    from eastwest.cli.table import print_table

    for kind, heading in _HEADINGS.items():
        rows, total = report[kind], report["totals"][kind]
        if not total:
            continue
        print(f"{heading}: {counted(total, 'call')}, {counted(len(rows), 'row')}")
        print_table(_COLUMNS, [_cells(row) for row in rows[:SHOWN]])
        if len(rows) > SHOWN:
            print(f"... and {counted(len(rows) - SHOWN, 'row')} more; --json has all")
        for reason in sorted({row["reason"] for row in rows if row.get("reason")}):
            print(f"  because {reason}")
        print()
    if not any(report["totals"].values()):
        print("nothing changes for any recorded call")
    print(_summary(report))
    for warning in warnings(report):
        print(f"note: {warning}", file=sys.stderr)


def _cells(row: Mapping[str, Any]) -> list[str]:
    was = f"{row['was']} {row['was_policy']}".strip()
    becomes = f"{row['code']} {row['policy']}".strip()
    sample = row["samples"][0] if row["samples"] else ""
    caller = f"{row['caller'] or '(nobody)'}{' (claimed)' if row.get('claimed') else ''}"
    return [
        caller,
        row["service"],
        row["operation"],
        row["tenant"],
        str(row["count"]),
        row["last"][:19] + "Z",
        row["owner"],
        row["sensitivity"],
        was,
        becomes,
        sample,
    ]


def _summary(report: Mapping[str, Any]) -> str:
    share = report["covered"] * 100
    covered = f"{share:.2f}" if share < 100 else "100"
    window, segments = report["window"], len(report["data"]["segments"])
    before = report["before"][:12] or "what was recorded"
    return (
        f"{counted(report['calls'], 'call')} ({counted(report['inputs'], 'distinct input')}) from "
        f"{window['from'][:19]}Z to {window['to'][:19]}Z, {covered}% decided for certain\n"
        f"{before} → {report['candidate'][:12]}, {counted(segments, 'segment')}"
        f"{' and unsealed rows' if report['data']['unsealed'] else ''}, report {report['hash'][:16]}"
    )


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What a reader of the report must know beside it."""
    found = []
    if report["lost"]:
        found.append(f"{counted(report['lost'], 'decision')} of this window were lost, and nobody can replay them")
    if not report["calls"]:
        of = f" of a service {report['window']['service']!r}" if report["window"]["service"] else ""
        found.append(f"there are no recorded calls{of} in this window")
    if not report["complete"]:
        found.append(f"{counted(report['left_out'], 'call')} differ and are in no row: there would be too many rows")
    if report["deviating"]:
        found.append(
            f"{counted(report['deviating'], 'call')} were recorded otherwise than the rules in force decide them"
        )
    if report["window"]["limited"]:
        found.append("only what you may see was replayed")
    return found
