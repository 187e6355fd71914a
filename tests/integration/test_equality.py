"""Cedar, the table, the SDK and a real Envoy answer alike: random estates, random calls, and what the application is
handed.

``EASTWEST_EQUALITY_REQUESTS`` asks for more calls than the suite makes by itself, ``EASTWEST_EQUALITY_SEED`` for other
estates; a difference tells its seed. ``tests/interop/test_equality_long.py`` makes many more.
"""

import os

import pytest
from equality_world import compare

REQUESTS = int(os.environ.get("EASTWEST_EQUALITY_REQUESTS", "1600"))
FIRST = int(os.environ.get("EASTWEST_EQUALITY_SEED", "0"))


@pytest.mark.timeout(max(120, REQUESTS // 5))
async def test_every_decider_gives_the_same_answer(tmp_path):
    count = await compare(tmp_path, first=FIRST, requests=REQUESTS, calls=40)
    print(f"equality_requests={count.requests} equality_differences={len(count.differences)}")
    print(f"{count.estates} estates: {count.codes} {count.reports}")
    assert not count.differences, "\n".join(map(str, count.differences[:40]))
    assert count.requests >= REQUESTS
    assert count.codes["ALLOWED"] > count.requests // 10, "the random estates allow next to nothing"
    assert len(count.codes) > 15, count.codes
    assert {"CALLER_CONTAINED", "TOKEN_CONTAINED"} <= count.codes.keys(), count.codes
    assert len(count.reports) > 5, count.reports
    assert count.reports.total() > count.requests // 20, "rules in report mode change next to nothing"
