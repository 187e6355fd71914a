"""What this node tells the server of the change of trust: which bundle it has, and what it has yet to let go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from eastwest.agent.changes import Changes
from eastwest.agent.identities import Identities
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.renewal import Renewal
from eastwest.agent.sidecars import Sidecars
from eastwest.agent.taint import Standing
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.clock import Clock


class Holdings:
    """The node's report. ``changes`` counts what the server should hear about it."""

    def __init__(
        self, knowledge: Knowledge, identities: Identities, sidecars: Sidecars, renewal: Renewal, clock: Clock
    ) -> None:
        self._knowledge = knowledge
        self._identities = identities
        self._sidecars = sidecars
        self._renewal = renewal
        self._clock = clock
        self._kept = 0
        self._contained = 0
        self.closed: Callable[[], Mapping[str, int]] = dict
        """Gives how many connections of each contained identity were closed here."""
        self._kept_svids = [held.svid.chain for held in identities.everything()]

    @property
    def changes(self) -> Changes:
        """Shared with the sidecars', which are most of the report."""
        return self._sidecars.changes

    def kept(self, sequence: int) -> None:
        """The bundle of this sequence is on disk: a restart would begin with it."""
        if sequence != self._kept:
            self._kept = sequence
            self.changes.bump()

    def kept_contained(self, generation: int) -> None:
        """The containments of this generation are on disk: a restart would enforce them."""
        if generation != self._contained:
            self._contained = generation
            self.changes.bump()

    def kept_svids(self, chains: Sequence[tuple[bytes, ...]]) -> None:
        """These SVIDs (chains, leaf first) are on disk, and no others: a restart would begin with them."""
        self._kept_svids = list(chains)
        self._knowledge.changes.bump()

    def statuses(self) -> Sequence[control.SidecarStatus]:
        """How far each sidecar has come."""
        return self._sidecars.statuses()

    def ack(self, number: int) -> control.Ack:
        """The whole report, with ``number`` as the update that is applied."""
        # Those that take secrets alone are named while they are behind: people must see whom a change waits for.
        behind, sequence = self._sidecars.behind(self._kept)
        sidecars = [*self.statuses(), *behind]
        return control.Ack(
            number=number,
            sidecars=sidecars,
            bundle_sequence=sequence,
            tainted_svids=self._tainted(),
            contained=self._contained,
            closed=[control.Closed(spiffe_id=one, connections=n) for one, n in sorted(self.closed().items())],
        )

    async def run(self) -> None:
        """Watch for what was let go, for ever."""
        last = 0
        while True:
            seen = self._knowledge.changes.count
            now = self._tainted()
            if now != last:
                last = now
                self.changes.bump()
            await self._knowledge.changes.beyond(seen)

    def _tainted(self) -> int:
        ground, now = self._knowledge.ground, self._clock.now()
        if ground.is_clean:
            return 0
        # What is on disk counts too: killed now, the agent would serve it again, and its issuer may be gone by then.
        held = {held.svid.chain for held in self._identities.everything()} | set(self._kept_svids)
        chains = [self._renewal.own.chain, *held]
        own = sum(ground.standing(chain, now) is not Standing.FINE for chain in chains)
        return own + self._sidecars.tainted
