"""What the ledger's rows can be handed to: somebody else's store, which is told everything at least once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from eastwest.clock import Clock

Row = Mapping[str, Any]


class Sink(Protocol):
    """Takes rows in order. What was delivered may be delivered again: a row's number (``row``) makes it known."""

    async def deliver(self, rows: Sequence[Row]) -> None:
        """Return only once the other side has said that it holds all of them.

        Raises ``Unavailable`` where trying again later may help, ``InvalidInput`` where the other side refuses these
        rows for good.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and files."""
        ...


@dataclass(frozen=True, slots=True)
class SinkContext:
    """What a sink may know of the server: its trust domain, its version, and the ledger's own id.

    ``ledger_id`` is random and made with the ledger, so that rows of two ledgers in one store are told apart.
    """

    trust_domain: str
    version: str
    ledger_id: str
    clock: Clock
