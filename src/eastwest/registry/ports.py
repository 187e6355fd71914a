"""What the registry needs of a store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from eastwest.registry.entry import Entry
from eastwest.registry.node import JoinToken, Node
from eastwest.spiffe.id import SpiffeId

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PrivilegedSvid:
    """A certificate issued under an entry with ``admin`` or ``downstream``: serial (decimal), entry, end (Unix)."""

    serial: str
    entry_id: str
    not_after: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything stored but the join tokens, and the version that it makes."""

    entries: tuple[Entry, ...] = ()
    nodes: tuple[Node, ...] = ()
    version: int = 0
    svids: tuple[PrivilegedSvid, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that belong together and lead to ``version``. A put adds or replaces by id.

    ``use_tokens``: join tokens that become used by the key which their ``used_by`` names.
    """

    version: int
    put_entries: tuple[Entry, ...] = ()
    drop_entries: tuple[str, ...] = ()
    put_nodes: tuple[Node, ...] = ()
    drop_nodes: tuple[SpiffeId, ...] = ()
    use_tokens: tuple[JoinToken, ...] = ()


class RegistryStore(Protocol):
    """Durable entries, nodes and join tokens.

    What a method has returned from survives a power cut. A method that raises has changed nothing.
    """

    async def load(self) -> Snapshot:
        """All that was applied."""
        ...

    async def apply(self, batch: Batch) -> None:
        """Carry out all of ``batch`` or nothing.

        Two similar entries (same SPIFFE ID, parent and selectors) are never kept: ``AlreadyExists``. Only the
        state after the whole batch counts, so entries may trade keys within one. Dropping what is absent is no
        error. A version that does not follow the stored one (another process wrote) raises ``FailedPrecondition``,
        and so does a join token that is gone or was used by another key: of any number of keys, one gets it.
        """
        ...

    async def save_token(self, token: JoinToken) -> None:
        """Keep a join token; ``AlreadyExists`` when its digest is there."""
        ...

    async def find_token(self, digest: bytes) -> JoinToken | None:
        """The join token with this digest, used or not."""
        ...

    async def drop_tokens(self, ended_by: int) -> int:
        """Remove join tokens whose end is at or before ``ended_by`` (Unix seconds); return how many."""
        ...

    async def save_svids(self, svids: Sequence[PrivilegedSvid], ended_by: int) -> None:
        """Keep these; drop those whose end is at or before ``ended_by`` (Unix seconds)."""
        ...

    async def in_turn(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run operations one after another, each to its end.

        The registry decides on what it holds in memory, stores, then changes memory: nothing may come between.
        An operation goes on when its caller is cancelled, for its write may be durable already.
        """
        ...
