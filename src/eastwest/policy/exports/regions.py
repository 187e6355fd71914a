"""Sets of paths that can be cut from each other: for enforcement points that know no order of rules.

A region is a path template whose parameters may be narrowed to some values or kept from some. Where two templates
meet, the table gives the request to the one with the leftmost literal; cutting the others makes all regions disjoint,
so that order says nothing any more.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from eastwest.policy.paths import Template, is_parameter_value

_CHARACTERS = "A-Za-z0-9._~-"
_RUNS = (string.ascii_uppercase, string.ascii_lowercase, string.digits)
_SPECIAL = re.compile(r"([.+$()])")  # of the characters that templates have
MAX_PIECES = 64
"""Into how many regions cutting may divide one."""


@dataclass(frozen=True, slots=True)
class Part:
    """One segment: a value of ``one_of``, or with None any parameter value but those of ``but``."""

    one_of: frozenset[str] | None
    but: frozenset[str] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether nothing fits."""
        return self.one_of is not None and not self.one_of

    def without(self, value: str) -> Part:
        """All but one value."""
        if self.one_of is not None:
            return Part(self.one_of - {value})
        return replace(self, but=self.but | {value})

    def narrowed(self, value: str) -> Part:
        """The one value, if it fits."""
        fits = value in self.one_of if self.one_of is not None else self._takes(value)
        return Part(frozenset({value} if fits else ()))

    def _takes(self, value: str) -> bool:
        return is_parameter_value(value) and value not in self.but

    def regex(self) -> str:
        """A regular expression (RE2) of exactly these values."""
        if self.one_of is not None:
            values = "|".join(escaped(value) for value in sorted(self.one_of))
            return values if len(self.one_of) == 1 else f"(?:{values})"
        return all_but({".", "..", *self.but})


@dataclass(frozen=True, slots=True)
class Region:
    """Paths, segment by segment."""

    parts: tuple[Part, ...]

    @property
    def literal(self) -> str | None:
        """The one path that it is, or None."""
        values = [next(iter(part.one_of)) for part in self.parts if part.one_of is not None and len(part.one_of) == 1]
        return "/" + "/".join(values) if len(values) == len(self.parts) else None

    @property
    def is_empty(self) -> bool:
        """Whether no path is in it."""
        return any(part.is_empty for part in self.parts)

    def regex(self) -> str:
        """A regular expression (RE2) of exactly these paths, without a query."""
        return "^/" + "/".join(part.regex() for part in self.parts) + "$"

    def with_part(self, index: int, part: Part) -> Region:
        """The region with another segment."""
        return Region((*self.parts[:index], part, *self.parts[index + 1 :]))


def region(template: Template, parameter: str = "", part: Part | None = None) -> Region:
    """All paths of a template, with one parameter narrowed."""
    return Region(
        tuple(
            (part if part is not None and name == parameter else Part(None)) if name else Part(frozenset({literal}))
            for literal, name in template.segments
        )
    )


def cut(regions: Sequence[Region], template: Template) -> list[Region] | None:
    """The regions without the template's paths; None when they would fall into too many pieces."""
    left: list[Region] = []
    for one in regions:
        left += _cut(one, template)
        if len(left) > MAX_PIECES:
            return None
    return left


def all_but(words: Iterable[str]) -> str:
    """A regular expression of parameter characters, at least one, that matches every text but the words."""
    return _not_these(frozenset(words), first=True)


def escaped(text: str) -> str:
    """A literal of a template inside a regular expression; without backslashes, which formats read differently."""
    return _SPECIAL.sub(r"[\1]", text)


def _cut(one: Region, template: Template) -> list[Region]:
    if len(one.parts) != len(template.segments):
        return [one]
    pieces: list[Region] = []
    rest = one
    for index, (literal, name) in enumerate(template.segments):
        if name:
            part = rest.parts[index]
            if part.one_of is None:
                continue  # whatever it is, the template's parameter takes it
            outside = Part(frozenset(value for value in part.one_of if not is_parameter_value(value)))
            inside = Part(part.one_of - (outside.one_of or frozenset()))
        else:
            outside, inside = rest.parts[index].without(literal), rest.parts[index].narrowed(literal)
        if not outside.is_empty:
            pieces.append(rest.with_part(index, outside))
        rest = rest.with_part(index, inside)
        if inside.is_empty:
            break
    return [piece for piece in pieces if not piece.is_empty]


def _not_these(words: frozenset[str], *, first: bool) -> str:
    """Every continuation but the words; the empty one too, unless it is the first or a word."""
    if not words - {""}:
        return f"[{_CHARACTERS}]+" if first or "" in words else f"[{_CHARACTERS}]*"
    heads: dict[str, set[str]] = {}
    for word in words:
        if word:
            heads.setdefault(word[0], set()).add(word[1:])
    branches = [escaped(head) + _not_these(frozenset(tails), first=False) for head, tails in sorted(heads.items())]
    if others := _others(heads):
        branches.append(f"[{others}][{_CHARACTERS}]*")
    empty = "" if first or "" in words else "?"
    return f"(?:{'|'.join(branches)}){empty}"


def _others(heads: Iterable[str]) -> str:
    """The characters that no word begins with, as the inside of a bracket expression."""
    taken = set(heads)
    inside = ""
    for run in _RUNS:
        left = [character for character in run if character not in taken]
        inside += f"{run[0]}-{run[-1]}" if len(left) == len(run) else "".join(left)
    return inside + "".join(c for c in "._~-" if c not in taken)  # a hyphen comes last, and so is itself
