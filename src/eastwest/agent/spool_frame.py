"""One frame of the agent's spool: a line of checksum, place, counts and rows, that is whole or known to be damaged.

A line ends what a flipped byte can spoil. ``total`` counts on from frame to frame, so that the next good one tells how
many decisions were in those between which are not.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime

MAX_FRAME = 8 * 1024 * 1024
_FIELDS = 8
_MILLISECONDS = 1000


@dataclass(frozen=True, slots=True)
class Frame:
    """``rows`` (a JSON array) stand for ``calls`` decisions taken between ``first`` and ``until``."""

    spool: str  # 32 hex digits
    sequence: int  # from 1, one more with each frame of the spool
    calls: int
    total: int  # calls of this frame and all before it
    first: datetime
    until: datetime
    rows: bytes

    def encode(self) -> bytes:
        """One line, the newline included."""
        head = f"{self.spool} {self.sequence} {self.calls} {self.total} {_ms(self.first)} {_ms(self.until)} "
        body = head.encode() + self.rows
        return b"%08x %b\n" % (zlib.crc32(body), body)

    @classmethod
    def parse(cls, line: bytes) -> Frame | None:
        """The inverse of ``encode``; None for a line that is not whole, or not as it was written."""
        if not line.endswith(b"\n"):
            return None
        parts = line[:-1].split(b" ", _FIELDS - 1)
        try:
            if len(parts) != _FIELDS or parts[0] != b"%08x" % zlib.crc32(line[9:-1]):
                return None
            sequence, calls, total, first, until = map(int, parts[2:7])
            return cls(parts[1].decode(), sequence, calls, total, _time(first), _time(until), parts[7])
        except (ValueError, OverflowError, OSError):
            return None


def _ms(time: datetime) -> int:
    return int(time.timestamp() * _MILLISECONDS)


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / _MILLISECONDS, UTC)
