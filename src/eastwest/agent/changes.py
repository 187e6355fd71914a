"""Waking whoever waits for a change, without queues: a waiter sees that something changed, and then looks."""

from __future__ import annotations

import asyncio


class Changes:
    """A counter that can be waited on. Many changes in one turn of the loop wake a waiter once."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def bump(self) -> None:
        """Something changed."""
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def beyond(self, count: int) -> int:
        """Wait until the counter is past ``count``; gives its value."""
        while self.count <= count:
            await self._event.wait()
        return self.count
