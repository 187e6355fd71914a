"""Which operations a request may belong to, of which only the operation is known to which it belonged before.

A request of an operation has some path that its template matches and no earlier template does. Parameters take
infinitely many values, so a set of paths (a template without some others) is empty only if one of the others covers
it alone: which makes the answer exact, not an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence

from eastwest.policy.enforcement import OperationRules
from eastwest.policy.operations import wire_form
from eastwest.policy.paths import is_parameter_value

_Shape = tuple[str, tuple[str | None, ...]]  # method, and literals; None: a parameter


def possible_operations(
    now: Sequence[OperationRules], before: Sequence[OperationRules], name: str
) -> tuple[OperationRules | None, ...]:
    """The operations of ``now`` that may match a request which ``name`` of ``before`` matched; None: no operation.

    Both in the order in which they are tried.
    """
    shape: _Shape | None = None
    earlier: list[_Shape] = []
    for operation in before:
        shape = _shape(operation)
        if operation.name == name:
            break
        if shape is not None:
            earlier.append(shape)
    if shape is None:
        return tuple(o for o in now if _shape(o) is None)[:1] or (None,)
    found: list[OperationRules | None] = []
    taken = list(earlier)
    for operation in now:
        other = _shape(operation)
        common = _meet(shape, other) if other is not None else None
        if other is None or common is None or any(_covers(one, common) for one in taken):
            continue
        found.append(operation)
        taken.append(other)
        if _covers(other, shape):
            return tuple(found)
    return (*found, None)


def _shape(operation: OperationRules) -> _Shape | None:
    form = wire_form(operation.match)
    return (form[0], form[1].shape) if form is not None else None


def _covers(wide: _Shape, narrow: _Shape) -> bool:
    """Whether every request of ``narrow`` is one of ``wide``."""
    return (
        wide[0] == narrow[0]
        and len(wide[1]) == len(narrow[1])
        and all(
            a == b or (a is None and (b is None or is_parameter_value(b)))
            for a, b in zip(wide[1], narrow[1], strict=True)
        )
    )


def _meet(one: _Shape, other: _Shape) -> _Shape | None:
    """The requests of both; None: there are none."""
    if one[0] != other[0] or len(one[1]) != len(other[1]):
        return None
    segments: list[str | None] = []
    for a, b in zip(one[1], other[1], strict=True):
        literal = a if a is not None else b
        if a != b and (literal is None or (a is not None and b is not None) or not is_parameter_value(literal)):
            return None
        segments.append(literal)
    return one[0], tuple(segments)
