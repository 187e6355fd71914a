"""What an import did: the new text of a service file, and what differs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eastwest.policy.imports.model import LeftOut
from eastwest.policy.problems import Position, Problem


@dataclass(frozen=True, slots=True)
class Change:
    """A field of an operation that differs from what it was; ``after`` "" where it is said no more."""

    name: str
    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Appeared:
    """An operation that the file had not."""

    name: str
    what: str
    sensitivity: str  # said by the document, or ""
    suggestion: str


@dataclass(frozen=True, slots=True)
class Vanished:
    """An operation of the file that the document has not; it is still there unless it was pruned."""

    name: str
    what: str
    where: Position


@dataclass(slots=True)
class Outcome:
    """The new text, and what differs. ``text`` equals the old one exactly when ``is_changed`` is False."""

    before: str
    text: str = ""
    total: int = 0
    appeared: list[Appeared] = field(default_factory=list)
    vanished: list[Vanished] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)
    left_out: tuple[LeftOut, ...] = ()
    notes: list[Problem] = field(default_factory=list)
    pruned: bool = False

    @property
    def is_changed(self) -> bool:
        """Whether the file would be another one."""
        return self.text != self.before

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data that JSON can hold."""
        return {
            "changed": self.is_changed,
            "operations": self.total,
            "appeared": [
                {"name": a.name, "what": a.what, "sensitivity": a.sensitivity or None, "suggested": a.suggestion}
                for a in self.appeared
            ],
            "vanished": [
                {"name": v.name, "what": v.what, "where": str(v.where), "removed": self.pruned} for v in self.vanished
            ],
            "altered": [
                {"name": c.name, "field": c.field, "before": c.before or None, "after": c.after or None}
                for c in self.changed
            ],
            "left_out": [
                {"where": str(out.where), "what": out.what, "reason": out.reason, "fix": out.fix}
                for out in self.left_out
            ],
            "notes": [{"where": str(n.where), "message": n.message, "fix": n.fix} for n in self.notes],
        }
