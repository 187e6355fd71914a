"""Which requests go to which operation in two versions of one service: who had them before, who has them after.

A name says little: an operation may be renamed, or its template widened so that it takes requests that were another's.
So all paths are walked at once, segment by segment, through the templates of both versions; every path ends in exactly
one region, whose requests all go to the same operation before and to the same one after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eastwest.policy.enforcement import OperationRules
from eastwest.policy.operations import wire_form
from eastwest.policy.paths import Template, is_parameter_value

MAX_STEPS = 100_000
"""Of one service; beyond it every pair of operations that overlap is taken for a region."""


@dataclass(frozen=True, slots=True)
class Region:
    """Some requests: the operation that has them before (None: no operation has) and after.

    ``literals``: the text of each path segment where it is certain, else None. Both are empty for connections (TCP).
    """

    before: OperationRules | None
    after: OperationRules
    literals: tuple[str | None, ...] = ()


def regions(before: Sequence[OperationRules], after: Sequence[OperationRules]) -> Iterator[Region]:
    """All regions that some operation has after. Both lists are in the order of ``eastwest.policy.table.in_order``."""
    if [one.match for one in before] == [one.match for one in after]:
        yield from (Region(was, now) for was, now in zip(before, after, strict=True))
        return
    old, new = _by_form(before), _by_form(after)
    budget = [MAX_STEPS]
    for form, routes in new.items():
        others = old.get(form, [])
        if form is None:  # a connection carries whatever the other protocol's operations were
            yield from (Region(one, routes[0].operation) for one in (*before, *_none(before)))
        elif None in old:
            yield from (Region(old[None][0].operation, route.operation) for route in routes)
        else:
            found = list(_walk(others, routes, 0, (), budget))
            yield from found if budget[0] > 0 else _overlapping(others, routes)


def _none(before: Sequence[OperationRules]) -> Sequence[None]:
    return () if any(wire_form(one.match) is None for one in before) else (None,)


@dataclass(frozen=True, slots=True)
class _Route:
    operation: OperationRules
    template: Template


_Form = tuple[str, int] | None  # HTTP method and number of segments


def _by_form(operations: Sequence[OperationRules]) -> dict[_Form, list[_Route]]:
    found: dict[_Form, list[_Route]] = {}
    for operation in operations:
        form = wire_form(operation.match)
        template = Template(()) if form is None else form[1]
        key = None if form is None else (form[0], len(template.segments))
        found.setdefault(key, []).append(_Route(operation, template))
    return found


def _walk(
    before: Sequence[_Route], after: Sequence[_Route], depth: int, literals: tuple[str | None, ...], budget: list[int]
) -> Iterator[Region]:
    budget[0] -= 1
    if not after or budget[0] <= 0:
        return
    if depth == len(after[0].template.segments):
        yield Region(before[0].operation if before else None, after[0].operation, literals)
        return
    texts = {route.template.segments[depth][0] for route in (*before, *after) if not _is_open(route, depth)}
    for text in (*sorted(texts), None):
        ours, theirs = ([route for route in routes if _takes(route, depth, text)] for routes in (before, after))
        yield from _walk(ours, theirs, depth + 1, (*literals, text), budget)


def _is_open(route: _Route, depth: int) -> bool:
    return bool(route.template.segments[depth][1])


def _takes(route: _Route, depth: int, text: str | None) -> bool:
    """Whether its template goes on with this segment; None is any that no template spells out."""
    if _is_open(route, depth):
        return text is None or is_parameter_value(text)
    return text == route.template.segments[depth][0]


def _overlapping(before: Sequence[_Route], after: Sequence[_Route]) -> Iterator[Region]:
    """More regions than there are, and none too few."""
    for route in after:
        yield Region(None, route.operation)
        yield from (Region(one.operation, route.operation) for one in before if one.template.overlaps(route.template))
