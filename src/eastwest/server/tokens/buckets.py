"""What each of many may still ask for: buckets that time fills."""

from __future__ import annotations

from collections import OrderedDict

from eastwest.clock import Clock
from eastwest.errors import Exhausted

MAX_BUCKETS = 20_000


class Buckets:
    """One for each name; that of the name which asked longest ago is forgotten, and full when it is asked again."""

    def __init__(self, rate: float, burst: float, clock: Clock) -> None:
        """``rate`` a second, and at most ``burst`` at once, one at least."""
        self._rate = rate
        self._most = max(1.0, burst)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, what: str) -> None:
        """Raises ``Exhausted``, which says ``what`` is too much, when nothing is left."""
        now = self._clock.monotonic()
        left, at = self._left.pop(name, (self._most, now))
        left = min(self._most, left + (now - at) * self._rate)
        allowed = left >= 1
        self._left[name] = (left - 1 if allowed else left, now)
        if len(self._left) > MAX_BUCKETS:
            self._left.popitem(last=False)
        if not allowed:
            raise Exhausted(f"{what}: more than {self._rate:g} a second", fix="ask again in a second")
