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

MAX_ENVOYS = 1_000
"""Envoys of one node that are remembered; a server takes a report of no more."""
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
    """

    def __init__(self, clock: Clock, changes: Changes, started: Callable[[int], int]) -> None:
        self.kept = Changes()
        self._clock = clock
        self._changes = changes
        self._started = started
        self._sidecars: dict[tuple[str, int], _Known] = {}
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
        self._bound()
        self._tell()
        return True

    def left(self, node_id: str, pid: int) -> None:
        """The stream of a sidecar has ended."""
        known = self._sidecars.get((node_id, pid))
        if known is not None and known.absent_since is None:
            self._sidecars[node_id, pid] = replace(known, absent_since=self._clock.monotonic())
            self._tell()

    def taken(self, stream: object, pid: int, spiffe_id: str, given: object) -> None:
        """A stream of secrets alone stands at ``given``."""
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
        self._streams[stream] = _Known(envoy)
        self._bound()
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

    def _bound(self) -> None:
        while len(self._sidecars) > MAX_ENVOYS:
            del self._sidecars[next(iter(self._sidecars))]
        while len(self._streams) > MAX_ENVOYS:
            del self._streams[next(iter(self._streams))]
