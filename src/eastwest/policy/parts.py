"""Things of one kind as they were read, with the place of each field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from eastwest.policy.decode import Path
from eastwest.policy.problems import Position

T = TypeVar("T")


@dataclass(slots=True)
class Parts(Generic[T]):
    """Things of one kind by name, with the positions of their fields.

    ``named`` includes those with errors; ``complete`` is false when even the names could not all be read.
    """

    items: dict[str, T] = field(default_factory=dict)
    named: dict[str, Position] = field(default_factory=dict)
    places: dict[str, dict[Path, Position]] = field(default_factory=dict)
    complete: bool = True

    def lacks(self, name: str) -> bool:
        """Whether nothing of this name was declared; never when some names could not be read."""
        return self.complete and name not in self.named

    def at(self, name: str, *path: str | int) -> Position:
        """Where a field is; the nearest enclosing one when it was not written."""
        places = self.places[name]
        while path and path not in places:
            path = path[:-1]
        return places.get(path, self.named[name])
