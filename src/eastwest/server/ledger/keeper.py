"""The ledger as the rest of the server sees it: rows in, answers out, segments sealed beside.

    reports → store/ledger.py (hot rows, SQLite) → worker (Parquet) → log entry → hot rows deleted
    questions → hot rows alone where that is the whole answer, else another worker (DuckDB)

Two workers, since a long question must not hold up sealing. Neither is there while nobody needs it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from eastwest.clock import Clock
from eastwest.errors import Exhausted, Unavailable
from eastwest.ledger.query import DecisionQuery, dimension
from eastwest.ledger.record import Row
from eastwest.log.ports import LogStore
from eastwest.process.files import make_private
from eastwest.server.config import LedgerSettings
from eastwest.server.journal import Journal
from eastwest.server.ledger.sealing import Sealer
from eastwest.server.ledger.worker import LedgerWorker
from eastwest.store.database import Database
from eastwest.store.ledger import SealedSegment, SqliteLedger
from eastwest.store.ledger_worker import Question

CHUNK = 256 * 1024
EXPORTS_AT_ONCE = 2
SEALING_MEMORY_MB = 256
QUERY_THREADS = 2

_log = structlog.get_logger()


class Ledger:
    """Serves ``eastwest.ledger.query.LedgerStore``; made by ``open``, usable from one event loop."""

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        trust_domain: str,
        settings: LedgerSettings,
        max_rows: int,
        log: LogStore,
        journal: Journal,
        clock: Clock,
        old: Database | None = None,
    ) -> Ledger:
        """Open or create the ledger; ``old``: the database in which a release before kept the rows."""
        make_private(directory)
        scratch = directory / "tmp"
        # What a killed server left behind; a worker of its own that still writes there fails, which harms nothing.
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        make_private(scratch)
        store = await SqliteLedger.open(directory, trust_domain=trust_domain, clock=clock, max_rows=max_rows)
        try:
            if old is not None and (brought := await store.take_over(old)):
                _log.info("ledger.taken_over", rows=brought)
        except BaseException:
            await store.close()
            raise
        ledger = cls(directory, store, settings, max_rows, log, journal, clock, f"spiffe://{trust_domain}/spire/server")
        try:
            if adopted := await ledger.sealer.adopt():
                _log.warning("ledger.segments_adopted", segments=adopted)
        except BaseException:
            await ledger.close()
            raise
        return ledger

    def __init__(
        self,
        directory: Path,
        store: SqliteLedger,
        settings: LedgerSettings,
        max_rows: int,
        log: LogStore,
        journal: Journal,
        clock: Clock,
        actor: str,
    ) -> None:
        self._directory = directory
        self._store = store
        self._settings = settings
        self._clock = clock
        self._sealing = LedgerWorker(directory, memory_mb=SEALING_MEMORY_MB, threads=1)
        self._questions = LedgerWorker(directory, memory_mb=settings.query_mib, threads=QUERY_THREADS)
        self.sealer = Sealer(directory, store, self._sealing, settings, log, journal, clock, actor)
        self._seal_rows = min(settings.seal_rows, max(max_rows // 2, 1))
        self._since = 0
        self._exports = 0
        self._enough = asyncio.Event()
        self._turn = asyncio.Lock()
        self.problem = ""
        self.identity = store.identity

    async def close(self) -> None:
        """End the workers and close the hot rows."""
        await self._sealing.close()
        await self._questions.close()
        await self._store.close()

    async def add(self, agent: str, spool: str, sequence: int, rows: Sequence[Row]) -> int:
        """Store a report once; see ``SqliteLedger.add``."""
        held = await self._store.add(agent, spool, sequence, rows)
        self._since += len(rows)
        if self._since >= self._seal_rows:
            self._enough.set()
        return held

    async def search(self, query: DecisionQuery) -> list[dict[str, Any]]:
        query = query.checked()
        rows, whole = await self._store.look(query)
        if whole:
            return rows
        return (await self._questions.ask(Question("search", query))).rows

    async def query(self, query: DecisionQuery) -> list[dict[str, Any]]:
        """As ``search``."""
        return await self.search(query)

    async def top(self, query: DecisionQuery, by: str) -> list[dict[str, Any]]:
        dimension(by)
        return (await self._questions.ask(Question("top", query.checked(), by=by))).rows

    async def edges(self, query: DecisionQuery) -> list[dict[str, Any]]:
        return (await self._questions.ask(Question("edges", query.checked()))).rows

    async def callers(self, query: DecisionQuery) -> list[dict[str, Any]]:
        """Who called and with what answer; see ``eastwest.store.ledger_callers``."""
        return (await self._questions.ask(Question("callers", query.checked()))).rows

    async def export(self, query: DecisionQuery, form: str) -> AsyncGenerator[bytes, None]:
        """Matching rows, ``limit`` apart, as a file of one of the reader's formats, in pieces.

        Raises ``Exhausted`` while others are under way: each is a file on the disk that the log writes to as well, and
        is there for as long as its reader takes.
        """
        if self._exports >= EXPORTS_AT_ONCE:
            raise Exhausted(f"{EXPORTS_AT_ONCE} exports are under way", fix="try again when one of them has ended")
        self._exports += 1
        try:
            async with aclosing(self._export(query, form)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._exports -= 1

    async def _export(self, query: DecisionQuery, form: str) -> AsyncGenerator[bytes, None]:
        place = Path(tempfile.mkdtemp(prefix="export-", dir=self._directory / "tmp"))
        try:
            path = place / "rows"
            await self._questions.ask(Question("export", query.checked(), form=form, path=str(path)))
            with path.open("rb") as file:
                while piece := await asyncio.to_thread(file.read, CHUNK):
                    yield piece
        finally:
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)

    async def segments(self, start: datetime | None = None, end: datetime | None = None) -> list[SealedSegment]:
        """Sealed segments that may have rows of the window, in order, each with the index of its log entry."""
        return await self._store.segments(start, end)

    async def kept_since(self) -> datetime | None:
        """Since when nothing was pruned; see ``SqliteLedger.kept_since``."""
        return await self._store.kept_since()

    async def lost(self) -> int:
        """How many decisions were ever confessed lost."""
        return await self._store.lost()

    async def waiting(self) -> int:
        """How many rows are not sealed yet."""
        return await self._store.waiting()

    async def run(self) -> None:
        """Seal after each interval, or as soon as enough rows are there, and prune; until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.seal_interval):
                    await self._enough.wait()
            self._enough.clear()
            self._since = 0
            try:
                async with self._turn:
                    await self.sealer.prune()  # first: it may make the room that sealing needs
                    await self.sealer.seal(self._seal_rows)
                self.problem = ""
            except Exception as error:  # noqa: BLE001 - whatever a disk does, it is told and tried again
                self.problem = f"decisions cannot be sealed: {error}"
                _log.error("ledger.sealing_failed", error=str(error))
                with suppress(Unavailable):
                    await self._clock.sleep(1.0)

    async def seal_now(self) -> None:
        """Seal all that has been reported, whatever the interval: evidence is wanted of it."""
        async with self._turn:
            await self.sealer.seal(self._seal_rows)

    def warnings(self) -> list[str]:
        """What people should see to."""
        return [self.problem] if self.problem else []
