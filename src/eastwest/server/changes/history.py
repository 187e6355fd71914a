"""What was ever in force, read for how strictly operations were classed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from eastwest.policy.applications import nodes_of
from eastwest.policy.load import load_parts
from eastwest.policy.past import Past, Version
from eastwest.store.estate import SqliteEstates

MAX_VERSIONS = 1000
"""Activations that are looked back at, the newest; whoever wants to be forgotten has to apply as many."""
_AT_ONCE = 20


class History:
    """Reads each version once."""

    def __init__(self, store: SqliteEstates) -> None:
        self._store = store
        self._turn = asyncio.Lock()
        self._read: set[str] = set()
        self._past = Past()

    async def past(self) -> Past:
        """The strictest classes of all that was in force, the version in force included."""
        async with self._turn:
            listed = [row.version for row in await self._store.versions(MAX_VERSIONS)]
            unread = [version for version in dict.fromkeys(listed) if version not in self._read]
            for start in range(0, len(unread), _AT_ONCE):
                some = unread[start : start + _AT_ONCE]
                found = [await self._store.find(version) for version in some]
                files = [one.files for one in found if one is not None]
                self._past = await asyncio.to_thread(_joined, self._past, files)
                self._read.update(some)
            return self._past


def _joined(past: Past, versions: Sequence[Mapping[str, bytes]]) -> Past:
    parts = map(load_parts, versions)
    return past.joined(Version(services, nodes_of(workloads)) for services, workloads in parts)
