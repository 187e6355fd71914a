"""The transparency log on SQLite and a directory: entries are durable in the database, then published.

An append is one operation of ``Database.write``: hashing and storing happen in the writer thread, and
appends of several tasks share a commit. Publishing writes tiles, moves the row of what may be signed by
compare-and-swap, and only then signs the checkpoint; a crash anywhere in between is made good at start.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from eastwest.clock import Clock
from eastwest.errors import Corrupt, Error, InvalidInput, LogUnavailable, NotFound, Unavailable
from eastwest.log.checkpoint import Checkpoint, sign_checkpoint
from eastwest.log.entry import MAX_ENTRY_BYTES
from eastwest.log.note import NoteKey, Signer
from eastwest.log.proof import LogProof, inclusion_proof, verify_inclusion
from eastwest.log.tiles import TileReader, bundle_path, new_tiles
from eastwest.store.database import Database
from eastwest.store.log_check import check_checkpoint, check_database, check_nothing_beyond, check_tiles
from eastwest.store.log_files import LogDirectory
from eastwest.store.log_rows import (
    TreeHead,
    append_entries,
    read_entries,
    read_head,
    read_leaves,
    read_tile_rows,
    swap_published,
)

T = TypeVar("T")

PUBLISH_INTERVAL_SECONDS = 1.0


class SqliteLog:
    """Serves ``eastwest.log.ports.LogStore``; made by ``open``, usable from one event loop.

    When database, tiles and checkpoint stop agreeing, nothing more is appended or signed: ``append``
    raises ``LogUnavailable`` and ``publish`` raises ``Corrupt``, until a person has looked.
    """

    @classmethod
    async def open(cls, database: Database, directory: Path, *, origin: str, signer: Signer, clock: Clock) -> SqliteLog:
        """Check the whole story, repair what a crash left behind, and publish what was not yet.

        ``origin`` names the log and its key, such as ``saas.example/eastwest-log``. Raises ``Corrupt``
        if database, tiles and checkpoint disagree: the message says in what, and how to recover. If
        the disk is full the log opens all the same, and ``run`` publishes later.
        """
        log = cls(database, directory, origin=origin, signer=signer, clock=clock)
        try:
            await log._in_thread(log._check)
            with suppress(Unavailable):
                await log.flush()
        except BaseException:
            log._thread.shutdown(wait=False)
            raise
        return log

    def __init__(self, database: Database, directory: Path, *, origin: str, signer: Signer, clock: Clock) -> None:
        self.key = NoteKey.of(origin, signer)
        self.repaired: tuple[str, ...] = ()
        self.published_at: datetime | None = None
        self._database = database
        self._files = LogDirectory(directory)
        self._signer = signer
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-publish")
        self._size = 0
        self._signable: set[TreeHead] = set()
        self._checkpoint: tuple[Checkpoint, str] | None = None
        self._broken: Corrupt | None = None
        self._changed = asyncio.Event()
        self._publishing = asyncio.Lock()

    @property
    def size(self) -> int:
        return self._size

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The last one published."""
        return self._checkpoint[0] if self._checkpoint else None

    async def append(self, entries: Sequence[bytes]) -> Sequence[int]:
        for entry in entries:
            if not 0 < len(entry) <= MAX_ENTRY_BYTES:
                raise InvalidInput(f"a log entry has 1 to {MAX_ENTRY_BYTES} bytes, this one {len(entry)}")
        if not entries:
            return range(0)
        if self._broken is not None:
            raise LogUnavailable(f"the log is stopped: {self._broken.message}", fix=self._broken.fix)
        try:
            first = await self._database.write(partial(append_entries, entries=tuple(entries)))
        except (Error, sqlite3.Error) as error:
            reason = error.message if isinstance(error, Error) else str(error)
            raise LogUnavailable(f"the transparency log cannot be written: {reason}") from error
        finally:
            # Also when this task was cancelled: the entries may have been stored.
            self._changed.set()
        indices = range(first, first + len(entries))
        self._size = max(self._size, indices.stop)
        return indices

    async def entry(self, index: int) -> bytes:
        found = await self.entries(index, index + 1)
        if not found:
            raise NotFound(f"the log has no entry {index}")
        return found[0]

    async def entries(self, start: int, end: int) -> Sequence[bytes]:
        if start < 0 or end <= start:
            return []
        return await self._database.read(partial(read_entries, start=start, end=end))

    async def prove(self, index: int) -> str:
        if self._checkpoint is None or not 0 <= index < self._checkpoint[0].size:
            covered = self._checkpoint[0].size if self._checkpoint else 0
            raise NotFound(f"no checkpoint covers entry {index} yet; the last one covers {covered} entries")
        return await self._in_thread(self._prove, index, *self._checkpoint)

    async def flush(self) -> Checkpoint:
        """Publish all that is durable now."""
        return await self.publish(self._clock.now())

    async def publish(self, now: datetime) -> Checkpoint:
        """Write tiles and a signed checkpoint of all that is durable; does nothing if that is published.

        Raises ``Unavailable`` if files or database cannot be written (the next call makes it good) and
        ``Corrupt`` if they disagree or another process publishes the same log.
        """
        async with self._publishing:
            if self._broken is not None:
                raise self._broken
            self._changed.clear()
            try:
                published = await self._publish()
            except Corrupt as error:
                self._broken = error
                raise
            except BaseException:
                self._changed.set()
                raise
            self.published_at = now
            return published

    async def run(self, on_error: Callable[[Exception], None], interval: float = PUBLISH_INTERVAL_SECONDS) -> None:
        """Publish within ``interval`` seconds whenever something was appended, until cancelled.

        Errors go to ``on_error``. It tries again after each interval, but returns once the log is ``Corrupt``.
        """
        while True:
            await self._changed.wait()
            try:
                await self.publish(self._clock.now())
            except Corrupt as error:
                on_error(error)
                return
            except Exception as error:  # noqa: BLE001 - publishing must outlive whatever a disk or a signer does
                on_error(error)
            await self._clock.sleep(interval)

    async def close(self) -> None:
        """Publish what is left, if that can be done, and let go of the directory."""
        with suppress(Error):
            await self.flush()
        self._thread.shutdown()

    async def _publish(self) -> Checkpoint:
        head = await self._database.read(read_head)
        self._size = max(self._size, head.size)
        covered = self._checkpoint[0].size if self._checkpoint else 0
        if self._checkpoint and covered == head.size:
            return self._checkpoint[0]
        await self._in_thread(self._write_tiles, covered, head.size)
        # An earlier attempt that was reported as failed may have been stored.
        self._signable.add(head)
        if not await self._database.write(partial(swap_published, expected=set(self._signable), new=head)):
            raise Corrupt(
                "another process has published this log",
                fix="stop the other server of this data directory, then start this one again",
            )
        self._signable = {head}
        checkpoint = Checkpoint(self.key.name, head.size, head.root)
        note = await self._in_thread(self._write_checkpoint, checkpoint)
        self._checkpoint = (checkpoint, note)
        await self._in_thread(self._tidy, covered, head.size)
        return checkpoint

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    # What follows runs in the publishing thread.

    def _check(self) -> None:
        self._database.read_now(self._check_all)

    def _check_all(self, connection: sqlite3.Connection) -> None:
        head, published = check_database(connection)
        check_nothing_beyond(self._files, head.size)
        self._checkpoint = check_checkpoint(connection, self._files, self.key, published)
        self._signable = {published}
        if self._checkpoint is not None:
            self.repaired = tuple(check_tiles(connection, self._files, self._checkpoint[0].size))
        self._size = head.size

    def _write_tiles(self, old: int, new: int) -> None:
        for tile in new_tiles(old, new):
            if tile.level:
                self._files.write_tile(tile.path, self._database.read_now(partial(read_tile_rows, tile=tile)))
                continue
            read = partial(read_leaves, index=tile.index, width=tile.width)
            hashes, data = self._database.read_now(read)
            self._files.write_tile(bundle_path(tile.index, tile.width), data)
            self._files.write_tile(tile.path, hashes)
        self._files.sync()

    def _write_checkpoint(self, checkpoint: Checkpoint) -> str:
        note = sign_checkpoint(checkpoint, self._signer)
        self._files.write_checkpoint(note.encode())
        return note

    def _tidy(self, old: int, new: int) -> None:
        for tile in new_tiles(old, new):
            if tile.is_full:
                self._files.drop_partials(tile)

    def _prove(self, index: int, checkpoint: Checkpoint, note: str) -> str:
        reader = TileReader(self._files, checkpoint.size)
        leaf = reader.node(0, index)
        proof = inclusion_proof(index, checkpoint.size, reader.node)
        verify_inclusion(leaf, index, checkpoint.size, proof, checkpoint.root)
        return LogProof(index, tuple(proof), note).text
