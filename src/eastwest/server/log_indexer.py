"""Keeps the index of the log's entries behind the log: after publication, in a thread that yields to everything else.

Nothing waits for it. If it fails it says so, and searches look through what is not indexed.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import structlog

from eastwest.errors import Error, NotFound
from eastwest.log.checkpoint import Checkpoint
from eastwest.log.ports import LogFiles
from eastwest.log.proven import ProvenReader
from eastwest.store.log_index import SqliteLogIndex, catch_up

NICENESS = 15
PAUSE_SECONDS = 0.0005
"""After each 64 entries, half a millisecond's work, the interpreter is given to whoever waits for it."""

_log = structlog.get_logger()


class LogIndexer:
    """One index, made and continued in the background."""

    def __init__(self, path: Path, files: LogFiles, checkpoint: Callable[[], Checkpoint | None]) -> None:
        self.covered = 0
        self.problem = ""
        self.on_grown: list[Callable[[], None]] = []
        self._path = path
        self._files = files
        self._checkpoint = checkpoint
        self._changed = asyncio.Event()
        self._changed.set()
        self._stop = threading.Event()

    def wake(self) -> None:
        """There is a new checkpoint."""
        self._changed.set()

    async def run(self) -> None:
        """Follow the checkpoints until cancelled."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="log-index", initializer=_yield_to_others)
        loop = asyncio.get_running_loop()
        index: SqliteLogIndex | None = None
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                checkpoint = self._checkpoint()
                if checkpoint is None:
                    continue
                try:
                    if index is None:
                        index = await loop.run_in_executor(thread, SqliteLogIndex.open, self._path)
                    await loop.run_in_executor(thread, self._follow, index, checkpoint)
                    self.problem = ""
                    for told in self.on_grown:
                        told()
                except Error as error:
                    if str(error) != self.problem:
                        _log.warning("log.index_failed", error=str(error))
                    self.problem = str(error)
        finally:
            self._stop.set()
            if index is not None:
                thread.submit(index.close)
            thread.shutdown()

    def _follow(self, index: SqliteLogIndex, checkpoint: Checkpoint) -> None:
        reader = ProvenReader(self._files, checkpoint)

        def read(start: int, end: int) -> list[bytes]:
            entries = []
            for number in range(start, end):
                try:
                    entries.append(reader.entry(number))
                except NotFound:
                    entries.append(b"")
            return entries

        steps = catch_up(index, checkpoint.origin, checkpoint.size, read, reader.leaf, pause=self._pause)
        for covered in steps:
            self.covered = covered
            if self._stop.is_set():
                return

    def _pause(self) -> None:
        time.sleep(PAUSE_SECONDS)


def _yield_to_others() -> None:
    with suppress(OSError):
        # On Linux a thread's own: what it is about is this thread, not the process.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
