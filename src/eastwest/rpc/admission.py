"""Which connections may be: descriptors are few, and a port that serves strangers must have room for those it knows."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address

import structlog

from eastwest.rpc import limits
from eastwest.rpc.peer import UnknownPeer, peer_credentials

Source = int | str
"""A user of this machine by number, an address, or the SPIFFE ID that a caller has proved."""

_log = structlog.get_logger()


class Connections:
    """Counts the connections of one listener, and what is held for them, by who is at the other end.

    Callers over TCP count against their address until they have proved who they are, and together they take half
    of all places at most. Where there is no place left a stranger's is taken: the one that the largest crowd of one
    address has had for longest. So a crowd pushes out nobody but itself, and whoever can prove something gets in.
    """

    def __init__(
        self,
        most: int | None = None,
        now: Callable[[], float] = time.monotonic,
        *,
        of_caller: int | None = None,
    ) -> None:
        """``now`` is in seconds of any steady clock; ``of_caller`` is for ``limits.MAX_CONNECTIONS_OF_CALLER``."""
        self._most = as_many_as_possible() if most is None else most
        self._now = now
        self._of_caller = of_caller
        self._all = 0
        self._strangers = _Crowds()
        self._known: dict[Source, dict[Place, None]] = {}  # the oldest of each first
        self._held: Counter[Source] = Counter()
        self._held_of_strangers = 0
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
            return Place(self, None, self._now(), unproven=False)
        if self._all >= self._most or len(self._known.get(uid, ())) >= limits.MAX_CONNECTIONS_OF_USER:
            self._refuse(uid)
            return None
        place = Place(self, uid, self._now(), unproven=False)
        self._all += 1
        self._known.setdefault(uid, {})[place] = None
        return place

    def _admit_address(self, sock: socket.socket) -> Place | None:
        try:
            source = _source(sock)
        except OSError:  # gone already
            return None
        crowd = self._strangers.size(source)
        full = self._all >= self._most or self._strangers.total >= max(1, self._most // 2)
        if full or crowd >= limits.MAX_UNPROVEN_OF_SOURCE:
            victim = self._victim(source, crowd)
            if victim is None:
                self._refuse(source)
                return None
            self._end(victim)
        place = Place(self, source, self._now(), unproven=True)
        self._all += 1
        self._strangers.add(source, place)
        return place

    def _victim(self, source: Source, crowd: int) -> Place | None:
        """The stranger that a newcomer pushes out, if any."""
        crowded = source if crowd >= limits.MAX_UNPROVEN_OF_SOURCE else self._strangers.largest()
        if crowded is None:
            return None
        oldest = self._strangers.oldest(crowded)
        if self._strangers.size(crowded) > crowd + 1:
            return oldest
        # Among equals those that were let in get the time to prove something, or a rush of honest ones would never end.
        return oldest if self._now() - oldest.began >= limits.UNDISTURBED_SECONDS else None

    def _end(self, place: Place) -> None:
        self._tell("rpc.connection_displaced", place.source)
        place.release()
        if place.ending is not None:
            place.ending()

    def _refuse(self, source: Source) -> None:
        self._tell("rpc.connection_refused", source)

    def _tell(self, event: str, source: Source | None) -> None:
        # Once for each source, until all its connections have ended: these may be many.
        if source is not None and source not in self._told and len(self._told) < limits.MAX_CONNECTIONS:
            self._told.add(source)
            _log.warning(event, source=source, connections=self._all, limit=self._most)

    def prove(self, place: Place, caller: str) -> None:
        """A stranger's connection is a known caller's from now on."""
        self._leave(place)
        place.source, place.unproven = caller, False
        self._held[caller] += place.held
        places = self._known.setdefault(caller, {})
        places[place] = None
        if len(places) > (self._of_caller or limits.MAX_CONNECTIONS_OF_CALLER):
            oldest = next(iter(places))
            self._end(next((one for one in places if one.busy is not None and not one.busy()), oldest))

    def release(self, place: Place) -> None:
        """A counted connection has ended."""
        self._leave(place)
        self._all -= 1
        place.source = None

    def hold(self, place: Place, size: int) -> bool:
        """Whether ``size`` bytes more may be held for this connection; if so they count."""
        source = place.source
        assert source is not None
        held = self._held[source] + size
        if place.unproven:
            of_all = self._held_of_strangers + size
            if place.held + size > limits.HELD_FREELY and (
                held > limits.HELD_OF_SOURCE or of_all > limits.HELD_OF_STRANGERS
            ):
                return False
            self._held_of_strangers = of_all
        elif place.held + size > limits.HELD_FREELY and held > limits.HELD_OF_CALLER:
            return False
        self._held[source] = held
        place.held += size
        return True

    def let_go(self, place: Place, size: int) -> None:
        """What was held is held no more."""
        assert place.source is not None
        place.held -= size
        self._held[place.source] -= size
        if place.unproven:
            self._held_of_strangers -= size

    def _leave(self, place: Place) -> None:
        source = place.source
        assert source is not None
        self._held[source] -= place.held
        if place.unproven:
            self._held_of_strangers -= place.held
            self._strangers.remove(source, place)
            others = self._strangers.size(source)
        else:
            places = self._known[source]
            del places[place]
            others = len(places)
            if not places:
                del self._known[source]
        if not others:
            del self._held[source]
            self._told.discard(source)


class Place:
    """One connection's; ``release`` may come more than once. ``ending`` ends the connection at once.

    ``busy`` tells, where it is set, whether anything is under way on it: one that is idle goes before others.
    """

    __slots__ = ("_connections", "began", "busy", "ending", "held", "source", "unproven")

    def __init__(self, connections: Connections, source: Source | None, began: float, *, unproven: bool) -> None:
        """``source`` is None for those that are not counted."""
        self._connections = connections
        self.source = source
        self.began = began
        self.unproven = unproven
        self.held = 0
        self.ending: Callable[[], object] | None = None
        self.busy: Callable[[], bool] | None = None

    def prove(self, caller: str) -> None:
        """The caller is known here by this name: its connection counts no more against its address."""
        if self.unproven and self.source is not None:
            self._connections.prove(self, caller)

    def hold(self, size: int) -> bool:
        """Count ``size`` bytes that are held for this connection; False: they are too many."""
        return self.source is None or self._connections.hold(self, size)

    def let_go(self, size: int) -> None:
        """Bytes that were held are held no more."""
        if self.source is not None:
            self._connections.let_go(self, size)

    def release(self) -> None:
        """The connection has ended."""
        if self.source is not None:
            self._connections.release(self)


class _Crowds:
    """Strangers by address, and which address has most of them, found without looking at all."""

    def __init__(self) -> None:
        self.total = 0
        self._places: dict[Source, dict[Place, None]] = {}  # the oldest of each first
        self._by_size: dict[int, dict[Source, None]] = {}
        self._most = 0

    def size(self, source: Source) -> int:
        return len(self._places.get(source, ()))

    def largest(self) -> Source | None:
        return next(iter(self._by_size[self._most])) if self._most else None

    def oldest(self, source: Source) -> Place:
        return next(iter(self._places[source]))

    def add(self, source: Source, place: Place) -> None:
        self._places.setdefault(source, {})[place] = None
        self.total += 1
        self._move(source, -1)

    def remove(self, source: Source, place: Place) -> None:
        places = self._places[source]
        del places[place]
        if not places:
            del self._places[source]
        self.total -= 1
        self._move(source, +1)

    def _move(self, source: Source, towards_before: int) -> None:
        size = self.size(source)
        before = size + towards_before
        if before:
            del self._by_size[before][source]
            if not self._by_size[before]:
                del self._by_size[before]
        if size:
            self._by_size.setdefault(size, {})[source] = None
        if size > self._most or self._most not in self._by_size:
            self._most = size


def _source(sock: socket.socket) -> str:
    """An IPv4 address, or the /64 of an IPv6 one, as that much is what one host is given."""
    text = str(sock.getpeername()[0])
    if ":" not in text:
        return text
    address = IPv6Address(text.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


def as_many_as_possible() -> int:
    """Connections for which the process has descriptors, all its listeners together."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.MAX_CONNECTIONS
    return min(limits.MAX_CONNECTIONS, max(soft - limits.DESCRIPTORS_KEPT, soft // 2))
