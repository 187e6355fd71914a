"""The trace of a change on its way through this node: heard, and then enforced by each Envoy."""

from __future__ import annotations

from datetime import UTC, datetime

from eastwest.clock import Clock
from eastwest.rpc import tracing

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Rollout:
    """Remembers the last change that came with a trace; spans are told when an Envoy has acknowledged."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._parent = ""
        self._heard_ns = 0

    def heard(self, parent: str) -> None:
        """A change of policy was applied here; ``parent`` is the ``traceparent`` that came with it, or ""."""
        self._parent = parent
        self._heard_ns = self._now_ns()

    def enforced(self, spiffe_id: str, version: str) -> None:
        """The Envoy of a workload has acknowledged all of a version."""
        if self._parent and version:
            attributes = {"eastwest.spiffe_id": spiffe_id, "eastwest.version": version}
            tracing.record("envoy.enforced", self._parent, self._heard_ns, self._now_ns(), **attributes)

    def _now_ns(self) -> int:
        delta = self._clock.now() - _EPOCH
        return ((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds) * 1000
