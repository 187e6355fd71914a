"""Names for plaintext peers: looked up once a connection, when its sidecar asks, and found again by its log entry.

The question comes with the connection's first bytes (``eastwest.mesh.peers``) and is answered with yes, always; who
looks is a thread of its own, so no other work of the agent waits. A sidecar that waits no longer costs no name: the
look goes on, and the log is soon to come. A connection that nobody asked about, since the agent was away when it began,
is looked at when a request on it is logged. All is bounded: looks at a time and a second, connections that are
remembered, names of one user. Beyond a bound a peer has the kernel's word alone, or no name.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from envoy.service.auth.v3 import external_auth_pb2
from google.rpc import status_pb2

from eastwest import errors
from eastwest.agent import als_wire
from eastwest.agent.peers.namespaces import Namespaces
from eastwest.agent.peers.processes import PROC, Holder, candidates, holders_of, image_of, name_of, same_process
from eastwest.agent.peers.sockets import Ends, Owner, owner_of
from eastwest.agent.xds import Principal
from eastwest.clock import Clock
from eastwest.rpc.peer import started_at

MAX_CONNECTIONS = 20_000
"""Whose peers are remembered; a connection beyond them is the oldest's end."""
MAX_WAITING = 256
"""Lookups under way or waiting; the next connection's peer has no name."""
BURST = 5.0
MAX_IN_BURST = 1500
"""Connections that are looked at in ``BURST`` seconds; of those beyond nobody even asks whose sidecar asked, and their
peers have their user alone."""
SHARE = 100
"""Connections of one user that are looked at in ``BURST`` seconds besides: one who floods must not hide the others."""
MAX_LATE = 300
"""Connections that are looked at late in a second."""
MAX_SEARCHES = 20
"""Walks through all processes in a second, each for all sockets that wait; beyond them only known callers are seen."""
MAX_NAMES = 64
"""Different names of one user that are told in a day; processes that rename themselves must not fill the record."""
NAMES_KEPT = 86_400.0
"""Seconds after which a name that was not seen again makes room for another."""
MAX_USERS = 4096
REMEMBERED = 60.0
"""Seconds for which a process keeps its name unasked; it may have become another program since."""
KNOWN_PROCESSES = 64
"""Of each user, the last ones that called: most connections are theirs again."""

LATE = 10.0
"""Seconds after the beginning of a request in which its connection may still be looked at."""
SETTLE = 1.0
"""Seconds that a sidecar's log waits for lookups, at most."""

Describe = Callable[[int, int], Awaitable[str]]
"""The SPIFFE ID that a process (pid, ticks since boot of its start) would be given, or ""."""
ALLOWED = external_auth_pb2.CheckResponse(status=status_pb2.Status(), ok_response={})
_log = structlog.get_logger()
ANYBODYS = -1
"""In place of a sidecar's pid: nobody knows which one asked."""
_Remote = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Looked:
    """Whose a socket is, which process holds it, and what that runs just now."""

    owner: Owner | None = None
    holder: Holder | None = None
    image: bytes = b""


@dataclass(slots=True)
class _Known:
    """What a process was called, and when."""

    at: float
    image: bytes
    name: str


async def nobody(_pid: int, _started: int) -> str:
    """For agents that know no registrations."""
    return ""


@dataclass(slots=True)
class Counters:
    """Connections asked about, and of these: named with their process, by user alone, not of this node, skipped."""

    asked: int = 0
    named: int = 0
    by_user: int = 0
    elsewhere: int = 0
    skipped: int = 0
    seconds: float = 0.0  # spent looking, in all


