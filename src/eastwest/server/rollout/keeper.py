"""What waits and watches while rules roll out: acknowledgements, time, people, and denials.

One task does all of it, so that nothing happens twice; people's steps go through the same keeper of the estate, which
does one thing at a time. A server that was killed looks at the record for what it may have missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from eastwest.clock import Clock
from eastwest.errors import Error, FailedPrecondition
from eastwest.ledger.query import DecisionQuery
from eastwest.ledger.record import Decision
from eastwest.policy.rollout import Progress, State
from eastwest.server.activation import rollout_event
from eastwest.server.control import ControlHub
from eastwest.server.estate import EstateKeeper
from eastwest.server.rollout.brake import Brake, Search, Suspect
from eastwest.server.rollout.points import points
from eastwest.server.view import AgentView
from eastwest.spiffe.id import SpiffeId

MAX_SUSPECTS = 1_000
"""Denials that wait to be looked up; each of them would do."""
PAGE = 5_000
RETRY_SECONDS = 1.0
_log = structlog.get_logger()


class RolloutKeeper:
    """Takes rollouts on, or back."""

    def __init__(
        self,
        estate: EstateKeeper,
        hub: ControlHub,
        view: AgentView,
        search: Search,
        clock: Clock,
        subject: str,
        actor: str,
    ) -> None:
        """``search`` asks the ledger; ``subject`` is the trust domain and ``actor`` this server, for the log."""
        self._estate = estate
        self._tables = estate.tables
        self._hub = hub
        self._view = view
        self._search = search
        self._clock = clock
        self._subject = subject
        self._actor = actor
        self._brake = Brake(estate.tables, search)
        self._sure: deque[Suspect] = deque()
        self._suspects: deque[Suspect] = deque()
        """Those that have to be looked up."""
        self._certain = asyncio.Event()
        self._news = asyncio.Event()
        self.problem = ""

    def changed(self) -> None:
        """A rollout has begun, gone on or ended."""
        self._news.set()

    def watch(self, agent: SpiffeId, rows: Sequence[Decision]) -> None:
        """Hear of rows that an agent handed in and that are stored. Cheap while nothing rolls out."""
        if found := self._brake.suspects(agent, rows):
            for suspect in found:
                # What has to be looked up first neither delays nor displaces what is certain.
                self._put_off(suspect)
            self._news.set()

    async def run(self) -> None:
        """Take rollouts on, for ever."""
        caught_up = False
        while True:
            self._news.clear()
            try:
                if not caught_up:
                    await self._catch_up()
                    caught_up = True
                await self._look()
                self.problem = ""
            except Error as error:
                # Such as a log that cannot be written: nothing takes effect unrecorded, so it is tried again.
                self.problem = f"the rollout stands still: {error}"
                _log.error("rollout.failed", error=str(error))
                await self._clock.sleep(RETRY_SECONDS)
                continue
            await self._wait()

    def warnings(self) -> list[str]:
        """What people should see to."""
        return [self.problem] if self.problem else []

    async def promote(self, actor: str, expected: str = "") -> Progress:
        """The next ring now."""
        return await self._step(lambda p: p.promote(self._now()), actor, expected, "advanced")

    async def pause(self, actor: str, expected: str = "") -> Progress:
        """Stop the clock."""
        return await self._step(lambda p: p.pause(self._now()), actor, expected, "paused", paused="yes")

    async def resume(self, actor: str, expected: str = "") -> Progress:
        """Let it run again."""
        return await self._step(lambda p: p.resume(self._now()), actor, expected, "paused", paused="no")

    async def _step(
        self, step: Callable[[Progress], Progress], actor: str, expected: str, kind: str, **facts: object
    ) -> Progress:
        def checked(progress: Progress) -> Progress:
            if expected and progress.version != expected:
                raise FailedPrecondition(f"version {progress.version[:12]} rolls out, not {expected[:12]}")
            return step(progress)

        return await self._estate.advance(checked, actor, kind, **facts)

    async def _look(self) -> None:
        """Do what is to be done now; the brake comes first."""
        while self._sure or self._suspects:
            self._certain.clear()
            suspect = (self._sure or self._suspects).popleft()
            if await self._confirmed(suspect):
                await self._roll_back(suspect)
                return
        progress = self._tables.progress
        if progress is None or not progress.is_open:
            return
        if progress.state is State.ROLLING and self._is_acknowledged():
            await self._estate.advance(lambda p: p.acknowledged(self._now()), self._actor, "")
        elif progress.due is not None and progress.due <= self._now():
            await self._estate.advance(lambda p: p.tick(self._now()), self._actor, "advanced")

    async def _confirmed(self, suspect: Suspect) -> bool:
        """Whether it counts; where another comes meanwhile that needs no looking up, this one waits."""
        looking = asyncio.create_task(self._brake.confirm(suspect))
        certain = asyncio.create_task(self._certain.wait())
        try:
            await asyncio.wait((looking, certain), return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                return looking.result()
            self._put_off(suspect)
            return False
        except Error:
            self._put_off(suspect)  # tried again
            raise
        finally:
            for task in (looking, certain):
                task.cancel()
            await asyncio.gather(looking, certain, return_exceptions=True)

    def _put_off(self, suspect: Suspect) -> None:
        waiting = self._suspects if suspect.must_be_known else self._sure
        if len(waiting) < MAX_SUSPECTS:
            waiting.append(suspect)
        if self._sure:
            self._certain.set()

    async def _roll_back(self, suspect: Suspect) -> None:
        progress, row = self._tables.progress, suspect.row
        self._suspects.clear()
        self._sure.clear()
        if progress is None or not progress.is_open:
            return
        braked = rollout_event(
            "braked",
            progress,
            self._actor,
            self._subject,
            service=row.service,
            operation=row.operation,
            caller=row.caller,
            code=row.code.value,
            policy=row.policy,
            agent=str(suspect.agent),
            reference=row.reference,
            **({"peer": row.peer} if row.peer else {}),
        )
        who = row.caller or row.peer or "a caller that proved nothing"
        reason = f"{who} was denied {row.operation or row.service} ({row.code.value} {row.reference})"
        _log.error(
            "rollout.braked", version=progress.version, back_to=progress.previous, ring=progress.name, why=reason
        )
        try:
            await self._estate.restore(
                progress.previous, self._actor, "brake", braked, state=State.BRAKED, reason=reason, only=progress
            )
        except Error:
            self._put_off(suspect)  # tried again
            raise

    def _is_acknowledged(self) -> bool:
        """Whether every connected point that is reached runs what it should."""
        streams = [stream for stream in self._hub.streams.values() if stream.session is not None]
        # An agent with no sidecar of its own enforces in its applications, which take what it has at once.
        held = all(stream.acknowledged >= stream.number and not stream.wake.is_set() for stream in streams)
        return held and all(
            point.acknowledged == point.intended and not point.refusal
            for point in points(self._hub, self._tables, self._view)
            if point.connected and point.reached
        )

    async def _wait(self) -> None:
        """Until somebody says something, or time is up."""
        progress = self._tables.progress
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(self._news.wait())]
        if progress is not None and progress.is_open:
            if progress.state is State.ROLLING:
                waits.append(asyncio.create_task(self._hub.heard()))
            if progress.due is not None:
                waits.append(asyncio.create_task(self._clock.sleep(max(0.0, progress.due - self._now()))))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            # Nothing is suppressed: what is cancelled here may be this task itself, just as it wakes up.
            await asyncio.gather(*waits, return_exceptions=True)

    async def _catch_up(self) -> None:
        """Judge denials that were stored before this server started and that nobody may have judged."""
        progress = self._tables.progress
        if progress is None or not progress.is_open or not progress.plan.brake:
            return
        start = datetime.fromtimestamp(progress.started, UTC).replace(second=0, microsecond=0)
        query = DecisionQuery(verdict="deny", kind="decision", start=start, limit=PAGE)
        while True:
            rows = await self._search(query)
            for row in rows:
                agent = SpiffeId.parse(str(row["agent"]))
                self.watch(agent, [msgspec.convert(row, Decision)])
            if len(rows) < PAGE:
                return
            query = msgspec.structs.replace(query, after=rows[-1]["row"])

    def _now(self) -> float:
        return self._clock.now().timestamp()
