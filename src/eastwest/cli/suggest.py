"""``eastwest policy suggest``: least-privilege policies from recorded calls, as a change to review.

Exit codes: 0 done, 1 the suggestion would refuse or newly allow recorded calls, or has errors, 2 wrong usage, 3 no
server answers.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.decisions.filters import Data, From, Ledger, To
from eastwest.cli.impact import EXIT_FOUND, OneService, Window, ask, known_service, question, warnings
from eastwest.cli.options import AsJson, counted, examples, print_json, run

if TYPE_CHECKING:
    from eastwest.policy.plan import Plan

SUGGEST_EXAMPLES = examples(
    "eastwest policy suggest --data data --window 30d",
    "eastwest policy suggest --data data --service billing --out narrower",
    "eastwest policy suggest estate --ledger copy/ledger --json",
)
_COLUMNS = ("POLICY", "CALLERS", "OPERATIONS", "TENANTS", "BRINGS", "CALLS", "COVERAGE", "DAYS", "CONFIDENCE")


def suggest(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", exists=True, file_okay=False, help="With --ledger: the estate as it is."),
    ] = None,
    data: Data = None,
    ledger: Ledger = None,
    window: Window = "30d",
    start: From = "",
    end: To = "",
    service: OneService = "",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", file_okay=False, help="Write the estate with the suggestion there."),
    ] = None,
    *,
    json: AsJson = False,
) -> None:
    """Write policies that allow what was called and allowed in the window, and nothing else, as a diff to review.

    Exit code 1 where they would newly refuse or newly allow a recorded call.
    """
    from eastwest.errors import InvalidInput

    if (directory is None) == (ledger is not None):
        raise typer.BadParameter("an estate's directory goes with --ledger, and with nothing else", param_hint="DIR")
    if out is not None and out.exists() and any(out.iterdir()):
        raise InvalidInput(f"{out} is not empty", fix="name a directory that is not there yet")
    query = question(window, start, end, service)
    files = _files(directory, data)
    report = ask("suggest", data, ledger, files, files, query)
    known_service(report, service, files)
    changed = {name: text.encode() for name, text in report["files"].items()}
    after = {name: text for name, text in (files | changed).items() if name not in report["removed"]}
    if out is not None:
        _write(out, after)
    plan = _planned(after, files)
    if json:
        print_json(report | {"plan": plan.to_dict()})
    else:
        _show(report)
        for problem in plan.problems:
            print(f"plan: {problem}")
        if out is None:
            print("".join(_diff(files, after)), end="")
        else:
            print(f"written to {out}: eastwest plan {out}, then eastwest policy impact {out}")
    if report["totals"]["newly_denied"] or report["totals"]["newly_allowed"] or not plan.ok:
        raise typer.Exit(EXIT_FOUND)


def _files(directory: Path | None, data: Path | None) -> dict[str, bytes]:
    from eastwest.cli.admin import AdminClient
    from eastwest.cli.estate import read_directory
    from eastwest.errors import NotFound

    if directory is not None:
        return dict(read_directory(directory))
    if data is None:
        raise typer.BadParameter(
            "say which ledger: --data DIR of a server, or DIR and --ledger DIR", param_hint="--data"
        )

    async def applied() -> dict[str, bytes] | None:
        async with AdminClient.connect(data) as admin:
            status = await admin.estate_status()
            return status["files"] if status else None

    files = run(applied)
    if files is None:
        raise NotFound("the server has no estate yet", fix="eastwest apply DIR --data DATA")
    return files


def _planned(after: Mapping[str, bytes], before: Mapping[str, bytes]) -> Plan:
    """What ``eastwest plan`` says of the suggestion, as far as it did not say so before."""
    from dataclasses import replace

    from eastwest.cli.estate import _today
    from eastwest.policy.plan import plan_files

    plan = plan_files(after, _today(), before)
    known = {(problem.message, problem.fix) for problem in plan_files(before, _today()).problems}
    return replace(plan, problems=tuple(p for p in plan.problems if (p.message, p.fix) not in known))


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    for name, text in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)


def _diff(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> Iterator[str]:
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, b"").decode(), after.get(name, b"").decode()
        if old != new:
            origin = f"a/{name}" if name in before else "/dev/null"
            target = f"b/{name}" if name in after else "/dev/null"
            yield from difflib.unified_diff(
                old.splitlines(keepends=True), new.splitlines(keepends=True), origin, target
            )


def _show(report: Mapping[str, Any]) -> None:
    from eastwest.cli.table import print_table

    made = report["suggestions"]
    if made:
        print_table(_COLUMNS, [_cells(each) for each in made])
    else:
        print("no allowed calls of identified callers were recorded: there is nothing to suggest from")
    for each in made:
        for why in each["why"]:
            print(f"{each['id']}: {why}")
    for each in report["unused"]:
        print(f"unused: {each['policy']} ({each['owner']}, {each['where']}) decided no allowed call of the window")
    for name in report["narrowed"]:
        print(f"narrowed: {name} reaches other services too, and is left to them")
    for name in report["kept"]:
        print(f"kept: {name} allows what it allows")
    for why in report["left_out_of_policies"]:
        print(f"not suggested: {why}")
    replaced, totals = counted(len(report["replaced"]), "permit"), report["totals"]
    print(
        f"{counted(len(made), 'permit')} in place of {replaced}; "
        f"replayed on {counted(report['calls'], 'recorded call')}: "
        f"{totals['newly_denied']} newly denied, {totals['newly_allowed']} newly allowed, "
        f"{totals['unsure']} cannot be told; report {report['hash'][:16]}"
    )
    for warning in warnings(report):
        print(f"note: {warning}", file=sys.stderr)


def _cells(each: Mapping[str, Any]) -> list[str]:
    tenants = each["tenants"]
    shown = "" if tenants is None else f"own ({len(tenants)})" if each["own_tenants"] else _few(tenants)
    return [
        each["id"],
        _few([caller.rpartition("/")[2] for caller in each["callers"]]),
        _few([name.partition(":")[2] for name in each["operations"]]),
        shown,
        each["brings"],
        str(each["calls"]),
        f"{each['coverage']:.1%}",
        str(each["days"]),
        each["confidence"],
    ]


def _few(names: list[str]) -> str:
    most = 3
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
