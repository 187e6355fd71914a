"""``eastwest mtls``: from permissive to strict, by evidence.

Exit codes: 0 fine, 1 not ready, refused or an end date is over, 2 wrong usage, 3 the server does not answer.
"""

from __future__ import annotations

import sys
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from eastwest.cli.options import NOBODY_TO_ASK, AsJson, DataDir, Yes, examples, moment_of, print_json, run
from eastwest.clock import SystemClock

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="mTLS modes: who would break if a service turned strict, whether the record is enough, and the switch.",
)
NOT_READY = 1

ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="A service of the estate in force.")]
Window = Annotated[
    str,
    typer.Option(
        "--window",
        metavar="TIME",
        help="How far back to look: 31d, or a date. By default since recording began, at most 62 days.",
    ),
]
Port = Annotated[
    int,
    typer.Option(
        "--port",
        min=0,
        max=65535,
        metavar="PORT",
        show_default=False,
        help="The service's port, to be sure which is meant.",
    ),
]
Write = Annotated[
    Path | None,
    typer.Option(
        "--write",
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Make the same change in the files of this directory, so that the next apply does not undo it.",
    ),
]


@app.command(epilog=examples("eastwest mtls status --data data"))
def status(data: DataDir, window: Window = "", *, as_json: AsJson = False) -> None:
    """Show each service's mode, end date and readiness; exit 1 when a permissive one is past its end date."""
    reports = _reports(data, "", window)
    if as_json:
        print_json({"services": [_short(one) for one in reports], "ok": not any(one["expired"] for one in reports)})
    else:
        from eastwest.cli.mtls_table import print_status

        print_status(reports)
    if any(one["expired"] for one in reports):
        raise typer.Exit(NOT_READY)


@app.command("who-breaks", epilog=examples("eastwest mtls who-breaks stock --data data --window 31d"))
def who_breaks(
    data: DataDir,
    service: Annotated[
        str, typer.Argument(metavar="SERVICE", help="A service of the estate in force; all without.")
    ] = "",
    window: Window = "",
    *,
    as_json: AsJson = False,
) -> None:
    """List every caller that strict mode would refuse, and say whether the record is enough.

    Exit code 1 while a service that is permissive is NOT READY.
    """
    reports = _reports(data, service, window)
    ready = all(one["ready"] or one["mode"] == "strict" for one in reports)
    if as_json:
        print_json({"reports": reports, "ready": ready})
    else:
        from eastwest.cli.mtls_table import print_report

        for one in reports:
            print_report(one)
    if not ready:
        raise typer.Exit(NOT_READY)


