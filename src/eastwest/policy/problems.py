"""What is wrong with an estate, where, and what would mend it."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from dataclasses import dataclass

from eastwest.errors import InvalidInput

MAX_SHOWN = 20
CLOSE_PART = 0.7
"""How alike two parts of SPIFFE IDs are that may be a typing mistake: 1 is the same."""


class Severity(enum.StrEnum):
    """``error`` stops a plan; ``warning`` is likely a mistake; ``note`` is a fact, such as "not enforced yet"."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a file of the estate; line and column count from 1, and 0 means the whole file."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: ``file:line:column: message (fix)``."""

    severity: Severity
    where: Position
    message: str
    fix: str = ""

    def __str__(self) -> str:
        label = "" if self.severity is Severity.ERROR else f"{self.severity}: "
        return f"{self.where}: {label}{self.message}" + (f" ({self.fix})" if self.fix else "")


class EstateInvalid(InvalidInput):
    """The estate has errors; ``problems`` holds every finding, warnings and notes too, in file order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = ordered(problems)
        errors = [p for p in self.problems if p.severity is Severity.ERROR]
        first = errors[0]
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        super().__init__(first.message + more, fix=first.fix, where=str(first.where))


class Findings:
    """Collects problems while an estate is read, so that all of them are told at once."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def error(self, where: Position, message: str, fix: str = "") -> None:
        self._problems.append(Problem(Severity.ERROR, where, message, fix))

    def warning(self, where: Position, message: str, fix: str = "") -> None:
        self._problems.append(Problem(Severity.WARNING, where, message, fix))

    def note(self, where: Position, message: str, fix: str = "") -> None:
        self._problems.append(Problem(Severity.NOTE, where, message, fix))

    def take(self, problems: Iterable[Problem]) -> None:
        """Add what was found elsewhere."""
        self._problems.extend(problems)

    @property
    def failed(self) -> bool:
        """Whether an error was found so far."""
        return any(p.severity is Severity.ERROR for p in self._problems)

    def raise_errors(self) -> None:
        """Raise ``EstateInvalid`` with everything found, if an error is among it."""
        if self.failed:
            raise EstateInvalid(self._problems)

    def all(self) -> tuple[Problem, ...]:
        """Everything found, in file order."""
        return ordered(self._problems)


def ordered(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Findings by file and line, without repeats."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda p: (p.where, p.severity, p.message)))


def suggest_id(wrong: str, known: Iterable[str], *, otherwise: str) -> str:
    """A fix for a SPIFFE ID that nobody declares: one that differs in one part of its path, and little in that.

    IDs are alike at length, so a name that is new would otherwise be taken for another that is old.
    """
    parts = wrong.split("/")
    likely: dict[str, float] = {}
    for one in sorted(set(known)):
        differing = [pair for pair in zip(parts, one.split("/"), strict=False) if pair[0] != pair[1]]
        if one.count("/") == wrong.count("/") and len(differing) == 1:
            likely[one] = difflib.SequenceMatcher(None, *differing[0]).ratio()
    close = max(likely, key=likely.__getitem__, default="")
    return f"did you mean {close!r}?" if close and likely[close] >= CLOSE_PART else otherwise


def suggest(wrong: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """A fix that names the closest known word, or the known words when none is close and they are few."""
    words = sorted(set(known))
    close = difflib.get_close_matches(wrong, words, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    if words and len(words) <= MAX_SHOWN:
        return "known: " + ", ".join(words)
    return otherwise
