"""Callers that policies know although no file of the estate names them: entries made by API with an owner.

An owner makes an entry a principal: it has the environment and domain that its SPIFFE ID names under the convention,
and its attributes. What is uncertain is left out, which denies: an ID that names no domain, two entries that say
different things of one ID, an attribute of another kind than policies were checked against.
"""

from __future__ import annotations

from collections.abc import Iterable

from eastwest.policy.estate import Estate, ForeignWorkload
from eastwest.policy.naming import Naming
from eastwest.policy.schema import RESERVED_ATTRIBUTES, attribute_types
from eastwest.registry.entry import Entry, Origin


def is_candidate(entry: Entry) -> bool:
    """Whether the entry could make a caller known."""
    return entry.origin is Origin.API and bool(entry.owner) and not (entry.is_node_alias or entry.store_svid)


def known_callers(entries: Iterable[Entry], estate: Estate, naming: Naming) -> tuple[ForeignWorkload, ...]:
    """The callers that ``entries`` add to those of the estate, by SPIFFE ID."""
    named = {caller.spiffe_id for caller in estate.callers}
    types = attribute_types(estate.callers)
    found: dict[str, ForeignWorkload | None] = {}
    for entry in filter(is_candidate, entries):
        name = str(entry.spiffe_id)
        domain = naming.domain_of(entry.spiffe_id)
        if name in named or not domain or not entry.environment or not _fits(entry, types):
            continue
        caller = ForeignWorkload(
            spiffe_id=name,
            environment=entry.environment,
            domain=domain,
            owner=entry.owner,
            # Whoever registers a caller by API leaves out what it likes: that must not open anything.
            attributes={"tenants": (), **dict(entry.attributes)},
        )
        found[name] = caller if found.setdefault(name, caller) == caller else None
    return tuple(found[name] for name in sorted(found) if found[name] is not None)  # type: ignore[misc] # None is filtered out


def _fits(entry: Entry, types: dict[str, str]) -> bool:
    for name, value in entry.attributes:
        kind = "String" if isinstance(value, str) else "Set<String>"
        # A policy that compares values of different kinds errs, and Cedar skips a policy that errs: a forbid as well.
        if name in RESERVED_ATTRIBUTES or types.get(name, kind) != kind:
            return False
    return True
