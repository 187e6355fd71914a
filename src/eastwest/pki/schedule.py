"""When which authority is due for what: SPIRE's fractions of its life, and a last moment before its end.

A successor is prepared when less than half of a life is left, at most 30 days before the end, and activated when less
than a sixth is left, at most 7 days before. It is activated once all have confirmed it; in the last twenty-fourth of
the life (at most one day), when waiting longer would stop everybody, without that.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from eastwest.pki.rotation.lifecycle import ended
from eastwest.pki.rotation.state import KEPT_AFTER_END, Hierarchy, Kind, Root, Source, Stage, State

DAY = 86_400
PREPARE_CAP = 30 * DAY
ACTIVATE_CAP = 7 * DAY
LAST_CAP = DAY


class Action(enum.StrEnum):
    """What to do."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    PRUNE = "prune"


@dataclass(frozen=True, slots=True)
class Due:
    """One thing that is due. ``id``: what to activate; ``environment``: of a CA to prepare.

    ``hierarchy``: in which to prepare. ``at_last``: no time is left to wait for confirmation.
    """

    action: Action
    kind: Kind
    id: str = ""
    environment: str = ""
    hierarchy: Hierarchy = Hierarchy.CLASSICAL
    at_last: bool = False


class Lived(Protocol):
    """Anything with a begin and an end (Unix seconds)."""

    @property
    def not_before(self) -> int: ...

    @property
    def not_after(self) -> int: ...


def prepare_at(authority: Lived) -> int:
    """When its successor is to be prepared (Unix seconds)."""
    return authority.not_after - min(_life(authority) // 2, PREPARE_CAP)


def activate_at(authority: Lived) -> int:
    """When its successor is to be activated."""
    return authority.not_after - min(_life(authority) // 6, ACTIVATE_CAP)


def last_moment(authority: Lived) -> int:
    """When its successor is to be activated even though somebody has not confirmed it."""
    return authority.not_after - min(_life(authority) // 24, LAST_CAP)


def due(state: State, now: int) -> list[Due]:
    """What is to be done now, in order. A root kept elsewhere is not renewed from here: see ``waits_for_people``."""
    found: list[Due] = []
    if ended(state, now):
        found.append(Due(Action.PRUNE, Kind.X509))
    for hierarchy in Hierarchy:
        root, following_root = state.active_of(hierarchy), state.prepared_of(hierarchy)
        if root is not None:
            found += _due_root(state, root, now)
            found += _due_issuing(root, now)
        elif following_root is not None and hierarchy is Hierarchy.POST_QUANTUM:
            # Somebody has switched it on, and it is of use as soon as all trust it.
            found.append(Due(Action.ACTIVATE, Kind.X509, following_root.id))
    key, following = state.active_jwt, state.prepared_jwt
    if key is not None:
        if following is None and now >= prepare_at(key):
            found.append(Due(Action.PREPARE, Kind.JWT))
        if following is not None and now >= activate_at(key):
            found.append(Due(Action.ACTIVATE, Kind.JWT, following.id, at_last=now >= last_moment(key)))
    return found


def next_due(state: State, now: int) -> int | None:
    """The next moment after ``now`` at which something becomes due by itself, or None."""
    moments = [moment for moment in _moments(state) if moment > now]
    return min(moments, default=None)


def waits_for_people(state: State, now: int) -> list[str]:
    """What only people can do, and should by now: one sentence for each."""
    root = state.active_root
    if root is None or root.source is not Source.OFFLINE:
        return []
    found = []
    if now >= prepare_at(root) and state.prepared_root is None:
        found.append("the offline root ends soon: make a new one, and import issuing CAs below it")
    for ca in root.issuing:
        following = any(k.environment == ca.environment and k.stage is Stage.PREPARED for k in root.issuing)
        if ca.stage is Stage.ACTIVE and now >= prepare_at(ca) and not following and state.prepared_root is None:
            where = f"of environment {ca.environment}" if ca.environment else "of the trust domain"
            found.append(f"the issuing CA {where} ends soon: eastwest ca export-csr --all, have it signed, import it")
    return found


def _due_root(state: State, root: Root, now: int) -> Iterator[Due]:
    following = state.prepared_of(root.hierarchy)
    deciding: Lived = root
    begun = following is not None
    if root.source is Source.UPSTREAM:
        # Only the upstream knows what is above the next issuing CA: the same root, or a new generation.
        deciding = min((ca for ca in root.issuing if ca.stage is Stage.ACTIVE), key=lambda ca: ca.not_after)
        begun = begun or any(ca.stage is Stage.PREPARED for ca in root.issuing)
    if not begun and now >= prepare_at(deciding) and root.source in {Source.OWN, Source.UPSTREAM}:
        yield Due(Action.PREPARE, Kind.X509, hierarchy=root.hierarchy)
    if following is not None and now >= activate_at(deciding):
        yield Due(Action.ACTIVATE, Kind.X509, following.id, at_last=now >= last_moment(deciding))


def _due_issuing(root: Root, now: int) -> Iterator[Due]:
    for ca in root.issuing:
        if ca.stage is not Stage.ACTIVE:
            continue
        following = next(
            (k for k in root.issuing if k.environment == ca.environment and k.stage is Stage.PREPARED), None
        )
        # A CA that outlasts its root's term of office is replaced together with the root.
        lasts = activate_at(ca) >= activate_at(root)
        if following is None and now >= prepare_at(ca) and root.source is Source.OWN and not lasts:
            yield Due(Action.PREPARE, Kind.ISSUING, environment=ca.environment, hierarchy=root.hierarchy)
        if following is not None and now >= activate_at(ca):
            yield Due(Action.ACTIVATE, Kind.ISSUING, following.id)


def _moments(state: State) -> Iterator[int]:
    authorities: list[Lived] = []
    for root in (root for root in map(state.active_of, Hierarchy) if root is not None):
        authorities += [root, *(ca for ca in root.issuing if ca.stage is Stage.ACTIVE)]
    if state.active_jwt is not None:
        authorities.append(state.active_jwt)
    for authority in authorities:
        yield from (prepare_at(authority), activate_at(authority), last_moment(authority))
    held: list[Lived] = [*state.roots, *(ca for r in state.roots for ca in r.issuing), *state.jwt]
    for authority in held:
        yield authority.not_after + KEPT_AFTER_END + 1


def _life(authority: Lived) -> int:
    return authority.not_after - authority.not_before
