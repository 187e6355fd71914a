"""What registration demands beyond the form of an entry: selectors that can exist, names that follow the convention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from eastwest.errors import FailedPrecondition
from eastwest.policy.naming import Naming
from eastwest.registry.entry import Entry, InvalidEntry
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector_schema import ImpossibleSelector, SelectorSchemas


class BadName(InvalidEntry):
    """A SPIFFE ID does not follow the estate's naming convention, and no waiver excuses it."""


class UnknownTrustDomain(FailedPrecondition):
    """An entry federates with a trust domain of which no bundle and no relationship is known."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules in force. ``None`` demands nothing. They bind what is written from now on, not what is kept.

    ``federates`` says whether a foreign trust domain is known here.
    """

    selectors: SelectorSchemas | None = None
    naming: Naming | None = None
    federates: Callable[[TrustDomain], bool] | None = None

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

    def check_federation(self, entry: Entry, before: Entry | None) -> None:
        """Raise ``UnknownTrustDomain`` where the entry newly federates with a trust domain that nobody knows here.

        Its workloads would be told to trust callers whose roots never come.
        """
        kept = before.federates_with if before is not None else ()
        for domain in entry.federates_with:
            if self.federates is not None and domain not in kept and not self.federates(domain):
                raise UnknownTrustDomain(
                    f"{entry.spiffe_id}: unable to find federated bundle {domain.name!r}",
                    fix=f"make the relationship first (eastwest federation create, or in the estate), or give its"
                    f" bundle: eastwest bundle set {domain.name} FILE",
                )

    def environment_of(self, spiffe_id: SpiffeId) -> str:
        """The environment that an ID names under the convention, or ``""``."""
        return self.naming.environment_of(spiffe_id) if self.naming is not None else ""

    def domain_of(self, spiffe_id: SpiffeId) -> str:
        """The domain that an ID names under the convention, or ``""``."""
        return self.naming.domain_of(spiffe_id) if self.naming is not None else ""
