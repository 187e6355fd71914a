"""Enforcement points as agents report them, beside what each should run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.policy.enforcement import MtlsMode
from eastwest.server.control import AgentStream, ControlHub
from eastwest.server.tables import Tables
from eastwest.server.view import AgentView
from eastwest.spiffe.id import SpiffeId

LIBRARY = "-"
"""In place of a sidecar's name, where there is none."""


@dataclass(frozen=True, slots=True)
class Point:
    """One sidecar. ``version`` is the estate's; ``intended`` and ``acknowledged`` are of its own rules.

    ``intended`` is the server's word, not the agent's; "" where it should have none. ``reached``: it is to have the
    newest rules. ``cannot``: what it would have to be able to do to be given them. ``away``: its agent is, and nobody
    knows what it runs now. ``node_id`` is ``LIBRARY`` where services have no sidecar and their applications may
    enforce: then ``acknowledged`` is what the agent holds for them, which they take as soon as they ask.
    """

    agent: SpiffeId
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
    """All that agents which are known since this server started have reported; ``libraries``: and what they hold for
    applications without a sidecar.
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
