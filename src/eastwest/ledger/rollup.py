"""From a stream of decisions to rows worth keeping: equal ones counted per minute, some in full.

In full: every refusal, every call by an emergency grant, and the first call of each edge (caller, service, operation).
All others are counted by everything that a policy could look at, so the rows give back the exact multiset of what was
decided. The one exception is a flood of refusals, which anybody can send without an identity and which must not fill a
disk: beyond a bound per minute, service and code they are counted without what their senders may choose, but for as
many sources and claimed names again, so that a few busy callers keep theirs and hide nobody else's.
"""

from __future__ import annotations

from collections import Counter, deque
from datetime import datetime, timedelta

import msgspec

from eastwest.ledger.record import Decision
from eastwest.policy.enforcement import DecisionCode, Verdict

_MINUTE = timedelta(minutes=1)
FULL_REFUSALS = 600
"""Refusals of one service with one code that are kept in full in one minute; as many sources are told beyond them."""
_MINUTES = 16
"""Minutes whose refusals are counted at a time: calls of several come mixed, and of an older one none is in full."""
MAX_EDGES = 50_000
"""Edges remembered; beyond it the oldest is forgotten, and its next call is a first one again."""


class Rollup:
    """Counts equal allows by minute and queues refusals. Memory is bounded; what did not fit is counted in ``lost``.

    Nothing is dropped while ``take`` is called often enough: at ``max_open`` distinct allows the oldest row is
    closed early, which splits its count over two rows.
    """

    def __init__(self, *, max_open: int = 10_000, max_ready: int = 100_000, full_refusals: int = FULL_REFUSALS) -> None:
        self._open: dict[Decision, int] = {}
        self._ready: deque[Decision] = deque()
        self._max_open = max_open
        self._max_ready = max_ready
        self._full_refusals = full_refusals
        self._refusals: dict[datetime, _Refusals] = {}
        self._edges: dict[tuple[str, str, str], None] = {}
        self.lost = 0

    def add(self, decision: Decision) -> None:
        """Take one decision, or ``count`` equal ones of which none needs to be kept in full."""
        minute = decision.time.replace(second=0, microsecond=0)
        if decision.verdict is Verdict.ALLOW:
            if self._is_first(decision):
                decision = msgspec.structs.replace(decision, first=True)
            if decision.first or decision.break_glass:
                self._finish(decision)
                return
            key = msgspec.structs.replace(decision, time=minute, reference="", trace="", source="", count=1)
        elif self._in_full(decision, minute):
            self._finish(decision)
            return
        else:
            # What a peer may choose freely is left out, or every refusal would be a row again.
            source, peer, claimed = self._told(decision, minute)
            key = msgspec.structs.replace(
                decision,
                time=minute,
                caller=claimed if decision.claimed else decision.caller,
                tenant="",
                method="",
                path="",
                cause=decision.cause.partition(":")[0],
                reference="",
                trace="",
                token=False,
                transaction="",
                origin="",
                approver="",
                source=source,
                peer=peer,
                count=1,
            )
        if key not in self._open and len(self._open) >= self._max_open:
            oldest = next(iter(self._open))
            self._finish(_counted(oldest, self._open.pop(oldest)))
        self._open[key] = self._open.get(key, 0) + decision.count

    def take(self, now: datetime, *, everything: bool = False) -> list[Decision]:
        """Rows that are ready: those in full, and counts of minutes that are over (or of all, at the end)."""
        over = [key for key in self._open if everything or key.time + _MINUTE <= now]
        rows = [*self._ready, *(_counted(key, self._open.pop(key)) for key in over)]
        self._ready.clear()
        return rows

    def _is_first(self, decision: Decision) -> bool:
        edge = (decision.caller, decision.service, decision.operation)
        if edge in self._edges:
            return False
        while len(self._edges) >= MAX_EDGES:
            del self._edges[next(iter(self._edges))]
        self._edges[edge] = None
        return True

    def _in_full(self, decision: Decision, minute: datetime) -> bool:
        if minute not in self._refusals:
            if len(self._refusals) >= _MINUTES:
                oldest = min(self._refusals)
                if minute < oldest:
                    return False
                del self._refusals[oldest]
            self._refusals[minute] = _Refusals()
        seen = self._refusals[minute].calls
        seen[decision.service, decision.code] += decision.count
        return seen[decision.service, decision.code] <= self._full_refusals

    def _told(self, decision: Decision, minute: datetime) -> tuple[str, str, str]:
        """The peer's address, name, and whom it claims to be, unless a flood comes from too many to tell them all."""
        refusals = self._refusals.get(minute)
        if refusals is None:
            return "", "", ""
        known = refusals.sources.setdefault((decision.service, decision.code), set())
        told = decision.source, decision.peer, decision.caller if decision.claimed else ""
        if told not in known and len(known) >= self._full_refusals:
            told = decision.source, decision.peer, ""
            if known and told not in known:
                return "", "", ""
        known.add(told)
        return told

    def _finish(self, decision: Decision) -> None:
        if len(self._ready) >= self._max_ready:
            self.lost += decision.count
            return
        self._ready.append(decision)


class _Refusals:
    """Those of one minute, by service and code: calls, and the sources and claims that counted rows tell of."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, DecisionCode]] = Counter()
        self.sources: dict[tuple[str, DecisionCode], set[tuple[str, str, str]]] = {}


def _counted(key: Decision, count: int) -> Decision:
    return key if count == 1 else msgspec.structs.replace(key, count=count)
