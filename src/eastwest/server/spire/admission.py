"""How many nodes may be proving themselves at a time: anybody may try, so each try is bounded before it costs much."""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from eastwest.clock import Clock
from eastwest.errors import Exhausted

MAX_AT_ONCE = 256
MAX_AT_ONCE_OF_SOURCE = MAX_AT_ONCE // 4
LONGEST_WAIT = 10.0
"""Seconds that an attempt may have to wait for its turn; one that would wait longer is refused at once."""
MAX_SOURCES = 10_000


class Admission:
    """A bucket of attempts for each source, and a bound on all together.

    No source holds more than a quarter of the places, nor more than it leaves free: those that came first, however
    many places they hold, leave some to the next.

    A source is an IPv4 address or an IPv6 network of 64 bits. It may make ``burst`` attempts at once, and ``rate`` a
    second after that; further ones wait for their turn, so that a site of many nodes behind one address gets in.
    """

    def __init__(self, rate: float, burst: int, clock: Clock) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # attempts left, and when that was so
        self._under_way: Counter[str] = Counter()

    @asynccontextmanager
    async def attempt(self, address: str) -> AsyncIterator[None]:
        """Hold a place for one attempt from ``address``. Raises ``Exhausted``; ``""`` (no network) is not bounded."""
        if not address:
            yield
            return
        source = _source(address)
        free = MAX_AT_ONCE - self._under_way.total()
        if self._under_way[source] >= min(MAX_AT_ONCE_OF_SOURCE, free):
            raise Exhausted("too many nodes are attesting", fix="try again in some seconds")
        delay = self._take(source)
        self._under_way[source] += 1
        try:
            if delay > 0:
                await self._clock.sleep(delay)
            yield
        finally:
            self._under_way[source] -= 1
            if not self._under_way[source]:
                del self._under_way[source]

    def _take(self, source: str) -> float:
        """Take an attempt out of the source's bucket; gives the seconds until it is due."""
        now = self._clock.monotonic()
        left, at = self._buckets.pop(source, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._rate) - 1
        delay = -left / self._rate
        if delay > LONGEST_WAIT:
            left += 1
        self._buckets[source] = (left, now)
        while len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        if delay > LONGEST_WAIT:
            raise Exhausted(
                f"too many attestations from {source}", fix="try again in some seconds, or raise attest_rate"
            )
        return delay


def _source(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)
