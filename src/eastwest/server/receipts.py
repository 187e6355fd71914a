"""``eastwest.log.v1.Log``: receipts for entries of the log, to those whom the entries concern.

What has just been recorded is in no checkpoint yet, and its index entry comes a moment after that: a caller waits for
both, woken by them, and never causes a checkpoint of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec

from eastwest.api.eastwest.log.v1 import log_pb2 as pb
from eastwest.errors import Error, InvalidInput, NotFound, PermissionDenied
from eastwest.log.index import LogQuery
from eastwest.log.ports import Pruned
from eastwest.rpc.service import Call, Service
from eastwest.server.gate import Gate
from eastwest.server.journal import Journal
from eastwest.spiffe.id import SpiffeId
from eastwest.store.log import SqliteLog
from eastwest.store.log_index import SqliteLogIndex

WAIT_SECONDS = 2.0
"""How long an entry that is not there yet is waited for."""
AT_ONCE = 8
"""Proofs that are made at a time; others wait their turn."""
MAX_CERTIFICATES = 100
MAX_REQUEST = 4096
CANDIDATES = 16
"""Entries that are looked at for one question: an index knows values by 31 bits, which others may share."""
MAX_INDEX = 1 << 62
_SERVICE = pb.DESCRIPTOR.services_by_name["Log"]


class _Owners(msgspec.Struct, frozen=True):
    """Whom an entry concerns, and of which certificate it tells."""

    node: str = ""
    actor: str = ""
    certificate_sha256: str = ""


class Receipts:
    """Finds entries and proves them. ``wake`` must be called with each checkpoint and whenever the index has grown."""

    def __init__(self, log: SqliteLog, index: Path, journal: Journal) -> None:
        self._log = log
        self._journal = journal
        self._index_path = index
        self._index: SqliteLogIndex | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="receipts")
        self._news = asyncio.Event()
        self._slots = asyncio.Semaphore(AT_ONCE)

    def wake(self) -> None:
        """There is more to be found or proven than before."""
        self._news.set()
        self._news = asyncio.Event()

    def close(self) -> None:
        """Let go of the index."""
        if self._index is not None:
            self._thread.submit(self._index.close)
        self._thread.shutdown()

    def service(self, gate: Gate) -> Service:
        """The gRPC service behind one gate."""

        async def prove(request: pb.ProveRequest, call: Call) -> pb.ProveResponse:
            index, entry, proof = await self._find(request, await _agent(gate, call))
            return pb.ProveResponse(index=index, entry=entry, proof=proof)

        async def prove_many(request: pb.ProveCertificatesRequest, call: Call) -> pb.ProveCertificatesResponse:
            agent = await _agent(gate, call)
            if len(request.certificate_sha256) > MAX_CERTIFICATES or any(
                len(h) != 32 for h in request.certificate_sha256
            ):
                raise InvalidInput(f"give at most {MAX_CERTIFICATES} hashes of 32 bytes")
            found = await self._find_many([one.hex() for one in request.certificate_sha256], agent)
            return pb.ProveCertificatesResponse(receipts=found)

        async def record(request: pb.RecordEvidenceRequest, call: Call) -> pb.ProveResponse:
            actor = (await gate.administrator(call)).name
            if len(request.manifest_sha256) != 32:
                raise InvalidInput("manifest_sha256 has 32 bytes")
            about, sha256 = str(SpiffeId.parse(request.principal)), request.manifest_sha256.hex()
            index = await self._journal.record("evidence.collected", actor=actor, subject=about, manifest_sha256=sha256)
            _, entry, proof = await self._find(pb.ProveRequest(index=index), "")
            return pb.ProveResponse(index=index, entry=entry, proof=proof)

        return Service(
            _SERVICE,
            {"Prove": prove, "ProveCertificates": prove_many, "RecordEvidence": record},
            guard=gate.enter,
            limit=MAX_REQUEST,
        )

    async def _find(self, request: pb.ProveRequest, agent: str) -> tuple[int, bytes, str]:
        wanted = request.WhichOneof("entry")
        if wanted is None:
            raise InvalidInput("it is not said which entry", fix="give its index, certificate_sha256 or serial")
        if wanted == "index":
            if request.index >= MAX_INDEX:
                raise InvalidInput("no log has so many entries")

            async def look() -> tuple[int, bytes]:
                return int(request.index), await self._log.entry(request.index)

        else:
            query = _query(request, wanted)

            async def look() -> tuple[int, bytes]:
                for index in await asyncio.get_running_loop().run_in_executor(self._thread, self._search, query):
                    with suppress(Pruned):
                        entry = await self._log.entry(index)
                        if query.matches(entry):
                            return index, entry
                raise NotFound("the log has no such entry, or not yet")

        return await self._once_there(look, agent)

    async def _once_there(self, look: Callable[[], Awaitable[tuple[int, bytes]]], agent: str) -> tuple[int, bytes, str]:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    # Taken before looking: what comes while we look wakes us all the same.
                    news = self._news
                    # A slot is for work: who waits for what may never come takes none from others.
                    with suppress(NotFound):
                        async with self._slots:
                            index, entry = await look()
                            if agent and not _concerns(entry, agent):
                                raise _Foreign
                            return index, entry, await self._log.prove(index)
                    await news.wait()
        except (TimeoutError, _Foreign):
            raise NotFound(
                "no published checkpoint covers such an entry of this caller's",
                fix="ask again in a moment if it was only just recorded",
            ) from None

    async def _find_many(self, hashes: Sequence[str], agent: str) -> list[pb.ProveResponse]:
        """As ``_once_there``, but what is not there in time is left empty."""
        found: dict[str, list[int]] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    news = self._news
                    lacking = [one for one in hashes if one not in found]
                    async with self._slots:
                        loop = asyncio.get_running_loop()
                        found |= await loop.run_in_executor(self._thread, self._search_all, lacking)
                    if all(one in found for one in hashes):
                        break
                    await news.wait()
        # An entry that the index has is covered by a checkpoint: it is made from the published files.
        async with self._slots:
            entries = await self._entries(sorted({index for those in found.values() for index in those}))
            chosen = {
                one: index
                for one, those in found.items()
                for index in reversed(those)  # the newest stays
                if index in entries and _concerns(entries[index], agent, one)
            }
            mine = sorted(set(chosen.values()))
            proofs = dict(zip(mine, await self._log.prove_all(mine), strict=True)) if mine else {}
        return [
            pb.ProveResponse(index=index, entry=entries[index], proof=proofs[index])
            if (index := chosen.get(one, -1)) in proofs
            else pb.ProveResponse()
            for one in hashes
        ]

    async def _entries(self, indices: Sequence[int]) -> dict[int, bytes]:
        """Entries by index, without those that are pruned."""
        entries: dict[int, bytes] = {}
        for start, end in _runs(indices):
            try:
                entries |= enumerate(await self._log.entries(start, end), start)
            except Pruned:
                for index in range(start, end):
                    with suppress(NotFound):
                        entries[index] = await self._log.entry(index)
        return entries

    def _search_all(self, hashes: Sequence[str]) -> dict[str, list[int]]:
        queries = {one: LogQuery(certificate_sha256=one, limit=CANDIDATES, newest_first=True) for one in hashes}
        return {one: found for one, query in queries.items() if (found := self._search(query))}

    def _search(self, query: LogQuery) -> list[int]:
        """What may be it, the newest first; none where there is no index yet."""
        if self._index is None:
            try:
                self._index = SqliteLogIndex.open(self._index_path, readonly=True)
            except NotFound:
                return []
        try:
            return self._index.search(query)
        except Error:
            # Made anew under our feet.
            self._index.close()
            self._index = None
            raise


class _Foreign(Exception):
    """The entry is another's."""


