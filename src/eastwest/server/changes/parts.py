"""The two-person rule put together."""

from __future__ import annotations

from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.policy.emergency import Newly, newly
from eastwest.registry.registry import Registry
from eastwest.server.changes.emergency import Emergency
from eastwest.server.changes.judging import Judging
from eastwest.server.changes.keeper import Changes
from eastwest.server.estate import EstateKeeper
from eastwest.server.gate import standing
from eastwest.server.journal import Journal
from eastwest.server.tables import Table
from eastwest.store.changes import SqliteChanges
from eastwest.store.database import Database
from eastwest.store.estate import AppliedEstate, SqliteEstates


class TwoPersons:
    """Makes the parts and puts them at the keeper's door."""

    def __init__(
        self,
        keeper: EstateKeeper,
        estates: SqliteEstates,
        registry: Registry,
        database: Database,
        journal: Journal,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        subject = registry.trust_domain.uri
        judging = Judging(
            keeper,
            estates,
            lambda name, rows: standing(name, rows, registry, clock.now()),
            lambda: {str(entry.spiffe_id) for entry in registry.entries.list().items if entry.admin},
        )
        self.changes = Changes(keeper, judging, SqliteChanges(database), journal, clock, entropy, subject)
        self.emergency = Emergency(keeper, judging, self.changes, clock, f"{subject}/spire/server")

        async def emergency(applied: AppliedEstate, table: Table) -> Newly:
            return newly(await judging.newly(applied, table))

        keeper.authorize = self.changes.authorize
        keeper.emergency = emergency
