"""Sealing: rows become a segment, its hash an entry of the log, and only then do the rows go.

    planned    which rows, and the file's name          → a crash: the file is written again
    written    the file is durable under its name       → a crash: the log is asked whether it has the entry
    sealed     the entry is durable; the rows are gone, in one transaction with this word

A segment is pruned the other way round: first the entry that says so, then the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import msgspec

from eastwest.clock import Clock
from eastwest.errors import Corrupt
from eastwest.ledger.segment import PRUNED, SEALED, PrunedRecord, SegmentRecord, rows_of
from eastwest.log.entry import decode
from eastwest.log.ports import LogStore, Pruned
from eastwest.log.tiles import TILE_WIDTH
from eastwest.server.config import LedgerSettings
from eastwest.server.journal import Journal
from eastwest.server.ledger.worker import LedgerWorker
from eastwest.store.ledger import SealedSegment, Segment, SqliteLedger
from eastwest.store.ledger_worker import Question, file_hash

SCAN = 1024
"""Log entries that are looked at at a time."""


class Sealer:
    """Seals and prunes the segments of one ledger, one at a time."""

    def __init__(
        self,
        directory: Path,
        store: SqliteLedger,
        worker: LedgerWorker,
        settings: LedgerSettings,
        log: LogStore,
        journal: Journal,
        clock: Clock,
        actor: str,
    ) -> None:
        self._actor = actor
        self._directory = directory
        self._store = store
        self._worker = worker
        self._settings = settings
        self._log = log
        self._journal = journal
        self._clock = clock

    async def seal(self, rows: int) -> list[SegmentRecord]:
        """Seal all that waits, in segments of at most so many rows, and finish what a crash interrupted."""
        done = []
        while (segment := await self._store.plan(self._clock.now(), rows)) is not None:
            done.append(await self._finish(segment))
        return done

    async def _finish(self, segment: Segment) -> SegmentRecord:
        record, index = segment.record, None
        if segment.state == "written" and record is not None:
            # Written before, so the log may have it, even if nobody heard.
            index = await self._logged(segment)
            if not self._is_there(record):
                if index is not None:
                    raise Corrupt(
                        f"{record.segment} is not the file that was sealed",
                        fix="see docs/how-to/ask-the-ledger.md: its rows are still in hot.db",
                    )
                await self._store.again(segment)
                record = None
        else:
            record = None
        if record is None:
            previous = await self._store.previous()
            question = Question("write", path=segment.path, first=segment.first, last=segment.last, previous=previous)
            answer = await self._worker.ask(question)
            assert answer.record is not None
            record = answer.record
            await self._store.written(segment, record, answer.times, self._log.size)
        if index is None:
            index = await self._journal.record(
                SEALED, actor=self._actor, subject=record.segment, **msgspec.structs.asdict(record)
            )
        await self._store.sealed(segment, record, index)
        return record

    async def adopt(self) -> int:
        """Segments on disk that the hot database does not know, because it is an older copy or was lost: known again.

        Only those that the log has, and whose files are the ones it means. Gives how many.
        """
        known = await self._store.paths()
        files = [str(path.relative_to(self._directory)) for path in self._directory.glob("dt=*/hour=*/*.parquet")]
        unknown = {name for name in files if name not in known and rows_of(name)}
        if not unknown:
            return 0
        found: dict[str, SealedSegment] = {}
        async for index, raw in self._entries(0):
            if SEALED.encode() in raw and (entry := decode(raw)).kind == SEALED:
                record = msgspec.convert(dict(entry.body), SegmentRecord)
                found[record.segment] = SealedSegment(record, index)
        adopted = [
            each
            for name, each in found.items()
            if name in unknown and await asyncio.to_thread(self._is_there, each.record)
        ]
        last = max(rows[1] for name in files if (rows := rows_of(name)))
        await self._store.adopt(adopted, list(found.values()), last)
        return len(adopted)

    async def prune(self) -> list[PrunedRecord]:
        """Delete segments beyond ``keep_days`` and ``keep_mib``, the oldest first, each after its entry in the log."""
        days, pruned = self._settings.keep_days, []
        before = self._clock.now() - timedelta(days=days) if days else None
        for each, reason in await self._store.due(before, self._settings.keep_mib << 20):
            record = PrunedRecord(
                segment=each.segment,
                sha256=each.sha256,
                rows=each.rows,
                decisions=each.decisions,
                last_time=each.last_time,
                reason=reason,
            )
            await self._journal.record(
                PRUNED, actor=self._actor, subject=record.segment, **msgspec.structs.asdict(record)
            )
            await self._store.pruned(each)
            pruned.append(record)
        if gone := await self._store.leftovers():
            await asyncio.to_thread(self._delete, gone)
            await self._store.forget(gone)
        return pruned

    def _delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            file = self._directory / path
            file.unlink(missing_ok=True)
            for parent in (file.parent, file.parent.parent):
                with suppress(OSError):  # not empty, or gone already
                    parent.rmdir()

    async def _logged(self, segment: Segment) -> int | None:
        """The index of the segment's entry, if the log has it."""
        async for index, raw in self._entries(segment.log_from):
            if SEALED.encode() in raw and segment.path.encode() in raw:
                entry = decode(raw)
                if entry.kind == SEALED and entry.body.get("segment") == segment.path:
                    return index
        return None

    async def _entries(self, start: int) -> AsyncIterator[tuple[int, bytes]]:
        """The log's entries from an index on; what its retention has removed is passed over."""
        while True:
            try:
                entries = await self._log.entries(start, start + SCAN - start % SCAN)
            except Pruned:
                # Whole bundles are pruned, the oldest first.
                start += TILE_WIDTH - start % TILE_WIDTH
                continue
            if not entries:
                return
            for index, raw in enumerate(entries, start):
                yield index, raw
            start += len(entries)

    def _is_there(self, record: SegmentRecord) -> bool:
        try:
            return file_hash(self._directory / record.segment) == (record.sha256, record.bytes)
        except OSError:
            return False
