"""Containment: an identity is cut off, by whom and why, until somebody releases it.

Steps give new values; recording, storing and pushing them is the shell's. What enforcement points are told is only
``Contained``: the union of all containments that have not ended, and a generation that grows with every change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from eastwest.errors import AlreadyExists, FailedPrecondition, InvalidInput, NotFound, PermissionDenied
from eastwest.registry.approvals import check_reason
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId

MAX_CONTAINED = 1_000
"""Identities that are contained at a time, which every enforcement point looks for in every call."""
RIGHT_FIX = "release what is contained for no reason any more, or shut out whole nodes with eastwest node ban"
REASON = "IDENTITY_CONTAINED"
"""The stable code with which everything is refused that a contained identity asks for."""


class IdentityContained(PermissionDenied):
    """The identity is cut off: nothing is issued to it, and nothing that it signed for counts."""

    reason = REASON

    def __init__(self, spiffe_id: str) -> None:
        super().__init__(f"{spiffe_id} is contained", fix="see eastwest containment list; who may, releases it")


@dataclass(frozen=True)
class Contained:
    """Who is cut off now (SPIFFE IDs, sorted), and which of all such lists this is. Generation 0: never anybody."""

    generation: int = 0
    spiffe_ids: tuple[str, ...] = ()

    def __contains__(self, spiffe_id: object) -> bool:
        return spiffe_id in self._known

    def __bool__(self) -> bool:
        return bool(self.spiffe_ids)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.spiffe_ids)


NOBODY = Contained()


@dataclass(frozen=True, slots=True, kw_only=True)
class Containment:
    """One containment. Times are Unix seconds, 0 where something has not happened.

    ``evidence`` is the SHA-256 (hex) of the snapshot that was taken before it began.
    """

    id: str
    spiffe_ids: tuple[str, ...]
    selector: str  # by which they were found, as it was given
    reason: str
    started_by: str
    started_at: int
    generation: int  # from which on it is in force
    evidence: str
    ended_by: str = ""
    ended_at: int = 0
    end_reason: str = ""
    end_generation: int = 0

    @property
    def is_active(self) -> bool:
        """Whether it holds still."""
        return not self.end_generation


def in_force(containments: Iterable[Containment]) -> Contained:
    """What enforcement points are told."""
    known = tuple(containments)
    generation = max((max(one.generation, one.end_generation) for one in known), default=0)
    return Contained(generation, tuple(sorted({name for one in known if one.is_active for name in one.spiffe_ids})))


def containable(names: Iterable[str]) -> tuple[str, ...]:
    """The SPIFFE IDs, sorted, each once; raises ``InvalidInput`` for what nobody can be cut off by.

    Agents and the server itself are not: a node is shut out by banning it.
    """
    found = set()
    for name in names:
        try:
            spiffe_id = SpiffeId.parse(name)
        except MalformedSpiffeId as error:
            raise InvalidInput(f"{name[:200]!r} is no SPIFFE ID: {error.message}") from None
        if spiffe_id.is_reserved:
            raise InvalidInput(
                f"{spiffe_id} is a node's or the server's own identity",
                fix="shut a node out with eastwest node ban, and contain what it ran with node:ID",
            )
        found.add(str(spiffe_id))
    if not found:
        raise NotFound("nobody is meant", fix="name a SPIFFE ID or another selector")
    if len(found) > MAX_CONTAINED:
        raise InvalidInput(f"{len(found)} identities are more than {MAX_CONTAINED} at a time", fix=RIGHT_FIX)
    return tuple(sorted(found))


def start(
    known: Iterable[Containment],
    *,
    containment_id: str,
    spiffe_ids: Iterable[str],
    selector: str,
    reason: str,
    actor: str,
    now: int,
    evidence: str,
) -> Containment:
    """A new containment, in force from the next generation on.

    Raises ``AlreadyExists`` where all are contained already, and ``InvalidInput``: without a reason, or too many.
    """
    names = containable(spiffe_ids)
    held = in_force(known)
    if all(name in held for name in names):
        raise AlreadyExists(f"{_named(names)} contained already", fix="see eastwest containment list")
    if len({*held.spiffe_ids, *names}) > MAX_CONTAINED:
        raise InvalidInput(f"at most {MAX_CONTAINED} identities are contained at a time", fix=RIGHT_FIX)
    return Containment(
        id=containment_id,
        spiffe_ids=names,
        selector=selector[:300],
        reason=check_reason(reason),
        started_by=actor,
        started_at=now,
        generation=held.generation + 1,
        evidence=evidence,
    )


def end(known: Iterable[Containment], containment_id: str, *, reason: str, actor: str, now: int) -> Containment:
    """The containment with its end. Raises ``NotFound``, ``FailedPrecondition`` where it has ended."""
    every = tuple(known)
    found = next((one for one in every if one.id == containment_id), None)
    if found is None:
        raise NotFound(f"there is no containment {containment_id[:64]!r}", fix="see eastwest containment list")
    if not found.is_active:
        raise FailedPrecondition(f"containment {found.id} has ended", fix="see eastwest containment list")
    return replace(
        found,
        ended_by=actor,
        ended_at=now,
        end_reason=check_reason(reason),
        end_generation=in_force(every).generation + 1,
    )


def holding(known: Iterable[Containment], spiffe_id: str) -> Containment:
    """The one containment that holds an identity and nobody else; raises ``NotFound``, ``FailedPrecondition``.

    One that holds others too is ended by its own id, so that nobody lets out more than was named.
    """
    active = [one for one in known if one.is_active and spiffe_id in one.spiffe_ids]
    if not active:
        raise NotFound(f"{spiffe_id[:300]} is not contained", fix="see eastwest containment list")
    if len(active) == 1 and active[0].spiffe_ids == (spiffe_id,):
        return active[0]
    told = ", ".join(f"{one.id} (of {len(one.spiffe_ids)})" for one in active)
    raise FailedPrecondition(
        f"{spiffe_id} is held by {told}", fix="release by the containment's id; it lets out all that it holds"
    )


def _named(names: tuple[str, ...]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"these {len(names)} identities are"
