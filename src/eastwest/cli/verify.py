"""``eastwest verify``: proof, by calls, that what runs is what was meant.

Exit codes: 0 no drift, 1 drift was found, 2 wrong usage, 3 the server does not answer.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.options import AsJson, DataDir, counted, examples, print_json, run

if TYPE_CHECKING:
    from eastwest.cli.verification_client import VerificationClient

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Proof that what runs is what was meant.")

MIN_WATCH, MAX_WATCH = 5.0, 86_400.0


@app.command("run", epilog=examples("eastwest verify run --data data", "eastwest verify run --data data --watch 30"))
def run_(
    data: DataDir,
    service: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this service; may be repeated.")
    ] = None,
    allow_port: Annotated[
        list[int] | None,
        typer.Option(min=1, max=65535, metavar="PORT", help="Applications may listen there too; may be repeated."),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(min=MIN_WATCH, max=MAX_WATCH, metavar="SECONDS", help="Run again and again, this far apart."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Let canaries call every enforcement point: what must pass and what must fail, and what differs.

    No call reaches an application. With --watch it goes on until it is stopped (Ctrl-C).
    """
    from eastwest.cli.verification_client import VerificationClient

    async def once(client: VerificationClient) -> dict[str, Any]:
        report = await client.run(service or [], allow_port or [], _progress)
        _show(report, as_json=as_json)
        return report

    async def work() -> bool:
        async with VerificationClient.connect(data) as client:
            report = await once(client)
            while watch is not None:
                await asyncio.sleep(watch)
                report = await once(client)
            return bool(report["findings"])

    try:
        drifted = run(work)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    if drifted:
        raise typer.Exit(1)


@app.command(epilog=examples("eastwest verify show --data data"))
def show(data: DataDir, *, as_json: AsJson = False) -> None:
    """Show the last run, whoever made it: this command or the server by itself (verify_interval)."""
    from eastwest.cli.verification_client import VerificationClient
    from eastwest.errors import NotFound

    async def work() -> dict[str, Any]:
        async with VerificationClient.connect(data) as client:
            report = await client.last()
        if report is None:
            raise NotFound("there was no verify run since the server started", fix="eastwest verify run")
        return report

    report = run(work)
    _show(report, as_json=as_json)
    if report["findings"]:
        raise typer.Exit(1)


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\rasking {done} of {of} points", end="\n" if done == of else "", file=sys.stderr, flush=True)


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(report | {"at": report["at"].replace("+00:00", "Z")})
        return
    from eastwest.cli.table import print_table, printable

    findings = report["findings"]
    if findings:
        print_table(
            ["DRIFT", "SERVICE", "POINT", "EXPECTED", "HAPPENED"],
            [[f["drift"], f["service"], f["point"], f["expected"], f["happened"]] for f in findings],
        )
        print()
        for each in findings:
            print(printable(f"{each['drift']} at {each['service']} ({each['point']}): {each['cause']}"))
            for sample in each.get("samples", ()):
                print(printable(f"  {sample}"))
            print(printable(f"  fix: {each['fix']}"))
        print()
    for note in report["notes"]:
        print(printable(f"note: {note}"))
    asked = f"{counted(report['checks'], 'check')} at {report['reached']} of {counted(report['points'], 'point')}"
    found = counted(len(findings), "drift") if findings else "no drift"
    print(f"{asked}, {counted(report['sidecars'], 'sidecar')}, {report['seconds']:.1f} s: {found}")
