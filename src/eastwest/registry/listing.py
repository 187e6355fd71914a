"""Filters and pages for listing entries and nodes, with SPIRE's meanings."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from eastwest.registry.entry import Entry
from eastwest.registry.node import Node
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector

T = TypeVar("T")


class Match(enum.Enum):
    """How the set of an item compares with the set asked for; values are those of SPIRE's ``MatchBehavior``."""

    EXACT = 0
    SUBSET = 1  # the item's set lies within the one asked for
    SUPERSET = 2  # the item's set contains the one asked for
    ANY = 3  # they share at least one

    def holds(self, items: frozenset[T], asked: frozenset[T]) -> bool:
        """Whether ``items`` compares with ``asked`` in this way; an empty item never is a match by subset."""
        match self:
            case Match.EXACT:
                return items == asked
            case Match.SUBSET:
                return bool(items) and items <= asked
            case Match.SUPERSET:
                return items >= asked
            case Match.ANY:
                return not items.isdisjoint(asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryFilter:
    """Which entries are wanted; ``None`` asks nothing."""

    spiffe_id: SpiffeId | None = None
    parent_id: SpiffeId | None = None
    selectors: tuple[frozenset[Selector], Match] | None = None
    federates_with: tuple[frozenset[TrustDomain], Match] | None = None
    hint: str | None = None
    downstream: bool | None = None
    managed_by: str | None = None  # exact, or what stands before the colon

    def admits(self, entry: Entry) -> bool:
        """Whether ``entry`` answers all that is asked."""
        return (
            (self.spiffe_id is None or entry.spiffe_id == self.spiffe_id)
            and (self.parent_id is None or entry.parent_id == self.parent_id)
            and (self.hint is None or entry.hint == self.hint)
            and (self.downstream is None or entry.downstream == self.downstream)
            and (self.managed_by is None or self.managed_by in {entry.managed_by, entry.managed_by.partition(":")[0]})
            and (self.selectors is None or self.selectors[1].holds(entry.selectors, self.selectors[0]))
            and (
                self.federates_with is None
                or self.federates_with[1].holds(frozenset(entry.federates_with), self.federates_with[0])
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFilter:
    """Which nodes are wanted; ``None`` asks nothing. ``expires_before`` is in Unix seconds."""

    attestation_type: str | None = None
    selectors: tuple[frozenset[Selector], Match] | None = None
    banned: bool | None = None
    can_reattest: bool | None = None
    expires_before: int | None = None

    def admits(self, node: Node) -> bool:
        """Whether ``node`` answers all that is asked."""
        return (
            (self.attestation_type is None or node.attestation_type == self.attestation_type)
            and (self.banned is None or node.banned == self.banned)
            and (self.can_reattest is None or node.can_reattest == self.can_reattest)
            and (self.expires_before is None or node.not_after < self.expires_before)
            and (self.selectors is None or self.selectors[1].holds(node.selectors, self.selectors[0]))
        )


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of the items, in order, and the token that asks for what follows (``""``: nothing does)."""

    items: tuple[T, ...]
    next_token: str


def paginate(items: Iterable[T], admits: Callable[[T], bool], token_of: Callable[[T], str], page_size: int) -> Page[T]:
    """The first ``page_size`` of ``items`` that are admitted; 0 or less means all of them."""
    kept: list[T] = []
    for item in items:
        if not admits(item):
            continue
        if 0 < page_size <= len(kept):
            return Page(tuple(kept), token_of(kept[-1]))
        kept.append(item)
    return Page(tuple(kept), "")
