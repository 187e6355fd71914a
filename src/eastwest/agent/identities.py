"""The SVIDs of this node's workloads: made when an entry comes, made anew at half life, dropped when it goes.

Which entries are wanted follows from the state: every one that may be prefetched, up to a bound, and those that a
workload asked for since. New ones are signed at once; rotations wait a moment for each other and go in batches. One
entry that cannot be signed does not hold up the rest.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from eastwest import errors
from eastwest.agent.backoff import Backoff
from eastwest.agent.changes import Changes
from eastwest.agent.connection import ServerConnection
from eastwest.agent.keys import WorkloadKey, new_key
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.received import check_svid
from eastwest.agent.state import State
from eastwest.agent.taint import Ground, Standing
from eastwest.clock import Clock
from eastwest.registry.entry import Entry
from eastwest.rpc import tracing
from eastwest.spiffe.svid import X509Svid

BATCH = 500
COALESCE = 0.03
"""Seconds that a due rotation waits for others; new registrations never wait."""
LONGEST_SLEEP = 30.0
"""Seconds after which the wall clock is looked at again, for it may have been set."""
TAINT_PER_SECOND = 100
"""Tainted SVIDs that are made anew in a second; the pace of a node with many."""
TAINT_TICK = 0.25
"""Seconds; those that fall into one go in one batch."""
_AT_ONCE = 4  # signing calls in flight
_YIELD_EVERY = 25  # keys made before others get a turn

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Held:
    """A live SVID with its key. ``received_at`` is the moment from which its half life counts."""

    entry_id: str
    revision: int
    svid: X509Svid
    key: WorkloadKey = field(repr=False)
    received_at: datetime

    def is_live(self, now: datetime) -> bool:
        """Whether it may still be served."""
        return now < self.svid.not_after


@dataclass(slots=True)
class _Plan:
    """What is to be done about one wanted entry, and when (Unix seconds)."""

    due: float
    urgent: bool
    backoff: Backoff
    failed: errors.Error | None = None
    in_flight: bool = False


class Identities:
    """Holds SVIDs and keys for the entries of the known state; ``changes`` counts every SVID gained or lost."""

    def __init__(
        self,
        connection: ServerConnection,
        knowledge: Knowledge,
        clock: Clock,
        jitter: random.Random,
        *,
        limit: int = 1000,
    ) -> None:
        self.changes = Changes()
        self.rotations = 0
        self.failures = 0
        self._connection = connection
        self._knowledge = knowledge
        self._clock = clock
        self._jitter = jitter
        self._limit = limit
        self._held: dict[str, Held] = {}
        self._plans: dict[str, _Plan] = {}
        self._used: OrderedDict[str, None] = OrderedDict()  # asked for by a workload, oldest first
        self._wake = Changes()
        self._ground: Ground | None = None
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def held(self, entry: Entry) -> Held | None:
        """The live SVID for ``entry``, if there is one. Marks the entry as in use."""
        self._used[entry.id] = None
        self._used.move_to_end(entry.id)
        if entry.id not in self._plans:
            self._plan(entry)
        held = self._held.get(entry.id)
        return held if held is not None and held.is_live(self._clock.now()) else None

    def failure(self, entry: Entry) -> errors.Error | None:
        """Why the last attempt for ``entry`` failed, or None."""
        plan = self._plans.get(entry.id)
        return plan.failed if plan is not None else None

    def everything(self) -> tuple[Held, ...]:
        """All SVIDs with keys, for the sealed cache."""
        return tuple(self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    def restore(self, kept: Iterable[Held]) -> int:
        """Take SVIDs from the cache where their entry is unchanged and they still live; gives their number."""
        state, now = self._knowledge.state, self._clock.now()
        for held in kept:
            entry = state.entries.get(held.entry_id)
            if entry is None or entry.spiffe_id != held.svid.id or not held.is_live(now):
                continue
            self._held[held.entry_id] = held
        self.on_state(state)
        return len(self._held)

    def on_state(self, state: State) -> None:
        """Follow a new state: drop what is no longer authorised, plan what is new or changed."""
        lost = [entry_id for entry_id in self._held if entry_id not in state.entries]
        for entry_id in lost:
            del self._held[entry_id]
        for entry_id in [entry_id for entry_id in self._plans if entry_id not in state.entries]:
            del self._plans[entry_id]
            self._used.pop(entry_id, None)
        for entry in self._wanted(state):
            held, plan = self._held.get(entry.id), self._plans.get(entry.id)
            if plan is None or (held is not None and not self._is_current(held, entry) and not plan.in_flight):
                self._plan(entry)
            elif plan.failed is not None and not plan.in_flight:
                # The server speaks to us again, or the entry changed: no reason to wait out a delay.
                plan.due = 0.0
        self._leave_unsafe_ground()
        self._wake.bump()
        if lost:
            self._changed()

    async def run(self) -> None:
        """Sign what is due, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                seen = self._wake.count
                self._drop_expired()
                self._shrink()
                now = self._clock.now().timestamp()
                urgent = [i for i, p in self._plans.items() if p.urgent and p.due <= now and not p.in_flight]
                if urgent:
                    self._launch(group, urgent)
                    continue
                due = [i for i, p in self._plans.items() if p.due <= now and not p.in_flight]
                if due and min(self._plans[i].due for i in due) <= now - COALESCE:
                    self._launch(group, due)
                    continue
                await self._wait(seen, now)

    async def _wait(self, seen: int, now: float) -> None:
        """Until something is due or the state changes."""
        dues = [plan.due if plan.urgent else plan.due + COALESCE for plan in self._plans.values() if not plan.in_flight]
        ends = [held.svid.not_after.timestamp() for held in self._held.values()]
        pause = max(0.001, min([*dues, *ends, now + LONGEST_SLEEP]) - now)
        waiting = [
            asyncio.ensure_future(self._wake.beyond(seen)),
            asyncio.ensure_future(self._clock.sleep(pause)),
        ]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    def _launch(self, group: asyncio.TaskGroup, entry_ids: list[str]) -> None:
        state = self._knowledge.state
        entries = [state.entries[entry_id] for entry_id in entry_ids if entry_id in state.entries]
        for entry_id in entry_ids:
            if entry_id in state.entries:
                self._plans[entry_id].in_flight = True
            else:
                del self._plans[entry_id]
        for start in range(0, len(entries), BATCH):
            group.create_task(self._sign(entries[start : start + BATCH]))

    async def _sign(self, entries: list[Entry]) -> None:
        async with self._slots:
            keys: list[WorkloadKey] = []
            params: list[tuple[str, bytes]] = []
            for number, entry in enumerate(entries, 1):
                key, csr = new_key(entry.spiffe_id, self._knowledge.state.key_algorithm(entry))
                keys.append(key)
                params.append((entry.id, csr))
                if number % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            try:
                with tracing.span("svid.renew", requests=len(params)):
                    answers = await self._connection.sign(params)
            except errors.Error as error:
                answers = [error] * len(entries)
            bundle = self._knowledge.state.bundle
            now = self._clock.now()
            for number, (entry, key, answer) in enumerate(zip(entries, keys, answers, strict=True), 1):
                if isinstance(answer, errors.Error):
                    self._failed(entry, answer)
                    continue
                try:
                    svid = check_svid(list(answer.cert_chain), key.spki, entry.spiffe_id, bundle, now)
                except errors.Error as error:
                    self._failed(entry, error)
                    continue
                self._gained(entry, svid, key, now)
                if number % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            self._changed()
            self._wake.bump()

    def _gained(self, entry: Entry, svid: X509Svid, key: WorkloadKey, now: datetime) -> None:
        plan = self._plans.get(entry.id)
        if plan is None:
            # The entry went while its SVID was being made.
            return
        if entry.id in self._held:
            self.rotations += 1
        self._held[entry.id] = Held(entry.id, entry.revision, svid, key, now)
        plan.in_flight = False
        plan.urgent = False
        plan.failed = None
        plan.backoff.reset()
        plan.due = self._half_life(now, svid.not_after)
        if self._knowledge.ground.standing(svid.chain, now) is not Standing.FINE:
            # Signed just before its authority went out of use.
            plan.due = now.timestamp() + 1.0
        current = self._knowledge.state.entries.get(entry.id)
        if current is not None and not self._is_current(self._held[entry.id], current):
            plan.due, plan.urgent = 0.0, True

    def _failed(self, entry: Entry, error: errors.Error) -> None:
        self.failures += 1
        plan = self._plans.get(entry.id)
        if plan is None:
            return
        plan.in_flight = False
        plan.failed = error
        plan.due = self._clock.now().timestamp() + plan.backoff.delay()
        _log.warning("agent.svid.failed", entry=entry.id, spiffe_id=str(entry.spiffe_id), error=str(error))

    def _plan(self, entry: Entry) -> None:
        held = self._held.get(entry.id)
        fresh = held is not None and self._is_current(held, entry)
        due = self._half_life(held.received_at, held.svid.not_after) if held is not None and fresh else 0.0
        self._plans[entry.id] = _Plan(due, not fresh, Backoff(self._jitter, first=1.0, most=30.0))
        self._wake.bump()

    def _is_current(self, held: Held, entry: Entry) -> bool:
        """Whether ``held`` was made for this revision of its entry, with the kind of key that is wanted now."""
        wanted = self._knowledge.state.key_algorithm(entry)
        return held.revision == entry.revision and held.key.algorithm is wanted

    def _half_life(self, start: datetime, end: datetime) -> float:
        """Between 45 % and 55 % of the life that is left at ``start`` (Unix seconds)."""
        life: timedelta = end - start
        return start.timestamp() + life.total_seconds() * self._jitter.uniform(0.45, 0.55)

    def _wanted(self, state: State) -> list[Entry]:
        used = [state.entries[entry_id] for entry_id in self._used if entry_id in state.entries]
        room = self._limit - len(used)
        others = (
            entry
            for entry in state.entries.values()
            if entry.id not in self._used and not entry.disable_x509_svid_prefetch and not entry.is_node_alias
        )
        return used + [entry for entry, _ in zip(others, range(max(0, room)), strict=False)]

    def _leave_unsafe_ground(self) -> None:
        """Plan anew what is not trusted any more at once, and what is tainted soon; it is served until then.

        A taint reaches every node in the same moment, so a node with many takes its time.
        """
        ground = self._knowledge.ground
        if ground is self._ground:
            return
        self._ground = ground
        now = self._clock.now()
        tainted: list[_Plan] = []
        for held in self._held.values():
            plan = self._plans.get(held.entry_id)
            standing = ground.standing(held.svid.chain, now)
            if plan is None or plan.in_flight or standing is Standing.FINE:
                continue
            if standing is Standing.DISTRUSTED:
                plan.due = 0.0
            else:
                tainted.append(plan)
        spread = len(tainted) / TAINT_PER_SECOND
        for plan in tainted:
            delay = self._jitter.uniform(0.0, spread) // TAINT_TICK * TAINT_TICK
            plan.due = min(plan.due, now.timestamp() + delay)

    def _drop_expired(self) -> None:
        now = self._clock.now()
        ended = [entry_id for entry_id, held in self._held.items() if not held.is_live(now)]
        for entry_id in ended:
            del self._held[entry_id]
            if entry_id in self._plans:
                self._plans[entry_id].urgent = True
        if ended:
            _log.error("agent.svid.ended", entries=ended[:20], count=len(ended))
            self._changed()

    def _changed(self) -> None:
        self.changes.bump()
        self._knowledge.changes.bump()

    def _shrink(self) -> None:
        """Forget the longest unused on-demand SVIDs beyond the bound."""
        while len(self._held) > self._limit and len(self._used) > 1:
            entry_id, _ = self._used.popitem(last=False)
            self._held.pop(entry_id, None)
            self._plans.pop(entry_id, None)
