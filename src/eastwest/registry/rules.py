"""What registration demands beyond the form of an entry: selectors that can exist, names that follow the convention."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from eastwest.policy.naming import Naming
from eastwest.registry.entry import Entry, InvalidEntry
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.selector_schema import ImpossibleSelector, SelectorSchemas


class BadName(InvalidEntry):
    """A SPIFFE ID does not follow the estate's naming convention, and no waiver excuses it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules in force. ``None`` demands nothing. They bind what is written from now on, not what is kept."""

    selectors: SelectorSchemas | None = None
    naming: Naming | None = None

    def check(self, entry: Entry, today: date) -> None:
        """Raise ``ImpossibleSelector`` or ``BadName`` with the first rule that the entry breaks.

        Node aliases name nodes, so their names are free.
        """
        if entry.is_probe:
            return
        if self.selectors is not None:
            for selector in sorted(entry.selectors):
                try:
                    self.selectors.check(selector)
                except ImpossibleSelector as error:
                    raise ImpossibleSelector(f"{entry.spiffe_id}: {error.message}", fix=error.fix) from None
        if self.naming is not None and not entry.is_node_alias:
            complaint = self.naming.complaint(entry.spiffe_id, today)
            if complaint is not None:
                raise BadName(complaint[0], fix=complaint[1])

    def environment_of(self, spiffe_id: SpiffeId) -> str:
        """The environment that an ID names under the convention, or ``""``."""
        return self.naming.environment_of(spiffe_id) if self.naming is not None else ""

    def domain_of(self, spiffe_id: SpiffeId) -> str:
        """The domain that an ID names under the convention, or ``""``."""
        return self.naming.domain_of(spiffe_id) if self.naming is not None else ""
