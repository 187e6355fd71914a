"""Waiting longer after each failure, with jitter, so that a thousand agents do not come back at once."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from eastwest import errors
from eastwest.clock import Clock

T = TypeVar("T")
_log = structlog.get_logger()


class Backoff:
    """Delays in seconds: ``first``, then 1.6 times more each, at most ``most``; each varied by a quarter."""

    def __init__(self, jitter: random.Random, *, first: float = 0.2, most: float = 15.0) -> None:
        self._jitter = jitter
        self._first = first
        self._most = most
        self._next = first

    def reset(self) -> None:
        """Something worked."""
        self._next = self._first

    def delay(self) -> float:
        """How long to wait now."""
        base, self._next = self._next, min(self._next * 1.6, self._most)
        return base * self._jitter.uniform(0.75, 1.25)


async def until_answered(
    once: Callable[[], Awaitable[T]], what: str, seconds: float, clock: Clock, jitter: random.Random
) -> T:
    """Do ``once``, again and again while it raises ``Unavailable``, for ``seconds``; then raise the last of these."""
    backoff = Backoff(jitter, first=0.25, most=5.0)
    end = clock.monotonic() + seconds
    while True:
        try:
            return await once()
        except errors.Unavailable as error:
            delay = backoff.delay()
            left = end - clock.monotonic()
            if left <= 0:
                raise errors.Unavailable(
                    f"{what}, tried for {seconds:.0f} s: {error.message}",
                    fix="start the server, or check --server and the network between",
                ) from None
            _log.warning("agent.server.unavailable", what=what, error=str(error), seconds_left=round(left, 1))
            await clock.sleep(min(delay, left))
