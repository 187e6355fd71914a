"""What sidecars sent of their logs against what came here: the difference is lost, and is said so.

An Envoy counts a log entry as sent once it is in a stream, whether or not that stream ever reaches the agent; so its
own counters know of entries that nobody received while the agent was away. Each sidecar tells them every few seconds
(``envoy.service.metrics.v3``). What an Envoy has told is settled at its next word, some seconds later: by then all that
it had sent is here, or will not come.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from eastwest.agent import metrics_wire
from eastwest.agent.xds import Identify, Principal
from eastwest.clock import Clock
from eastwest.ledger.record import Lost, LostReason
from eastwest.rpc.service import Call, Service

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Of all that one Envoy counts: some 10 KB for each service that it calls."""
MAX_PROXIES = 4_096
"""Sidecars that are remembered; there is one for each process."""
SETTLED_SECONDS = 4.0
"""How long after an Envoy's word all that it had sent by then must be here."""
_SENT = "access_logs.grpc_access_log.grpc_entries_flushed"
_DROPPED = "access_logs.grpc_access_log.logs_dropped"
_NAMES = frozenset({_SENT, _DROPPED})
_MAX_TEXT = 256
_MAX_COUNT = 1 << 24  # entries of some seconds: more than an Envoy can send
_MAX_NAMES = 4
"""Node ids of one process that are remembered; an Envoy has one."""
_SLOT = struct.Struct("<16sQQ")  # key, value, value inverted
_MASK = (1 << 64) - 1
_log = structlog.get_logger()


@dataclass(slots=True)
class _Proxy:
    node: str
    slot: int
    accounted: int = 0  # entries received, and those confessed as lost
    known: bool = True  # False: how many were received before is not known
    told: int | None = None  # what it said last, and when
    told_at: float = 0.0
    told_time: datetime | None = None
    settled: datetime | None = None  # when all was well last


class Received:
    """How many entries of each sidecar are accounted for. Kept in a file, so that a killed agent knows what it missed.

    Each number has its place in the file and is written in one call, which the page cache keeps when the agent is
    killed. Without the file all works but that.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._proxies: OrderedDict[tuple[str, int], _Proxy] = OrderedDict()
        self._kept: dict[bytes, tuple[int, int]] = {}  # key → slot, value
        self._names: dict[int, list[str]] = {}  # by pid, the oldest first
        self._free = 0
        self._spare: list[int] = []  # places in the file that were left
        self._fresh = True
        self._forgot = False  # whether any was forgotten for want of room

    def open(self) -> None:
        """Read what an earlier run has kept. Never raises."""
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fresh = not self._path.exists()
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            content = os.pread(self._file, MAX_PROXIES * _SLOT.size, 0)
            for slot in range(len(content) // _SLOT.size):
                key, value, inverted = _SLOT.unpack_from(content, slot * _SLOT.size)
                if any(key) and value ^ inverted == _MASK:
                    self._kept[key] = (slot, value)
            self._free = len(content) // _SLOT.size

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def add(self, node: str, pid: int, entries: int) -> None:
        """``entries`` of a sidecar have come, or are confessed as lost."""
        proxy = self.proxy(node, pid)
        proxy.accounted += entries
        if self._file is not None:
            value = proxy.accounted
            with suppress(OSError):
                os.pwrite(self._file, _SLOT.pack(_key(node, pid), value, value ^ _MASK), proxy.slot * _SLOT.size)

    def proxy(self, node: str, pid: int) -> _Proxy:
        """What is known of one sidecar."""
        found = self._proxies.get((node, pid))
        if found is not None:
            self._proxies.move_to_end((node, pid))
            return found
        names = self._names.get(pid, [])
        if len(names) >= _MAX_NAMES:  # a process that makes names up pushes out its own
            self._forget((names[0], pid))
        kept = self._kept.pop(_key(node, pid), None)
        if kept is None:
            # Of one that was forgotten nobody knows any more what came: it must not look lost.
            found = _Proxy(node, self._slot(), known=not (self._fresh or self._forgot))
        else:
            found = _Proxy(node, *kept)
        self._proxies[node, pid] = found
        self._names.setdefault(pid, []).append(node)
        return found

    def name(self, node: str, principal: Principal) -> str:
        """What to call a sidecar in a record: its node id, or what was attested where several processes claim that."""
        claimed = sum(node in names for names in self._names.values())
        return node if claimed <= 1 else f"{principal.spiffe_ids[0]} pid {principal.pid}"[:_MAX_TEXT]

    def _slot(self) -> int:
        """A place in the file: a new one, or that of who was heard of least lately."""
        if self._spare:
            return self._spare.pop()
        if self._free < MAX_PROXIES:
            self._free += 1
            return self._free - 1
        if self._kept:
            slot, _ = self._kept.pop(next(iter(self._kept)))
            self._forgot = True
            return slot
        self._forget(next(iter(self._proxies)))
        return self._spare.pop()

    def _forget(self, key: tuple[str, int]) -> None:
        node, pid = key
        self._spare.append(self._proxies.pop(key).slot)
        self._names[pid].remove(node)
        if not self._names[pid]:
            del self._names[pid]
        self._forgot = True


class Proxies:
    """The metrics service of one agent. ``confess`` takes what sidecars could not hand over."""

    def __init__(
        self, identify: Identify, received: Received, confess: Callable[[Sequence[Lost]], None], clock: Clock
    ) -> None:
        self._identify = identify
        self._received = received
        self._confess = confess
        self._clock = clock

    def services(self) -> list[Service]:
        """To be added to the agent's listener."""
        return [Service(metrics_wire.SERVICE, {"StreamMetrics": self._stream}, limit=MAX_MESSAGE_BYTES)]

    async def _stream(self, _: None, call: Call) -> Any:
        principal = await self._identify(call)
        node = ""
        async for message in call:
            node = metrics_wire.node_id(message)[:_MAX_TEXT] or node
            told = metrics_wire.counters(message, _NAMES)
            if told:
                self.told(principal, node, told.get(_SENT, 0), told.get(_DROPPED, 0))
        return metrics_wire.Response()

    def told(self, principal: Principal, node: str, sent: int, dropped: int) -> None:
        """A sidecar has sent so many entries since it started, and dropped so many unsent."""
        proxy = self._received.proxy(node, principal.pid)
        now, at = self._clock.now(), self._clock.monotonic()
        if not proxy.known and proxy.told is None:
            # It ran before this agent kept any count: what it sent then is not known to be lost.
            proxy.known = True
            self._received.add(node, principal.pid, max(0, sent + dropped - proxy.accounted))
        if proxy.told is not None:
            if at - proxy.told_at < SETTLED_SECONDS:
                return  # two words at once, after either was stopped for a while: not settled yet
            missing = min(proxy.told - proxy.accounted, _MAX_COUNT)
            if missing > 0:
                until = proxy.told_time or now
                since = proxy.settled or until
                name = self._received.name(node, principal)
                _log.warning("agent.proxy.lost", node=name, pid=principal.pid, entries=missing)
                self._confess([Lost(time=since, until=until, count=missing, cause=LostReason.PROXY_DROPPED, node=name)])
                self._received.add(node, principal.pid, missing)
            proxy.settled = proxy.told_time
        proxy.told, proxy.told_at, proxy.told_time = sent + dropped, at, now


def _key(node: str, pid: int) -> bytes:
    return hashlib.blake2b(f"{pid} {node}".encode(), digest_size=16).digest()
