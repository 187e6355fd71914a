"""Names for plaintext peers: looked up once a connection, when its sidecar asks, and found again by its log entry.

The question comes with the connection's first bytes (``eastwest.mesh.peers``) and is answered with yes, always; who
looks is a thread of its own, so no other work of the agent waits. All is bounded: looks at a time and a second,
connections that are remembered, names of one user. Beyond a bound a peer has the kernel's word alone, or no name.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from envoy.service.auth.v3 import external_auth_pb2
from google.rpc import status_pb2

from eastwest import errors
from eastwest.agent.peers.processes import PROC, Holder, candidates, holders_of, name_of
from eastwest.agent.peers.sockets import Ends, Owner, owner_of
from eastwest.agent.xds import Principal
from eastwest.clock import Clock
from eastwest.rpc.peer import started_at

MAX_CONNECTIONS = 20_000
"""Whose peers are remembered; a connection beyond them is the oldest's end."""
MAX_WAITING = 256
"""Lookups under way or waiting; the next connection's peer has no name."""
MAX_A_SECOND = 300
"""Connections that are looked at in a second; of those beyond nobody even asks whose sidecar asked."""
MAX_SEARCHES = 20
"""Walks through all processes in a second, each for all sockets that wait; beyond them only known callers are seen."""
MAX_NAMES = 64
"""Different names of one user that are told; processes that rename themselves must not fill the record."""
MAX_USERS = 4096
REMEMBERED = 60.0
"""Seconds for which a process keeps its name unasked; it may have become another program since."""
KNOWN_PROCESSES = 64
"""Of each user, the last ones that called: most connections are theirs again."""

SETTLE = 1.0
"""Seconds that a sidecar's log waits for lookups, at most."""

Describe = Callable[[int, int], Awaitable[str]]
"""The SPIFFE ID that a process (pid, ticks since boot of its start) would be given, or ""."""
ALLOWED = external_auth_pb2.CheckResponse(status=status_pb2.Status(), ok_response={})
_log = structlog.get_logger()
_Remote = tuple[str, int]
_Looked = tuple[Owner | None, Holder | None]


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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="peers")
        self._waiting = 0
        self._wanted: list[tuple[Ends, asyncio.Future[_Looked]]] = []
        self._looking: asyncio.Task[None] | None = None
        self._pending: dict[int, set[asyncio.Future[None]]] = {}  # by sidecar
        self._peers: OrderedDict[_Remote, dict[int, str]] = OrderedDict()  # by sidecar, below the remote end
        self._asked: deque[float] = deque(maxlen=MAX_A_SECOND)
        self._known: OrderedDict[int, deque[int]] = OrderedDict()  # by user
        self._names: OrderedDict[int, set[str]] = OrderedDict()
        self._searches: deque[float] = deque(maxlen=MAX_SEARCHES)
        self._holders: OrderedDict[Holder, tuple[float, str]] = OrderedDict()
        self.counters = Counters()

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def is_flooded(self, request: Any) -> bool:
        """Whether there are too many connections to look at this one; it is answered without asking who asks."""
        if len(self._asked) < MAX_A_SECOND or self._clock.monotonic() - self._asked[0] >= 1.0:
            return False
        self.counters.asked += 1
        self.counters.skipped += 1
        source = request.attributes.source.address.socket_address
        self._peers.pop((source.address, source.port_value), None)
        return True

    async def check(self, request: Any, principal: Principal) -> Any:
        """Answer a sidecar that asks about a connection: yes; meanwhile remember who is there."""
        source = request.attributes.source.address.socket_address
        destination = request.attributes.destination.address.socket_address
        ends = Ends((source.address, source.port_value), (destination.address, destination.port_value))
        # Counted only now: strangers who ask what sidecars ask leave these their share.
        self.counters.asked += 1
        self._asked.append(self._clock.monotonic())
        # A port that another caller had before: its name must not stay.
        self._peers.get(ends.local, {}).pop(principal.pid, None)
        if self._waiting >= MAX_WAITING:
            self.counters.skipped += 1
            return ALLOWED
        self._waiting += 1
        done = asyncio.get_running_loop().create_future()
        self._pending.setdefault(principal.pid, set()).add(done)
        begin = self._clock.monotonic()
        try:
            name = await self._find(ends)
        except errors.Error as error:
            _log.warning("agent.peers.failing", error=error.message)
            return ALLOWED
        finally:
            self._waiting -= 1
            self.counters.seconds += self._clock.monotonic() - begin
            done.set_result(None)
            under_way = self._pending[principal.pid]
            under_way.discard(done)
            if not under_way:
                del self._pending[principal.pid]
        if name:
            self._peers.setdefault(ends.local, {})[principal.pid] = name
            self._peers.move_to_end(ends.local)
            while len(self._peers) > MAX_CONNECTIONS:
                self._peers.popitem(last=False)
        return ALLOWED

    async def settled(self, principal: Principal) -> None:
        """Wait for lookups that are under way for this sidecar: its log may be faster."""
        if pending := self._pending.get(principal.pid):
            await asyncio.wait(tuple(pending), timeout=SETTLE)

    def name(self, principal: Principal, address: str, port: int) -> str:
        """The name of the peer of a sidecar's connection; "" where none is known."""
        return self._peers.get((address, port), {}).get(principal.pid, "")

    async def _find(self, ends: Ends) -> str:
        loop = asyncio.get_running_loop()
        looked: asyncio.Future[_Looked] = loop.create_future()
        self._wanted.append((ends, looked))
        if self._looking is None or self._looking.done():  # a task of its own: who asks may go away
            self._looking = asyncio.create_task(self._look_all())
        owner, holder = await looked
        if owner is None:
            self.counters.elsewhere += 1
            return ""
        now = self._clock.monotonic()
        since, name = self._holders.get(holder, (0.0, "")) if holder is not None else (0.0, "")
        if not name or now - since > REMEMBERED:
            since = now
            spiffe_id = ""
            if holder is not None:
                spiffe_id = await self._describe(holder.pid, holder.started)
            name = await loop.run_in_executor(self._thread, name_of, owner.uid, holder, spiffe_id, self._proc)
            if holder is not None and self._proc == PROC and started_at(holder.pid) != holder.started:
                holder, name = None, name_of(owner.uid, None)  # it ended, and another may have its pid
        if holder is None:
            self.counters.by_user += 1
            return name
        self.counters.named += 1
        self._holders[holder] = since, name
        self._holders.move_to_end(holder)
        while len(self._holders) > MAX_CONNECTIONS:
            self._holders.popitem(last=False)
        return self._bounded(owner.uid, name)

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
                owners.append(owner_of(ends))
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
        return [
            owner if isinstance(owner, errors.Error) else (owner, holders.get(owner.inode) if owner else None)
            for owner in owners
        ]

    def _may_search(self) -> bool:
        now = self._clock.monotonic()
        if len(self._searches) == MAX_SEARCHES and now - self._searches[0] < 1.0:
            return False
        self._searches.append(now)
        return True

    def _bounded(self, uid: int, name: str) -> str:
        names = self._names.setdefault(uid, set())
        self._names.move_to_end(uid)
        while len(self._names) > MAX_USERS:
            self._names.popitem(last=False)
        if name not in names and len(names) >= MAX_NAMES:
            return name_of(uid, None)
        names.add(name)
        return name
