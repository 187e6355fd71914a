"""The comparison of ``tests/integration/test_equality.py`` at length: estates that nobody has seen, each time.

The first seed is in the output and in every difference; ``EASTWEST_EQUALITY_SEED`` gives it again, and
``EASTWEST_EQUALITY_REQUESTS`` says how many calls.
"""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
from equality_world import compared

REQUESTS = int(os.environ.get("EASTWEST_EQUALITY_REQUESTS", "10000"))
SEED = int(os.environ.get("EASTWEST_EQUALITY_SEED", str(time.time_ns() % 1_000_000_000)))
CALLS = 200
PROCESSES = 2
"""Each with an Envoy of its own: Cedar takes most of the time, and one core."""


@pytest.mark.timeout(max(600, REQUESTS // 10))
def test_every_decider_gives_the_same_answer_at_length():
    share = REQUESTS // PROCESSES
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        firsts = [SEED + number * 1_000_000_000 for number in range(PROCESSES)]
        counts = list(pool.map(compared, firsts, [share] * PROCESSES, [CALLS] * PROCESSES))
    requests = sum(count.requests for count in counts)
    differences = [difference for count in counts for difference in count.differences]
    print(f"equality_requests={requests} equality_differences={len(differences)} first seed {SEED}")
    for count in counts:
        print(f"{count.estates} estates: {count.codes}")
    assert not differences, "\n".join(map(str, differences[:40]))
    assert requests >= share * PROCESSES
