"""Decisions on their way to the server: rolled up, buffered within a bound, sent again until they are stored."""

from __future__ import annotations

import asyncio
import random
from collections import deque

import msgspec
import structlog

from eastwest import errors
from eastwest.agent.backoff import Backoff
from eastwest.agent.connection import ServerConnection
from eastwest.clock import Clock
from eastwest.ledger.record import Decision
from eastwest.ledger.rollup import Rollup

BATCH = 2_000
MAX_BUFFERED = 100_000
PERIOD = 0.5
"""Seconds between reports. Counts of a minute so come in parts, and nobody waits a minute to see a call."""

_log = structlog.get_logger()


class Decisions:
    """Takes decisions without blocking and reports them; what the bound or the end cuts off is counted as lost."""

    def __init__(self, connection: ServerConnection, clock: Clock, jitter: random.Random) -> None:
        self.reported = 0
        self._connection = connection
        self._clock = clock
        self._jitter = jitter
        self._rollup = Rollup(max_ready=MAX_BUFFERED)
        self._buffer: deque[Decision] = deque()
        self._lost = 0
        self._fresh = asyncio.Event()

    @property
    def lost(self) -> int:
        """Decisions dropped and not yet confessed."""
        return self._lost + self._rollup.lost

    def record(self, decision: Decision) -> None:
        """Take one decision."""
        self._rollup.add(decision)
        self._fresh.set()

    async def run(self) -> None:
        """Report for ever."""
        backoff = Backoff(self._jitter, first=0.5)
        while True:
            if not self._buffer:
                await self._fresh.wait()
                await self._clock.sleep(PERIOD)
            try:
                await self.flush()
                backoff.reset()
            except errors.Error as error:
                _log.warning("agent.decisions.waiting", error=str(error), buffered=len(self._buffer), lost=self.lost)
                await self._clock.sleep(backoff.delay())

    async def flush(self) -> None:
        """Report all there is; raises when the server does not take it, and keeps it."""
        self._fresh.clear()
        self._gather()
        while self._buffer or self.lost:
            batch = [self._buffer[i] for i in range(min(BATCH, len(self._buffer)))]
            lost = self.lost
            try:
                await self._connection.report(msgspec.json.encode(batch), lost)
            except errors.InvalidInput as error:
                if not batch:
                    raise
                # It would be refused for ever, and hold up all that comes after it.
                _log.error("agent.decisions.refused", error=str(error), rows=len(batch))
                self._lost += sum(row.count for row in batch)
            else:
                self._confessed(lost)
                self.reported += len(batch)
            for _ in batch:
                self._buffer.popleft()

    def _gather(self) -> None:
        rows = self._rollup.take(self._clock.now(), everything=True)
        room = MAX_BUFFERED - len(self._buffer)
        self._lost += sum(row.count for row in rows[max(0, room) :])
        self._buffer.extend(rows[: max(0, room)])

    def _confessed(self, lost: int) -> None:
        self._lost += self._rollup.lost - lost
        self._rollup.lost = 0
