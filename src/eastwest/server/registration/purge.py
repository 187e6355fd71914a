"""Forgetting nodes that have not come back for a long time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import structlog

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.registry.node import Node
from eastwest.registry.registry import Registry
from eastwest.server.journal import Event, Journal

DAY = 86400
INTERVAL = 3600.0
"""Seconds between two looks."""
BATCH = 500
_log = structlog.get_logger()


async def keep_purging(registry: Registry, journal: Journal, clock: Clock, days: int) -> None:
    """Forget, for ever, nodes whose certificates ended more than ``days`` days ago. A failure is tried again."""
    while True:
        try:
            await purge(registry, journal, clock, days)
        except Error as error:
            _log.warning("nodes.purge_failed", error=str(error))
        await clock.sleep(INTERVAL)


async def purge(registry: Registry, journal: Journal, clock: Clock, days: int) -> int:
    """Forget such nodes once, each recorded before; gives their number. Banned ones stay, whatever their age."""
    ended_before = int(clock.now().timestamp()) - days * DAY
    actor = f"{registry.trust_domain.uri}/spire/server"
    gone = await purge_nodes(registry, journal, actor, registry.nodes.expired(ended_before))
    if gone:
        _log.info("nodes.purged", count=len(gone), days=days)
    return len(gone)


async def purge_nodes(registry: Registry, journal: Journal, actor: str, nodes: Sequence[Node]) -> list[Node]:
    """Forget these nodes, each recorded before; gives those that had not come back meanwhile."""
    gone: list[Node] = []
    for batch in _batched(nodes, BATCH):
        await journal.record_all(
            [Event("node.purged", actor, str(node.spiffe_id), {"not_after": str(node.not_after)}) for node in batch]
        )
        gone += await registry.nodes.purge(batch)
    return gone


def _batched(nodes: Sequence[Node], size: int) -> Iterator[Sequence[Node]]:
    for start in range(0, len(nodes), size):
        yield nodes[start : start + size]
