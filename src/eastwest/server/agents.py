"""``eastwest.control.v1.Control``: the stream that agents live on, and their reports."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta

import msgspec
import structlog

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.errors import InvalidInput
from eastwest.ledger.record import MAX_COUNT, Decision, Lost, LostReason, Row
from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.rpc.service import Call, Service
from eastwest.server.control import MAX_ACK, ControlHub
from eastwest.server.gate import Gate
from eastwest.server.ledger.keeper import Ledger
from eastwest.server.telemetry import Metrics
from eastwest.spiffe.id import SpiffeId

MAX_REPORT = 20_000
"""Rows in one report."""
MAX_ROW = 16 * 1024
"""Bytes of one row; an honest one has some hundreds."""
OLDEST, AHEAD = timedelta(days=3653), timedelta(days=1)
"""How far a row's time may be from now: beyond it other people's stores cannot hold it, and retention never ends."""
MAX_SEQUENCE = 1 << 63
_SPOOL = re.compile("[0-9a-f]{32}")
_TRACE = re.compile("([0-9a-f]{32})?")
_SERVICE = pb.DESCRIPTOR.services_by_name["Control"]
_log = structlog.get_logger()


def control_service(
    hub: ControlHub,
    ledger: Ledger,
    metrics: Metrics,
    gate: Gate,
    services: Callable[[SpiffeId], Collection[str]],
    calls: Callable[[SpiffeId], Collection[tuple[str, str]]] = lambda _agent: (),
    took: Callable[[Sequence[Decision]], None] = lambda _rows: None,
    watch: Callable[[SpiffeId, Sequence[Decision]], None] = lambda _agent, _rows: None,
) -> tuple[Service, ...]:
    """What to serve on the agents' port; ``services`` says of which services an agent may report decisions.

    ``calls`` gives callers and services of which it may report that the one refused the other. ``took`` hears of rows
    that were stored, ``watch`` also of whose they are.
    """
    counted: dict[SpiffeId, tuple[str, int]] = {}
    """The last report of each agent that metrics have seen."""

    async def subscribe(_request: None, call: Call) -> None:
        agent = await gate.agent(call)
        hub.came_from(agent.id, call.peer_address)
        await hub.serve(agent.id, call, agent.not_after, lambda: gate.confirm(call))

    async def report(request: pb.ReportDecisionsRequest, call: Call) -> pb.ReportDecisionsResponse:
        agent = await gate.agent(call)
        rows = _checked(request, hub.now())
        served = services(agent.id)
        called = calls(agent.id)
        believed = [
            row.service in served
            or (not row.service if isinstance(row, Lost) else _by_a_caller(row) and (row.caller, row.service) in called)
            for row in rows
        ]
        if not all(believed):
            foreign = [row for row, kept in zip(rows, believed, strict=True) if not kept]
            names = sorted({row.service for row in foreign})[:5]
            _log.warning("ledger.foreign_decisions", agent=str(agent.id), rows=len(foreign), services=names)
            # What they say is not kept; how many they were is.
            rows = [*(row for row, kept in zip(rows, believed, strict=True) if kept), _refused(foreign)]
        held = await ledger.add(str(agent.id), request.spool, request.sequence, rows)
        # A report that comes again has the sequence that is held too.
        place = (request.spool, request.sequence)
        fresh = held == request.sequence and counted.get(agent.id) != place
        counted[agent.id] = place
        stored = [row for row in rows if isinstance(row, Decision)] if fresh else []
        metrics.decisions.inc(len(stored))
        took([row for row in stored if not row.canary])
        watch(agent.id, stored)
        metrics.decisions_lost.inc(sum(row.count for row in rows if isinstance(row, Lost)) if fresh else 0)
        return pb.ReportDecisionsResponse(sequence=held)

    return (
        Service(_SERVICE, {"Subscribe": subscribe}, guard=gate.enter, limit=MAX_ACK),
        Service(_SERVICE, {"ReportDecisions": report}, guard=gate.enter),
    )


def _by_a_caller(row: Decision) -> bool:
    """Whether the row is about a service that the caller's own side refused."""
    refused = row.code is DecisionCode.SERVER_REFUSED and row.verdict is Verdict.DENY
    return refused and row.enforced and not row.claimed


def _checked(request: pb.ReportDecisionsRequest, now: datetime) -> list[Row]:
    """The rows that an agent tells of: nothing that a later reader could stumble over.

    A row whose time or trace cannot be is not stored but counted as lost, and the others are stored: many workloads'
    rows come in one report, and none of them may cost the others theirs.
    """
    if not _SPOOL.fullmatch(request.spool) or not 0 < request.sequence < MAX_SEQUENCE:
        raise InvalidInput("a report names its spool by 32 hex digits, and its place in it from 1 on")
    try:
        rows = msgspec.json.decode(request.decisions or b"[]", type=list[Row])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the report is malformed: {error}") from None
    if len(rows) > MAX_REPORT:
        raise InvalidInput(f"a report has at most {MAX_REPORT} rows")
    for row in rows:
        if not (0 if isinstance(row, Lost) else 1) <= row.count <= MAX_COUNT:
            raise InvalidInput(f"a row stands for 1 to {MAX_COUNT} calls")
        if len(msgspec.json.encode(row)) > MAX_ROW:
            raise InvalidInput(f"a row has at most {MAX_ROW} bytes")
        if any(time.tzinfo is None for time in _times(row)):
            raise InvalidInput("a row's time names its zone")
    good = [row for row in rows if _is_possible(row, now)]
    if len(good) < len(rows):
        bad = [row for row in rows if not _is_possible(row, now)]
        _log.warning("ledger.impossible_rows", rows=len(bad))
        count = min(sum(row.count for row in bad), MAX_COUNT)
        good.append(Lost(time=now, until=now, count=count, cause=LostReason.REFUSED))
    return good


def _is_possible(row: Row, now: datetime) -> bool:
    readable = isinstance(row, Lost) or _TRACE.fullmatch(row.trace) is not None
    return readable and all(-AHEAD <= now - time <= OLDEST for time in _times(row))


def _times(row: Row) -> tuple[datetime, ...]:
    return (row.time, row.until) if isinstance(row, Lost) else (row.time,)


def _refused(rows: Sequence[Row]) -> Lost:
    times = [row.time for row in rows]
    until = [row.until if isinstance(row, Lost) else row.time for row in rows]
    count = min(sum(row.count for row in rows), MAX_COUNT)
    return Lost(time=min(times), until=max(until), count=count, cause=LostReason.REFUSED)
