"""Keeps when each agent and sidecar was connected: spans, begun and ended as their streams are.

A server that was away says nothing about its agents: they go on recording to their disks. So what was open when it
stopped goes on, if it is there again within ``GRACE``; until then nobody knows, and it does not count as there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

import msgspec
import structlog

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.ledger.sensors import AGENT, PROCESS, STREAM, Span
from eastwest.server.control import ControlHub
from eastwest.store.sensors import SqliteSensors

LOOK_EVERY = 15.0
"""Seconds between two looks when nothing is heard; so much of a killed server's last moments is not known."""
PAUSE = 0.5
"""Seconds in which news are gathered into one look."""
GRACE = 60.0
MAX_POINTS = 50_000
"""Points that are followed; those beyond have no history, and so never count as there."""
_log = structlog.get_logger()


class _Point(NamedTuple):
    agent: str
    node: str
    spiffe_id: str


class SensorHistory:
    """Follows the agents' streams; ``run`` until cancelled."""

    def __init__(self, store: SqliteSensors, hub: ControlHub, clock: Clock) -> None:
        self._store = store
        self._hub = hub
        self._clock = clock
        self._open: dict[_Point, int] = {}
        self._gone: dict[_Point, tuple[int, datetime]] = {}  # sidecars that were away, and perhaps have ended
        self._looked: datetime | None = None
        self._left: datetime | None = None  # when the server before looked last
        self._waiting: set[_Point] = set()
        self._began = clock.monotonic()

    async def load(self) -> None:
        """Go on from what the server before knew."""
        spans, self._looked = await self._store.open_spans()
        self._left = self._looked
        self._open = {_point(span): number for number, span in spans.items()}
        self._waiting = set(self._open)
        self._began = self._clock.monotonic()

    def known(self, spans: Sequence[Span]) -> list[Span]:
        """``spans`` as far as is known: points that have not come back yet were last seen by the server before."""
        left, away = self._left, self._waiting - self._present()
        if left is None or not away:
            return list(spans)
        return [
            msgspec.structs.replace(span, end=max(left, span.start), why=AGENT)
            if span.end is None and _point(span) in away
            else span
            for span in spans
        ]

    async def run(self) -> None:
        """Look whenever an agent comes, goes or reports."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._hub.heard()
            await asyncio.sleep(PAUSE)
            try:
                await self.look()
            except Error as error:
                _log.warning("sensors.not_kept", error=error.message)

    async def look(self) -> None:
        """Note what has begun and ended since the last look."""
        now = self._clock.now()
        here = self._present()
        self._waiting -= here
        overdue: set[_Point] = set()
        if self._waiting and self._clock.monotonic() - self._began > GRACE:
            overdue, self._waiting = self._waiting, set()
        before = self._looked or now
        ended: list[tuple[int, datetime, str]] = []
        for point in [p for p in self._open if p not in here and p not in self._waiting]:
            number = self._open.pop(point)
            why = self._why(point)
            # One that ended while no server was there was last seen by the one before.
            ended.append((number, self._left or before if point in overdue else before, why))
            if why == STREAM:
                self._gone[point] = (number, before)
        for point, (number, at) in list(self._gone.items()):
            if point in here or self._why(point) != STREAM:
                del self._gone[point]
                if point not in here and self._why(point) == PROCESS:
                    ended.append((number, at, PROCESS))
        new = sorted(here - self._open.keys())[: max(0, MAX_POINTS - len(self._open))]
        spans = [Span(agent=p.agent, node=p.node, spiffe_id=p.spiffe_id, start=now) for p in new]
        numbers = await self._store.write(now, spans, ended)
        self._open.update(zip(new, numbers, strict=True))
        self._looked = now

    def _present(self) -> set[_Point]:
        found: set[_Point] = set()
        now = self._clock.monotonic()
        for agent, stream in self._hub.streams.items():
            if not stream.is_there(now):
                continue
            found.add(_Point(str(agent), "", ""))
            found.update(
                _Point(str(agent), status.node_id, status.spiffe_id)
                for status in stream.sidecars.values()
                if status.connected
            )
        return found

    def _why(self, point: _Point) -> str:
        stream = next((s for agent, s in self._hub.streams.items() if str(agent) == point.agent), None)
        if stream is None or not stream.is_there(self._clock.monotonic()):
            return AGENT
        status = stream.sidecars.get(point.node)
        # Of one that still runs the agent knows what it trusts.
        runs = status is not None and status.bundle_sequence > 0
        return STREAM if runs else PROCESS


def _point(span: Span) -> _Point:
    return _Point(span.agent, span.node, span.spiffe_id)
