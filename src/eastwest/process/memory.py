"""The garbage collector of a long-running process: left alone with what stays, and called less often."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_YOUNG, _MIDDLE, _OLD = 20_000, 20, 50
"""Objects made before the youngest are looked at, and rounds before older ones are: a batch makes thousands at once."""


@contextmanager
def loading() -> Iterator[None]:
    """Load what a process keeps within this: nothing is collected meanwhile, and what is there then is not looked at.

    With 100,000 registrations a full collection stops all work for a tenth of a second; and nearly all garbage here
    goes by reference counts, so that looking for cycles ten times less often costs a few megabytes at most.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
        gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    finally:
        gc.enable()
