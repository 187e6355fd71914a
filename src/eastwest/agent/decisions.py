"""Decisions on their way to the server: rolled up, spooled on disk within a bound, sent again until they are stored.

Whoever records waits for nothing here. The disk is written by a thread of its own, the server is told by a task of its
own; where one of them stands still, the other goes on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Protocol, TypeVar

import msgspec
import structlog

from eastwest import errors
from eastwest.agent.backoff import Backoff
from eastwest.agent.spool import Spool
from eastwest.agent.spool_parts import SpoolStatus
from eastwest.clock import Clock
from eastwest.ledger.record import Decision, Lost, LostReason, Row
from eastwest.ledger.rollup import Rollup

PERIOD = 0.5
"""Seconds between writes. Counts of a minute so come in parts, and nobody waits a minute to see a call."""
_LOOK_SECONDS = 5.0  # how often a disk that failed is looked at again
_CLOSE_SECONDS = 2.0
_LONGEST, _AHEAD = timedelta(days=366), timedelta(minutes=5)  # of a call, and of a clock
T = TypeVar("T")

_log = structlog.get_logger()


class Reports(Protocol):
    """The server's side."""

    async def report(self, spool: str, sequence: int, rows: bytes) -> int:
        """Hand a batch over; returns the last sequence of that spool which the server has stored."""
        ...


class Decisions:
    """Takes decisions without blocking, keeps them in ``spool`` and reports them; a loss is a row of its own.

    ``on_recording`` hears whether what is decided now will be kept, when that changes.
    """

    def __init__(
        self,
        server: Reports,
        clock: Clock,
        jitter: random.Random,
        spool: Spool,
        on_recording: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.reported = 0
        self.status = SpoolStatus(0, 1)
        """The spool's standing after its last use."""
        self._server = server
        self._clock = clock
        self._jitter = jitter
        self._spool = spool
        self._on_recording = on_recording
        self._rollup = Rollup()
        self._losses: dict[tuple[LostReason, str, str], Lost] = {}
        self._fresh, self._kept = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "spool")
        self._records = True

    @property
    def lost(self) -> int:
        """Decisions that this run of the agent knows to be lost."""
        return self._rollup.lost + sum(self.status.lost.values())

    def problems(self) -> list[str]:
        """What keeps decisions from being recorded for sure, a sentence each."""
        found = []
        if self.status.problem:
            found.append(f"decisions are kept in memory only: {self.status.problem}")
        if self.status.full:
            share = 100 * self.status.used // self.status.limit
            found.append(f"the spool is {share} % full: {self.status.waiting} decisions wait for the server")
        return found

    def record(self, decisions: Sequence[Decision]) -> None:
        """Take decisions. One whose time cannot be, as who told of it says it, gets that of its coming."""
        self._spool.took(sum(decision.count for decision in decisions))
        now = self._clock.now()
        earliest, latest = now - _LONGEST, now + _AHEAD
        for decision in decisions:
            possible = earliest <= decision.time <= latest
            self._rollup.add(decision if possible else msgspec.structs.replace(decision, time=now))
        self._fresh.set()

    def confess(self, losses: Iterable[Lost]) -> None:
        """Take word of decisions that were lost before they came here."""
        for lost in losses:
            key = (lost.cause, lost.node, lost.service)
            before = self._losses.get(key)
            self._losses[key] = lost if before is None else before.with_more(lost)
        self._fresh.set()

    async def open(self) -> None:
        """Take up what an earlier run left. Never raises for the disk's sake."""
        await self._do(self._spool.open)
        if self.status.problem:
            _log.error("agent.spool.unusable", error=self.status.problem, means="decisions are kept in memory only")
        self._kept.set()

    async def run(self) -> None:
        """Keep and report for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep())
            group.create_task(self._deliver())

    async def flush(self) -> None:
        """Keep and report all there is; raises when the server does not take it."""
        await self._write()
        while await self._deliver_one():
            pass

    async def close(self) -> None:
        """Keep what is left, report it if the server takes it soon, and stop."""
        await self._write()
        with suppress(errors.Error, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.flush()
        await self._do(self._spool.close)
        self._thread.shutdown()

    async def _keep(self) -> None:
        while True:
            await self._due()
            await self._clock.sleep(PERIOD)
            await self._write()

    async def _due(self) -> None:
        """Wait for something to write, or for the time to look at a disk that failed."""
        waits: list[asyncio.Task[object]] = [asyncio.create_task(self._fresh.wait())]
        if self.status.problem:
            waits.append(asyncio.create_task(self._look()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _look(self) -> None:
        await self._clock.sleep(_LOOK_SECONDS)

    async def _write(self) -> None:
        self._fresh.clear()
        decisions = self._rollup.take(self._clock.now(), everything=True)
        rows: list[Row] = [*self._losses.values(), *decisions]
        self._losses.clear()
        if self._rollup.lost:
            now = self._clock.now()
            rows.append(Lost(time=now, until=now, count=self._rollup.lost, cause=LostReason.SPOOL_FULL))
            self._spool.took(-self._rollup.lost)  # they come as a loss now
            self._rollup.lost = 0
        if await self._do(lambda: self._append(rows)):
            self._fresh.set()  # to be made durable within the second
        if rows:
            self._kept.set()

    def _append(self, rows: list[Row]) -> bool:
        self._spool.append(rows)
        return self._spool.sync()

    async def _deliver(self) -> None:
        backoff = Backoff(self._jitter, first=PERIOD)
        while True:
            try:
                self._kept.clear()
                while await self._deliver_one():
                    backoff.reset()
                await self._kept.wait()
            except errors.Error as error:
                _log.warning("agent.decisions.waiting", error=str(error), waiting=self.status.waiting, lost=self.lost)
                await self._clock.sleep(backoff.delay())

    async def _deliver_one(self) -> bool:
        batch = await self._do(self._spool.batch)
        if batch is None:
            return False
        try:
            held = await self._server.report(batch.spool, batch.sequence, batch.rows)
        except errors.InvalidInput as error:
            # It would be refused for ever, and hold up all that comes after it.
            _log.error("agent.decisions.refused", error=str(error), frames=batch.frames, calls=batch.calls)
            await self._do(lambda: self._spool.refused(batch))
            self._fresh.set()
            return True
        except BaseException:
            await self._do(self._spool.failed)
            raise
        if held < batch.sequence:
            await self._do(self._spool.failed)
            raise errors.Unavailable("the server did not take the decisions that it was told of")
        await self._do(lambda: self._spool.delivered(batch, held))
        self.reported += batch.calls
        return True

    async def _do(self, operation: Callable[[], T]) -> T:
        """Use the spool in its thread, and learn how it stands."""

        def work() -> tuple[T, SpoolStatus]:
            return operation(), self._spool.status()

        result, status = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        if bool(status.problem) != bool(self.status.problem):
            _log.warning("agent.spool.disk", problem=status.problem or "none any more")
        self.status = status
        if status.records != self._records:
            self._records = status.records
            self._on_recording(status.records)
        return result
