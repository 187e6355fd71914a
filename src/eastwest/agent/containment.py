"""Ending the connections of who is contained, once the sidecar refuses new ones.

Envoy ends no connection for a change of policy: what is open goes on by the filters that it began with. So the kernel
ends them (``eastwest.agent.netlink``), only those that are the identity's own: at a service, by the addresses that its
access log tells; of a contained workload's own sidecar, all that its process has. Where that is not possible the ages
that bound every connection hold, and the server is told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from eastwest.agent import netlink
from eastwest.agent.changes import Changes
from eastwest.agent.connections import Connections
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.netlink import TcpSocket
from eastwest.policy.enforcement import Inbound, Sidecar
from eastwest.registry.containment import Contained

CAPABILITY = "close-connections"
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, never bound
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Point:
    """One process that enforces the rules of a workload, and the generation of containments that it has come to."""

    pid: int
    sidecar: Sidecar
    generation: int


class Closer:
    """Follows containments; ``closed`` counts ended connections by identity, ``changes`` what the server should hear.

    ``problem`` is why no connection can be ended here, "" where they can: tried out when this is made.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        connections: Connections,
        changes: Changes,
        problem: Callable[[], str] = netlink.can_destroy,
    ) -> None:
        self.closed: dict[str, int] = {}
        self.problem = problem()
        self._knowledge = knowledge
        self._connections = connections
        self._changes = changes
        self._points: dict[int, _Point] = {}
        self._due: set[int] = set()
        self._wake = Changes()
        connections.on_contained = self._shown
        self.follow()

    def follow(self) -> None:
        """Take the containments of the newest state."""
        contained = self._knowledge.state.contained
        self._connections.watch(contained.spiffe_ids)
        self.closed = {name: count for name, count in self.closed.items() if name in contained}

    def enforced(self, pid: int, sidecar: Sidecar, generation: int) -> None:
        """A process has come to enforce this generation by these rules; 0: it left, and says nothing any more."""
        if not generation:
            self._points.pop(pid, None)
            return
        self._points[pid] = _Point(pid, sidecar, generation)
        self._due.add(pid)
        self._wake.bump()

    async def run(self) -> None:
        """End what is to be ended, for ever."""
        while True:
            seen = self._wake.count
            due, self._due = self._due, set()
            for pid in due:
                if (point := self._points.get(pid)) is not None:
                    await self._close(point)
            await self._wake.beyond(seen)

    def _shown(self, service: str) -> None:
        for point in self._points.values():
            if any(inbound.service == service for inbound in point.sidecar.inbound):
                self._due.add(point.pid)
        self._wake.bump()

    async def _close(self, point: _Point) -> None:
        contained = self._knowledge.state.contained
        if self.problem or not contained or point.generation < contained.generation:
            return
        if not _in_this_network(point.pid):
            _log.warning("agent.connections.elsewhere", pid=point.pid, means="its connections are not ended from here")
            return
        try:
            ended = await asyncio.to_thread(self._end, point, contained)
        except OSError as error:
            _log.error("agent.connections.not_closed", pid=point.pid, error=str(error))
            return
        for name, count in ended.items():
            if count:
                self.closed[name] = self.closed.get(name, 0) + count
                _log.info("agent.connections.closed", spiffe_id=name, connections=count)
        if any(ended.values()):
            self._changes.bump()

    def _end(self, point: _Point, contained: Contained) -> dict[str, int]:
        own = point.sidecar.spiffe_id
        if own in contained:
            inodes = _socket_inodes(point.pid)
            return {own: netlink.destroy([one for one in netlink.open_sockets() if one.inode in inodes])}
        found = netlink.open_sockets([inbound.port for inbound in point.sidecar.inbound])
        ended: dict[str, int] = {}
        for name in contained.spiffe_ids:
            theirs = [one for inbound in point.sidecar.inbound for one in self._theirs(inbound, found, name)]
            if theirs:
                ended[name] = netlink.destroy(theirs)
        return ended

    def _theirs(self, inbound: Inbound, found: Collection[TcpSocket], name: str) -> list[TcpSocket]:
        remotes = self._connections.of(inbound.service, {name})
        bound = netlink.plain_address(inbound.address)
        return [
            one
            for one in found
            if one.remote in remotes and one.local[1] == inbound.port and (bound in _WILDCARDS or bound == one.local[0])
        ]


def _in_this_network(pid: int) -> bool:
    """Whether the process has its connections in the network namespace that is looked into here."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    return True  # not for this user to know; what is not found is not ended


def _socket_inodes(pid: int) -> frozenset[int]:
    """Of all sockets that a process has. Raises ``OSError`` where it is another user's."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                found.add(int(target[8:-1]))
    return frozenset(found)
