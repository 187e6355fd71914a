"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC)


class FakeClock:
    """Serves ``eastwest.clock.Clock``; sleepers wake only when ``advance`` passes their time."""

    def __init__(self, start: datetime = START) -> None:
        self._now = start
        self._monotonic = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = 0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (self._monotonic + seconds, self._order, woken))
        await woken

    def advance(self, seconds: float) -> None:
        """Move both clocks on and wake whoever is due, earliest first; they run at the caller's next await."""
        self._move(seconds)
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            woken = heapq.heappop(self._sleepers)[2]
            if not woken.done():
                woken.set_result(None)

    async def elapse(self, seconds: float) -> None:
        """Let ``seconds`` pass as they would: each sleeper wakes at its own time and runs before the next one."""
        end = self._monotonic + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self.advance(max(0.0, self._sleepers[0][0] - self._monotonic))
            await self._settle()
        self.advance(end - self._monotonic)
        await self._settle()

    def skew(self, seconds: float) -> None:
        """Set the wall clock on (or back) as an operator would; monotonic time and sleepers do not notice."""
        self._now += timedelta(seconds=seconds)

    @property
    def sleeping(self) -> int:
        """How many tasks wait on this clock."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    def _move(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("time does not go back; use skew() for a wall clock that is set")
        self._monotonic += seconds
        self._now += timedelta(seconds=seconds)

    async def _settle(self) -> None:
        # Woken tasks may start others; a few rounds of the loop let chains of them come to rest.
        for _ in range(10):
            await asyncio.sleep(0)
