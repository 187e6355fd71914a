"""JWT-SVIDs on demand: cached to half life, fetched once for many who ask at the same time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime

from eastwest import errors
from eastwest.agent.connection import ServerConnection
from eastwest.clock import Clock
from eastwest.pki.chain import InvalidSvid
from eastwest.pki.jwt import unverified_subject
from eastwest.registry.entry import Entry
from eastwest.spiffe.svid import JwtSvid

MOST = 1000
_Key = tuple[str, int, tuple[str, ...]]


class JwtCache:
    """Tokens by entry, revision and audience; the least recently used beyond ``MOST`` are forgotten."""

    def __init__(self, connection: ServerConnection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._tokens: OrderedDict[_Key, JwtSvid] = OrderedDict()
        self._fetching: dict[_Key, asyncio.Task[JwtSvid]] = {}

    async def fetch(self, entry: Entry, audience: Sequence[str]) -> JwtSvid:
        """A token for ``entry`` with more than half its life to go, or an older one while the server is away.

        Raises ``Unavailable`` when there is none and none can be had, ``InvalidInput`` for a bad audience.
        """
        key = (entry.id, entry.revision, tuple(sorted(set(audience))))
        held = self._tokens.get(key)
        now = self._clock.now()
        if held is not None and now < held.issued_at + (held.expires_at - held.issued_at) / 2:
            self._tokens.move_to_end(key)
            return held
        try:
            return await self._once(key, entry, audience)
        except errors.InvalidInput:
            raise
        except errors.Error as error:
            if held is not None and now < held.expires_at:
                return held
            raise errors.Unavailable(f"no JWT-SVID for {entry.spiffe_id}: {error.message}") from None

    def forget(self) -> None:
        """Drop every token: the keys that sign them changed, and tokens are cheap to make again."""
        self._tokens.clear()

    async def _once(self, key: _Key, entry: Entry, audience: Sequence[str]) -> JwtSvid:
        task = self._fetching.get(key)
        if task is None:
            task = asyncio.ensure_future(self._fetch(key, entry, audience))
            self._fetching[key] = task
            task.add_done_callback(lambda done: self._fetched(key, done))
        # Shielded: one caller who hangs up must not end it for the others.
        return await asyncio.shield(task)

    def _fetched(self, key: _Key, task: asyncio.Task[JwtSvid]) -> None:
        self._fetching.pop(key, None)
        if not task.cancelled():
            task.exception()

    async def _fetch(self, key: _Key, entry: Entry, audience: Sequence[str]) -> JwtSvid:
        wire = await self._connection.new_jwt(entry.id, audience)
        try:
            subject = unverified_subject(wire.token)
        except InvalidSvid as error:
            raise errors.Unavailable(f"the server sent no JWT-SVID: {error.message}") from None
        if subject != entry.spiffe_id:
            raise errors.Unavailable(f"the server sent a token of {subject}")
        issued_at, expires_at = (
            datetime.fromtimestamp(wire.issued_at, UTC),
            datetime.fromtimestamp(wire.expires_at, UTC),
        )
        token = JwtSvid(entry.spiffe_id, wire.token, tuple(audience), issued_at, expires_at)
        self._tokens[key] = token
        while len(self._tokens) > MOST:
            self._tokens.popitem(last=False)
        return token
