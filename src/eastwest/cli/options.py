"""Options that several nouns share, spelled once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from eastwest.process.findings import Finding

T = TypeVar("T")

LOG_LEVELS = ("debug", "info", "warning", "error")

DataDir = Annotated[
    Path,
    # Not checked for being readable: an administrator by group passes through the directory and may not list it.
    typer.Option(
        "--data",
        metavar="DIR",
        envvar="EASTWEST_DATA",
        readable=False,
        help="The data directory of the server or agent.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")]
NOBODY_TO_ASK = "nobody is there to be asked: give --yes"
"""The wrong usage of a command that would ask, where standard input is no terminal."""

_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run one short asynchronous command."""

    async def main() -> T:
        return await work()

    return asyncio.run(main())


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: ``1 node``, ``2 nodes``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def print_json(value: object) -> None:
    """JSON on standard output, keys in the order given."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def utc(seconds: int) -> str | None:
    """A moment (Unix seconds) as every command's JSON has it: RFC 3339, UTC, with ``Z``; 0 is none."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}" if seconds else None


def moment_of(text: str, now: datetime, option: str = "") -> datetime:
    """A time as people write it: RFC 3339, a date (its beginning, UTC), or how long ago (``90m``, ``24h``, ``7d``).

    Anything else is wrong usage of ``option``.
    """
    try:
        if ago := _AGO.fullmatch(text):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text[:64]!r} is no time such as 2026-11-22, 2026-11-22T10:00:00Z, or 24h for that long ago",
            param_hint=option or None,
        ) from None
    return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def ensure_file(out: Path) -> None:
    """Raise ``InvalidInput`` unless a file can be put there; said before the work, not after it."""
    from eastwest.errors import InvalidInput

    if out.is_dir():
        raise InvalidInput(f"{out} is a directory", fix="name a file in it")
    if not out.absolute().parent.is_dir():
        raise InvalidInput(f"there is no directory {out.parent}", fix=f"make it: mkdir -p {out.parent}")


def examples(*lines: str) -> str:
    """The end of a command's help: lines that can be typed as they stand."""
    return "\n\n".join(("Examples:", *lines))


def start_logging(level: str) -> None:
    """Log from ``level`` upwards, as JSON lines on standard error."""
    from eastwest.errors import InvalidInput
    from eastwest.process.logs import configure_logging

    if level not in LOG_LEVELS:
        raise InvalidInput(f"{level[:32]!r} is not a log level", fix=f"one of {', '.join(LOG_LEVELS)}")
    configure_logging(level)


def report_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print what a check found; exits with 1 when something is bad."""
    bad = any(finding.bad for finding in findings)
    if as_json:
        print_json({"findings": [finding.as_dict() for finding in findings], "ok": not bad})
    else:
        for finding in findings:
            print(finding)
    if bad:
        raise typer.Exit(1)
