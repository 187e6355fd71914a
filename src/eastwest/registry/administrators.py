"""Who may change what: rights by name, limited to parts of the estate, and the sentence that refuses the rest.

An administrator is named as the gate knows it: ``unix:uid:NUMBER`` or a SPIFFE ID. The rules come from the estate in
force (``administrators``). Beside it there are full administrators: callers under an ``admin`` entry, and root and the
server's own user on the admin socket unless the estate has rows for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from eastwest.errors import PermissionDenied
from eastwest.pki.profile import covers_dns_name
from eastwest.policy.estate import Administrator as Row
from eastwest.policy.estate import Right
from eastwest.registry.entries import CONTROLLER_PREFIX, Writer
from eastwest.registry.entry import Entry, Origin
from eastwest.registry.groups import group_name
from eastwest.registry.rules import Rules
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.pattern import matches
from eastwest.spiffe.selector import Selector

_EVERYTHING = frozenset({Right.EVERYTHING})


class NotAllowed(PermissionDenied):
    """The caller is an administrator, and this lies outside of what it may do."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a change is about, as far as limits ask: names that nothing gives are ``""``."""

    spiffe_id: SpiffeId | None = None
    domain: str = ""
    environment: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """One row: rights, and the limits that all of them have."""

    rights: frozenset[Right]
    domains: frozenset[str] = frozenset()
    environments: frozenset[str] = frozenset()
    spiffe_ids: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    selectors: tuple[str, ...] = ()
    with_selectors: frozenset[Selector] = frozenset()
    dns: tuple[str, ...] = ()
    controller: str = ""

    @classmethod
    def of(cls, row: Row) -> Grant:
        """The row as it was checked."""
        return cls(
            frozenset(row.may),
            frozenset(row.domains),
            frozenset(row.environments),
            row.spiffe_ids,
            row.nodes,
            row.selectors,
            frozenset(map(Selector.parse, row.with_selectors)),
            row.dns,
            row.controller or "",
        )

    @property
    def is_limited(self) -> bool:
        """Whether the rights hold for a part only."""
        limits = (self.domains, self.environments, self.spiffe_ids, self.nodes, self.selectors, self.with_selectors)
        return any((*limits, self.dns))

    def gives(self, right: Right) -> bool:
        """Whether the right is among these, everything included; any right lets read."""
        return right in self.rights or Right.EVERYTHING in self.rights or right is Right.READ

    def covers(self, subject: Subject) -> bool:
        """Whether the subject lies within the limits that are about names."""
        return (
            (not self.domains or subject.domain in self.domains)
            and (not self.environments or subject.environment in self.environments)
            and (
                not self.spiffe_ids
                or (subject.spiffe_id is not None and any(matches(text, subject.spiffe_id) for text in self.spiffe_ids))
            )
        )

    def covers_dns(self, names: Iterable[str]) -> bool:
        """Whether DNS names lie within the limits. Nothing else of a limit says whose a name is: ``dns`` must."""
        return not self.is_limited or all(any(covers_dns_name(text, name) for text in self.dns) for name in names)

    def covers_placement(self, entry: Entry) -> bool:
        """Whether parent, selectors and DNS names of an entry lie within the limits."""
        group = group_name(entry.parent_id)
        return (
            (
                not self.nodes
                or (
                    f"group:{group}" in self.nodes
                    if group
                    else any(_is_node(text, entry.parent_id) for text in self.nodes)
                )
            )
            and self.with_selectors <= entry.selectors
            and (
                not self.selectors
                or all(any(_fits(text, str(selector)) for text in self.selectors) for selector in entry.selectors)
            )
            and self.covers_dns(entry.dns_names)
        )

    def __str__(self) -> str:
        limits = (
            ("domain", sorted(self.domains)),
            ("environment", sorted(self.environments)),
            ("", self.spiffe_ids),
            ("on", self.nodes),
            ("with selectors like", self.selectors),
            ("with", sorted(map(str, self.with_selectors))),
            ("with DNS names like", self.dns),
        )
        said = [f"{word} {' or '.join(values)}".strip() for word, values in limits if values]
        if self.controller:
            said.append(f"made by controller {self.controller}")
        return ", ".join(sorted(self.rights)) + (f" of {', '.join(said)}" if said else "")


