"""How much is tried: little in the default suite, more where ``EASTWEST_FUZZ_EXAMPLES`` says how many times as much."""

import os

from hypothesis import HealthCheck, Phase, settings

TIMES = int(os.environ.get("EASTWEST_FUZZ_EXAMPLES", "1"))


def few(examples: int) -> settings:
    """So many examples, or as many times more as is asked for."""
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        database=None,
        derandomize=TIMES == 1,
        print_blob=True,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
