"""Why selectors earn an identity, or none: the entries they match, those they nearly match, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from eastwest.registry.entry import Entry
from eastwest.spiffe.selector import Selector

NEAR = 10
"""Entries told that nearly match."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A selector that an entry asks for and the process has not. ``instead``: what it has of the same kind."""

    selector: str
    instead: tuple[str, ...]
    words: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """One entry beside the selectors. ``obstacle`` is what else keeps it from being served, or ""."""

    entry: str
    spiffe_id: str
    parent_id: str
    has: tuple[str, ...]
    missing: tuple[Missing, ...]
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """``selectors`` are those judged; ``matches`` would be served, ``near`` not, the nearest first."""

    selectors: tuple[str, ...]
    matches: tuple[Candidate, ...]
    near: tuple[Candidate, ...]
    considered: int

    @property
    def words(self) -> tuple[str, ...]:
        """The explanation as sentences, one a line."""
        several = "" if len(self.selectors) == 1 else "s"
        lines = [f"{len(self.selectors)} selector{several}: {', '.join(self.selectors) or 'none'}"]
        lines += [f"gets {match.spiffe_id} (entry {match.entry})" for match in self.matches]
        if not self.matches:
            lines.append(f"gets no identity: none of {self.considered} entries matches")
        for candidate in self.near:
            lines.append(f"not {candidate.spiffe_id} (entry {candidate.entry}):")
            if candidate.obstacle:
                lines.append(f"  {candidate.obstacle}")
            lines += [f"  lacks {missing.words}" for missing in candidate.missing]
        return tuple(lines)


def explain(
    selectors: frozenset[Selector],
    entries: Iterable[tuple[Entry, str]],
    types: frozenset[str] | None = None,
) -> Explanation:
    """Judge ``entries``, each with what else keeps it from being served ("" when nothing does).

    ``types`` are those of the attestors that looked at the process, where that is known: a selector of another type
    is missing because nobody looked. Entries that share no selector with the process come last.
    """
    matches: list[Candidate] = []
    near: list[tuple[tuple[int, int, str], Candidate]] = []
    considered = 0
    for entry, obstacle in entries:
        considered += 1
        lacking = sorted(entry.selectors - selectors)
        candidate = Candidate(
            entry.id,
            str(entry.spiffe_id),
            str(entry.parent_id),
            tuple(str(selector) for selector in sorted(entry.selectors & selectors)),
            tuple(_missing(selector, selectors, types) for selector in lacking),
            obstacle or ("it goes to a secret store (store_svid), never to a workload" if entry.store_svid else ""),
        )
        if not lacking and not candidate.obstacle:
            matches.append(candidate)
        else:
            # Half of it by chance says less than one selector away.
            near.append(((len(lacking), -len(candidate.has), entry.id), candidate))
    near.sort(key=lambda row: row[0])
    told = [candidate for _, candidate in near if candidate.has or not candidate.missing or len(candidate.missing) == 1]
    return Explanation(
        tuple(str(selector) for selector in sorted(selectors)),
        tuple(sorted(matches, key=lambda candidate: candidate.entry)),
        tuple((told or [candidate for _, candidate in near])[:NEAR]),
        considered,
    )


def _missing(selector: Selector, present: frozenset[Selector], types: frozenset[str] | None) -> Missing:
    key = selector.value.partition(":")[0]
    instead = tuple(
        str(other) for other in sorted(present) if other.type == selector.type and other.value.startswith(f"{key}:")
    )
    if instead:
        words = f"{selector}: the process has {', '.join(instead[:4])}"
    elif types is not None and selector.type not in types:
        words = f"{selector}: no attestor of type {selector.type} runs on this agent"
    else:
        words = f"{selector}: the process has no {selector.type}:{key}"
    return Missing(str(selector), instead[:16], words)