def _query(request: pb.ProveRequest, wanted: str) -> LogQuery:
    if wanted == "serial":
        if not request.serial or not set(request.serial) <= set("0123456789abcdef"):
            raise InvalidInput("a serial is written in lower-case hex")
        return LogQuery(serial=request.serial, limit=CANDIDATES, newest_first=True).normal()
    if len(request.certificate_sha256) != 32:
        raise InvalidInput("certificate_sha256 has 32 bytes")
    return LogQuery(certificate_sha256=request.certificate_sha256.hex(), limit=CANDIDATES, newest_first=True)


async def _agent(gate: Gate, call: Call) -> str:
    """The calling agent, or "" for an administrator, who may see every entry."""
    try:
        return str((await gate.agent(call)).id)
    except PermissionDenied:
        await gate.administrator(call)
        return ""


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbours among sorted indices as ranges."""
    start = previous = -1
    for index in indices:
        if index != previous + 1 or start < 0:
            if start >= 0:
                yield start, previous + 1
            start = index
        previous = index
    if start >= 0:
        yield start, previous + 1


def _concerns(entry: bytes, agent: str, certificate: str = "") -> bool:
    """Whether an entry is the agent's ("": anybody's), and tells of that certificate where one is given."""
    try:
        owners = msgspec.json.decode(entry, type=_Owners)
    except msgspec.MsgspecError:
        return False
    return agent in ("", owners.node, owners.actor) and certificate in ("", owners.certificate_sha256)
