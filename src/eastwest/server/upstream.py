"""Staying in step with the authority above: its roots, and the JWT keys of all servers of the trust domain.

What is above is asked again and again and told our JWT keys; the bundle here only ever gains by it, so that an
authority that cannot be reached, or forgets something, takes no trust away. What ended is pruned as everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.pki.upstream import UpstreamAuthority
from eastwest.server.rotation import AuthorityKeeper
from eastwest.spiffe.bundle import Bundle, JwtAuthority

REFRESH_SECONDS = 15.0
"""Between two looks. A root must be known everywhere here before the first certificate below it is shown."""
_PROBLEM = "upstream"
_log = structlog.get_logger()


class UpstreamWatch:
    """Keeps the bundle in step. While it cannot, the keeper's problem ``upstream`` says why."""

    def __init__(self, keeper: AuthorityKeeper, upstream: UpstreamAuthority, clock: Clock) -> None:
        self._keeper = keeper
        self._upstream = upstream
        self._clock = clock
        self._actor = f"{keeper.subject}/spire/server"
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Look for ever: at once when the own bundle has changed, and every ``REFRESH_SECONDS``."""
        unsubscribe = self._keeper.trust.subscribe(lambda _bundle: self._changed.set())
        try:
            while True:
                self._changed.clear()
                await self.look()
                with suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_SECONDS):
                        await self._changed.wait()
        finally:
            unsubscribe()

    async def look(self) -> None:
        """Ask and tell once. Never raises."""
        try:
            roots = await self._upstream.roots()
            known = await self._upstream.publish_jwt(self._own_keys())
            await self._keeper.adopt(roots, self._live(known or ()), actor=self._actor)
        except Error as error:
            if _PROBLEM not in self._keeper.problems:
                _log.warning("upstream.unreachable", error=str(error))
            self._keeper.problems[_PROBLEM] = f"the upstream authority cannot be followed: {error}"
        else:
            self._keeper.problems.pop(_PROBLEM, None)

    async def publish(self, key: JwtAuthority, actor: str) -> Bundle:
        """Take the JWT key of a server below this one, and tell it the authority above first."""
        known = await self._upstream.publish_jwt([key])
        return await self._keeper.adopt(jwt=[key, *self._live(known or ())], actor=actor)

    def _own_keys(self) -> Sequence[JwtAuthority]:
        # Those of servers below were told when they came.
        own = [key for key in self._keeper.state.jwt if key.key and not key.tainted]
        return [JwtAuthority(key.spki, key.id, key.not_after) for key in own]

    def _live(self, keys: Sequence[JwtAuthority]) -> list[JwtAuthority]:
        now = int(self._clock.now().timestamp())
        return [key for key in keys if key.expires_at > now and not key.tainted]
