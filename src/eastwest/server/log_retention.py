"""Retention of the log's entries: what is old enough is pruned by the stated policy, recorded before it happens.

Entries go in whole bundles of 256, from the beginning. Their hashes stay, in the database and in the tiles, so that
every proof and every checkpoint stays what it was. ``eastwest log verify`` accepts that bundles are missing only as
far as an entry ``log.pruned`` says so.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.server.journal import Journal
from eastwest.store.log import SqliteLog
from eastwest.store.log_files import LogDirectory

CHECK_SECONDS = 3600.0
_log = structlog.get_logger()


async def prune(
    log: SqliteLog,
    journal: Journal,
    before: int,
    *,
    actor: str,
    subject: str,
    reason: str,
    keep_days: int | None = None,
) -> int:
    """Record that entries below ``before`` (as ``SqliteLog.prunable`` gives) go, publish that, and remove them.

    Returns how many bundles were removed.
    """
    facts = {"before": before, "from": await log.pruned_before(), "reason": reason}
    if keep_days is not None:
        facts["keep_days"] = keep_days
    root = (await log.root_of(before)).hex()
    await journal.record("log.pruned", actor=actor, subject=subject, root=root, **facts)
    await log.flush()
    return await log.prune(before)


class Retention:
    """Prunes each hour what is older than ``keep_days``."""

    def __init__(
        self, log: SqliteLog, files: LogDirectory, journal: Journal, clock: Clock, keep_days: int, domain: str
    ) -> None:
        self.problem = ""
        self._log = log
        self._files = files
        self._journal = journal
        self._clock = clock
        self._keep_days = keep_days
        self._domain = domain

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.once(self._clock.now())
                self.problem = ""
            except Error as error:
                self.problem = f"old entries of the log are not pruned: {error}"
                _log.warning("log.prune_failed", error=str(error))
            await self._clock.sleep(CHECK_SECONDS)

    async def once(self, now: datetime) -> int:
        """Prune what is due now and state what is kept; returns how many bundles were removed."""
        gone = await self._log.pruned_before()
        # What a crash may have left of the last time.
        removed = await self._log.prune(gone) if gone else 0
        before = await self._log.prunable(now - timedelta(days=self._keep_days))
        if before > gone:
            removed += await prune(
                self._log,
                self._journal,
                before,
                actor=f"{self._domain}/spire/server",
                subject=self._domain,
                reason=f"entries are kept for {self._keep_days} days",
                keep_days=self._keep_days,
            )
            _log.info("log.pruned", before=before, bundles=removed)
        self._files.write_retention(statement(self._keep_days, max(before, gone)))
        return removed


def statement(keep_days: int, minimum_index: int) -> str:
    """The policy as it is served beside the log, so that monitors know by when they must have read."""
    return (
        f"Entries are kept for {keep_days} days after they were appended, and then removed in whole bundles of 256.\n"
        "Their hashes stay: every inclusion and consistency proof can still be made.\n"
        f"Minimum index: {minimum_index}\n"
    )
