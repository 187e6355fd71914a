"""When enforcement points were connected and recording, and when not: what a record without a row means.

No row says that nobody called only where somebody was there to write one. Pure: spans in, gaps out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import msgspec

TOLERANCE = timedelta(seconds=60)
"""Shorter absences are no gap: an agent that restarts takes what its sidecars kept, and confesses what they lost."""
AGENT, STREAM, PROCESS = "agent", "stream", "process"
"""Why a span ended: the agent was gone; its sidecar ran on without it; or the sidecar itself ended, which is no gap."""


class Span(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One enforcement point was there from ``start`` to ``end`` (None: it still is). Times are aware, UTC.

    ``node`` is the sidecar's; "" for the agent itself, which has no ``spiffe_id``.
    """

    agent: str
    node: str = ""
    spiffe_id: str = ""
    start: datetime
    end: datetime | None = None
    why: str = ""  # AGENT, STREAM or PROCESS once it has ended


class Gap(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Nobody wrote down what was called here. ``agent`` is "" where the service had no sidecar at all."""

    agent: str = ""
    node: str = ""
    start: datetime
    end: datetime

    @property
    def length(self) -> timedelta:
        return self.end - self.start


def gaps(spans: Iterable[Span], start: datetime, end: datetime, tolerance: timedelta = TOLERANCE) -> list[Gap]:
    """Absences longer than ``tolerance`` of any point, and times without any, clipped to the window, by their start.

    Shorter ones count where they are not over at the end of the window.

    ``spans``: those of one service's points, and of their agents.
    """
    points: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        points[span.agent, span.node].append(span)
    found: list[Gap] = []
    sidecars = [key for key in points if key[1]]
    for agent, node in sidecars or list(points):
        of_point = sorted(points[agent, node], key=lambda span: span.start)
        agents = sorted(points.get((agent, ""), ()), key=lambda span: span.start)
        for span, following in zip(of_point, [*of_point[1:], None], strict=True):
            if span.end is None or span.why == PROCESS:
                continue
            back = following.start if following is not None else _returned(span, agents, end)
            found.append(Gap(agent=agent, node=node, start=span.end, end=back))
    found += _nobody([span for key in sidecars or list(points) for span in points[key]], start, end)
    clipped = (
        msgspec.structs.replace(gap, start=max(gap.start, start), end=min(gap.end, end))
        for gap in found
        if gap.start < end and gap.end > start
    )
    # One that goes on at the end may become any length.
    told = (gap for gap in clipped if gap.length > tolerance or (gap.end == end and gap.length))
    return sorted(told, key=lambda gap: (gap.start, gap.agent, gap.node))


def recording_since(spans: Iterable[Span]) -> datetime | None:
    """Since when anybody was there at all."""
    return min((span.start for span in spans), default=None)


def uptime(spans: Sequence[Span], found: Sequence[Gap], start: datetime, end: datetime) -> float:
    """The share of the window in which no point was missing, 0 to 1."""
    since = recording_since(spans)
    whole = (end - start).total_seconds()
    if since is None or whole <= 0:
        return 0.0
    missing = _length([(start, max(min(since, end), start)), *((gap.start, gap.end) for gap in found)])
    return max(0.0, 1.0 - missing / whole)


def _returned(span: Span, agents: Sequence[Span], end: datetime) -> datetime:
    """When a point that did not come back could be known to be gone: once its agent was there again."""
    assert span.end is not None
    ended = span.end
    if span.why == AGENT:
        return next((one.start for one in agents if one.start >= ended), end)
    return end


def _nobody(spans: Sequence[Span], start: datetime, end: datetime) -> list[Gap]:
    """Times after the first span in which no point of the service was there."""
    found, until = [], None
    for span in sorted(spans, key=lambda span: span.start):
        if until is not None and span.start > until:
            found.append(Gap(start=until, end=span.start))
        ended = span.end or end
        until = ended if until is None else max(until, ended)
    if until is not None and until < end:
        found.append(Gap(start=max(until, start), end=end))
    return found


def _length(parts: Iterable[tuple[datetime, datetime]]) -> float:
    total, until = 0.0, None
    for start, end in sorted(parts):
        begin = start if until is None else max(start, until)
        total += max(0.0, (end - begin).total_seconds())
        until = end if until is None else max(until, end)
    return total
