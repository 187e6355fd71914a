"""Events that anybody could cause in any number: counted, and told to the log in a bounded number of entries.

Refused requests and administrators' comings are worth an entry, and none of them may be a way to flood the log. Equal
events of one window become one entry with a count and the first and last time. One actor has at most ``PER_ACTOR``
different ones in a window; what is beyond, and everything beyond ``AT_ONCE`` in all, is counted with its details left
out. So nothing is uncounted, and the log grows by a bounded amount each minute whatever is tried.

What is counted and not yet told is lost when the process is killed: up to a minute of refusals. Nothing that was
granted goes this way.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.server.journal import Event, Journal

PER_ACTOR = 16
"""Different events of one kind that one actor can have waiting."""
AT_ONCE = 256
"""Different events that can wait in all, but for one more of each kind and code."""
REMEMBERED = 1024
"""Identities whose last entry is remembered, so that the next one waits its time."""
SAMPLES = 8
RETRY_SECONDS = 5.0
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rule:
    """How a kind is counted: seconds until the first entry, and between two of the same key.

    ``by_subject``: events about different subjects are different; otherwise the entry names the first subject.
    """

    delay: float
    every: float
    by_subject: bool
    samples: str = ""
    """The field that lists samples, if the kind has one."""


RULES = {
    "issuance.denied": Rule(60, 60, by_subject=True),
    "node.attestation_refused": Rule(60, 60, by_subject=True, samples="addresses"),
    "admin.login": Rule(0, 900, by_subject=False),
    "admin.refused": Rule(0, 900, by_subject=False),
}
Key = tuple[str, str, str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class _Count:
    due: float
    subject: str
    first: datetime
    last: datetime
    count: int = 0
    samples: dict[str, None] = field(default_factory=dict)


class Tally:
    """Counts events of the kinds in ``RULES``; ``run`` tells the log."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._waiting: dict[Key, _Count] = {}
        self._of_actor: Counter[tuple[str, str]] = Counter()
        self._told: dict[Key, float] = {}
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    def note(self, kind: str, *, actor: str, subject: str = "", sample: str = "", **facts: str) -> None:
        """Count one event. ``facts`` must come from a small set of values, never from a caller's own words."""
        rule, now, seconds = RULES[kind], self._clock.now(), self._clock.monotonic()
        key = self._key(kind, actor, subject if rule.by_subject else "", facts)
        counted = self._waiting.get(key)
        if counted is None:
            told = self._told.get(key)
            due = seconds + rule.delay if told is None else max(told + rule.every, seconds)
            named = subject if not rule.by_subject or key[2] else ""
            counted = self._waiting[key] = _Count(due, named, now, now)
            self._of_actor[kind, key[1]] += 1
            self._changed.set()
        counted.count += 1
        counted.last = now
        if sample and len(counted.samples) < SAMPLES:
            counted.samples[sample] = None

    async def tell(self, kind: str, *, actor: str, subject: str = "", **facts: str) -> None:
        """``note``; what is due at once is in the log when this returns, if that can be written."""
        self.note(kind, actor=actor, subject=subject, **facts)
        seconds = self._clock.monotonic()
        if any(one.due <= seconds for one in self._waiting.values()):
            with suppress(Error):
                await self.flush(early=False)

    async def run(self) -> None:
        """Tell the log whenever something is due, until cancelled."""
        while True:
            self._changed.clear()
            wait = min((one.due for one in self._waiting.values()), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait is None else max(0.0, wait - self._clock.monotonic())):
                    await self._changed.wait()
            try:
                await self.flush(early=False)
            except Error as error:
                _log.warning("log.tally_waits", error=error.message)
                await self._clock.sleep(RETRY_SECONDS)

    async def flush(self, *, early: bool = True) -> None:
        """Record what is due; ``early``: also the refusals that would wait for the end of their minute.

        Raises ``LogUnavailable``; then all of it stays counted.
        """
        async with self._turn:
            seconds = self._clock.monotonic()
            ready = {
                key: one for key, one in self._waiting.items() if one.due <= seconds or (early and RULES[key[0]].delay)
            }
            # Taken out first: what comes meanwhile begins a new count.
            for key in ready:
                self._take(key)
            try:
                await self._journal.record_all([_event(key, one) for key, one in ready.items()])
            except BaseException:
                for key, one in ready.items():
                    self._put_back(key, one)
                raise
            for key in ready:
                self._remember(key, seconds)

    def _key(self, kind: str, actor: str, subject: str, facts: dict[str, str]) -> Key:
        """Where an event is counted: by all of it while there is room, then by less and less."""
        key = (kind, actor, subject, tuple(sorted(facts.items())))
        if key in self._waiting:
            return key
        if len(self._waiting) < AT_ONCE:
            if self._of_actor[kind, actor] < PER_ACTOR:
                return key
            return (kind, actor, "", _coarse(facts))
        return (kind, "", "", _coarse(facts))

    def _take(self, key: Key) -> None:
        del self._waiting[key]
        place = key[:2]
        self._of_actor[place] -= 1
        if not self._of_actor[place]:
            del self._of_actor[place]

    def _put_back(self, key: Key, one: _Count) -> None:
        newer = self._waiting.get(key)
        if newer is not None:
            one.count += newer.count
            one.last = newer.last
        else:
            self._of_actor[key[:2]] += 1
        self._waiting[key] = one

    def _remember(self, key: Key, seconds: float) -> None:
        self._told.pop(key, None)
        self._told[key] = seconds
        while len(self._told) > REMEMBERED:
            del self._told[next(iter(self._told))]


def reason_of(error: Error) -> str:
    """A refusal's kind as one word of a small set: never its message, which may repeat what a caller sent."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


def _coarse(facts: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """What is kept of the facts where there is no room for details: values of fixed sets only."""
    kept = {"code", "reason", "door", "caller_kind"}
    return tuple(sorted((name, value if name in kept else "") for name, value in facts.items()))


def _event(key: Key, one: _Count) -> Event:
    kind, actor, _, facts = key
    told: dict[str, Any] = {**dict(facts), "count": one.count, "first": one.first, "last": one.last}
    if samples := RULES[kind].samples:
        told[samples] = list(one.samples)
    return Event(kind, actor, one.subject, told)
