"""Bringing the entries that the estate's files intend in line with those that are kept."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from eastwest.errors import AlreadyExists
from eastwest.registry.entry import Entry, InvalidEntry, Key, Origin
from eastwest.registry.index import Index
from eastwest.registry.rules import Rules
from eastwest.spiffe.id import TrustDomain

ESTATE_MANAGER = "estate"


class EstateConflict(AlreadyExists):
    """An entry that the estate intends was already made by another hand."""


@dataclass(frozen=True, slots=True)
class EstatePlan:
    """What replacing the estate's entries would do. ``update`` pairs each entry with what it becomes.

    ``foreign`` counts the entries that others keep and that are left alone, by ``managed_by``.
    """

    create: tuple[Entry, ...]
    update: tuple[tuple[Entry, Entry], ...]
    delete: tuple[Entry, ...]
    foreign: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change."""
        return not (self.create or self.update or self.delete)


def plan_estate(
    index: Index, trust_domain: TrustDomain, intended: Iterable[Entry], now: datetime, rules: Rules
) -> EstatePlan:
    """Compare ``intended`` (whole, without ids) with the kept entries of origin ``estate``.

    Ids come from SPIFFE ID, parent and selectors, so an entry whose other fields changed keeps its id and an
    unchanged one its revision. Raises ``InvalidEntry`` when an entry breaks a rule or comes twice, and
    ``EstateConflict`` when one is similar to an entry of another origin; entries of other origins are never touched.
    ``rules`` bind what is new or changed.
    """
    created_at = int(now.timestamp())
    create: list[Entry] = []
    update: list[tuple[Entry, Entry]] = []
    wanted: set[str] = set()
    for draft in intended:
        entry = replace(
            draft,
            id=_estate_id(draft.key),
            origin=Origin.ESTATE,
            managed_by=ESTATE_MANAGER,
            revision=0,
            created_at=created_at,
        )
        entry.check(trust_domain)
        if entry.id in wanted:
            raise InvalidEntry(
                f"the estate names {entry.spiffe_id} twice with the same node and selectors",
                fix="keep one of the two workloads",
            )
        wanted.add(entry.id)
        kept = index.similar(entry.key) or index.entries.get(entry.id)
        if kept is None:
            rules.check(entry, now.date())
            create.append(entry)
        elif kept.origin is not Origin.ESTATE or kept.id != entry.id:
            raise EstateConflict(
                f"{entry.spiffe_id} with the same node and selectors is registered already as entry {kept.id}",
                fix=f"delete entry {kept.id}, then apply again",
            )
        elif not kept.has_content_of(entry):
            rules.check(entry, now.date())
            update.append((kept, replace(entry, revision=kept.revision + 1, created_at=kept.created_at)))
    delete = [entry for entry in index.entries.values() if entry.origin is Origin.ESTATE and entry.id not in wanted]
    foreign = Counter(
        entry.managed_by or Origin.API.value for entry in index.entries.values() if entry.origin is not Origin.ESTATE
    )
    return EstatePlan(tuple(create), tuple(update), tuple(delete), foreign)


def _estate_id(key: Key) -> str:
    spiffe_id, parent_id, selectors = key
    # JSON keeps the parts apart whatever characters a selector holds.
    content = json.dumps([str(spiffe_id), str(parent_id), *(str(selector) for selector in sorted(selectors))])
    return "estate-" + hashlib.sha256(content.encode()).hexdigest()[:32]
