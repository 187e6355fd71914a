"""Wall time of ``eastwest demo --json`` once files are in the page cache and bytecode is compiled."""

from __future__ import annotations

import json
import time

from bench.measure import Result, percentile
from bench.processes import EASTWEST
from bench.processes import run as run_command

NAMES = ("demo_warm_s",)


def run(*, quick: bool) -> list[Result]:
    """One run to warm up, then the measured ones; a quick round trusts that it is warm."""
    samples, failed = [], 0
    for _ in range(1 if quick else 3):
        begin = time.perf_counter()
        report = json.loads(run_command([EASTWEST, "demo", "--json"]))
        samples.append(time.perf_counter() - begin)
        failed += sum(not expectation["ok"] for expectation in report["expectations"])
    measured = samples if quick else samples[1:]
    note = f"first run {samples[0]:.1f} s; {len(report['expectations'])} expectations, {failed} failed in all runs"
    return [Result("demo_warm_s", round(percentile(measured, 0.5), 1), "s", len(measured), note)]
