"""What the log and the store are told of an estate that is put in force."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from eastwest.errors import FailedPrecondition
from eastwest.policy.estate import Estate
from eastwest.policy.plan import Plan
from eastwest.policy.rollout import Break, Progress
from eastwest.registry.administrators import Administrator
from eastwest.registry.authorization import Authorization, BreakGlass
from eastwest.server.journal import Event
from eastwest.store.estate import AppliedEstate

MAX_NAMED = 5
"""Breaks that a refusal names."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What comes with an estate: the change that it carries out, or why approvals are skipped.

    ``accept_breaks``: callers that the record says would be refused are meant to be. ``cause``: why an earlier version
    comes back.
    """

    change: str = ""
    break_glass: BreakGlass | None = None
    accept_breaks: bool = False
    cause: str = ""


async def authorize_all(
    _plan: Plan, _estate: Estate, administrator: Administrator, change: str, break_glass: BreakGlass | None
) -> Authorization:
    """Where nobody has to approve of anything: who applies, answers for it."""
    return Authorization(
        author=administrator.name, change=change, break_glass=break_glass.reason if break_glass else ""
    )


def activation_events(
    applied: AppliedEstate, estate: Estate, before: Estate | None, subject: str, *more: Event
) -> Sequence[Event]:
    """The log's entries of an estate: itself, each mode of mTLS that changes by it, and ``more``."""
    modes = modes_of(estate)
    standing = applied.standing.facts() if applied.standing is not None else {}
    facts = {
        "version": applied.version,
        "previous": applied.previous,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(applied.files.items())},
        "modes": modes,
        **standing,
        **({"cause": applied.cause} if applied.cause else {}),
    }
    old = modes_of(before) if before is not None else {}
    changed = sorted(name for name in modes.keys() | old.keys() if modes.get(name) != old.get(name))
    # The first estate's modes are all in policy.activated; from then on each change has an entry of its own.
    events = [
        Event(
            "mode.changed",
            applied.applied_by,
            name,
            {"version": applied.version, "mode": modes.get(name, ""), "previous": old.get(name, "")},
        )
        for name in (changed if old else ())
    ]
    return [Event("policy.activated", applied.applied_by, subject, facts), *events, *more]


def rollout_event(kind: str, progress: Progress, actor: str, subject: str, **facts: object) -> Event:
    """``rollout.KIND``: every one names the versions and the ring."""
    said = {"version": progress.version, "previous": progress.previous, "ring": progress.name}
    return Event(f"rollout.{kind}", actor, subject, said | facts)


def rollout_facts(progress: Progress) -> dict[str, object]:
    """A rollout as commands and administrators are told of it. Times are Unix seconds."""
    return {
        "version": progress.version,
        "previous": progress.previous,
        "state": progress.state.value,
        "ring": progress.name,
        "rings": list(progress.names),
        "paused": progress.paused,
        "advance": progress.plan.advance,
        "brake": progress.plan.brake,
        "soak_seconds": progress.soak,
        "started": progress.started,
        "since": progress.since,
        "due": progress.due,
        "by": progress.by,
        "breaks": len(progress.breaks),
        "reason": progress.reason,
    }


def check_breaks(breaks: Sequence[Break], *, accepted: bool) -> None:
    """Raise ``FailedPrecondition`` where calls that the record knows would be refused, and nobody said they may."""
    if not breaks or accepted:
        return
    named = (f"{caller or 'unproven callers'} at {operation or service}" for caller, service, operation in breaks)
    shown = "; ".join(islice(named, MAX_NAMED))
    rest = f"; and {len(breaks) - MAX_NAMED} more" if len(breaks) > MAX_NAMED else ""
    raise FailedPrecondition(
        f"calls that the record knows would be refused: {shown}{rest}",
        fix="see eastwest policy impact; where they are meant to be refused: eastwest apply --accept-breaks",
    )


def modes_of(estate: Estate) -> Mapping[str, str]:
    """Each service's mode of mTLS."""
    return {service.service: service.listen.mtls.value for service in estate.services}
