"""What must outlive a kill of the agent beside its frames: how much it had taken, and how much is delivered.

One small file of fixed places, each written in one call; the page cache keeps it when the process is killed. Each
number stands there twice, once inverted, so that a damaged one is known.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_ID = 16
_NUMBER = struct.Struct("<QQ")
_MASK = (1 << 64) - 1
_SPOOL, _TAKEN, _DELIVERED_SPOOL, _DELIVERED, _IN_MEMORY = 0, 16, 32, 48, 64
_SIZE = 80


@dataclass(frozen=True, slots=True)
class Before:
    """What the run before left: its spool's id, and calls. Ids are "" where there was none, or it is damaged."""

    spool: str = ""
    taken: int = 0
    delivered_spool: str = ""
    delivered: int = 0
    was_in_memory: bool = False


class SpoolState:
    """The file. Writing never raises: what it protects against is a second failure."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self.before = Before()

    @property
    def is_open(self) -> bool:
        """Whether there is a file to write to."""
        return self._file is not None

    def open(self) -> None:
        """Read what is there and open it for writing; raises ``OSError``."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        content = os.pread(self._file, _SIZE, 0).ljust(_SIZE, b"\0")
        taken, delivered = _number(content, _TAKEN), _number(content, _DELIVERED)
        self.before = Before(
            spool=_id(content, _SPOOL) if taken is not None else "",
            taken=taken or 0,
            delivered_spool=_id(content, _DELIVERED_SPOOL) if delivered is not None else "",
            delivered=delivered or 0,
            was_in_memory=bool(_number(content, _IN_MEMORY)),
        )

    def begin(self, spool: str, taken: int, *, in_memory: bool) -> None:
        """A new spool is written to from now on; ``in_memory``: some of what came before is in memory alone."""
        self.set_in_memory(in_memory)
        self._write(_SPOOL, bytes.fromhex(spool) + _NUMBER.pack(taken, taken ^ _MASK))

    def in_memory(self, written: int) -> None:
        """From now on nothing more gets onto the disk: the spool ends at ``written`` calls."""
        self._write(_TAKEN, _NUMBER.pack(written, written ^ _MASK))
        self.set_in_memory(True)

    def set_in_memory(self, some: bool) -> None:
        """Whether memory alone has what the server does not have."""
        self._write(_IN_MEMORY, _NUMBER.pack(some, some ^ _MASK))

    def set_taken(self, calls: int) -> None:
        """How many calls of the spool are taken, written or not."""
        self._write(_TAKEN, _NUMBER.pack(calls, calls ^ _MASK))

    def set_delivered(self, spool: str, total: int) -> None:
        """How far the server has a spool."""
        self._write(_DELIVERED_SPOOL, bytes.fromhex(spool) + _NUMBER.pack(total, total ^ _MASK))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, place: int, content: bytes) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.pwrite(self._file, content, place)


def _number(content: bytes, place: int) -> int | None:
    value, inverted = _NUMBER.unpack_from(content, place)
    return value if value ^ inverted == _MASK else None


def _id(content: bytes, place: int) -> str:
    raw = content[place : place + _ID]
    return raw.hex() if any(raw) else ""
