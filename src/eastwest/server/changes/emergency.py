"""Break-glass: how long it holds, that everybody sees it, and that the version before comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import structlog

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.server.changes.judging import Judging
from eastwest.server.changes.keeper import Changes
from eastwest.server.estate import EstateKeeper

CAUSE = "break-glass ended"
_LONGEST = 30.0
"""Seconds for which nobody looks at the clock, which may be set anew."""
_RETRY = 5.0
"""Seconds after which what could not be recorded is tried again."""
_log = structlog.get_logger()


class Emergency:
    """Watches the version in force; one loop, which also notes that changes were applied."""

    def __init__(self, keeper: EstateKeeper, judging: Judging, changes: Changes, clock: Clock, actor: str) -> None:
        """``actor`` is in whose name the version before comes back: the server's."""
        self._keeper = keeper
        self._judging = judging
        self._changes = changes
        self._clock = clock
        self._actor = actor
        self._activated = asyncio.Event()
        self._failed = ""
        self.on_end: Callable[[], object] = lambda: None

    def activated(self) -> None:
        """Look again: another version is in force."""
        self._activated.set()

    @property
    def until(self) -> datetime | None:
        """Until when the version in force holds without approvals; None where it needs no end."""
        standing = self._keeper.applied.standing if self._keeper.applied is not None else None
        return standing.break_glass_until if standing is not None and standing.break_glass else None

    def warnings(self) -> list[str]:
        """What everybody should know."""
        applied, until = self._keeper.applied, self.until
        if applied is None or applied.standing is None or until is None:
            return []
        said = f"break-glass until {until:%Y-%m-%d %H:%M:%S}Z by {applied.standing.author}"
        told = [f"{said}: approvals were skipped for version {applied.version[:12]} ({applied.standing.break_glass})"]
        return told + ([f"the version before break-glass cannot come back: {self._failed}"] if self._failed else [])

    async def run(self) -> None:
        """Bring the version before back at the end, for ever; what ended while nobody ran ends now."""
        while True:
            self._activated.clear()
            wait = await self._look()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(wait, _LONGEST)):
                    await self._activated.wait()

    async def _look(self) -> float:
        """Seconds until there may be something to do."""
        try:
            await self._changes.applied()
            until = self.until
            left = _LONGEST if until is None else (until - self._clock.now()).total_seconds()
            if until is not None and left <= 0:
                await self._end()
                left = _LONGEST
            self._failed = ""
        except Error as error:
            self._failed = str(error)
            _log.error("change.break_glass_stays", error=self._failed)
            return _RETRY
        return max(left, 0.01)

    async def _end(self) -> None:
        before = await self._judging.before_emergency()
        if before is None:
            return
        await self._keeper.restore(before[0].version, self._actor, CAUSE)
        _log.warning("change.break_glass_ended", version=before[0].version)
        self.on_end()
