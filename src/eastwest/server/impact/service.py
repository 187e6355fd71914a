"""Impact reports and suggestions over the admin API, each within what the asking administrator may see."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from eastwest.api.eastwest.impact.v1 import impact_pb2 as pb
from eastwest.errors import Exhausted, FailedPrecondition, InvalidInput
from eastwest.ledger.impact import breaks
from eastwest.ledger.query import DecisionQuery
from eastwest.policy.rollout import Break
from eastwest.rpc.service import Call, Service
from eastwest.server.estate import MAX_BYTES, MAX_FILES, EstateKeeper
from eastwest.server.gate import Gate
from eastwest.server.impact.process import Tell, run_job
from eastwest.server.ledger.service import read_query, scope_of
from eastwest.store.ledger_replay import Job, Progress

PIECE = 256 * 1024
MAX_WAITING = 4
"""Jobs at a time, one of which is worked on."""
_SERVICE = pb.DESCRIPTOR.services_by_name["Impact"]


class Impacts:
    """Replays windows of the ledger, one at a time."""

    def __init__(self, estate: EstateKeeper, ledger: Path, database: Path, *, memory_mb: int) -> None:
        """``ledger``: its directory; ``database``: where versions of the estate are kept."""
        self._estate = estate
        self._ledger = ledger
        self._database = database
        self._memory_mb = memory_mb
        self._turn = asyncio.Lock()
        self._jobs = 0

    async def impact(
        self, files: Mapping[str, bytes], query: DecisionQuery | None = None, tell: Tell = lambda _: None
    ) -> dict[str, Any]:
        """The report on a candidate, against the estate in force (``eastwest.ledger.impact``).

        ``query``: which rows; None: all that there are. Raises ``EstateInvalid`` where the candidate is none.
        """
        report: dict[str, Any] = msgspec.json.decode(await self.report("impact", files, query, tell))
        return report

    async def breaks(self, files: Mapping[str, bytes]) -> tuple[tuple[Break, ...], str]:
        """The recorded calls that a candidate would newly refuse, each once, and the hash of the report."""
        report = await self.impact(files)
        return tuple(sorted(breaks(report))), report["hash"]

    async def report(
        self, task: str, files: Mapping[str, bytes], query: DecisionQuery | None, tell: Tell = lambda _: None
    ) -> bytes:
        """``impact`` of a candidate, or with ``suggest`` what calls need at least (``files`` say nothing): JSON."""
        if len(files) > MAX_FILES or sum(map(len, files.values())) > MAX_BYTES:
            raise InvalidInput(f"an estate has at most {MAX_FILES} files and {MAX_BYTES} bytes")
        if task == "impact" and not files:
            raise InvalidInput("there is no candidate", fix="send an estate's files")
        applied = self._estate.applied
        if applied is None:
            raise FailedPrecondition("no estate is in force to compare with", fix="eastwest apply DIR --data DATA")
        if self._jobs >= MAX_WAITING:
            raise Exhausted(f"{MAX_WAITING} replays are under way or wait", fix="try again when one of them has ended")
        newest = self._estate.tables.newest
        job = Job(
            task=task,
            directory=str(self._ledger),
            query=(query or DecisionQuery()).checked(),
            files=dict(files),
            before=applied.files,
            registered=newest.registered if newest is not None else (),
            database=str(self._database),
            memory_mb=self._memory_mb,
        )
        self._jobs += 1
        try:
            async with self._turn:
                return await run_job(job, tell)
        finally:
            self._jobs -= 1


class ImpactService:
    """``eastwest.impact.v1.Impact``."""

    def __init__(self, impacts: Impacts, estate: EstateKeeper, gate: Gate) -> None:
        self._impacts = impacts
        self._estate = estate
        self._gate = gate

    def service(self) -> Service:
        """To be added to a listener."""
        return Service(_SERVICE, {"Replay": self._replay, "Suggest": self._suggest})

    async def _replay(self, request: pb.ReplayRequest, call: Call) -> None:
        await self._answer("impact", dict(request.files), request.query, call)

    async def _suggest(self, request: pb.SuggestRequest, call: Call) -> None:
        await self._answer("suggest", {}, request.query, call)

    async def _answer(self, task: str, files: Mapping[str, bytes], query: bytes, call: Call) -> None:
        administrator = await self._gate.administrator(call)
        asked = msgspec.structs.replace(read_query(query), scope=scope_of(administrator, self._estate.intended))
        news: asyncio.Queue[Progress | None] = asyncio.Queue()
        work = asyncio.ensure_future(self._impacts.report(task, files, asked, news.put_nowait))
        work.add_done_callback(lambda _: news.put_nowait(None))
        try:
            while (progress := await news.get()) is not None:
                await call.send(pb.Reply(phase=progress.phase, done=progress.done, total=progress.total))
            report = await work
        finally:
            work.cancel()  # who asked has gone
        for start in range(0, len(report), PIECE):
            await call.send(pb.Reply(piece=report[start : start + PIECE]))
