"""The registry's store in memory, with failures to order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from eastwest.errors import AlreadyExists, Error, FailedPrecondition
from eastwest.registry.entry import Entry
from eastwest.registry.node import JoinToken, Node
from eastwest.registry.ports import Batch, PrivilegedSvid, Snapshot
from eastwest.spiffe.id import SpiffeId
from eastwest.store.turns import Turns

T = TypeVar("T")


class MemoryRegistryStore:
    """Serves ``eastwest.registry.ports.RegistryStore``; what is stored lives as long as the object.

    ``fail_next`` is raised by the next write in place of carrying it out, as a full disk would.
    """

    def __init__(self) -> None:
        self.fail_next: Error | None = None
        self._version = 0
        self._entries: dict[str, Entry] = {}
        self._nodes: dict[SpiffeId, Node] = {}
        self._tokens: dict[bytes, JoinToken] = {}
        self._svids: dict[str, PrivilegedSvid] = {}
        self._turns = Turns()

    async def load(self) -> Snapshot:
        svids = tuple(self._svids.values())
        return Snapshot(tuple(self._entries.values()), tuple(self._nodes.values()), self._version, svids)

    async def apply(self, batch: Batch) -> None:
        self._fail()
        if batch.version != self._version + 1:
            raise FailedPrecondition("another process has changed the registry")
        gone = {*batch.drop_entries, *(entry.id for entry in batch.put_entries)}
        entries = {entry_id: entry for entry_id, entry in self._entries.items() if entry_id not in gone}
        entries.update((entry.id, entry) for entry in batch.put_entries)
        if len({entry.key for entry in entries.values()}) < len(entries):
            raise AlreadyExists("an entry with the same SPIFFE ID, parent and selectors is stored already")
        for token in batch.use_tokens:
            kept = self._tokens.get(token.digest)
            if kept is None or kept.used_by not in {b"", token.used_by}:
                raise FailedPrecondition("the join token has been used meanwhile")
        for token in batch.use_tokens:
            self._tokens[token.digest] = replace(self._tokens[token.digest], used_by=token.used_by)
        self._entries = entries
        for spiffe_id in batch.drop_nodes:
            self._nodes.pop(spiffe_id, None)
        self._nodes.update((node.spiffe_id, node) for node in batch.put_nodes)
        self._version = batch.version

    async def save_token(self, token: JoinToken) -> None:
        self._fail()
        if token.digest in self._tokens:
            raise AlreadyExists("this join token exists already")
        self._tokens[token.digest] = token

    async def find_token(self, digest: bytes) -> JoinToken | None:
        return self._tokens.get(digest)

    async def drop_tokens(self, ended_by: int) -> int:
        self._fail()
        over = [digest for digest, token in self._tokens.items() if token.expires_at <= ended_by]
        for digest in over:
            del self._tokens[digest]
        return len(over)

    async def save_svids(self, svids: Sequence[PrivilegedSvid], ended_by: int) -> None:
        self._fail()
        kept = {serial: svid for serial, svid in self._svids.items() if svid.not_after > ended_by}
        self._svids = kept | {svid.serial: svid for svid in svids}

    async def in_turn(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._turns.run(operation)

    def _fail(self) -> None:
        if self.fail_next is not None:
            failure, self.fail_next = self.fail_next, None
            raise failure
