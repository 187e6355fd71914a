"""kill -9 of an issuing process in a loop: how often, and how often something was lost."""

from __future__ import annotations

import asyncio
import time

from bench.measure import Result
from bench.processes import scratch
from eastwest.testing.log_kills import kill_loop

NAMES = ("kill_loop_runs", "kill_loop_losses")
RUNS = 300


def run(*, quick: bool) -> list[Result]:
    """Kills and losses."""
    begin = time.monotonic()
    with scratch() as folder:
        outcome = asyncio.run(kill_loop(folder, runs=30 if quick else RUNS, seed=int(time.time())))
    note = (
        f"{outcome.released} certificates released, {outcome.entries} entries, {outcome.killed_while_opening} kills "
        f"while the log was opened; {time.monotonic() - begin:.0f} s"
    )
    return [
        Result("kill_loop_runs", outcome.runs, "", outcome.runs, note),
        Result("kill_loop_losses", len(outcome.losses), "", outcome.runs, "; ".join(outcome.losses[:3])),
    ]
