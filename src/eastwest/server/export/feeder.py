"""One sink's feeder: reads the ledger in order, delivers, and notes how far it came.

At least once: the note is written after the delivery, so that a crash in between delivers again. A sink that is away
or refuses holds up nothing but itself; what retention removes meanwhile is counted as missed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import structlog

from eastwest import __version__
from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.errors import Corrupt, Error, InvalidInput, Unavailable
from eastwest.ledger.export.ports import Row, Sink, SinkContext
from eastwest.ledger.query import DecisionQuery
from eastwest.process.files import replace_file
from eastwest.process.plugins import LEDGER_SINKS, load_plugin
from eastwest.server.config import ServerConfig
from eastwest.server.telemetry import Metrics

BATCH = 1000
PERIOD = 1.0
"""Seconds between two looks at a ledger with nothing new."""
MAX_WAIT = 60.0
"""Seconds between two tries at a sink that does not take rows."""
_PROBES = 16  # rows that a sink must refuse one by one before it counts as refusing all
_log = structlog.get_logger()


class Rows(Protocol):
    """The part of a ledger that is read; row numbers mean something within one ``identity`` only."""

    identity: str

    async def search(self, query: DecisionQuery) -> Sequence[Row]:
        """Rows after a row number, oldest first."""
        ...


class Progress:
    """The number of the last row that a sink has, in a file of its own."""

    def __init__(self, path: Path, ledger: str) -> None:
        """``ledger``: the identity of the ledger whose row numbers these are."""
        self._path = path
        self._ledger = ledger

    def read(self) -> int:
        """0 where nothing of this ledger was delivered yet; raises ``Corrupt`` for a file that says nothing."""
        try:
            told = json.loads(self._path.read_bytes())
            return int(told["row"]) if told["ledger"] == self._ledger else 0
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Corrupt(
                "how far the export came cannot be read",
                where=str(self._path),
                fix="remove it: then all that the ledger still has is delivered again",
            ) from error

    def write(self, row: int) -> None:
        """Durable when this returns."""
        replace_file(self._path, json.dumps({"ledger": self._ledger, "row": row}).encode() + b"\n", 0o600)


class Feeder:
    """Feeds one sink for as long as it runs."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        ledger: Rows,
        progress: Progress,
        clock: Clock,
        metrics: Metrics,
        jitter: random.Random,
    ) -> None:
        self.name = name
        self.problem = ""
        self._sink = sink
        self._ledger = ledger
        self._progress = progress
        self._clock = clock
        self._metrics = metrics
        self._jitter = jitter
        self._row = progress.read()

    async def run(self) -> None:
        """Deliver what there is and what comes, for ever."""
        wait = PERIOD
        while True:
            try:
                found = await self.step()
            except Error as error:
                self._failed(error)
                wait = min(MAX_WAIT, wait * 2)
                await self._clock.sleep(wait * self._jitter.uniform(0.5, 1.0))
                continue
            wait, self.problem = PERIOD, ""
            self._metrics.export_failing.labels(self.name).set(0)
            if not found:
                await self._clock.sleep(PERIOD)

    async def step(self) -> int:
        """Deliver the next batch, if there is one; gives its rows. Raises what ledger or sink raise."""
        rows = await self._ledger.search(DecisionQuery(after=self._row, limit=BATCH))
        if not rows:
            return 0
        missed = max(0, int(rows[0]["row"]) - self._row - 1) if self._row else 0
        refused = await self._hand_over(rows)
        missed += refused
        self._row = int(rows[-1]["row"])
        self._progress.write(self._row)
        self._metrics.export_rows.labels(self.name).inc(len(rows) - refused)
        if missed:
            self._metrics.export_missed.labels(self.name).inc(missed)
            _log.error("export.missed", sink=self.name, rows=missed)
        return len(rows)

    async def _hand_over(self, rows: Sequence[Row]) -> int:
        """Deliver all rows but those that the sink refuses for good while it takes others; gives how many these are.

        So that no single row, which somebody may have made for that, ends an export.
        """
        try:
            await self._deliver(rows)
        except InvalidInput:
            if len(rows) == 1:
                raise
        else:
            return 0
        refused = taken = 0
        problem: InvalidInput | None = None
        waiting = [rows[len(rows) // 2 :], rows[: len(rows) // 2]]
        while waiting:
            part = waiting.pop()
            try:
                await self._deliver(part)
            except InvalidInput as error:
                problem = error
                if len(part) > 1:
                    waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
                    continue
                refused += 1
                if not taken and refused >= _PROBES:
                    raise  # it is not the rows
            else:
                taken += len(part)
        if problem is not None and not taken:
            raise problem
        return refused

    async def _deliver(self, rows: Sequence[Row]) -> None:
        try:
            await self._sink.deliver(rows)
        except Error:
            raise
        except (ValueError, OverflowError, KeyError, TypeError) as error:
            # The sink's own form has no place for such a row.
            raise InvalidInput(f"a row has no form there ({type(error).__name__})") from error
        except Exception as error:
            raise Unavailable(f"cannot be delivered ({type(error).__name__})") from error

    async def close(self) -> None:
        """Let the sink go."""
        await self._sink.close()

    def _failed(self, error: Error) -> None:
        if self.problem != error.message:
            _log.warning("export.waiting", sink=self.name, error=str(error), row=self._row)
        self.problem = error.message
        self._metrics.export_failing.labels(self.name).set(1)


def open_feeders(config: ServerConfig, ledger: Rows, clock: Clock, entropy: Entropy, metrics: Metrics) -> list[Feeder]:
    """A feeder for each table of ``[export]``; raises what a sink's options raise, naming the table."""
    if not config.file.export:
        return []
    jitter = random.Random(int.from_bytes(entropy.token_bytes(8)))  # noqa: S311 - spreads retries, protects nothing
    feeders = []
    for name, table in config.file.export.items():
        context = SinkContext(config.trust_domain.name, __version__, ledger.identity, clock)
        sink = load_plugin(LEDGER_SINKS, name, table, context, f"{config.paths.config}: export.{name}")
        progress = Progress(config.paths.export_progress(name), ledger.identity)
        feeders.append(Feeder(name, sink, ledger, progress, clock, metrics, jitter))
    return feeders


def failing_exports(feeders: Sequence[Feeder]) -> list[str]:
    """What ``/ready`` tells: sinks that do not take rows."""
    return [f"decisions are not exported to {feeder.name}: {feeder.problem}" for feeder in feeders if feeder.problem]
