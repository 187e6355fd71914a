"""Comparing two checkpoints that two people hold: one history, or two."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eastwest.errors import InvalidInput, NotFound, Unavailable
from eastwest.log.checkpoint import Checkpoint, open_any_checkpoint
from eastwest.log.note import MAX_NOTE_BYTES, NoteKey
from eastwest.log.proof import ProofMismatch, consistency_proof, verify_consistency
from eastwest.log.tiles import CHECKPOINT_PATH, FULL_TILE_BYTES, TileReader
from eastwest.log.witness import ForkFound, compare
from eastwest.server.log.exchange import exchange
from eastwest.store.log_files import LogDirectory


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict on two checkpoints of one log."""

    first: Checkpoint
    second: Checkpoint
    consistent: bool
    told: str

    def as_json(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "consistent": self.consistent,
            "origin": self.first.origin,
            "sizes": [self.first.size, self.second.size],
            "roots": [self.first.root.hex(), self.second.root.hex()],
            "message": self.told,
        }


class _Place:
    """Where a checkpoint was given: a file, a log's directory, or a URL of either. Serves ``LogFiles`` for logs."""

    def __init__(self, text: str, trust: ssl.SSLContext) -> None:
        self._trust = trust
        self._is_url = text.startswith(("http://", "https://"))
        path = Path(text)
        self.is_log = path.is_dir() if not self._is_url else not text.endswith("/checkpoint")
        self._text = text.rstrip("/") if self._is_url else text
        self._directory = LogDirectory(path)

    async def checkpoint(self) -> bytes:
        """The signed note."""
        if self._is_url:
            return await self._get(f"{self._text}/{CHECKPOINT_PATH}" if self.is_log else self._text, MAX_NOTE_BYTES)
        if self.is_log:
            return self._directory.read(CHECKPOINT_PATH)
        return await asyncio.to_thread(self._read_file)

    def read(self, path: str) -> bytes:
        """A tile; called in a thread, where an exchange has a loop of its own."""
        if not self._is_url:
            return self._directory.read(path)
        return asyncio.run(self._get(f"{self._text}/{path}", FULL_TILE_BYTES))

    def _read_file(self) -> bytes:
        try:
            with Path(self._text).open("rb") as file:
                return file.read(MAX_NOTE_BYTES + 1)
        except OSError as error:
            raise InvalidInput(f"cannot be read: {error.strerror}", where=self._text) from None

    async def _get(self, url: str, limit: int) -> bytes:
        reply = await exchange(url, self._trust, limit)
        if reply.status == 404:
            raise NotFound(f"there is no {url}")
        if reply.status != 200:
            raise Unavailable(f"{url} answered {reply.status}")
        return reply.body


async def compare_checkpoints(first: str, second: str, keys: Sequence[NoteKey]) -> Comparison:
    """Compare; raises what keeps the two from being compared at all, such as ``UntrustedNote``."""
    trust = ssl.create_default_context()
    places = [_Place(first, trust), _Place(second, trust)]
    notes = [await place.checkpoint() for place in places]
    try:
        heads = compare(notes[0], notes[1], keys)
    except ForkFound as fork:
        one, two = (open_any_checkpoint(note, keys) for note in notes)
        return Comparison(one, two, False, f"TWO HISTORIES: {fork.message}; keep both checkpoints as evidence")
    if heads[0].size == heads[1].size:
        return Comparison(*heads, True, f"both are the same tree of {heads[0].size} entries of {heads[0].origin}")
    small, large = sorted(range(2), key=lambda place: heads[place].size)
    if not places[large].is_log:
        raise InvalidInput(
            f"the checkpoints are of {heads[small].size} and {heads[large].size} entries, which only tiles can compare",
            fix="give the log of the larger one: its directory or its URL",
        )
    try:
        await asyncio.to_thread(_verify, places[large], heads[small], heads[large])
    except ProofMismatch as error:
        told = f"TWO HISTORIES, or tiles that were changed: {error.message}; verify the log to tell which"
        return Comparison(*heads, False, told)
    told = f"the tree of {heads[small].size} entries is the beginning of that of {heads[large].size}"
    return Comparison(*heads, True, f"{told}, of {heads[0].origin}")


def _verify(place: _Place, old: Checkpoint, new: Checkpoint) -> None:
    node = TileReader(place, new.size).node
    verify_consistency(old.size, new.size, consistency_proof(old.size, new.size, node), old.root, new.root)
