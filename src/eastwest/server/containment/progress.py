"""How far the newest list of contained identities has come: by agent, by sidecar, and what could be closed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from eastwest.registry.containment import Contained
from eastwest.registry.node import Node
from eastwest.server.control import AgentStream, ControlHub
from eastwest.server.view import CAN_CONTAIN

CAN_CLOSE = "close-connections"
"""The capability of agents that can end other processes' connections."""


@dataclass(frozen=True, slots=True)
class Point:
    """One enforcement point. ``state``: ``enforced``, ``waiting``, ``cannot`` (too old) or ``away``."""

    agent: str
    node_id: str  # of the sidecar; "" for the agent itself, which keeps identities from workloads
    spiffe_id: str  # of the sidecar's workload
    state: str
    closes_connections: bool
    error: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.spiffe_id} ({self.node_id})" if self.node_id else self.agent


class Progress:
    """Looks at the agents' streams. ``nodes`` gives all that are registered."""

    def __init__(
        self,
        hub: ControlHub,
        nodes: Callable[[], Iterable[Node]],
        contained: Callable[[], Contained],
        now: Callable[[], datetime],
    ) -> None:
        self._hub = hub
        self._nodes = nodes
        self._contained = contained
        self._now = now

    def points(self) -> list[Point]:
        """Every point: of agents that are connected, and of nodes that are away though their certificates live."""
        generation = self._contained().generation
        found: list[Point] = []
        for stream in self._hub.streams.values():
            if stream.session is not None:
                found += _points(stream, generation)
        here = {point.agent for point in found}
        now = self._now().timestamp()
        away = (
            one for one in self._nodes() if not one.banned and one.not_after > now and str(one.spiffe_id) not in here
        )
        found += [Point(str(one.spiffe_id), "", "", "away", False) for one in away]
        return found

    def as_dict(self) -> dict[str, Any]:
        """For machines: counts, all points that are not there yet, and what was closed, by identity."""
        contained, points = self._contained(), self.points()
        open_points = [asdict(one) | {"name": one.name} for one in points if one.state != "enforced"]
        return {
            "generation": contained.generation,
            "points": len(points),
            "enforced": len(points) - len(open_points),
            "waiting": sum(one.state == "waiting" for one in points),
            "behind": open_points[:200],
            "cannot_close": sorted({one.agent for one in points if not one.closes_connections and one.state != "away"}),
            "closed": self.closed(),
        }

    def closed(self) -> dict[str, int]:
        """Connections that agents have closed since they started, by identity that is contained now."""
        contained, found = self._contained(), dict[str, int]()
        for stream in self._hub.streams.values():
            for name, count in stream.closed.items():
                if name in contained:
                    found[name] = found.get(name, 0) + count
        return dict(sorted(found.items()))


def _points(stream: AgentStream, generation: int) -> Iterable[Point]:
    agent, capable = str(stream.agent), CAN_CONTAIN in stream.capabilities
    closes = CAN_CLOSE in stream.capabilities

    def state(reached: int, *, there: bool = True) -> str:
        if not capable:
            return "cannot"
        if reached >= generation:
            return "enforced"
        return "waiting" if there else "away"

    yield Point(agent, "", "", state(stream.contained), closes)
    for one in stream.sidecars.values():
        # Without rules there is nothing to enforce: streams of secrets alone, and Envoys of no service.
        if one.intended_version and (one.connected or one.bundle_sequence):
            there = state(one.contained, there=one.connected)
            yield Point(agent, one.node_id, one.spiffe_id, there, closes, one.error)
