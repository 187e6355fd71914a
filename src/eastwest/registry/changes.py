"""Changes of the estate that wait for somebody's word: two persons stand behind what opens something risky.

    pending → approved → (applied | expired | withdrawn | void)
       └→ refused | withdrawn | expired | void

A change is bound to exact content: the version that it would put in force, and the one that it was compared with. Any
edit, and any other version coming in between, voids it. Steps give new values; storing and recording is the shell's.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta

import msgspec

from eastwest.errors import FailedPrecondition, PermissionDenied
from eastwest.policy.estate import Group, Right
from eastwest.policy.risk import WHOLE, Requirement, Widening
from eastwest.registry.administrators import Administrator, NotAllowed, Subject
from eastwest.registry.approvals import check_reason

WAITING = timedelta(days=7)
"""For how long a request waits."""
GRANTED = timedelta(hours=24)
"""For how long what was approved can be applied."""
Lookup = Callable[[str], Administrator | None]
"""Who has a name, by the rows that were in force before the change."""


class ChangeState(enum.StrEnum):
    """Where a change stands. ``expired`` and ``void`` follow from the others, the time and the version in force."""

    PENDING = "pending"
    APPROVED = "approved"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"
    APPLIED = "applied"
    VOID = "void"


class OwnChange(PermissionDenied):
    """Nobody approves of its own change."""


class Approved(msgspec.Struct, frozen=True, kw_only=True):
    """One administrator's word. Times are Unix seconds."""

    who: str
    at: int
    reason: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One request: content by its hash, what it opens, whose words that needs and whose it has. Times: Unix seconds."""

    id: str
    version: str
    base: str  # the version that it was compared with
    reason: str
    requested_by: str
    requested_at: int
    ends: int  # of the request while it is pending, of what was approved after that
    requirements: tuple[Requirement, ...]
    widenings: tuple[Widening, ...]
    evidence: str = ""  # hex SHA-256 of the impact report at the time of the request
    state: ChangeState = ChangeState.PENDING
    approvals: tuple[Approved, ...] = ()
    decided_by: str = ""  # who refused or withdrew it
    decided_at: int = 0
    decision_reason: str = ""
    base_since: float = 0.0  # when the version that it was compared with came into force

    def state_at(self, now: datetime, base: str) -> ChangeState:
        """Where it stands while ``base`` is the version that changes are compared with."""
        if self.state not in {ChangeState.PENDING, ChangeState.APPROVED}:
            return self.state
        if base != self.base:
            return ChangeState.VOID
        return ChangeState.EXPIRED if now.timestamp() >= self.ends else self.state

    @property
    def approvers(self) -> tuple[str, ...]:
        """Who gave their word."""
        return tuple(one.who for one in self.approvals)


class Deciders:
    """Who may give which word: administrators and groups as they were before the change."""

    def __init__(self, names: Iterable[str], find: Lookup, groups: Iterable[Group]) -> None:
        """``names`` are those who are named as administrators; ``find`` knows others too, such as root."""
        self._names = sorted(set(names))
        self._find = find
        self._members: Mapping[str, frozenset[str]] = {group.name: frozenset(group.members) for group in groups}

    def may(self, requirement: Requirement, who: str, without: Collection[str]) -> bool:
        """Whether ``who`` may give this word; ``without`` are those who stand behind the change themselves."""
        if who in without or not self._covers(requirement, who):
            return False
        members = self._members.get(requirement.owner, frozenset())
        # Where the group has nobody else, others who decide for the domain do: somebody must.
        return who in members or not members or not any(self._covers(requirement, one) for one in members - {*without})

    def eligible(self, requirement: Requirement, without: Collection[str]) -> list[str]:
        """Who of those named may give this word."""
        members = self._members.get(requirement.owner, frozenset())
        return [who for who in sorted({*self._names, *members}) if self.may(requirement, who, without)]

    def lacking(
        self, requirements: Iterable[Requirement], approvers: Collection[str], without: Collection[str]
    ) -> list[Requirement]:
        """The words that nobody of ``approvers`` gives."""
        return [r for r in requirements if not any(self.may(r, who, without) for who in approvers)]

    def _covers(self, requirement: Requirement, who: str) -> bool:
        administrator = self._find(who)
        if administrator is None:
            return False
        try:
            if requirement.domain == WHOLE:
                administrator.require_unlimited(Right.APPROVALS, "approve")
            else:
                administrator.require_for(Right.APPROVALS, Subject(domain=requirement.domain), "approve")
        except NotAllowed:
            return False
        return True


def approve(change: Change, who: str, reason: str, deciders: Deciders, now: datetime, base: str) -> Change:
    """With the word of ``who``; approved once no word is lacking that somebody could give."""
    _check_waits(change, now, base)
    if who == change.requested_by:
        raise OwnChange(
            f"{who} has requested change {change.id} and may not approve it", fix="have another administrator do it"
        )
    without = {change.requested_by}
    mine = [r for r in change.requirements if deciders.may(r, who, without)]
    if not mine:
        asked = "; ".join(f"{one} for {whose(r)}" for r in change.requirements for one in deciders.eligible(r, without))
        raise NotAllowed(f"{who} may not approve change {change.id}", fix=f"who may: {asked or 'nobody'}")
    word = Approved(who=who, at=int(now.timestamp()), reason=check_reason(reason))
    approvals = (*(one for one in change.approvals if one.who != who), word)
    lacking = deciders.lacking(change.requirements, [one.who for one in approvals], without)
    done = not any(deciders.eligible(r, without) for r in lacking)
    return msgspec.structs.replace(
        change,
        approvals=approvals,
        state=ChangeState.APPROVED if done else ChangeState.PENDING,
        ends=int((now + GRANTED).timestamp()) if done else change.ends,
    )


def refuse(change: Change, who: str, reason: str, deciders: Deciders, now: datetime, base: str) -> Change:
    """Refused by somebody whose word it needs."""
    _check_waits(change, now, base)
    if not any(deciders.may(r, who, {change.requested_by}) for r in change.requirements):
        raise NotAllowed(f"{who} may not refuse change {change.id}", fix="whoever requested it may withdraw it")
    return _ended(change, ChangeState.REFUSED, who, reason, now)


def withdraw(change: Change, who: str, reason: str, now: datetime, base: str) -> Change:
    """Ended by whoever requested it, or gave its word."""
    if change.state_at(now, base) not in {ChangeState.PENDING, ChangeState.APPROVED}:
        raise _standing(change, now, base)
    if who not in {change.requested_by, *change.approvers}:
        raise NotAllowed(f"{who} may not withdraw change {change.id}", fix=f"{change.requested_by} may; or refuse it")
    return _ended(change, ChangeState.WITHDRAWN, who, reason, now)


def void(change: Change, actor: str, reason: str, now: datetime) -> Change:
    """Ended because somebody who stands behind it is not believed any more."""
    return _ended(change, ChangeState.WITHDRAWN, actor, reason, now)


def _ended(change: Change, state: ChangeState, who: str, reason: str, now: datetime) -> Change:
    return msgspec.structs.replace(
        change, state=state, decided_by=who, decided_at=int(now.timestamp()), decision_reason=check_reason(reason)
    )


def _check_waits(change: Change, now: datetime, base: str) -> None:
    if change.state_at(now, base) is not ChangeState.PENDING:
        raise _standing(change, now, base)


def _standing(change: Change, now: datetime, base: str) -> FailedPrecondition:
    state = change.state_at(now, base)
    why = ": another version came into force since" if state is ChangeState.VOID else ""
    return FailedPrecondition(
        f"change {change.id} is {state}{why}", fix="request it again: eastwest change request DIR"
    )


def whose(requirement: Requirement) -> str:
    """Whose word it is, for people."""
    if requirement.domain == WHOLE:
        return "the whole estate"
    return f"{requirement.owner} (domain {requirement.domain})" if requirement.owner else f"domain {requirement.domain}"
