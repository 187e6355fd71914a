"""Which connections may be: descriptors are few, and a port that serves strangers must have room for those it knows."""

from __future__ import annotations

import os
import resource
import socket
from collections import Counter
from ipaddress import IPv6Address

import structlog

from eastwest.rpc import limits
from eastwest.rpc.peer import UnknownPeer, peer_credentials

Source = int | str
"""A user of this machine by number, or an address."""

_log = structlog.get_logger()


class Connections:
    """Counts the connections of one listener, by who is at the other end.

    Callers over TCP count against their address until they have proved who they are, and together they take half
    of all places at most: whoever has a certificate still gets in.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = _as_many_as_possible() if most is None else most
        self._all = 0
        self._unproven = 0
        self._by_source: Counter[Source] = Counter()
        self._told: set[Source] = set()

    def admit(self, sock: socket.socket) -> Place | None:
        """A place for a connection just accepted; None when there is none for it."""
        if sock.family != socket.AF_UNIX:
            return self._admit_address(sock)
        try:
            _, uid, _ = peer_credentials(sock)
        except UnknownPeer:
            return None
        if uid in {0, os.geteuid()}:
            return Place(self, None, unproven=False)
        if self._all >= self._most or self._by_source[uid] >= limits.MAX_CONNECTIONS_OF_USER:
            self._refuse(uid)
            return None
        return self._place(uid, unproven=False)

    def _admit_address(self, sock: socket.socket) -> Place | None:
        try:
            source = _source(sock)
        except OSError:  # gone already
            return None
        if self._all >= self._most or self._unproven >= max(1, self._most // 2):
            self._refuse(source)
            return None
        if self._by_source[source] >= limits.MAX_UNPROVEN_OF_SOURCE:
            self._refuse(source)
            return None
        return self._place(source, unproven=True)

    def _place(self, source: Source, *, unproven: bool) -> Place:
        self._all += 1
        self._unproven += unproven
        self._by_source[source] += 1
        return Place(self, source, unproven=unproven)

    def _refuse(self, source: Source) -> None:
        # Once for each source, until all its connections have ended: refusals may be many.
        if source not in self._told and len(self._told) < limits.MAX_CONNECTIONS:
            self._told.add(source)
            _log.warning("rpc.connection_refused", source=source, connections=self._all, limit=self._most)

    def give_back(self, source: Source, *, unproven: bool) -> None:
        """A place's end, or the end of its counting against its source."""
        self._unproven -= unproven
        self._by_source[source] -= 1
        if self._by_source[source] <= 0:
            del self._by_source[source]
            self._told.discard(source)

    def leave(self) -> None:
        """A counted connection has ended."""
        self._all -= 1


class Place:
    """One connection's; ``release`` may come more than once."""

    __slots__ = ("_connections", "_counted", "_source", "_unproven")

    def __init__(self, connections: Connections, source: Source | None, *, unproven: bool) -> None:
        self._connections = connections
        self._source = source
        self._unproven = unproven
        self._counted = source is not None

    def prove(self) -> None:
        """The caller has shown a certificate that TLS verified: it counts no more against its address."""
        if self._unproven and self._source is not None:
            self._connections.give_back(self._source, unproven=True)
            self._source, self._unproven = None, False

    def release(self) -> None:
        """The connection has ended."""
        if self._source is not None:
            self._connections.give_back(self._source, unproven=self._unproven)
            self._source = None
        if self._counted:
            self._counted = False
            self._connections.leave()


def _source(sock: socket.socket) -> str:
    """An IPv4 address, or the /64 of an IPv6 one, as that much is what one host is given."""
    text = str(sock.getpeername()[0])
    if ":" not in text:
        return text
    address = IPv6Address(text.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


def _as_many_as_possible() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.MAX_CONNECTIONS
    return min(limits.MAX_CONNECTIONS, max(soft - limits.DESCRIPTORS_KEPT, soft // 2))
