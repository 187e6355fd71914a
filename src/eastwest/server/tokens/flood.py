"""What callers of the token port may make it read: each frame is paid for before anything else looks at it.

Known by their certificates, callers have one allowance each (``eastwest.rpc.limits.Allowance``) however many
connections they have; a token that was made earns some of it back, a refusal nothing.
"""

from __future__ import annotations

from collections import OrderedDict

from eastwest.rpc import frames, limits
from eastwest.rpc.limits import Allowance

MAX_CALLERS = 20_000
REQUEST_COST = 2
"""Of a request of HTTP/1.1: as much as its frames would cost."""
TOKEN_REWARD = 4


class Allowances:
    """One for each caller; that of the caller who was here longest ago is forgotten."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, Allowance] = OrderedDict()

    def of(self, caller: str, now: float) -> Allowance:
        """The caller's; ``now`` is in seconds of any steady clock."""
        found = self._of.get(caller)
        if found is None:
            found = self._of[caller] = Allowance(now)
        self._of.move_to_end(caller)
        if len(self._of) > MAX_CALLERS:
            self._of.popitem(last=False)
        return found


class Meter:
    """Follows one connection's frames by their heads alone, wherever the bytes are cut."""

    __slots__ = ("_allowance", "_head", "_skip")

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._head = bytearray()
        self._skip = len(frames.PREFACE)

    def count(self, data: bytes, now: float) -> None:
        """Pay for the frames that begin in ``data``; raises ``Fault`` when the caller has nothing left."""
        at, end = 0, len(data)
        while at < end:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
                at += step
                continue
            part = data[at : at + frames.HEAD - len(self._head)]
            self._head += part
            at += len(part)
            if len(self._head) == frames.HEAD:
                self._skip = int.from_bytes(self._head[:3])
                self._allowance.spend(_cost(self._head[3], self._skip), now)
                self._head.clear()


def _cost(kind: int, size: int) -> int:
    if kind in {frames.HEADERS, frames.CONTINUATION} and size >= limits.HEADERS_FREE:
        return size // limits.HEADERS_PER_FRAME
    return limits.RESET_COST if kind == frames.RST_STREAM else 1
