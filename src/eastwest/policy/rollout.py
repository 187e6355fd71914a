"""How far new rules have come: rings of enforcement points, one after the other, as one value that events replace.

    rolling ──all acknowledged──▶ soaking ──soak over, or promote──▶ rolling in the next ring … ──▶ finished
       └──────────────────────────────┴──▶ braked │ rolled back │ replaced

A pause stops the clock and not the brake. What break-glass replaced is rolling again after it, paused. Nothing here
waits or knows the time; ``eastwest.server.rollout`` does.
"""

from __future__ import annotations

import enum
import hashlib
from datetime import timedelta

import msgspec

from eastwest.errors import FailedPrecondition
from eastwest.policy.estate import Ring, Rollout
from eastwest.policy.forms import duration

EVERYWHERE = "everywhere"
"""The last ring: whatever no other names."""

Break = tuple[str, str, str]
"""Caller (SPIFFE ID, or "" where none is proven), service and operation of calls that are meant to be refused."""


class State(enum.StrEnum):
    """Where a rollout is. The last four are ends."""

    ROLLING = "rolling"  # the ring has been sent its rules, and not all of it has acknowledged
    SOAKING = "soaking"  # it has, and is watched
    FINISHED = "finished"
    BRAKED = "braked"  # denials that nobody meant brought the rules before back
    ROLLED_BACK = "rolled-back"
    REPLACED = "replaced"  # by a version that did not wait for rings


_OPEN = frozenset({State.ROLLING, State.SOAKING})


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout of ``version`` over ``previous``. Times are Unix seconds; ``since``: of the last change of state."""

    version: str
    previous: str
    plan: Rollout
    started: float
    since: float
    by: str = ""
    ring: int = 0  # the last that was reached
    state: State = State.ROLLING
    paused: bool = False
    breaks: tuple[Break, ...] = ()
    reason: str = ""  # of its end, for people

    @property
    def names(self) -> tuple[str, ...]:
        """All rings in order, the last included."""
        return (*(ring.name for ring in self.plan.rings), EVERYWHERE)

    @property
    def name(self) -> str:
        """The ring that was reached last."""
        return self.names[self.ring]

    @property
    def is_open(self) -> bool:
        """Whether anything is still to come."""
        return self.state in _OPEN

    @property
    def is_last(self) -> bool:
        """Whether everybody has been reached."""
        return self.ring == len(self.plan.rings)

    @property
    def soak(self) -> float:
        """Seconds for which a ring is watched."""
        return duration(self.plan.soak).total_seconds()

    @property
    def due(self) -> float | None:
        """When it goes on by itself; None while it waits for somebody."""
        waits = self.state is not State.SOAKING or self.paused
        if waits or not (self.is_last or self.plan.advance == "automatic"):
            return None
        return self.since + self.soak

    def has_reached(self, ring: int) -> bool:
        """Whether points of the ring have the new rules."""
        return self.state is State.FINISHED or (self.is_open and ring <= self.ring)

    def acknowledged(self, now: float) -> Progress:
        """All points of the rings so far that are connected run their rules."""
        if self.state is not State.ROLLING:
            return self
        return msgspec.structs.replace(self, state=State.SOAKING, since=now)

    def tick(self, now: float) -> Progress:
        """Time has passed: on to the next ring if it is due, one at a time."""
        return self if self.due is None or now < self.due else self._on(now)

    def promote(self, now: float) -> Progress:
        """Somebody does not want to wait: the next ring now, or after the last one the end."""
        self._check_open("promoted")
        if self.paused:
            raise FailedPrecondition("the rollout is paused", fix="eastwest policy resume")
        return self._on(now)

    def pause(self, now: float) -> Progress:
        """Stop the clock; the brake goes on watching."""
        self._check_open("paused")
        return self if self.paused else msgspec.structs.replace(self, paused=True, since=now)

    def resume(self, now: float) -> Progress:
        """Go on; a soak begins anew."""
        self._check_open("resumed")
        return msgspec.structs.replace(self, paused=False, since=now) if self.paused else self

    def reopened(self, now: float) -> Progress:
        """Again where it was when something that could not wait replaced it; paused, until somebody says to go on."""
        return msgspec.structs.replace(self, state=State.ROLLING, reason="", paused=True, since=now)

    def end(self, state: State, reason: str, now: float) -> Progress:
        """The rules before hold again, or others."""
        self._check_open("ended")
        return msgspec.structs.replace(self, state=state, reason=reason, paused=False, since=now)

    def _on(self, now: float) -> Progress:
        if self.is_last:
            return msgspec.structs.replace(self, state=State.FINISHED, since=now)
        return msgspec.structs.replace(self, ring=self.ring + 1, state=State.ROLLING, since=now)

    def _check_open(self, done: str) -> None:
        if not self.is_open:
            raise FailedPrecondition(
                f"the rollout of {self.version[:12]} is {self.state}, and cannot be {done}",
                fix="see eastwest policy versions",
            )


def ring_of(plan: Rollout, agent: str, spiffe_id: str, domain: str) -> int:
    """The ring of an enforcement point: the first that names it. The same for ever, whoever asks."""
    share = share_of(agent, spiffe_id)
    return next((number for number, ring in enumerate(plan.rings) if _has(ring, share, domain)), len(plan.rings))


def rings_of(plan: Rollout, domain: str) -> frozenset[int]:
    """The rings in which points of a domain can be, whatever their agents."""
    found: set[int] = set()
    for number, ring in enumerate(plan.rings):
        if ring.share is not None:
            found.add(number)
        elif domain in ring.domains:
            return frozenset({*found, number})
    return frozenset({*found, len(plan.rings)})


def share_of(agent: str, spiffe_id: str) -> int:
    """0 to 99, of the names alone: a point does not change its share when others come or go."""
    digest = hashlib.sha256(f"{agent}\0{spiffe_id}".encode()).digest()
    return int.from_bytes(digest[:8]) % 100


def longest(plan: Rollout) -> timedelta:
    """How long a rollout takes at least where nobody promotes it."""
    return duration(plan.soak) * (len(plan.rings) + 1)


def _has(ring: Ring, share: int, domain: str) -> bool:
    return domain in ring.domains if ring.share is None else share < ring.share