@app.command(
    epilog=examples(
        "eastwest mtls strict stock --data data --write estate",
        'eastwest mtls strict stock --data data --override "the scanner is meant to be refused" --yes',
    )
)
def strict(
    service: ServiceName,
    data: DataDir,
    port: Port = 0,
    window: Window = "",
    override: Annotated[
        str, typer.Option("--override", metavar="REASON", help="Go on although it is refused; recorded in the log.")
    ] = "",
    write: Write = None,
    change: Annotated[str, typer.Option("--change", metavar="ID", help="The approved change that this is.")] = "",
    *,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Turn a service strict; refused while anybody would break or the record is not enough to say so.

    Shows who would be refused and the line that changes, then asks. Exit code 1 where it is refused.
    """
    wanted: dict[str, Any] = {
        "service": service,
        "port": port,
        "mode": "strict",
        "override": override.strip(),
        "change": change,
    }
    _switch(data, wanted, window, write, yes=yes, as_json=as_json)


@app.command(epilog=examples("eastwest mtls permissive stock --until 2027-03-31 --data data --write estate"))
def permissive(
    service: ServiceName,
    data: DataDir,
    until: Annotated[str, typer.Option("--until", metavar="DATE", help="The last day on which it may be.")],
    port: Port = 0,
    write: Write = None,
    change: Annotated[str, typer.Option("--change", metavar="ID", help="The approved change that this is.")] = "",
    *,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let a service take plaintext again until a day; decisions are only reported meanwhile.

    Shows the line that changes, then asks.
    """
    try:
        date.fromisoformat(until)
    except ValueError:
        raise typer.BadParameter(f"{until[:32]!r} is no date such as 2027-03-31", param_hint="--until") from None
    wanted: dict[str, Any] = {"service": service, "port": port, "mode": "permissive", "until": until, "change": change}
    _switch(data, wanted, "", write, yes=yes, as_json=as_json)


def _reports(data: Path, service: str, window: str) -> list[dict[str, Any]]:
    from eastwest.cli.mtls_client import MtlsClient

    start = _start(window)

    async def work() -> list[dict[str, Any]]:
        async with MtlsClient.connect(data) as mtls:
            return await mtls.reports(service, start)

    return run(work)


def _start(window: str) -> datetime | None:
    now = SystemClock().now()
    start = moment_of(window, now, "--window") if window else None
    if start is not None and start > now:
        raise typer.BadParameter(f"{window[:64]!r} is yet to come", param_hint="--window")
    return start


def _switch(data: Path, wanted: dict[str, Any], window: str, write: Path | None, *, yes: bool, as_json: bool) -> None:
    from eastwest.cli.mtls_client import MtlsClient
    from eastwest.cli.mtls_table import print_switch
    from eastwest.cli.table import printable

    start = _start(window)

    async def work(**more: Any) -> dict[str, Any]:
        async with MtlsClient.connect(data) as mtls:
            return await mtls.switch(start, **wanted, **more)

    outcome = run(lambda: work(dry_run=True))
    if outcome["before"] == outcome["after"]:
        _nothing_to_do(outcome, write, as_json=as_json)
        return
    if not as_json:
        print_switch(outcome, override=wanted.get("override", ""))
    if outcome["refused"] and not wanted.get("override"):
        if as_json:
            print_json(outcome | {"done": False})
        raise typer.Exit(NOT_READY)
    if write is not None:
        _check_writable(write, outcome)
    if not yes:
        if not sys.stdin.isatty() or as_json:
            raise typer.BadParameter(NOBODY_TO_ASK, param_hint="--yes")
        if not typer.confirm("Go on?", err=True):
            print("nothing was done")
            raise typer.Exit(NOT_READY)
    outcome = run(lambda: work(expected_version=outcome["in_force"]))
    if outcome["refused"] and not outcome["version"]:  # somebody called between the two looks
        if as_json:
            print_json(outcome | {"done": False})
        else:
            print_switch(outcome, override="")
        raise typer.Exit(NOT_READY)
    written = _write(write, outcome) if write is not None else ""
    if as_json:
        print_json(outcome | {"done": True, "written": written})
        return
    for warning in outcome["warnings"]:
        print(f"warning: {printable(warning)}")
    print(f"applied: version {outcome['version']}")
    if written:
        print(f"written: {written}")
    else:
        print(
            f"your own files still say otherwise: change {outcome['file']}, line {outcome['line']}, or give --write DIR"
        )


def _nothing_to_do(outcome: dict[str, Any], write: Path | None, *, as_json: bool) -> None:
    """The service is in that mode, until that day, already: nothing is judged or asked, but one's files may follow."""
    behind = write is not None and _edited(write, outcome)[1].encode() != (write / outcome["file"]).read_bytes()
    written = _write(write, outcome) if write is not None and behind else ""
    if as_json:
        print_json(outcome | {"done": False, "written": written})
        return
    until = f" until {outcome['until']}" if outcome["until"] else ""
    print(f"{outcome['service']} is {outcome['mode']}{until} already: nothing to change")
    if written:
        print(f"written: {written}")


def _edited(write: Path, outcome: dict[str, Any]) -> tuple[Path, str]:
    from eastwest.policy.enforcement import MtlsMode
    from eastwest.policy.modes import set_mode

    path = write / outcome["file"]
    until = date.fromisoformat(outcome["until"]) if outcome["until"] else None
    raw = path.read_bytes()
    edit = set_mode(str(path), raw.decode("utf-8-sig"), outcome["service"], MtlsMode(outcome["mode"]), until)
    return path, ("\ufeff" if raw.startswith(b"\xef\xbb\xbf") else "") + edit.text


def _check_writable(write: Path, outcome: dict[str, Any]) -> None:
    """Raise before anything is applied where the files cannot follow."""
    _edited(write, outcome)


def _write(write: Path, outcome: dict[str, Any]) -> str:
    path, text = _edited(write, outcome)
    path.write_bytes(text.encode())
    return str(path)


def _short(one: dict[str, Any]) -> dict[str, Any]:
    kept = (
        "service",
        "port",
        "mode",
        "until",
        "expired",
        "ring",
        "domain",
        "owner",
        "plaintext_callers",
        "mtls_callers",
    )
    return {name: one[name] for name in kept} | {
        "ready": one["ready"],
        "breaks": len(one["breaks"]),
        "reasons": one["reasons"],
    }
