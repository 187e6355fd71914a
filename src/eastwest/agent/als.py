"""Envoy's access logs (gRPC ALS) as decisions: the proxy tells what it decided, this makes it rows.

A log stream is believed only about services that the workload which sends it serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from eastwest.agent import als_wire
from eastwest.agent.connections import Connections
from eastwest.agent.entries import decided, told_before
from eastwest.agent.handshakes import Left, Outgoing, never_left, refused_handshake, refused_server
from eastwest.agent.shapes import Shapes
from eastwest.agent.xds import Identify, Principal
from eastwest.errors import InvalidInput
from eastwest.ledger.record import Decision
from eastwest.mesh import names
from eastwest.mesh.action import InForce
from eastwest.rpc.service import Call, Service

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_ENTRIES = 20_000
"""Entries of one message; Envoy sends what fits into a megabyte."""
_MAX_TEXT = 256
_MAX_SHAPES = 1_000  # services times sidecars whose calls are remembered
_YIELD_EVERY = 200  # entries read in full before others get a turn


class Rules(Protocol):
    """What services enforce, now and lately (decisions of a change's last moment still name the version before)."""

    def current(self, principal: Principal, service: str) -> InForce | None:
        """What ``service`` of this workload enforces now; None where it has no such service."""
        ...

    def version(self, version: str) -> InForce | None:
        """What a service's version stands for."""
        ...

    def outgoing(self, principal: Principal, service: str) -> Outgoing | None:
        """Who of this workload calls ``service``; None where its sidecar has no way there."""
        ...


class Peers(Protocol):
    """Who is at the other end of plaintext connections (``eastwest.agent.peers``)."""

    def seek(self, principal: Principal, connections: Mapping[tuple[bytes, bytes], int]) -> None:
        """Look at those of these connections (``als_wire.plaintext``) about which the sidecar never asked."""
        ...

    async def settled(self, principal: Principal) -> None:
        """Wait a moment for those of this sidecar that are being looked up."""
        ...

    def name(self, principal: Principal, address: str, port: int) -> str:
        """The best name; "" where there is none."""
        ...


@dataclass(slots=True)
class Counters:
    """Entries received, and those that became no decision: foreign logs, and requests cut before one."""

    entries: int = 0
    foreign: int = 0
    undecided: int = 0


Record = Callable[[Sequence[Decision]], None]


class AccessLogs:
    """The access log service of one agent; ``record`` takes decisions and must not block.

    ``left`` tells certificates of authorities that were trusted here once; ``received`` hears how many entries came
    from which sidecar (its node id and pid); ``peers`` names who is at the other end of a sidecar's plaintext
    connection.
    """

    def __init__(
        self,
        identify: Identify,
        rules: Rules,
        record: Record,
        left: Left = never_left,
        received: Callable[[str, int, int], None] = lambda _node, _pid, _entries: None,
        peers: Peers | None = None,
        connections: Connections | None = None,
    ) -> None:
        self._identify = identify
        self._rules = rules
        self._record = record
        self._left = left
        self._received = received
        self._peers = peers
        self._connections = connections or Connections()
        self._shapes: dict[tuple[str, str], Shapes] = {}  # by service and sidecar
        self.mark: Callable[[Decision, Any], Decision] = lambda decision, _entry: decision
        """Says of a decision, with Envoy's entry of it, whether a verify run asked."""
        self.counters = Counters()

    def services(self) -> list[Service]:
        """To be added to the agent's listener."""
        return [Service(als_wire.SERVICE, {"StreamAccessLogs": self._stream}, limit=MAX_MESSAGE_BYTES)]

    async def _stream(self, _: None, call: Call) -> Any:
        principal = await self._identify(call)
        node = log_name = ""
        async for message in call:
            identifier = als_wire.identifier(message)
            if identifier is not None:
                node, log_name = identifier.node.id[:_MAX_TEXT], identifier.log_name
            tcp = als_wire.tcp_entries(message)
            http = message.http_logs.log_entry
            if len(http) + len(tcp) > MAX_ENTRIES:
                raise InvalidInput(f"a message has at most {MAX_ENTRIES} log entries")
            self.counters.entries += len(http) + len(tcp)
            self._received(node, principal.pid, len(http) + len(tcp))
            kind, service = names.service_of_log(log_name)
            current = self._rules.current(principal, service) if kind else None
            if log_name == names.EGRESS:
                await self._take(self._refused_servers(http, tcp, principal, node))
            elif current is None:
                self.counters.foreign += len(http) + len(tcp)
            elif kind == "connections":
                refused = ((refused_handshake(entry, current, node, self._left), entry) for entry in tcp)
                await self._take(self.mark(decision, entry) for decision, entry in refused if decision is not None)
            else:
                self._connections.sessions(service, tcp)
                if self._peers is not None:
                    self._peers.seek(principal, als_wire.plaintext(http, tcp))
                    await self._peers.settled(principal)
                left = self._count(self._connections.requests(service, http), current, node)
                await self._take(self._decisions(left, tcp, current, node, principal))
        return als_wire.Response()

    async def _take(self, decisions: Iterator[Decision]) -> None:
        """Record decisions, and give others a turn now and then."""
        waiting: list[Decision] = []
        for decision in decisions:
            waiting.append(decision)
            if len(waiting) == _YIELD_EVERY:
                self._record(waiting)
                waiting = []
                await asyncio.sleep(0)
        if waiting:
            self._record(waiting)

    def _count(self, entries: Sequence[Any], current: InForce, node: str) -> list[Any]:
        """Record those entries that are like ones before, and return the others."""
        shapes = self._shapes.get((current.service, node))
        if shapes is None or shapes.current is not current:
            while len(self._shapes) >= _MAX_SHAPES:
                del self._shapes[next(iter(self._shapes))]
            shapes = self._shapes[current.service, node] = Shapes(current)
        counted, left = shapes.count(entries)
        if counted:
            self._record(counted)
        return left

    def _decisions(
        self, http: Sequence[Any], tcp: Sequence[Any], current: InForce, node: str, principal: Principal
    ) -> Iterator[Decision]:
        shapes = self._shapes.get((current.service, node))
        for read in http:
            entry = als_wire.whole_entry(read)
            decision = decided(entry, current, self._rules.version, node)
            if decision is None:
                self.counters.undecided += 1
                continue
            decision = self.mark(decision, entry)
            if shapes is not None:
                shapes.learn(read, decision, self._rules.version(decision.rules_version) or current)
            yield self._named(decision, entry, principal)
        for entry in tcp:
            if told_before(entry):
                continue
            decision = decided(entry, current, self._rules.version, node)
            if decision is None:
                self.counters.undecided += 1
            else:
                yield self._named(self.mark(decision, entry), entry, principal)

    def _named(self, decision: Decision, entry: Any, principal: Principal) -> Decision:
        """The decision with the best name of a peer that proved nothing."""
        if self._peers is None or decision.caller or entry.common_properties.HasField("tls_properties"):
            return decision
        remote = entry.common_properties.downstream_direct_remote_address.socket_address
        name = self._peers.name(principal, remote.address, remote.port_value)
        return msgspec.structs.replace(decision, peer=name) if name else decision

    def _refused_servers(
        self, http: Sequence[Any], tcp: Sequence[Any], principal: Principal, node: str
    ) -> Iterator[Decision]:
        def outgoing(service: str) -> Outgoing | None:
            return self._rules.outgoing(principal, service)

        for entry in [*map(als_wire.whole_entry, http), *tcp]:
            failed = refused_server(entry, outgoing, node)
            if failed is not None:
                yield failed
