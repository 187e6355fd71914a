"""Staying in step with the authority above: its roots, and the JWT keys of all servers of the trust domain.

What is above is asked again and again and told our JWT keys. An authority that cannot be reached takes no trust away.
One that does not name something any more, or says that it is tainted, has it let go of here by the same steps as by
hand, each of them stored: tainted first, and removed once no node holds what stems from it. Whatever step a server was
killed after, the next look goes on from there. What went so comes back when it is named again; what was revoked here,
by hand, does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress

import structlog
from cryptography import x509

from eastwest.clock import Clock
from eastwest.errors import Error, FailedPrecondition
from eastwest.pki.confirmation import NotConfirmed
from eastwest.pki.rotation.state import Kind, Root, Source, Stage
from eastwest.pki.upstream import TellsTaint, UpstreamAuthority
from eastwest.server.ca.authority import subject_key_id
from eastwest.server.ca.rotation import AuthorityKeeper
from eastwest.spiffe.bundle import Bundle, JwtAuthority

REFRESH_SECONDS = 15.0
"""Between two looks. A root must be known everywhere here before the first certificate below it is shown."""
_PROBLEM = "upstream"
_TAINTED = "upstream taint"
_log = structlog.get_logger()
Lasting = Callable[[Root], Awaitable[bool]]


class UpstreamWatch:
    """Keeps the bundle in step. While it cannot, the keeper's problem ``upstream`` says why."""

    def __init__(
        self,
        keeper: AuthorityKeeper,
        upstream: UpstreamAuthority,
        clock: Clock,
        *,
        automatic: bool = True,
        lasting: Lasting | None = None,
    ) -> None:
        """``automatic``: leave a tainted root by ourselves. ``lasting`` says whether something below an old root still
        lives that no node holds; None: never.
        """
        self._keeper = keeper
        self._upstream = upstream
        self._clock = clock
        self._automatic = automatic
        self._lasting = lasting
        self._actor = f"{keeper.subject}/spire/server"
        self._changed = asyncio.Event()
        # What a look was told must not be older than what was published meanwhile.
        self._turn = asyncio.Lock()

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
            async with self._turn:
                await self._look()
        except Error as error:
            if _PROBLEM not in self._keeper.problems:
                _log.warning("upstream.unreachable", error=str(error))
            self._keeper.problems[_PROBLEM] = f"the upstream authority cannot be followed: {error}"
        else:
            self._keeper.problems.pop(_PROBLEM, None)

    async def publish(self, key: JwtAuthority, actor: str) -> Bundle:
        """Take the JWT key of a server below this one, and tell it the authority above first; not one that was revoked
        here, which changes nothing.
        """
        async with self._turn:
            if self._keeper.state.is_revoked(Kind.JWT, key.key_id):
                return self._keeper.trust.bundle
            known = await self._upstream.publish_jwt([key])
            return await self._keeper.adopt(jwt=[key, *self._live(known or ())], actor=actor)

    async def _look(self) -> None:
        roots = await self._upstream.roots()
        if not roots:
            raise FailedPrecondition("it names no root")
        tainted = await self._upstream.tainted() if isinstance(self._upstream, TellsTaint) else ()
        known = await self._upstream.publish_jwt(self._own_keys())
        await self._keeper.adopt(roots, self._live(known or ()), actor=self._actor)
        problems = [await self._follow_root(root, roots, tainted) for root in self._keeper.state.roots]
        if known is not None:
            await self._follow_keys(known)
            problems.append(self._refused(known))
        told = "; ".join(filter(None, problems))
        if told:
            self._keeper.problems[_TAINTED] = told
        else:
            self._keeper.problems.pop(_TAINTED, None)

    async def _follow_root(self, root: Root, roots: Sequence[bytes], tainted: Collection[bytes]) -> str:
        """One step towards letting go of a root that is no longer good above; gives what stands in the way."""
        if root.source is not Source.UPSTREAM:
            return ""
        gone, bad = root.id not in set(map(_key_id, roots)), root.id in set(map(_key_id, tainted))
        keeper = self._keeper
        if not (gone or bad):
            return ""
        if root.stage is Stage.PREPARED:
            await keeper.discard(Kind.X509, root.id, self._actor)
        elif root.stage is Stage.ACTIVE:
            # A root that is only gone has its successor by the calendar; what it signed is still good.
            return await self._leave(root) if bad else ""
        elif not root.tainted:
            await keeper.taint(Kind.X509, root.id, self._actor)
        elif gone and not (self._lasting is not None and await self._lasting(root)):
            with suppress(NotConfirmed):
                await keeper.revoke(Kind.X509, root.id, self._actor, remember=False)
        return ""

    async def _leave(self, root: Root) -> str:
        """Begin anew below another root, as soon as all trust that one."""
        told = f"the root {root.id} is tainted above, and everything here is signed below it"
        if not self._automatic:
            return f"{told}: prepare and activate another one (ca_rotation is manual)"
        prepared = self._keeper.state.prepared_root
        try:
            if prepared is None and not any(ca.stage is Stage.PREPARED for ca in root.issuing):
                await self._keeper.prepare(Kind.X509, self._actor)
                prepared = self._keeper.state.prepared_root
            if prepared is None:
                return f"{told}; the upstream signs below no other root yet"
            await self._keeper.activate(Kind.X509, prepared.id, self._actor)
        except NotConfirmed as error:
            return f"{told}; its successor waits: {error.message}"
        return ""

    async def _follow_keys(self, known: Sequence[JwtAuthority]) -> None:
        """Let go of other servers' JWT keys that were named above, and are no more or are tainted there."""
        named = {key.key_id: key.tainted for key in known}
        for key in self._keeper.state.jwt:
            if not key.upstream or key.key or named.get(key.id) is False:
                continue
            if not key.tainted:
                await self._keeper.taint(Kind.JWT, key.id, self._actor)
            elif key.id not in named:
                with suppress(NotConfirmed):
                    await self._keeper.revoke(Kind.JWT, key.id, self._actor, remember=False)

    def _refused(self, known: Sequence[JwtAuthority]) -> str:
        """What to say when the key that signs here is not taken above: tokens are refused elsewhere."""
        signs = self._keeper.state.active_jwt
        if not known or signs is None or signs.id in {key.key_id for key in known}:
            return ""
        return f"the authority above does not name the JWT key {signs.id}: if it was revoked there, replace it here"

    def _own_keys(self) -> Sequence[JwtAuthority]:
        # Those of servers below were told when they came.
        own = [key for key in self._keeper.state.jwt if key.key and not key.tainted]
        return [JwtAuthority(key.spki, key.id, key.not_after) for key in own]

    def _live(self, keys: Sequence[JwtAuthority]) -> list[JwtAuthority]:
        now = int(self._clock.now().timestamp())
        return [key for key in keys if key.expires_at > now and not key.tainted]


def _key_id(der: bytes) -> str:
    return subject_key_id(x509.load_der_x509_certificate(der))
