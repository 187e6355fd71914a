"""Containments in force: each step is recorded in the log, then stored and in force, then pushed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, Protocol

import structlog

from eastwest.clock import Clock
from eastwest.entropy import Entropy, random_hex
from eastwest.errors import Error
from eastwest.registry import containment as steps
from eastwest.registry.containment import NOBODY, Contained, Containment, IdentityContained, in_force
from eastwest.server.containment.evidence import Taken
from eastwest.server.finishing import to_the_end
from eastwest.server.journal import Journal
from eastwest.store.containment import SqliteContainments

_log = structlog.get_logger()


class Evidence(Protocol):
    """Keeps what is known of identities, under a containment's id."""

    def take(self, containment_id: str, spiffe_ids: Sequence[str]) -> Taken: ...

    async def look_back(self, containment_id: str, spiffe_ids: Sequence[str], until: datetime) -> Taken: ...

    async def keep(self, taken: Taken) -> None: ...


class Containments:
    """Who is cut off. ``contained`` is what everything asks that issues, permits or pushes."""

    def __init__(self, store: SqliteContainments, journal: Journal, clock: Clock, entropy: Entropy) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock
        self._entropy = entropy
        self._turn = asyncio.Lock()
        self._looking_back: set[asyncio.Task[None]] = set()
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
        self, spiffe_ids: Sequence[str], selector: str, reason: str, actor: str, evidence: Evidence
    ) -> Containment:
        """Cut these off. A snapshot is taken before anything changes, and its hash is in the log.

        Nothing that may be slow comes before the deny: files are written, and the past is looked at, after it. Raises
        what ``eastwest.registry.containment.start`` does, and ``LogUnavailable``: then nothing has changed.
        """
        containment_id = random_hex(self._entropy, 8)
        async with self._turn:
            self._begun(containment_id, spiffe_ids, selector, reason, actor, "")  # refused before evidence is collected
            taken = evidence.take(containment_id, steps.containable(spiffe_ids))
            made = self._begun(containment_id, spiffe_ids, selector, reason, actor, taken.sha256)
            began = self._clock.now()
            await to_the_end(self._put(made, "containment.started", actor, made.reason))
        looking_back = asyncio.ensure_future(self._keep(made, taken, evidence, actor, began))
        self._looking_back.add(looking_back)
        looking_back.add_done_callback(self._looking_back.discard)
        await to_the_end(self.void(made.spiffe_ids, actor, made.id))
        return made

    async def void_again(self) -> None:
        """Void what a server that was killed after the deny did not come to; call once, before anything is served.

        Until it is void a release would bring it back, and nothing else: who is contained may use none of it.
        """
        for one in self.known:
            if one.is_active:
                try:
                    voided = await self.void(one.spiffe_ids, one.started_by, one.id)
                except (Error, OSError) as error:
                    _log.error("containment.approvals.not_voided", containment=one.id, error=str(error))
                else:
                    if voided:
                        _log.warning("containment.approvals.voided", containment=one.id, count=voided)

    async def stop(self) -> None:
        """Give up what is still being looked back at."""
        for task in self._looking_back:
            task.cancel()
        await asyncio.gather(*self._looking_back, return_exceptions=True)

    async def _keep(self, made: Containment, taken: Taken, evidence: Evidence, actor: str, began: datetime) -> None:
        """Keep the snapshot, then the past with a log entry of its own. What fails is told: the deny holds anyway."""
        try:
            await evidence.keep(taken)
            past = await evidence.look_back(made.id, made.spiffe_ids, began)
            await evidence.keep(past)
            await self._record(made, "containment.evidence", actor, made.reason, past.sha256)
        except (Error, OSError) as error:
            _log.error("containment.evidence.not_kept", containment=made.id, error=str(error))

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
        await self._record(made, kind, actor, reason, made.evidence)
        await self._store.save(made)
        self.known = [*(one for one in self.known if one.id != made.id), made]
        self.contained = in_force(self.known)
        self.on_change()

    async def _record(self, made: Containment, kind: str, actor: str, reason: str, evidence: str) -> None:
        await self._journal.record(
            kind,
            actor=actor,
            subject=made.spiffe_ids[0],
            containment=made.id,
            spiffe_ids=list(made.spiffe_ids),
            selector=made.selector,
            reason=reason,
            generation=made.end_generation or made.generation,
            evidence=evidence,
        )

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


async def _nothing_to_void(_names: Sequence[str], _actor: str, _containment: str) -> int:
    return 0