@dataclass(frozen=True, slots=True)
class Administrator:
    """A caller with rights. ``protected`` are the IDs of administrators: none of them can be had by registering it."""

    name: str
    grants: tuple[Grant, ...]
    protected: frozenset[SpiffeId] = frozenset()

    @property
    def managed_by(self) -> str:
        """What entries that it makes are kept by."""
        controllers = sorted({grant.controller for grant in self.grants if grant.controller})
        return f"{CONTROLLER_PREFIX}{controllers[0]}" if controllers else f"{Origin.API}:{self.name}"

    @property
    def sees_only_own(self) -> bool:
        """Whether listing shows only what it keeps: a controller deletes what it does not know."""
        return self.managed_by.startswith(CONTROLLER_PREFIX)

    @property
    def has_everything(self) -> bool:
        """Whether no question about rights can end in a refusal."""
        return any(Right.EVERYTHING in grant.rights and not grant.is_limited for grant in self.grants)

    def may(self, right: Right) -> bool:
        """Whether any grant gives the right, limited or not."""
        return any(grant.gives(right) for grant in self.grants)

    def require(self, right: Right, what: str) -> None:
        """Raise ``NotAllowed`` unless some grant gives the right."""
        if not self.may(right):
            raise self.refusal(right, what)

    def require_unlimited(self, right: Right, what: str) -> None:
        """Raise ``NotAllowed`` unless the right is given without limits."""
        if not any(grant.gives(right) and not grant.is_limited for grant in self.grants):
            raise self.refusal(right, what)

    def require_for(self, right: Right, subject: Subject, what: str, dns_names: Iterable[str] = ()) -> None:
        """Raise ``NotAllowed`` unless the right is given for the subject, and for the DNS names that it shall have."""
        names = tuple(dns_names)
        for grant in self.grants:
            if grant.gives(right) and grant.covers(subject) and grant.covers_dns(names):
                if subject.spiffe_id in self.protected and not self.has_everything:
                    raise NotAllowed(
                        f"{self.name} may not {what}: {subject.spiffe_id} is an administrator",
                        fix="ask one who may do everything",
                    )
                return
        raise self.refusal(right, what)

    def writer(self, rules: Rules) -> Writer:
        """How it writes entries: limits are asked with the entry as it is and as it shall be."""
        return Writer(self.managed_by, lambda before, after: self._check_change(before, after, rules))

    def refusal(self, right: Right, what: str) -> NotAllowed:
        """The refusal, with what would be allowed."""
        allowed = "; ".join(str(grant) for grant in self.grants if grant.gives(right) and right is not Right.READ)
        rest = "; ".join(map(str, self.grants)) or "nothing"
        fix = f"it may change {allowed}" if allowed else f"it needs the right {right}; it has {rest}"
        return NotAllowed(f"{self.name} may not {what}", fix=fix)

    def check_workload(self, entry: Entry, domain: str) -> None:
        """Raise ``NotAllowed`` unless it may register an estate's workload, which names its domain itself."""
        self._check_place(entry, Subject(entry.spiffe_id, domain, entry.environment))

    def _check_change(self, before: Entry | None, after: Entry | None, rules: Rules) -> None:
        for entry in (before, after):
            if entry is not None:
                self._check_entry(entry, rules)

    def _check_entry(self, entry: Entry, rules: Rules) -> None:
        if entry.is_probe:
            self.require(Right.WORKLOADS, f"register {entry.spiffe_id}")
            return
        if entry.admin or entry.downstream:
            kind = "admin" if entry.admin else "downstream"
            self.require_unlimited(Right.EVERYTHING, f"register {entry.spiffe_id} as {kind}")
            return
        if entry.is_node_alias:
            self.require_unlimited(Right.WORKLOADS, f"register the node alias {entry.spiffe_id}")
            return
        self._check_place(entry, subject_of(entry.spiffe_id, rules, entry.environment))

    def _check_place(self, entry: Entry, subject: Subject) -> None:
        what = f"register {entry.spiffe_id}{_as(entry.dns_names)} on {entry.parent_id}"
        placed = [g for g in self.grants if g.gives(Right.WORKLOADS) and g.covers_placement(entry)]
        if not placed:
            selectors = ", ".join(sorted(map(str, entry.selectors)))
            raise self.refusal(Right.WORKLOADS, f"{what} with {selectors[:200]}")
        Administrator(self.name, tuple(placed), self.protected).require_for(Right.WORKLOADS, subject, what)


def _as(dns_names: Iterable[str]) -> str:
    told = ", ".join(dns_names)
    return f" as {told[:200]}" if told else ""


def subject_of(spiffe_id: SpiffeId, rules: Rules, environment: str = "") -> Subject:
    """What the convention says of an ID."""
    return Subject(spiffe_id, rules.domain_of(spiffe_id), environment or rules.environment_of(spiffe_id))


def full(name: str) -> Administrator:
    """An administrator who may do everything."""
    return Administrator(name, (Grant(_EVERYTHING),))


class Administrators:
    """The administrators of the estate in force."""

    def __init__(self) -> None:
        self._grants: dict[str, tuple[Grant, ...]] = {}
        self._protected: frozenset[SpiffeId] = frozenset()

    def replace(self, rows: Iterable[Row]) -> None:
        """Use these rows from now on."""
        grants: dict[str, tuple[Grant, ...]] = {}
        for row in rows:
            grants[row.who] = (*grants.get(row.who, ()), Grant.of(row))
        self._grants = grants
        self._protected = frozenset(SpiffeId.parse(who) for who in grants if who.startswith("spiffe:"))

    def find(self, name: str) -> Administrator | None:
        """The administrator of this name, if the estate has rows for it."""
        grants = self._grants.get(name)
        return None if grants is None else Administrator(name, grants, self._protected)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL)


def _fits(pattern: str, text: str) -> bool:
    return _compiled(pattern).fullmatch(text) is not None


def _is_node(pattern: str, parent: SpiffeId) -> bool:
    return pattern.startswith("spiffe:") and pattern == str(parent)
