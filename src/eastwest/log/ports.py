"""What others need of the log: somewhere to put an entry that is durable before anything is released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eastwest.errors import NotFound
from eastwest.log.note import NoteKey


class Pruned(NotFound):
    """An entry was in the log and was removed by its stated retention; the hash of it is still there."""


class Recorder(Protocol):
    """Appends to the transparency log."""

    async def append(self, entries: Sequence[bytes]) -> Sequence[int]:
        """Store encoded entries (``eastwest.log.entry``) and return their indices.

        Returns only when all of them are durable: they survive a power cut. All of them are stored or
        none is. Raises ``LogUnavailable`` when they cannot be; then nothing may be released.
        """
        ...


class LogStore(Recorder, Protocol):
    """A log that is kept: a ``Recorder`` whose entries and proofs can be had again.

    Indices count from 0 in the order of appending and have no gaps. After ``LogUnavailable`` an entry
    may still turn up (a commit can succeed unheard); what was returned is never lost or moved.
    """

    @property
    def key(self) -> NoteKey:
        """Whose signature the log's checkpoints bear; its name is the log's origin line."""
        ...

    @property
    def size(self) -> int:
        """How many entries are durable, as far as this process has heard."""
        ...

    async def entry(self, index: int) -> bytes:
        """One entry; raises ``NotFound`` beyond the end."""
        ...

    async def entries(self, start: int, end: int) -> Sequence[bytes]:
        """Entries ``start`` to ``end`` (exclusive), fewer if the log ends before."""
        ...

    async def flush(self) -> object:
        """Publish all that is durable now: tiles, then a signed checkpoint."""
        ...

    async def prove(self, index: int) -> str:
        """A ``c2sp.org/tlog-proof@v1`` of one entry in the last published checkpoint.

        Raises ``NotFound`` if no published checkpoint covers it yet.
        """
        ...


class LogFiles(Protocol):
    """The log's public files, wherever they lie: a directory, a web server, a dictionary."""

    def read(self, path: str) -> bytes:
        """The file at ``checkpoint`` or ``tile/...``; raises ``NotFound`` if there is none."""
        ...