class PeerFinder:
    """The plaintext peers of one agent's sidecars."""

    def __init__(self, clock: Clock, describe: Describe = nobody, proc: Path = PROC) -> None:
        self._clock = clock
        self._describe = describe
        self._proc = proc
        self._namespaces = Namespaces(proc)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="peers")
        self._waiting = 0
        self._wanted: list[tuple[Ends, asyncio.Future[_Looked]]] = []
        self._looking: asyncio.Task[None] | None = None
        self._pending: dict[int, set[asyncio.Task[None]]] = {}  # by sidecar
        self._peers: OrderedDict[_Remote, dict[int, str]] = OrderedDict()  # by sidecar, below the remote end
        self._asked: deque[float] = deque(maxlen=MAX_IN_BURST)
        self._shares: OrderedDict[int, deque[float]] = OrderedDict()  # by user, while there are too many
        self._late: deque[float] = deque(maxlen=MAX_LATE)
        self._known: OrderedDict[int, deque[int]] = OrderedDict()  # by user
        self._names: OrderedDict[int, OrderedDict[str, float]] = OrderedDict()  # by user: each, and when it was seen
        self._searches: deque[float] = deque(maxlen=MAX_SEARCHES)
        self._holders: OrderedDict[tuple[Holder, int], _Known] = OrderedDict()  # by process and the socket's user
        self.counters = Counters()

    def close(self) -> None:
        """Let the thread end, and who still looks."""
        for look in [*(look for each in self._pending.values() for look in each), *filter(None, [self._looking])]:
            look.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def is_flooded(self, request: Any) -> bool:
        """Whether there are too many connections to look at this one; it is answered without asking who asks."""
        now = self._clock.monotonic()
        if len(self._asked) < MAX_IN_BURST or now - self._asked[0] >= BURST:
            return False
        ends, name = _ends(request), ""
        with suppress(errors.Error):
            # One question to the kernel costs less than the answer to the sidecar.
            if (owner := owner_of(ends)) is not None:
                if self._has_share(owner.uid, now):
                    return False
                name = name_of(owner.uid, None)
        self.counters.asked += 1
        self.counters.skipped += 1
        self._peers.pop(ends.local, None)
        self._remember(ends, ANYBODYS, name)
        return True

    def _has_share(self, uid: int, now: float) -> bool:
        looked = self._shares.setdefault(uid, deque(maxlen=SHARE))
        self._shares.move_to_end(uid)
        while len(self._shares) > MAX_USERS:
            self._shares.popitem(last=False)
        if len(looked) == SHARE and now - looked[0] < BURST:
            return False
        looked.append(now)
        return True

    async def check(self, request: Any, principal: Principal) -> Any:
        """Answer a sidecar that asks about a connection: yes; meanwhile remember who is there."""
        ends = _ends(request)
        # Counted only now: strangers who ask what sidecars ask leave these their share.
        self.counters.asked += 1
        self._asked.append(self._clock.monotonic())
        # A port that another caller had before: its name must not stay.
        for pid in (principal.pid, ANYBODYS):
            self._peers.get(ends.local, {}).pop(pid, None)
        if (look := self._begin(ends, principal.pid)) is not None:
            await asyncio.shield(look)
        return ALLOWED

    def seek(self, principal: Principal, connections: Mapping[tuple[bytes, bytes], int]) -> None:
        """Look at those of a sidecar's connections (``als_wire.plaintext``) about which it never asked.

        ``settled`` waits for them. Those of longer ago than ``LATE`` are left: their port may be another's by now.
        """
        now = self._clock.monotonic()
        oldest = self._clock.now().timestamp() - LATE
        for wire, began in connections.items():
            remote, local = map(als_wire.address, wire)
            known = self._peers.get(remote, {})
            if began < oldest or not remote[0] or principal.pid in known or ANYBODYS in known:
                continue
            if len(self._late) == MAX_LATE and now - self._late[0] < 1.0:
                return
            self._late.append(now)
            self._begin(Ends(remote, local), principal.pid)

    def _begin(self, ends: Ends, pid: int) -> asyncio.Task[None] | None:
        """Look in a task of its own, unless too many are under way: who asks may go away."""
        if self._waiting >= MAX_WAITING:
            self.counters.skipped += 1
            return None
        self._waiting += 1
        look = asyncio.create_task(self._look_for(ends, pid))
        pending = self._pending.setdefault(pid, set())
        pending.add(look)
        look.add_done_callback(lambda task: self._ended(task, pid))
        return look

    def _ended(self, look: asyncio.Task[None], pid: int) -> None:
        self._waiting -= 1
        under_way = self._pending[pid]
        under_way.discard(look)
        if not under_way:
            del self._pending[pid]

    async def _look_for(self, ends: Ends, pid: int) -> None:
        begin = self._clock.monotonic()
        try:
            name = await self._find(ends)
        except errors.Error as error:
            _log.warning("agent.peers.failing", error=error.message)
            return
        finally:
            self.counters.seconds += self._clock.monotonic() - begin
        # An empty name says that there was nobody to be found: a connection from elsewhere is looked at once.
        self._remember(ends, pid, name)

    def _remember(self, ends: Ends, pid: int, name: str) -> None:
        self._peers.setdefault(ends.local, {})[pid] = name
        self._peers.move_to_end(ends.local)
        while len(self._peers) > MAX_CONNECTIONS:
            self._peers.popitem(last=False)

    async def settled(self, principal: Principal) -> None:
        """Wait for lookups that are under way for this sidecar: its log may be faster."""
        if pending := self._pending.get(principal.pid):
            await asyncio.wait(tuple(pending), timeout=SETTLE)

    def name(self, principal: Principal, address: str, port: int) -> str:
        """The name of the peer of a sidecar's connection; "" where none is known."""
        known = self._peers.get((address, port), {})
        return known.get(principal.pid) or known.get(ANYBODYS, "")

    async def _find(self, ends: Ends) -> str:
        loop = asyncio.get_running_loop()
        looked: asyncio.Future[_Looked] = loop.create_future()
        self._wanted.append((ends, looked))
        if self._looking is None or self._looking.done():  # a task of its own: who asks may go away
            self._looking = asyncio.create_task(self._look_all())
        found = await looked
        owner, holder = found.owner, found.holder
        if owner is None:
            self.counters.elsewhere += 1
            return ""
        if holder is None:
            self.counters.by_user += 1
            return name_of(owner.uid, None)
        now, key = self._clock.monotonic(), (holder, owner.uid)
        known = self._holders.get(key)
        if known is None or known.image != found.image or now - known.at > REMEMBERED:
            spiffe_id = await self._describe(holder.pid, holder.started)
            name = await loop.run_in_executor(self._thread, name_of, owner.uid, holder, spiffe_id, self._proc)
            if self._proc == PROC and started_at(holder.pid) != holder.started:
                self.counters.by_user += 1
                return name_of(owner.uid, None)  # it ended, and another may have its pid
            if known is not None and known.image == found.image and same_process(known.name, name):
                name = known.name
            known = self._holders[key] = _Known(now, found.image, name)
        self.counters.named += 1
        self._holders.move_to_end(key)
        while len(self._holders) > MAX_CONNECTIONS:
            self._holders.popitem(last=False)
        return self._bounded(owner.uid, known.name)

    async def _look_all(self) -> None:
        """Look for all that are asked about, those that came meanwhile together; short-lived callers come in bursts."""
        while self._wanted:
            some, self._wanted = self._wanted, []
            loop = asyncio.get_running_loop()
            results: Sequence[_Looked | Exception]
            try:
                results = await loop.run_in_executor(self._thread, self._look, [ends for ends, _ in some])
            except (OSError, RuntimeError) as error:  # /proc cannot be read, or the agent ends
                results = [errors.Unavailable(f"nobody can look who calls: {error}")] * len(some)
            for (_, looked), result in zip(some, results, strict=True):
                if looked.done():
                    continue  # who asked has gone
                if isinstance(result, Exception):
                    looked.set_exception(result)
                else:
                    looked.set_result(result)

    def _look(self, wanted: Sequence[Ends]) -> list[_Looked | errors.Error]:
        """In the thread: each socket's owner, and the process that holds it."""
        owners: list[Owner | errors.Error | None] = []
        for ends in wanted:
            try:
                owners.append(owner_of(ends) or self._namespaces.owner_of(ends, self._clock.monotonic()))
            except errors.Error as error:
                owners.append(error)
        sockets = {owner.inode: owner.uid for owner in owners if isinstance(owner, Owner)}
        users = set(sockets.values())
        for uid in users:
            self._known.setdefault(uid, deque(maxlen=KNOWN_PROCESSES))
            self._known.move_to_end(uid)
        holders = holders_of(sockets, [pid for uid in users for pid in self._known[uid]], self._proc)
        rest = {inode: uid for inode, uid in sockets.items() if inode not in holders}
        if rest and self._may_search():
            found = holders_of(rest, candidates(set(rest.values()), self._proc), self._proc)
            for inode, holder in found.items():
                known = self._known[rest[inode]]
                if holder.pid not in known:
                    known.appendleft(holder.pid)
            holders |= found
        while len(self._known) > MAX_USERS:
            self._known.popitem(last=False)
        return [owner if isinstance(owner, errors.Error) else self._with_holder(owner, holders) for owner in owners]

    def _with_holder(self, owner: Owner | None, holders: Mapping[int, Holder]) -> _Looked:
        holder = holders.get(owner.inode) if owner is not None else None
        return _Looked(owner, holder, image_of(holder.pid, self._proc) if holder is not None else b"")

    def _may_search(self) -> bool:
        now = self._clock.monotonic()
        if len(self._searches) == MAX_SEARCHES and now - self._searches[0] < 1.0:
            return False
        self._searches.append(now)
        return True

    def _bounded(self, uid: int, name: str) -> str:
        names, now = self._names.setdefault(uid, OrderedDict()), self._clock.monotonic()
        self._names.move_to_end(uid)
        while len(self._names) > MAX_USERS:
            self._names.popitem(last=False)
        while names and now - next(iter(names.values())) > NAMES_KEPT:
            names.popitem(last=False)
        if name not in names and len(names) >= MAX_NAMES:
            return name_of(uid, None)
        names[name] = now
        names.move_to_end(name)
        return name


def _ends(request: Any) -> Ends:
    """The connection that a sidecar asks about, seen from its peer."""
    source = request.attributes.source.address.socket_address
    destination = request.attributes.destination.address.socket_address
    return Ends((source.address, source.port_value), (destination.address, destination.port_value))
