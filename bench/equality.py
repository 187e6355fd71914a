"""Whether all deciders agree, in numbers: what ``tests/integration/test_equality.py`` compares, on other estates."""

from __future__ import annotations

import asyncio
import sys
import time

from bench.measure import Result
from bench.processes import ROOT, scratch

NAMES = ("equality_requests", "equality_differences")


def run(*, quick: bool) -> list[Result]:
    """Random estates put in force at one Envoy, one after the other, and random calls of each."""
    sys.path.insert(0, str(ROOT / "tests" / "integration"))
    from equality_world import compare  # a module of the tests

    seed = time.time_ns() % 1_000_000_000
    begin = time.perf_counter()
    with scratch() as place:
        count = asyncio.run(compare(place, first=seed, requests=400 if quick else 4000, calls=80))
    note = (
        f"Cedar, table, Envoy (HTTP/1.1 and HTTP/2), SDK; {count.estates} estates from seed {seed}, "
        f"{len(count.codes)} codes, {count.codes['ALLOWED']} allowed, {time.perf_counter() - begin:.0f} s"
    )
    return [
        Result("equality_requests", count.requests, "", count.estates, note),
        Result("equality_differences", len(count.differences), "", count.requests, note),
    ]
