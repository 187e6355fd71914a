"""What each Envoy of this node trusts and shows: its last word, until it says something newer or its process ends.

An Envoy goes on with what it has when its stream breaks, and when the agent dies. So its word outlives both, and a
change of trust waits until it is back or gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import msgspec

from eastwest.agent.changes import Changes
from eastwest.clock import Clock
from eastwest.errors import Exhausted

MAX_ENVOYS = 900
"""Sidecars of one node that are known, and as many streams of secrets alone; a server takes a report of 1000 in all."""
MAX_OF_PROCESS = 8
"""Sidecars that one process may be; an Envoy is one."""
MAX_STREAMS_OF_PROCESS = 100
"""Streams of secrets alone of one process; an Envoy has one for each secret."""
LOOK_EVERY = 1.0
"""Seconds between two looks for processes that have ended, while there are any without a stream."""
SECRETS_ABSENT = 60.0
"""Seconds for which a stream of secrets alone counts after its end: twice Envoy's longest wait before it comes back."""


@dataclass(frozen=True, slots=True)
class Given:
    """What one Envoy was given to trust and to show: the bundle's sequence and the chains of its SVIDs."""

    sequence: int
    chains: tuple[tuple[bytes, ...], ...] = ()


class Envoy(msgspec.Struct, frozen=True, array_like=True):
    """One that has acknowledged secrets. ``started`` (ticks since boot) tells its process from a later one of its pid.

    ``node_id`` is empty where it takes secrets alone.
    """

    node_id: str
    pid: int
    started: int
    spiffe_id: str
    sequence: int
    chains: tuple[tuple[bytes, ...], ...]

    @property
    def given(self) -> Given:
        """What it acknowledged last."""
        return Given(self.sequence, self.chains)


@dataclass(frozen=True, slots=True)
class _Known:
    envoy: Envoy
    absent_since: float | None = None  # seconds of the monotonic clock; None: its stream is open


