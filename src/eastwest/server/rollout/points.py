"""Enforcement points as agents report them, beside what each should run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.policy.enforcement import MtlsMode
from eastwest.server.control import AgentStream, ControlHub
from eastwest.server.tables import Given, Tables
from eastwest.server.view import AgentView
from eastwest.spiffe.id import SpiffeId

LIBRARY = "-"
"""In place of a sidecar's name, where there is none."""
UNHEARD = "?"
"""In its place where nobody knows: the agent has not been heard of, or there is none."""


@dataclass(frozen=True, slots=True)
class Point:
    """One sidecar. ``version`` is the estate's; ``intended`` and ``acknowledged`` are of its own rules.

    ``intended`` is the server's word, not the agent's; "" where it should have none. ``reached``: it is to have the
    newest rules. ``cannot``: what it would have to be able to do to be given them. ``away``: its agent is, and nobody
    knows what it runs now. ``node_id`` is ``LIBRARY`` where services have no sidecar and their applications may
    enforce: then ``acknowledged`` is what the agent holds for them, which they take as soon as they ask. It is
    ``UNHEARD`` where the agent has not been heard of since this server started; ``agent`` is None where no agent is
    known that may run the workload.
    """

    agent: SpiffeId | None
    node_id: str
    spiffe_id: SpiffeId
    connected: bool
    away: bool
    services: tuple[str, ...]
    modes: tuple[tuple[str, MtlsMode], ...]
    ring: int
    reached: bool
    version: str
    intended: str
    acknowledged: str
    refusal: str
    capabilities: tuple[str, ...]
    cannot: tuple[str, ...]

    @property
    def mismatch(self) -> str:
        """What is wrong with it, a sentence; "" where it runs what it should."""
        if self.agent is None:
            return f"nobody has the rules of {', '.join(self.services)}: no agent is here that may run {self.spiffe_id}"
        if self.node_id == UNHEARD:
            return f"nobody knows what {self.spiffe_id} runs: its agent has not been heard of since the server started"
        if self.refusal:
            return f"{self.node_id} refused its configuration: {self.refusal}"
        if self.cannot:
            return f"{self.node_id} keeps its last rules: its agent cannot: {', '.join(self.cannot)}"
        if self.connected and self.acknowledged != self.intended:
            return f"{self.node_id} has not acknowledged {self.intended[:12] or 'that it has no rules'}"
        if self.away and self.acknowledged != self.intended:
            return f"{self.node_id} last ran {self.acknowledged[:12] or 'no rules'}, and its agent is away"
        return ""


def points(hub: ControlHub, tables: Tables, view: AgentView, *, libraries: bool = False) -> Iterator[Point]:
    """All that agents which are known since this server started have reported.

    ``libraries``: and what they hold for applications without a sidecar, and what nobody has reported and should.
    """
    for _, stream in sorted(hub.streams.items()):
        for node_id, status in sorted(stream.sidecars.items()):
            present = stream.session is not None
            yield _point(
                stream,
                tables,
                view,
                SpiffeId.parse(status.spiffe_id),
                node_id=node_id,
                connected=status.connected and present,
                away=not present,
                acknowledged=status.acknowledged_version,
                refusal=status.error,
            )
        if libraries:
            yield from _without_sidecar(hub, tables, view, stream, {one.spiffe_id for one in stream.sidecars.values()})


def unheard(hub: ControlHub, tables: Tables, view: AgentView, found: Collection[Point]) -> Iterator[Point]:
    """Services' rules that should be somewhere and that nobody has told of, beside the points that were found."""
    told = {point.spiffe_id for point in found}
    for agent, spiffe_id in view.elsewhere(hub.streams):
        given = tables.given(agent, spiffe_id)
        if given is not None and given.config.services:
            told.add(spiffe_id)
            yield _silent(agent, tables.ring_of(agent, spiffe_id), spiffe_id, given, tables)
    for spiffe_id, config in sorted((tables.newest.configs if tables.newest is not None else {}).items()):
        if config.services and spiffe_id not in told:
            yield _silent(None, -1, spiffe_id, Given(config, tables.newest.version if tables.newest else ""), tables)


def _silent(agent: SpiffeId | None, ring: int, spiffe_id: SpiffeId, given: Given, tables: Tables) -> Point:
    compiled = given.config.compiled
    return Point(
        agent=agent,
        node_id=UNHEARD,
        spiffe_id=spiffe_id,
        connected=False,
        away=True,
        services=given.config.services,
        modes=tuple((one.service, one.mode) for one in compiled.inbound),
        ring=ring,
        reached=tables.newest is not None and given.version == tables.newest.version,
        version=given.version,
        intended=compiled.version,
        acknowledged="",
        refusal="",
        capabilities=(),
        cannot=(),
    )


def _without_sidecar(
    hub: ControlHub, tables: Tables, view: AgentView, stream: AgentStream, seen: Collection[str]
) -> Iterator[Point]:
    """Workloads with services whose rules the agent holds and no sidecar of its has."""
    for key, item in sorted((hub.acknowledged(stream.agent) or {}).items()):
        if key.kind != pb.ResourceName.KIND_SIDECAR or key.name in seen:
            continue
        spiffe_id = SpiffeId.parse(key.name)
        given = view.intended(stream.agent, spiffe_id)
        if given is not None and given.config.services:
            held = given.config.compiled.version if item.token == given.config.token else ""
            yield _point(stream, tables, view, spiffe_id, node_id=LIBRARY, acknowledged=held)


def _point(
    stream: AgentStream,
    tables: Tables,
    view: AgentView,
    spiffe_id: SpiffeId,
    *,
    node_id: str,
    acknowledged: str,
    connected: bool = False,
    away: bool = False,
    refusal: str = "",
) -> Point:
    given = view.intended(stream.agent, spiffe_id)
    compiled = given.config.compiled if given is not None else None
    inbound = compiled.inbound if compiled is not None else ()
    return Point(
        agent=stream.agent,
        node_id=node_id,
        spiffe_id=spiffe_id,
        connected=connected,
        away=away,
        services=given.config.services if given is not None else (),
        modes=tuple((one.service, one.mode) for one in inbound),
        ring=tables.ring_of(stream.agent, spiffe_id),
        reached=given is not None and tables.newest is not None and given.version == tables.newest.version,
        version=given.version if given is not None else "",
        intended=compiled.version if compiled is not None else "",
        acknowledged=acknowledged,
        refusal=refusal,
        capabilities=tuple(sorted(stream.capabilities)),
        cannot=view.cannot(stream.agent, spiffe_id),
    )
