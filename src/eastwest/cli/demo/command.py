"""``eastwest demo``: options, signals, and how the result is printed."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eastwest.cli.options import AsJson, print_json

if TYPE_CHECKING:
    from eastwest.cli.demo.report import Report
    from eastwest.cli.demo.story import Options


def demo(
    *,
    as_json: AsJson = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running and say how to end it.")] = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="A new directory for everything; it stays. Else a temporary one."),
    ] = None,
    port_base: Annotated[
        int | None, typer.Option(min=1024, max=65_000, help="Use the ports from here upwards, not any free ones.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, max=600, help="Keep the load up at least so long.")] = 3.0,
    stop: Annotated[
        Path | None, typer.Option("--stop", metavar="DIR", help="End a demo that was kept in DIR; nothing else.")
    ] = None,
) -> None:
    """Attack a small estate twice, without and with identity and policy: real processes, on loopback."""
    if stop is not None:
        _stop(stop)
        return
    from eastwest.cli.demo.story import Options

    report = _run(Options(data=data, keep=keep, port_base=port_base, seconds=seconds))
    if as_json:
        print_json(report.as_json())
    else:
        from eastwest.cli.demo.display import show

        show(report)
    if not report.ok:
        raise typer.Exit(1)


def _run(options: Options) -> Report:
    """Run the story; a signal to end undoes everything first, and is then the exit code."""
    received: list[int] = []

    async def guarded() -> Report:
        from eastwest.cli.demo import story

        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def end(number: int) -> None:
            if not received:  # a second one must not disturb the cleaning up
                print("ending; cleaning up ...", file=sys.stderr, flush=True)
                task.cancel()
            received.append(number)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, end, number)
        began = loop.time()
        return await story.run(options, lambda text: _progress(text, loop.time() - began))

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise typer.Exit(128 + (received[0] if received else signal.SIGINT)) from None


def _progress(text: str, seconds: float) -> None:
    print(f"{seconds:6.1f} s  {text}", file=sys.stderr, flush=True)


def _stop(data: Path) -> None:
    from eastwest.cli.demo.processes import stop_recorded
    from eastwest.cli.demo.story import TEMPORARY

    stopped = stop_recorded(data / "demo" / "processes.json")
    print(f"ended {len(stopped)} processes: {', '.join(stopped)}" if stopped else "nothing of it was running")
    if (data / TEMPORARY).exists():
        shutil.rmtree(data)
        print(f"removed {data}")
    else:
        (data / "demo" / "processes.json").unlink()