class Envoys:
    """``changes`` counts what the server should hear; ``kept`` what should be on disk.

    ``started(pid)`` is when that process started, 0 where there is none.

    Whoever would be forgotten for another's sake would no longer be waited for. So where there is no room a newcomer is
    refused; a process has little, and no SPIFFE ID gets more than it leaves free.
    """

    def __init__(self, clock: Clock, changes: Changes, started: Callable[[int], int]) -> None:
        self.kept = Changes()
        self._clock = clock
        self._changes = changes
        self._started = started
        self._sidecars: dict[tuple[str, int], _Known] = {}
        self._open: dict[tuple[str, int], str] = {}  # the SPIFFE ID of each sidecar that has a stream now
        self._streams: dict[object, _Known] = {}  # of secrets alone; the key is the stream, also after its end
        self._on_disk: frozenset[tuple[str, int]] = frozenset()

    def restore(self, kept: Iterable[Envoy]) -> None:
        """Remember those of before a restart whose processes still run. None of them has a stream."""
        now = self._clock.monotonic()
        for envoy in kept:
            if not envoy.started or self._started(envoy.pid) != envoy.started:
                continue
            known = _Known(envoy, now)
            if envoy.node_id:
                self._sidecars[envoy.node_id, envoy.pid] = known
            else:
                self._streams[object()] = known
        self.saved(self.everything())
        self._tell()

    def admit(self, node_id: str, pid: int, spiffe_id: str) -> None:
        """A sidecar has a stream open. Raises ``Exhausted`` where there is no room for one more."""
        key = (node_id, pid)
        if key not in self._open and key not in self._sidecars:
            self._make_room(pid, spiffe_id)
        self._open[key] = spiffe_id

    def is_open(self, node_id: str, pid: int) -> bool:
        """Whether a sidecar was admitted and has not left."""
        return (node_id, pid) in self._open

    def told(self, node_id: str, pid: int, spiffe_id: str, given: object) -> bool:
        """A sidecar with an open stream stands at ``given`` (None: it has said nothing there yet). Whether that is new.

        Until it says something on a new stream, its word on the last one counts.
        """
        key = (node_id, pid)
        before = self._sidecars.get(key)
        if isinstance(given, Given):
            started = before.envoy.started if before is not None else self._started(pid)
            known = _Known(Envoy(node_id, pid, started, spiffe_id, given.sequence, given.chains))
        elif before is not None:
            known = _Known(before.envoy)
        else:
            return False
        if known == before:
            return False
        self._sidecars[key] = known
        self._tell()
        return True

    def left(self, node_id: str, pid: int) -> None:
        """The stream of a sidecar has ended."""
        self._open.pop((node_id, pid), None)
        known = self._sidecars.get((node_id, pid))
        if known is not None and known.absent_since is None:
            self._sidecars[node_id, pid] = replace(known, absent_since=self._clock.monotonic())
            self._tell()

    def taken(self, stream: object, pid: int, spiffe_id: str, given: object) -> None:
        """A stream of secrets alone stands at ``given``. Raises ``Exhausted`` where there is no room for one more."""
        if not isinstance(given, Given):
            return
        before = self._streams.get(stream)
        envoy = Envoy("", pid, self._started(pid), spiffe_id, given.sequence, given.chains)
        if before is not None and before.envoy == envoy:
            return
        if before is None:
            # It stands for one of those that this process had before.
            away = (s for s, k in self._streams.items() if k.absent_since is not None and k.envoy.pid == pid)
            self._streams.pop(next(away, None), None)
            of_process = sum(k.envoy.pid == pid for k in self._streams.values())
            of_id = sum(k.envoy.spiffe_id == spiffe_id for k in self._streams.values())
            _ensure_room(len(self._streams), of_process, of_id, MAX_STREAMS_OF_PROCESS, f"{spiffe_id} (pid {pid})")
        self._streams[stream] = _Known(envoy)
        self._tell()

    def ended(self, stream: object) -> None:
        """A stream of secrets alone has ended."""
        known = self._streams.get(stream)
        if known is not None:
            self._streams[stream] = replace(known, absent_since=self._clock.monotonic())
            self._tell()

    def sidecars(self) -> Iterator[tuple[Envoy, bool]]:
        """Those with config from here, and whether their stream is open."""
        for known in self._sidecars.values():
            yield known.envoy, known.absent_since is None

    def given(self, node_id: str, pid: int) -> Given | None:
        """What a sidecar stands at."""
        known = self._sidecars.get((node_id, pid))
        return known.envoy.given if known is not None else None

    def saved(self, envoys: Iterable[Envoy]) -> None:
        """These are on disk. The word of others does not count yet: an agent that died now would forget them."""
        on_disk = frozenset((envoy.node_id, envoy.pid) for envoy in envoys)
        if on_disk != self._on_disk:
            self._on_disk = on_disk
            self._changes.bump()

    def counts(self, node_id: str, pid: int) -> bool:
        """Whether the word of this Envoy may be passed on."""
        return (node_id, pid) in self._on_disk

    def secrets_alone(self) -> list[Envoy]:
        """One for each stream of secrets alone, those that ended a moment ago included."""
        return [known.envoy for known in self._streams.values()]

    def everything(self) -> tuple[Envoy, ...]:
        """All, for the disk."""
        return tuple(known.envoy for known in (*self._sidecars.values(), *self._streams.values()))

    async def run(self) -> None:
        """Forget those whose process has ended, for ever."""
        while True:
            seen = self.kept.count
            self.forget_ended()
            if any(known.absent_since is not None for known in (*self._sidecars.values(), *self._streams.values())):
                await self._clock.sleep(LOOK_EVERY)
            else:
                await self.kept.beyond(seen)

    def forget_ended(self) -> None:
        """Look once."""
        oldest = self._clock.monotonic() - SECRETS_ABSENT
        gone = [key for key, known in self._sidecars.items() if self._is_gone(known)]
        for key in gone:
            del self._sidecars[key]
        over = [s for s, k in self._streams.items() if self._is_gone(k) or (k.absent_since or oldest) < oldest]
        for stream in over:
            del self._streams[stream]
        if gone or over:
            self._tell()

    def _is_gone(self, known: _Known) -> bool:
        envoy = known.envoy
        return known.absent_since is not None and self._started(envoy.pid) != envoy.started

    def _tell(self) -> None:
        self.kept.bump()
        self._changes.bump()

    def _make_room(self, pid: int, spiffe_id: str) -> None:
        everyone = {key: known.envoy.spiffe_id for key, known in self._sidecars.items()} | self._open
        of_process = [key for key in everyone if key[1] == pid]
        if len(of_process) >= MAX_OF_PROCESS:
            # A process that goes on under another name has nothing more to say under the one before.
            away = next((key for key in of_process if key not in self._open), None)
            if away is not None:
                del self._sidecars[away], everyone[away]
                of_process.remove(away)
                self._tell()
        of_id = sum(other == spiffe_id for other in everyone.values())
        _ensure_room(len(everyone), len(of_process), of_id, MAX_OF_PROCESS, f"{spiffe_id} (pid {pid})")


def _ensure_room(everyone: int, of_process: int, of_id: int, most_of_process: int, who: str) -> None:
    free = MAX_ENVOYS - everyone
    if of_process >= most_of_process:
        raise Exhausted(f"{who} has {of_process} streams of this kind, and may have no more")
    if free <= 0 or of_id >= max(free, most_of_process):
        raise Exhausted(f"there is no room for one more Envoy of {who} on this node")
