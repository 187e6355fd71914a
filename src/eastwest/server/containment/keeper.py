"""Containments in force: each step is recorded in the log, then stored and in force, then pushed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from eastwest.clock import Clock
from eastwest.entropy import Entropy, random_hex
from eastwest.registry import containment as steps
from eastwest.registry.containment import NOBODY, Contained, Containment, IdentityContained, in_force
from eastwest.server.finishing import to_the_end
from eastwest.server.journal import Journal
from eastwest.store.containment import SqliteContainments

Snapshot = Callable[[str, Sequence[str]], Awaitable[str]]
"""Keeps evidence about identities under a containment's id, and gives its SHA-256 (hex)."""


class Containments:
    """Who is cut off. ``contained`` is what everything asks that issues, permits or pushes."""

    def __init__(self, store: SqliteContainments, journal: Journal, clock: Clock, entropy: Entropy) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock
        self._entropy = entropy
        self._turn = asyncio.Lock()
        self.known: list[Containment] = []
        self.contained: Contained = NOBODY
        self.on_change: Callable[[], None] = lambda: None
        """Called once another list is in force, to push it."""
        self.void: Callable[[Sequence[str], str, str], Coroutine[Any, Any, int]] = _nothing_to_void
        """Called after that with the identities, who did it and the containment's id, to void their approvals."""

    async def load(self) -> None:
        """Bring back what was in force; call once, before anything is served."""
        self.known = await self._store.all()
        self.contained = in_force(self.known)

    def check(self, spiffe_id: object) -> None:
        """Raise ``IdentityContained`` for one that is cut off."""
        if self.contained and str(spiffe_id) in self.contained:
            raise IdentityContained(str(spiffe_id))

    async def start(
        self, spiffe_ids: Sequence[str], selector: str, reason: str, actor: str, snapshot: Snapshot
    ) -> Containment:
        """Cut these off. ``snapshot`` is asked before anything changes; its hash is in the log.

        Raises what ``eastwest.registry.containment.start`` does, and ``LogUnavailable``: then nothing has changed.
        """
        containment_id = random_hex(self._entropy, 8)
        self._begun(containment_id, spiffe_ids, selector, reason, actor, "")  # refused before evidence is collected
        evidence = await snapshot(containment_id, steps.containable(spiffe_ids))
        async with self._turn:
            made = self._begun(containment_id, spiffe_ids, selector, reason, actor, evidence)
            await to_the_end(self._put(made, "containment.started", actor, made.reason))
        await to_the_end(self.void(made.spiffe_ids, actor, made.id))
        return made

    async def end(self, containment_id: str, spiffe_id: str, reason: str, actor: str) -> Containment:
        """Let in again all that one containment holds, named by its id or by the one identity that it holds."""
        async with self._turn:
            found = containment_id or steps.holding(self.known, spiffe_id).id
            made = steps.end(self.known, found, reason=reason, actor=actor, now=self._now())
            await to_the_end(self._put(made, "containment.ended", actor, made.end_reason))
            return made

    def find(self, containment_id: str, spiffe_id: str) -> Containment:
        """The one that ``end`` would end."""
        if not containment_id:
            return steps.holding(self.known, spiffe_id)
        steps.end(self.known, containment_id, reason="asked", actor="", now=0)
        return next(one for one in self.known if one.id == containment_id)

    def _begun(
        self, containment_id: str, spiffe_ids: Sequence[str], selector: str, reason: str, actor: str, evidence: str
    ) -> Containment:
        return steps.start(
            self.known,
            containment_id=containment_id,
            spiffe_ids=spiffe_ids,
            selector=selector,
            reason=reason,
            actor=actor,
            now=self._now(),
            evidence=evidence,
        )

    async def _put(self, made: Containment, kind: str, actor: str, reason: str) -> None:
        await self._journal.record(
            kind,
            actor=actor,
            subject=made.spiffe_ids[0],
            containment=made.id,
            spiffe_ids=list(made.spiffe_ids),
            selector=made.selector,
            reason=reason,
            generation=made.end_generation or made.generation,
            evidence=made.evidence,
        )
        await self._store.save(made)
        self.known = [*(one for one in self.known if one.id != made.id), made]
        self.contained = in_force(self.known)
        self.on_change()

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


async def _nothing_to_void(_names: Sequence[str], _actor: str, _containment: str) -> int:
    return 0
