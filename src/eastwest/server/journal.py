"""Recording what is not an issuance: nodes, entries, policy, CA events, in the same log and before the effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eastwest.clock import Clock
from eastwest.log.entry import Entry, encode
from eastwest.log.kind import UndeclaredEntry
from eastwest.log.kinds import KINDS
from eastwest.log.ports import Recorder


@dataclass(frozen=True, slots=True)
class Event:
    """What happened: its kind, who caused it, what it is about, and the facts of the kind."""

    kind: str
    actor: str
    subject: str
    facts: Mapping[str, Any]


class Journal:
    """Writes events to the transparency log. Raises ``LogUnavailable``; then the event must not take effect.

    What the catalogue (``eastwest.log.kinds``) does not declare is refused with ``UndeclaredEntry``.
    """

    def __init__(self, recorder: Recorder, clock: Clock) -> None:
        self._recorder = recorder
        self._clock = clock

    async def record(self, kind: str, *, actor: str, subject: str, **facts: Any) -> int:
        """Append one event and return its index once it is durable."""
        [index] = await self.record_all([Event(kind, actor, subject, facts)])
        return index

    async def record_all(self, events: Sequence[Event]) -> Sequence[int]:
        """Append events that belong together: all of them or none."""
        now = self._clock.now()
        for event in events:
            kind = KINDS.get(event.kind)
            if kind is None:
                raise UndeclaredEntry(f"there is no kind of log entry {event.kind}")
            kind.check(event.facts)
        entries = [
            encode(Entry(event.kind, {"time": now, "actor": event.actor, "subject": event.subject} | dict(event.facts)))
            for event in events
        ]
        return await self._recorder.append(entries) if entries else ()
