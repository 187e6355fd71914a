"""The transparency log on SQLite and a directory: entries are durable in the database, then published.

An append is one operation of ``Database.write``: hashing and storing happen in the writer thread, and
appends of several tasks share a commit. Publishing writes tiles, moves the row of what may be signed by
compare-and-swap, and only then signs the checkpoint; a crash anywhere in between is made good at start.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from eastwest.clock import Clock
from eastwest.errors import Corrupt, Error, InvalidInput, LogUnavailable, NotFound, Unavailable
from eastwest.log.checkpoint import Checkpoint, open_any_checkpoint, sign_checkpoint
from eastwest.log.entry import MAX_ENTRY_BYTES, timestamp
from eastwest.log.note import NoteKey, Signer, signature_line, split_note
from eastwest.log.proven import ProvenReader
from eastwest.log.tiles import CHECKPOINT_PATH, TILE_WIDTH, WITNESSED_PATH, bundle_path, new_tiles
from eastwest.store.database import Database
from eastwest.store.log_check import check_checkpoint, check_database, check_mark, check_nothing_beyond, check_tiles
from eastwest.store.log_files import LogDirectory, write_mark
from eastwest.store.log_rows import (
    TreeHead,
    append_entries,
    forget_bundle,
    pack,
    prunable,
    pruned_before,
    read_entries,
    read_head,
    read_leaves,
    read_tile_rows,
    root_at,
    store_packed,
    swap_published,
    unpacked_bundles,
)

T = TypeVar("T")

PUBLISH_INTERVAL_SECONDS = 1.0
PACK_AT_ONCE = 8
PACK_ROUNDS = 64
"""Bundles of 256 entries that are compressed at once, and how often between two publications."""


class SqliteLog:
    """Serves ``eastwest.log.ports.LogStore``; made by ``open``, usable from one event loop.

    When database, tiles and checkpoint stop agreeing, nothing more is appended or signed: ``append``
    raises ``LogUnavailable`` and ``publish`` raises ``Corrupt``, until a person has looked.
    """

    @classmethod
    async def open(
        cls,
        database: Database,
        directory: Path,
        *,
        origin: str,
        signer: Signer,
        clock: Clock,
        second: Signer | None = None,
        mark: Path | None = None,
    ) -> SqliteLog:
        """Check the whole story, repair what a crash left behind, and publish what was not yet.

        ``origin`` names the log and its keys, such as ``saas.example/eastwest-log``; ``signer`` is Ed25519,
        ``second`` the ML-DSA-44 key, where there is one. ``mark`` is a file elsewhere that keeps the last checkpoint
        signed, so that an old copy of database and directory together is noticed. Raises ``Corrupt``
        if database, tiles and checkpoint disagree: the message says in what, and how to recover. If
        the disk is full the log opens all the same, and ``run`` publishes later.
        """
        log = cls(database, directory, origin=origin, signer=signer, clock=clock, second=second, mark=mark)
        try:
            await log._in_thread(log._check)
            with suppress(Unavailable):
                await log.flush()
        except BaseException:
            log._thread.shutdown(wait=False)
            raise
        return log

    def __init__(
        self,
        database: Database,
        directory: Path,
        *,
        origin: str,
        signer: Signer,
        clock: Clock,
        second: Signer | None = None,
        mark: Path | None = None,
    ) -> None:
        self.key = NoteKey.of(origin, signer)
        self.keys = (self.key,) if second is None else (self.key, NoteKey.of(origin, second))
        self.on_published: list[Callable[[], None]] = []
        """Called after each new checkpoint, in the event loop."""
        self.held = ""
        """Why nothing is appended for now although the log is whole; "" when it is."""
        self.repaired: tuple[str, ...] = ()
        self.published_at: datetime | None = None
        self._database = database
        self._files = LogDirectory(directory)
        self._mark = mark
        self._signer = signer
        self._second = second
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="log-publish")
        self._size = 0
        self._signable: set[TreeHead] = set()
        self._checkpoint: tuple[Checkpoint, str] | None = None
        self._witnessed: tuple[Checkpoint, str] | None = None
        # The last two, in the publishing thread.
        self._readers: list[ProvenReader] = []
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
        if self.held:
            raise LogUnavailable(f"the log waits: {self.held}", fix="see docs/how-to/watch-a-log.md")
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
        # One that witnesses vouch for says more, where it covers the entry.
        witnessed = self._witnessed is not None and index < self._witnessed[0].size
        chosen = self._witnessed if self._witnessed is not None and witnessed else self._checkpoint
        return await self._in_thread(self._prove, index, *chosen)

    async def prove_all(self, indices: Sequence[int]) -> list[str]:
        """As ``prove`` for many entries, all in the last checkpoint; neighbours cost little more than one."""
        if self._checkpoint is None or not all(0 <= index < self._checkpoint[0].size for index in indices):
            raise NotFound("no checkpoint covers all of these entries yet")
        return await self._in_thread(self._prove_all, indices, *self._checkpoint)

    @property
    def signed(self) -> tuple[Checkpoint, str] | None:
        """The last checkpoint and its note with the log's own signatures only."""
        return (self._checkpoint[0], self._own_lines(self._checkpoint[1])) if self._checkpoint else None

    @property
    def witnessed(self) -> tuple[Checkpoint, str] | None:
        """The last checkpoint that a quorum of witnesses has signed, with their lines."""
        return self._witnessed

    async def cosigned(self, checkpoint: Checkpoint, note: str, *, quorum: bool) -> None:
        """Publish a checkpoint of ours again, now with cosignatures: as the checkpoint if it is still the last one,
        and as the last witnessed one if they are a ``quorum``. Raises ``Unavailable`` if it cannot be written.
        """
        async with self._publishing:
            if self._broken is not None:
                return
            if self._checkpoint is not None and self._checkpoint[0] == checkpoint:
                await self._in_thread(self._files.write_checkpoint, note.encode())
                self._checkpoint = (checkpoint, note)
            if quorum and (self._witnessed is None or self._witnessed[0].size <= checkpoint.size):
                await self._in_thread(self._files.write_witnessed, note.encode())
                self._witnessed = (checkpoint, note)

    @asynccontextmanager
    async def stopping(self, error: Corrupt) -> AsyncIterator[None]:
        """Sign nothing more from here on, and append nothing after this, because of ``error``."""
        async with self._publishing:
            try:
                yield
            finally:
                self._broken = error

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
        for told in self.on_published:
            told()
        return published

    async def run(self, on_error: Callable[[Exception], None], interval: float = PUBLISH_INTERVAL_SECONDS) -> None:
        """Publish within ``interval`` seconds whenever something was appended, until cancelled.

        Errors go to ``on_error``. It tries again after each interval, but returns once the log is ``Corrupt``.
        """
        while True:
            await self._changed.wait()
            try:
                await self.publish(self._clock.now())
                for _ in range(PACK_ROUNDS):
                    if not await self.pack():
                        break
                else:
                    self._changed.set()
            except Corrupt as error:
                on_error(error)
                return
            except Exception as error:  # noqa: BLE001 - publishing must outlive whatever a disk or a signer does
                on_error(error)
            await self._clock.sleep(interval)

    async def pack(self) -> bool:
        """Let some full, published bundles rest compressed in the database; whether there may be more of them."""
        if self._checkpoint is None:
            return False
        found = await self._in_thread(self._packed, self._checkpoint[0].size)
        for index, hashes, packed in found:
            await self._database.write(partial(store_packed, index=index, hashes=hashes, packed=packed))
        return len(found) == PACK_AT_ONCE

    async def prunable(self, moment: datetime) -> int:
        """Up to which index (a multiple of 256) entries are published and older than ``moment``; 0 for none."""
        size = self._checkpoint[0].size if self._checkpoint else 0
        return await self._database.read(partial(prunable, moment=timestamp(moment), size=size))

    async def pruned_before(self) -> int:
        """The index of the first entry that is still kept."""
        return await self._database.read(pruned_before)

    async def root_of(self, size: int) -> bytes:
        """The root of the first ``size`` entries; raises ``Corrupt`` unless some append ended there."""
        return await self._database.read(partial(root_at, size=size))

    async def prune(self, before: int) -> int:
        """Remove what entries below ``before`` say, here and in the public files; hashes stay, so proofs do.

        The pruning must be recorded and published before. Returns how many bundles of 256 were removed; may be
        repeated after a crash. Raises ``InvalidInput`` for what is no full, published bundle.
        """
        if before % TILE_WIDTH or before > (self._checkpoint[0].size if self._checkpoint else 0):
            raise InvalidInput(f"entries before {before} cannot be pruned: whole bundles that are published can")
        kept = await self._database.read(pruned_before)
        for index in range(kept // TILE_WIDTH, before // TILE_WIDTH):
            await self._database.write(partial(forget_bundle, index=index))
        return await self._in_thread(self._files.drop_bundles, before // TILE_WIDTH)

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
        if self._mark is not None:
            check_mark(connection, self._mark, self.keys, head)
        check_nothing_beyond(self._files, head.size)
        self._checkpoint = check_checkpoint(connection, self._files, self.keys, published)
        self._signable = {published}
        if self._checkpoint is not None:
            self.repaired = tuple(check_tiles(connection, self._files, self._checkpoint[0].size))
            if self._checkpoint[0].size < published.size:
                # A crash between permission and signature, or an old copy of the files: the database has it all.
                self.repaired += (CHECKPOINT_PATH,)
        self._size = head.size
        self._witnessed = self._read_witnessed(connection)

    def _read_witnessed(self, connection: sqlite3.Connection) -> tuple[Checkpoint, str] | None:
        """The last witnessed checkpoint if it is one of this log; it is a convenience, so another is passed over."""
        try:
            raw = self._files.read(WITNESSED_PATH)
            checkpoint = open_any_checkpoint(raw, self.keys)
            if self._checkpoint is None or checkpoint.size > self._checkpoint[0].size:
                return None
            return (checkpoint, raw.decode()) if root_at(connection, checkpoint.size) == checkpoint.root else None
        except Error:
            return None

    def _own_lines(self, note: str) -> str:
        text, signatures = split_note(note.encode())
        own = {(key.name, key.id): key for key in self.keys}
        kept = [signature_line(own[name, blob[:4]], blob[4:]) for name, blob in signatures if (name, blob[:4]) in own]
        return f"{text}\n{''.join(kept)}"

    def _write_tiles(self, old: int, new: int) -> None:
        self._files.write_tiles(self._new_files(old, new))
        self._files.sync()

    def _new_files(self, old: int, new: int) -> Iterator[tuple[str, bytes]]:
        for tile in new_tiles(old, new):
            if tile.level:
                yield tile.path, self._database.read_now(partial(read_tile_rows, tile=tile))
                continue
            read = partial(read_leaves, index=tile.index, width=tile.width)
            hashes, data = self._database.read_now(read)
            if data is not None:
                yield bundle_path(tile.index, tile.width), data
            yield tile.path, hashes

    def _packed(self, size: int) -> list[tuple[int, bytes, bytes]]:
        found = self._database.read_now(partial(unpacked_bundles, size=size, limit=PACK_AT_ONCE))
        return [(index, hashes, pack(data)) for index, hashes, data in found]

    def _write_checkpoint(self, checkpoint: Checkpoint) -> str:
        note = sign_checkpoint(checkpoint, self._signer, self._second, int(self._clock.now().timestamp()))
        self._files.write_checkpoint(note.encode())
        if self._mark is not None:
            write_mark(self._mark, note.encode())
        return note

    def _tidy(self, old: int, new: int) -> None:
        for tile in new_tiles(old, new):
            if tile.is_full:
                self._files.drop_partials(tile)

    def _prove(self, index: int, checkpoint: Checkpoint, note: str) -> str:
        return self._reader(checkpoint).receipt(index, note)

    def _prove_all(self, indices: Sequence[int], checkpoint: Checkpoint, note: str) -> list[str]:
        reader = self._reader(checkpoint)
        return [reader.receipt(index, note) for index in indices]

    def _reader(self, checkpoint: Checkpoint) -> ProvenReader:
        """A reader for the tree of a checkpoint; the receipts of one second share what they read."""
        for known in self._readers:
            if known.checkpoint == checkpoint:
                return known
        reader = ProvenReader(self._files, checkpoint)
        self._readers = [reader, *self._readers[:1]]
        return reader
