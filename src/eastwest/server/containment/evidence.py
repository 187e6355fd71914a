"""What is kept of who is cut off: two files of the server's data directory, whose SHA-256 stand in the log.

The snapshot says who it is, where it runs and who is told. It is made of what is in memory, before anything changes,
and its hash is in the entry that begins the containment. The past says whom it called and which certificates of it
live. It is asked of the ledger and the log once the deny is on its way, which waits for neither, nor for a disk.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.ledger.query import DecisionQuery
from eastwest.log.index import LogQuery
from eastwest.policy.estate import Estate
from eastwest.process.files import make_private, replace_file
from eastwest.registry.listing import EntryFilter
from eastwest.registry.registry import Registry
from eastwest.server.ledger.keeper import Ledger
from eastwest.spiffe.id import SpiffeId
from eastwest.store.log import SqliteLog
from eastwest.store.log_index import SqliteLogIndex

SECONDS = 60.0
"""For the ledger and the log together; what has not come by then is left out, and the file says so."""
RECENT = timedelta(hours=24)
MAX_EDGES = 200
MAX_CERTIFICATES = 100
MAX_DETAILED = 20
"""Identities of which the ledger and the log are asked; of others stands who they are."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A file that is to be kept: its name, and what is in it."""

    name: str
    content: bytes
    sha256: str  # hex

    @classmethod
    def of(cls, name: str, document: Mapping[str, Any]) -> Taken:
        """Of what is to be in it."""
        content = msgspec.json.format(msgspec.json.encode(document, order="deterministic"))
        return cls(name, content, hashlib.sha256(content).hexdigest())


class Evidence:
    """Collects and keeps evidence below ``directory``. ``points`` tells which enforcement points are to be told."""

    def __init__(
        self,
        directory: Path,
        registry: Registry,
        estate: Callable[[], Estate | None],
        ledger: Ledger,
        log: SqliteLog,
        log_index: Path,
        points: Callable[[], Sequence[dict[str, Any]]],
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._registry = registry
        self._estate = estate
        self._ledger = ledger
        self._log = log
        self._log_index = log_index
        self._points = points
        self._clock = clock
        self._late: set[asyncio.Task[Any]] = set()

    def take(self, containment_id: str, spiffe_ids: Sequence[str]) -> Taken:
        """The snapshot of these as they are now."""
        document = {
            "containment": containment_id,
            "taken_at": self._clock.now(),
            "identities": [self._who(name) for name in spiffe_ids],
            "points": list(self._points()),
        }
        return Taken.of(f"{containment_id}.json", document)

    async def look_back(self, containment_id: str, spiffe_ids: Sequence[str], until: datetime) -> Taken:
        """Their past up to ``until``, when they were cut off."""
        detailed = spiffe_ids[:MAX_DETAILED]
        edges, certificates = await asyncio.gather(
            self._in_time(lambda: self._edges(detailed, until)), self._in_time(lambda: self._certificates(detailed))
        )
        asked = {"calls_last_24h": edges, "certificates_live": certificates}
        left_out = sorted(name for name, found in asked.items() if found is None)
        document = {"containment": containment_id, "until": until, **asked, "left_out": left_out}
        return Taken.of(f"{containment_id}-past.json", document)

    async def keep(self, taken: Taken) -> None:
        """Write it to the disk. Raises ``OSError``."""
        await asyncio.to_thread(self._write, taken)

    def _write(self, taken: Taken) -> None:
        make_private(self._directory)
        replace_file(self._directory / taken.name, taken.content)

    async def _in_time(
        self, work: Callable[[], Coroutine[Any, Any, list[dict[str, Any]]]]
    ) -> list[dict[str, Any]] | None:
        """What the work finds, or None where it is not done in time; its end, then, is nobody's to wait for."""
        task = asyncio.create_task(work())
        done, _ = await asyncio.wait({task}, timeout=SECONDS)
        if not done:
            self._late.add(task)
            task.add_done_callback(self._forget)
            task.cancel()
            return None
        return None if isinstance(task.exception(), Error | OSError) else task.result()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, so that nobody is told of it

    def _who(self, name: str) -> dict[str, Any]:
        spiffe_id, estate = SpiffeId.parse(name), self._estate()
        workload = next((one for one in estate.workloads if one.spiffe_id == name), None) if estate else None
        entries = self._registry.entries.list(EntryFilter(spiffe_id=spiffe_id)).items
        return {
            "spiffe_id": name,
            "owner": workload.owner if workload is not None else "",
            "domain": workload.domain if workload is not None else "",
            "environment": workload.environment if workload is not None else "",
            "serves": [one.service for one in estate.services if one.workload == name] if estate else [],
            "entries": [
                {"id": one.id, "parent": str(one.parent_id), "selectors": sorted(map(str, one.selectors))}
                for one in entries
            ],
            "nodes": sorted(map(str, self._registry.holders(entries))),
        }

    async def _edges(self, names: Sequence[str], until: datetime) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name in names:
            query = DecisionQuery(caller=name, start=until - RECENT, end=until, limit=MAX_EDGES)
            found += await self._ledger.edges(query)
        return found[:MAX_EDGES]

    async def _certificates(self, names: Sequence[str]) -> list[dict[str, Any]]:
        indices = await asyncio.to_thread(self._search, names)
        now, found = self._clock.now(), []
        for index in indices:
            entry = msgspec.json.decode(await self._log.entry(index), type=dict[str, Any])
            issued = entry.get("kind") == "x509_svid.issued" and entry.get("subject") in names
            if issued and entry.get("not_after", "") > now.isoformat():
                told = ("subject", "serial", "certificate_sha256", "node", "not_after")
                found.append({"index": index, **{name: entry.get(name, "") for name in told}})
        return found

    def _search(self, names: Sequence[str]) -> list[int]:
        since = (self._clock.now() - RECENT).isoformat()
        index = SqliteLogIndex.open(self._log_index, readonly=True)
        try:
            return [
                number
                for name in names
                for number in index.search(
                    LogQuery(
                        subject=name,
                        kind="x509_svid.issued",
                        start=since,
                        limit=MAX_CERTIFICATES,
                        newest_first=True,
                    ).normal()
                )
            ]
        finally:
            index.close()
