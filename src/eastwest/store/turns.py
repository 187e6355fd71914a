"""Operations that take turns and are finished even when nobody waits for them any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Turns:
    """Serves ``in_turn`` of ``eastwest.registry.ports.RegistryStore`` within one process."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        # The loop holds tasks weakly; an operation whose caller was cancelled has nobody else to hold it.
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Wait for the operations before this one, run it, return or raise what it does."""
        task = asyncio.create_task(self._run(operation))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _run(self, operation: Callable[[], Awaitable[T]]) -> T:
        async with self._lock:
            return await operation()
