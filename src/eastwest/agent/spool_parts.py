"""What the spool is made of: files, batches of frames, rows cut into frames; and how it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec

from eastwest.agent.spool_frame import Frame
from eastwest.ledger.record import MAX_COUNT, Decision, Lost, LostReason, Row

MAX_ROW = 16 * 1024
"""Bytes of one row, as the server takes them."""
MAX_ROWS = 2_000
"""Rows of one frame."""
BATCH_ROWS, BATCH_BYTES = 10_000, 1024 * 1024
"""Of several frames sent as one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames that go to the server as one, under the number of the last."""

    spool: str
    sequence: int
    calls: int
    first: datetime
    until: datetime
    rows: bytes
    frames: int
    end: int  # where the next begins in its file


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """Bytes ``used`` of ``limit`` by ``waiting`` decisions; ``problem`` of the disk; confessed ``lost`` in this run."""

    used: int
    limit: int
    waiting: int = 0
    full: bool = False
    problem: str = ""
    lost: Mapping[LostReason, int] = field(default_factory=dict)

    @property
    def records(self) -> bool:
        """Whether a decision that is made now will be kept: the disk works, and there is room on it."""
        return not self.problem and not self.full


@dataclass(slots=True)
class SpoolFile:
    path: Path
    spool: str
    size: int = 0
    offset: int = 0  # what lies before it is delivered
    calls: int = 0  # in whole frames from there on
    first: datetime | None = None
    until: datetime | None = None
    total: int = 0  # after its last whole frame


def add_frame(file: SpoolFile, frame: Frame) -> None:
    file.calls += frame.calls
    file.total = frame.total
    file.first = frame.first if file.first is None else min(file.first, frame.first)
    file.until = frame.until if file.until is None else max(file.until, frame.until)


def joined(frames: Sequence[Frame], end: int) -> Batch:
    last = frames[-1]
    return Batch(
        spool=last.spool,
        sequence=last.sequence,
        calls=sum(frame.calls for frame in frames),
        first=min(frame.first for frame in frames),
        until=max(frame.until for frame in frames),
        rows=b"[" + b",".join(body for frame in frames if (body := frame.rows[1:-1])) + b"]",
        frames=len(frames),
        end=end,
    )


def cut_into_frames(rows: Iterable[Row], lost: dict[LostReason, int], share: int) -> Iterator[list[tuple[Row, bytes]]]:
    """Rows with their JSON, as many together as make a frame; ``share``: bytes that one service's rows may have.

    What is too much of one service becomes a loss of that service's: it must not push out what others decided.
    """
    part: list[tuple[Row, bytes]] = []
    size = 0
    for kept, body in _encoded(rows, lost, share):
        if part and (len(part) >= MAX_ROWS or size + len(body) > BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append((kept, body))
        size += len(body)
    if part:
        yield part


def _encoded(rows: Iterable[Row], lost: dict[LostReason, int], share: int) -> Iterator[tuple[Row, bytes]]:
    spent: dict[str, int] = {}
    beyond: dict[str, Lost] = {}
    for row in _bounded(rows):
        kept, body = row, msgspec.json.encode(row)
        if len(body) > MAX_ROW:
            kept = lost_row(row)
            body = msgspec.json.encode(kept)
            lost[kept.cause] = lost.get(kept.cause, 0) + kept.count
        elif isinstance(row, Decision):
            of = row.service
            spent[of] = spent.get(of, 0) + len(body)
            if spent[of] > share:
                more = Lost(time=row.time, until=row.time, count=row.count, cause=LostReason.SPOOL_FULL, service=of)
                beyond[of] = beyond[of].with_more(more) if of in beyond else more
                continue
        yield kept, body
    for loss in _bounded(beyond.values()):
        lost[LostReason.SPOOL_FULL] = lost.get(LostReason.SPOOL_FULL, 0) + loss.count
        yield loss, msgspec.json.encode(loss)


def _bounded(rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows, none of which stands for more calls than the server takes: it would refuse the frame for it."""
    for row in rows:
        more = row.count
        while more > MAX_COUNT:
            yield msgspec.structs.replace(row, count=MAX_COUNT)
            more -= MAX_COUNT
        yield row if more == row.count else msgspec.structs.replace(row, count=more)


def lost_row(row: Row) -> Lost:
    until = row.until if isinstance(row, Lost) else row.time
    return Lost(time=row.time, until=until, count=row.count, cause=LostReason.REFUSED)
