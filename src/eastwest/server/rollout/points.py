"""Enforcement points as agents report them, beside what each should run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from eastwest.policy.enforcement import MtlsMode
from eastwest.server.control import ControlHub
from eastwest.server.tables import Tables
from eastwest.server.view import AgentView
from eastwest.spiffe.id import SpiffeId


@dataclass(frozen=True, slots=True)
class Point:
    """One sidecar. ``version`` is the estate's; ``intended`` and ``acknowledged`` are of its own rules.

    ``intended`` is the server's word, not the agent's; "" where it should have none. ``reached``: it is to have the
    newest rules. ``cannot``: what it would have to be able to do to be given them.
    """

    agent: SpiffeId
    node_id: str
    spiffe_id: SpiffeId
    connected: bool
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
        return ""


def points(hub: ControlHub, tables: Tables, view: AgentView) -> Iterator[Point]:
    """All that agents which are known since this server started have reported."""
    for agent, stream in sorted(hub.streams.items()):
        for node_id, status in sorted(stream.sidecars.items()):
            spiffe_id = SpiffeId.parse(status.spiffe_id)
            given = view.intended(agent, spiffe_id)
            compiled = given.config.compiled if given is not None else None
            inbound = compiled.inbound if compiled is not None else ()
            yield Point(
                agent=agent,
                node_id=node_id,
                spiffe_id=spiffe_id,
                connected=status.connected and stream.session is not None,
                services=given.config.services if given is not None else (),
                modes=tuple((one.service, one.mode) for one in inbound),
                ring=tables.ring_of(agent, spiffe_id),
                reached=given is not None and tables.newest is not None and given.version == tables.newest.version,
                version=given.version if given is not None else "",
                intended=compiled.version if compiled is not None else "",
                acknowledged=status.acknowledged_version,
                refusal=status.error,
                capabilities=tuple(sorted(stream.capabilities)),
                cannot=view.cannot(agent, spiffe_id),
            )
