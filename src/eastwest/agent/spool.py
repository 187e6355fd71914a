"""Decisions on the agent's disk until the server has them: bounded, checksummed, and never silent about a loss.

Files of frames (``eastwest.agent.spool_frame``) in one directory; the oldest go first, to the server and where there is
no room. Each run of the agent writes a spool of its own with its own random id and numbers its frames from 1, so that
the server stores each once. Where the disk fails, memory takes its place within a smaller bound.

All methods but ``took`` may wait for the disk: call them outside the event loop, one at a time.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from eastwest.agent.spool_frame import MAX_FRAME, Frame
from eastwest.agent.spool_parts import (
    BATCH_BYTES,
    BATCH_ROWS,
    MAX_ROWS,
    Batch,
    SpoolFile,
    SpoolStatus,
    add_frame,
    cut_into_frames,
    joined,
)
from eastwest.agent.spool_state import SpoolState
from eastwest.clock import Clock
from eastwest.entropy import Entropy, random_hex
from eastwest.ledger.record import Lost, LostReason, Row
from eastwest.process.files import make_private

MIN_LIMIT = 256 * 1024
DEFAULT_LIMIT = 64 * 1024 * 1024
MEMORY_LIMIT = 16 * 1024 * 1024
"""Bytes of rows kept in memory while the disk fails."""
_FILES = 8  # into how many the bound is cut: so much goes at once where there is no room
_SYNC_SECONDS = 1.0
_RETRY_SECONDS = 5.0
_ID_BYTES = 16
_FULL, _ROOMY = 0.9, 0.8  # of the bound
_SHARE = 16  # the part of the free room, of 1 MiB at least, that one service's decisions may take at a time


def forget(directory: Path) -> bool:
    """Remove a spool that is closed, unless something in it has not been told yet; whether it is gone."""
    if any(directory.glob("*.spool")):
        return False
    shutil.rmtree(directory, ignore_errors=True)
    return True


class Spool:
    """``directory`` is made if need be; ``limit``: bytes on disk. Usable after ``open``, whatever the disk does."""

    def __init__(self, directory: Path, limit: int, clock: Clock, entropy: Entropy) -> None:
        self._directory = directory
        self._limit = max(limit, MIN_LIMIT)
        self._clock = clock
        self._entropy = entropy
        self._state = SpoolState(directory / "state")
        self._files: deque[SpoolFile] = deque()
        self._memory: deque[Frame] = deque()
        self._memory_bytes = 0
        self._writing: int | None = None  # of the last file
        self._id = random_hex(entropy, _ID_BYTES)
        self._sequence = 0
        # Calls that rows stand for, in all: taken from others, confessed here, and of both what is in frames.
        self._taken = self._confessed = self._settled = 0
        self._base = 0  # in frames of spools before this one
        self._number = 0
        self._read: dict[str, int] = {}  # spool → total of its last frame that was read or given up
        self._certain = False  # whether the last batch's fate is known
        self._losses: dict[tuple[LostReason, str, str], Lost] = {}
        self._dirty_since: float | None = None
        self._failed_at: float | None = None
        self._was_full = False
        self._problem = ""
        self._lost: dict[LostReason, int] = {}

    def status(self) -> SpoolStatus:
        """How it stands."""
        used = sum(file.size for file in self._files) + self._memory_bytes
        fill = used / self._limit
        self._was_full = fill > (_ROOMY if self._was_full else _FULL)
        return SpoolStatus(
            used=used,
            limit=self._limit,
            waiting=sum(file.calls for file in self._files) + sum(frame.calls for frame in self._memory),
            full=self._was_full,
            problem=self._problem,
            lost=dict(self._lost),
        )

    def open(self) -> None:
        """Take up what earlier runs left, and confess what they took and did not write."""
        try:
            make_private(self._directory)
            self._state.open()
            self._recover()
            self._begin()
        except OSError as error:
            self._fail(error)
        if self._losses:  # before anything else can end this run: what they were found by is no more
            self.append([])

    def took(self, calls: int) -> None:
        """Note that ``calls`` more decisions are on their way here. Does not wait, and survives a kill."""
        self._taken += calls
        self._note_taken()

    def append(self, rows: Sequence[Row]) -> None:
        """Keep ``rows``: decisions that were taken, and losses that others found."""
        if self._problem and self._failed_at is not None:
            self._try_again(self._failed_at)
        if lost := [*self._losses.values()]:
            self._losses.clear()
        for row in rows:
            if isinstance(row, Lost):
                self._count_lost(row)
        free = self._limit - sum(file.size for file in self._files) - self._memory_bytes
        for part in cut_into_frames([*lost, *rows], self._lost, max(free // _SHARE, BATCH_BYTES)):
            self._keep([row for row, _ in part], b"[" + b",".join(body for _, body in part) + b"]")

    def confess(self, lost: Lost) -> None:
        """Have a loss told with what is kept next."""
        key = (lost.cause, lost.node, lost.service)
        before = self._losses.get(key)
        self._losses[key] = lost if before is None else before.with_more(lost)
        self._count_lost(lost)

    def sync(self, *, now: bool = False) -> bool:
        """Make what was written outlive the machine, at most each second unless ``now``; whether some is left to do."""
        since = self._dirty_since
        if self._writing is None or since is None:
            return False
        if not now and self._clock.monotonic() - since < _SYNC_SECONDS:
            return True
        try:
            os.fdatasync(self._writing)
            self._dirty_since = None
        except OSError as error:
            self._fail(error)
        return False

    def batch(self) -> Batch | None:
        """What goes to the server next; None when nothing waits.

        After an attempt whose end is not known the first frame goes alone: the server then answers how far it is.
        """
        while self._files:
            file = self._files[0]
            try:
                batch = self._batch_of(file)
            except OSError as error:
                self._abandon(file, error)
                continue
            if batch is not None:
                return batch
            if file is self._files[-1] and self._writing is not None:
                break
            self._finish(file)
        return joined([self._memory[0]], 0) if self._memory else None

    def delivered(self, batch: Batch, held: int) -> None:
        """The server holds all frames of the batch's spool up to number ``held``."""
        self._certain = True
        while self._memory and self._memory[0].spool == batch.spool and self._memory[0].sequence <= held:
            self._memory_bytes -= len(self._memory.popleft().rows)
            if not self._memory and not self._problem:
                self._state.set_in_memory(False)
        while self._files and self._files[0].spool == batch.spool:
            file = self._files[0]
            try:
                for frame, end in self._frames(file):
                    if frame.sequence > held:
                        return
                    self._pass(file, frame, end)
            except OSError as error:
                self._abandon(file, error)
                continue
            if file is self._files[-1] and self._writing is not None:
                return
            self._finish(file)

    def failed(self) -> None:
        """The last batch may have arrived or not."""
        self._certain = False

    def refused(self, batch: Batch) -> None:
        """The server will never take the batch: its first frame is given up, and what follows is tried again."""
        self._certain = False
        if batch.frames == 1:
            self.confess(Lost(time=batch.first, until=batch.until, count=batch.calls, cause=LostReason.REFUSED))
            self.delivered(batch, batch.sequence)
            self._certain = False

    def close(self) -> None:
        """Write what is left to be told, and stop."""
        if self._losses:
            self.append([])
        self.sync(now=True)
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None
        for file in [file for file in self._files if file.offset >= file.size]:
            self._remove(file)
        self._state.close()

    # What is written.

    def _count_lost(self, lost: Lost) -> None:
        self._lost[lost.cause] = self._lost.get(lost.cause, 0) + lost.count
        self._confessed += lost.count
        self._note_taken()

    def _note_taken(self) -> None:
        if not self._problem:
            self._state.set_taken(self._taken + self._confessed - self._base)

    def _keep(self, rows: Sequence[Row], body: bytes) -> None:
        now = self._clock.now()
        calls = sum(row.count for row in rows)
        first = min((row.time for row in rows), default=now)
        until = max((row.until if isinstance(row, Lost) else row.time for row in rows), default=now)
        self._settled += calls
        self._sequence += 1
        frame = Frame(self._id, self._sequence, calls, self._settled - self._base, first, until, body)
        if not self._problem:
            try:
                self._write(frame)
            except OSError as error:
                self._sequence -= 1
                self._settled -= calls
                self._fail(error)
                self._settled += calls
                self._sequence = 1
                frame = Frame(self._id, 1, calls, self._settled - self._base, first, until, body)
            else:
                return
        self._memory.append(frame)
        self._memory_bytes += len(body)
        while self._memory_bytes > MEMORY_LIMIT:
            oldest = self._memory.popleft()
            self._memory_bytes -= len(oldest.rows)
            self.confess(Lost(time=oldest.first, until=oldest.until, count=oldest.calls, cause=LostReason.DISK))

    def _write(self, frame: Frame) -> None:
        line = frame.encode()
        if self._files[-1].size and self._files[-1].size + len(line) > self._limit // _FILES:
            self._next_file()
        while len(self._files) > 1 and sum(file.size for file in self._files) + len(line) > self._limit:
            self._make_room()
        file = self._files[-1]
        assert self._writing is not None
        written = 0
        try:
            while written < len(line):
                written += os.write(self._writing, line[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._writing, file.size)
            raise
        file.size += len(line)
        add_frame(file, frame)
        if self._dirty_since is None:
            self._dirty_since = self._clock.monotonic()

    def _make_room(self) -> None:
        oldest = self._files[0]
        if oldest.calls and oldest.first is not None and oldest.until is not None:
            lost = Lost(time=oldest.first, until=oldest.until, count=oldest.calls, cause=LostReason.SPOOL_FULL)
            self.confess(lost)
        self._read[oldest.spool] = oldest.total
        self._state.set_delivered(oldest.spool, oldest.total)
        self._remove(oldest)

    def _begin(self) -> None:
        """Start a spool of this run on the disk."""
        self._id = random_hex(self._entropy, _ID_BYTES)
        self._sequence = 0
        self._base = self._settled
        self._read[self._id] = 0
        self._next_file()
        taken = self._taken + self._confessed - self._base
        self._state.begin(self._id, taken, in_memory=bool(self._memory))

    def _next_file(self) -> None:
        if self._writing is not None:
            os.fdatasync(self._writing)
        self._number += 1
        path = self._directory / f"{self._number:012d}.spool"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._writing is not None:
            os.close(self._writing)
        self._writing = descriptor
        self._dirty_since = None
        self._files.append(SpoolFile(path, self._id))

    def _fail(self, error: OSError) -> None:
        """Go on in memory, as a spool of its own: what the disk holds of the numbering may be lost."""
        self._problem = f"{self._directory}: {error.strerror or error}"
        self._failed_at = self._clock.monotonic()
        if self._writing is not None:
            with suppress(OSError):
                os.close(self._writing)
            self._writing = None
        self._state.in_memory(self._settled - self._base)
        self._id = random_hex(self._entropy, _ID_BYTES)
        self._sequence = 0
        self._base = self._settled

    def _try_again(self, since: float) -> None:
        if self._clock.monotonic() - since < _RETRY_SECONDS:
            return
        try:
            make_private(self._directory)
            if not self._state.is_open:
                self._state.open()
                self._recover()
            # A directory where a file can be made may still have no room for what is in one.
            self._probe()
            self._begin()
        except OSError as error:
            self._fail(error)
            return
        self._problem, self._failed_at = "", None

    def _probe(self) -> None:
        path = self._directory / "probe"
        try:
            path.write_bytes(bytes(64 * 1024))
        finally:
            with suppress(OSError):
                path.unlink()

    # What is read.

    def _batch_of(self, file: SpoolFile) -> Batch | None:
        frames: list[Frame] = []
        size = rows = end = 0
        for frame, after in self._frames(file):
            size += len(frame.rows)
            rows += MAX_ROWS
            if frames and (size > BATCH_BYTES or rows > BATCH_ROWS):
                break
            frames.append(frame)
            end = after
            if not self._certain:
                break
        return joined(frames, end) if frames else None

    def _frames(self, file: SpoolFile) -> Iterator[tuple[Frame, int]]:
        """Whole frames of a file that are not delivered, each with where the next one begins."""
        with file.path.open("rb") as reading:
            reading.seek(file.offset)
            while line := reading.readline(MAX_FRAME):
                frame = Frame.parse(line)
                if frame is not None:
                    yield frame, reading.tell()

    def _pass(self, file: SpoolFile, frame: Frame, end: int) -> None:
        """A frame has been delivered. One before it that was not readable shows in the counts."""
        before = frame.total - frame.calls
        known = self._read.get(frame.spool)
        if known is not None and before > known:
            self.confess(
                Lost(time=file.first or frame.first, until=frame.first, count=before - known, cause=LostReason.DISK)
            )
        self._read[frame.spool] = frame.total
        file.offset = end
        file.calls = max(0, file.calls - frame.calls)
        self._state.set_delivered(frame.spool, frame.total)

    def _finish(self, file: SpoolFile) -> None:
        """Nothing more can be read from a file, and it is no longer written to: what it had besides is lost."""
        missing = file.total - self._read.get(file.spool, file.total)
        if missing > 0:
            now = self._clock.now()
            lost = Lost(time=file.first or now, until=file.until or now, count=missing, cause=LostReason.DISK)
            self._read[file.spool] = file.total
            self._state.set_delivered(file.spool, file.total)
            self.confess(lost)
        self._remove(file)

    def _abandon(self, file: SpoolFile, error: OSError) -> None:
        """A file cannot be read at all."""
        if file is self._files[-1] and self._writing is not None:
            self._fail(error)
        self._finish(file)

    def _remove(self, file: SpoolFile) -> None:
        self._files.remove(file)
        if all(other.spool != file.spool for other in self._files) and file.spool != self._id:
            self._read.pop(file.spool, None)
        with suppress(OSError):
            file.path.unlink()

    def _recover(self) -> None:
        """Find the files of earlier runs; confess what the last of them took and did not write."""
        before = self._state.before
        now = self._clock.now()
        total = None
        latest = None
        for path in sorted(self._directory.glob("*.spool")):
            with suppress(ValueError):
                self._number = max(self._number, int(path.stem))
            file = SpoolFile(path, "")
            damaged = False
            end = known = 0
            with path.open("rb") as reading:
                while line := reading.readline(MAX_FRAME):
                    end = reading.tell()
                    frame = Frame.parse(line)
                    if frame is None:
                        damaged = True
                        continue
                    if not file.spool:
                        file.spool = frame.spool
                        known = 0 if before.spool else frame.total - frame.calls
                    if frame.spool == before.delivered_spool and frame.total <= before.delivered:
                        file.offset = end
                        file.total = frame.total
                        continue
                    add_frame(file, frame)
            file.size = end
            latest = file.until or latest
            if file.spool and file.spool == before.spool:
                total = file.total
            if not file.spool and damaged:
                # Nothing in it can be read; where the counts go on elsewhere, they tell how many these were.
                self.confess(Lost(time=now, until=now, count=0, cause=LostReason.DISK))
            if not file.calls and file.offset >= file.size:
                with suppress(OSError):
                    path.unlink()
                continue
            if file.spool:
                self._files.append(file)
                self._read.setdefault(file.spool, before.delivered if file.spool == before.delivered_spool else known)
        self._confess_unwritten(total, latest or now, now)

    def _confess_unwritten(self, total: int | None, since: datetime, now: datetime) -> None:
        before = self._state.before
        if before.was_in_memory:
            self.confess(Lost(time=since, until=now, count=0, cause=LostReason.DISK))
        if not before.spool:
            return
        if total is None:
            total = before.delivered if before.delivered_spool == before.spool else 0
        missing = before.taken - total
        if missing > 0:
            self.confess(Lost(time=since, until=now, count=missing, cause=LostReason.DISK))
