"""Readings that no event carries: ages, expiries and backlogs, taken when Prometheus asks or every few seconds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime

from eastwest.clock import Clock
from eastwest.pki.rotation.state import Stage, State
from eastwest.server.control import ControlHub
from eastwest.server.telemetry import ExpiryMetrics, Metrics

PERIOD = 10.0
"""Seconds between looks at what can only be awaited."""


class Measuring:
    """Sets the metrics' readings; made once all that it reads is there."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._began = clock.now()

    def control(self, hub: ControlHub) -> None:
        """Of the agents' streams."""
        self._metrics.acks_outstanding.set_function(lambda: hub.outstanding)

    def log(self, published_at: Callable[[], datetime | None]) -> None:
        """Of the log: the age counts from the start where this process has published nothing yet."""

        def age() -> float:
            return (self._clock.now() - (published_at() or self._began)).total_seconds()

        self._metrics.checkpoint_age.set_function(age)

    def certificates(self, state: Callable[[], State], server_ends: Callable[[], datetime]) -> None:
        """When what signs and what the server shows ends. Authorities that are on their way out do not count."""

        def ends() -> Iterator[tuple[str, float]]:
            yield "server", server_ends().timestamp()
            for root in state().roots:
                if root.stage is Stage.ACTIVE:
                    yield "root", float(root.not_after)
                yield from (("issuing", float(ca.not_after)) for ca in root.issuing if ca.stage is Stage.ACTIVE)

        self._metrics.registry.register(ExpiryMetrics(ends))

    async def keep(self, unsealed: Callable[[], Awaitable[int]]) -> None:
        """Look at the ledger's backlog for ever."""
        while True:
            self._metrics.unsealed_rows.set(await unsealed())
            await self._clock.sleep(PERIOD)


class Authorities:
    """Key identifiers of the authorities that this trust domain has, had or is about to have."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state
        self._of: State | None = None
        self._ids: frozenset[str] = frozenset()

    def __call__(self) -> frozenset[str]:
        state = self._state()
        if state is not self._of:
            self._of = state
            below = (ca.id for root in state.roots for ca in root.issuing)
            gone = (one.id for one in state.revoked)
            # What was seen once stays: a root that ended is no longer in the state.
            self._ids |= {*(root.id for root in state.roots), *below, *gone}
        return self._ids
