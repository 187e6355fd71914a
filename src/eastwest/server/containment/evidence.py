"""The snapshot that is taken before somebody is cut off: who it is, what lives of it, whom it spoke to, who is told.

A file of the server's data directory, whose SHA-256 stands in the log entry that begins the containment. It is
collected quickly or not at all: the deny does not wait for what cannot be read now, and the file says what is missing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
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

SECONDS = 0.25
"""For the ledger and the log together; what has not come by then is left out."""
RECENT = timedelta(hours=24)
MAX_EDGES = 200
MAX_CERTIFICATES = 100
MAX_DETAILED = 20
"""Identities of which the ledger and the log are asked; of others stands who they are."""


class Evidence:
    """Collects and keeps snapshots below ``directory``. ``points`` tells which enforcement points are to be told."""

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

    async def keep(self, containment_id: str, spiffe_ids: Sequence[str]) -> str:
        """Write the snapshot of these; its SHA-256 in hex."""
        now = self._clock.now()
        detailed = spiffe_ids[:MAX_DETAILED]
        edges, certificates = await asyncio.gather(
            self._in_time(lambda: self._edges(detailed)), self._in_time(lambda: self._certificates(detailed))
        )
        asked = {"calls_last_24h": edges, "certificates_live": certificates}
        document = {
            "containment": containment_id,
            "taken_at": now,
            "identities": [self._who(name) for name in spiffe_ids],
            **asked,
            "left_out": sorted(name for name, found in asked.items() if found is None),
            "points": list(self._points()),
        }
        content = msgspec.json.format(msgspec.json.encode(document, order="deterministic"))
        await asyncio.to_thread(self._write, containment_id, content)
        return hashlib.sha256(content).hexdigest()

    def path(self, containment_id: str) -> Path:
        """Where the snapshot of a containment lies."""
        return self._directory / f"{containment_id}.json"

    def _write(self, containment_id: str, content: bytes) -> None:
        make_private(self._directory)
        replace_file(self.path(containment_id), content)

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

    async def _edges(self, names: Sequence[str]) -> list[dict[str, Any]]:
        start = self._clock.now() - RECENT
        found: list[dict[str, Any]] = []
        for name in names:
            found += await self._ledger.edges(DecisionQuery(caller=name, start=start, limit=MAX_EDGES))
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
