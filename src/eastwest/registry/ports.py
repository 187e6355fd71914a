"""What the registry needs of a store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from eastwest.registry.entry import Entry
from eastwest.registry.node import JoinToken, Node
from eastwest.spiffe.id import SpiffeId

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything stored but the join tokens, and the version that it makes."""

    entries: tuple[Entry, ...] = ()
    nodes: tuple[Node, ...] = ()
    version: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that belong together and lead to ``version``. A put adds or replaces by id."""

    version: int
    put_entries: tuple[Entry, ...] = ()
    drop_entries: tuple[str, ...] = ()
    put_nodes: tuple[Node, ...] = ()
    drop_nodes: tuple[SpiffeId, ...] = ()


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
        error. A version that does not follow the stored one (another process wrote) raises ``FailedPrecondition``.
        """
        ...

    async def save_token(self, token: JoinToken) -> None:
        """Keep a join token; ``AlreadyExists`` when its digest is there."""
        ...

    async def take_token(self, digest: bytes) -> JoinToken | None:
        """Remove a join token and return it; of any number of callers, in any process, one gets it."""
        ...

    async def drop_tokens(self, ended_by: int) -> int:
        """Remove join tokens whose end is at or before ``ended_by`` (Unix seconds); return how many."""
        ...

    async def in_turn(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run operations one after another, each to its end.

        The registry decides on what it holds in memory, stores, then changes memory: nothing may come between.
        An operation goes on when its caller is cancelled, for its write may be durable already.
        """
        ...
