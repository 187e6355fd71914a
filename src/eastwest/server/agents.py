"""``eastwest.control.v1.Control``: the stream that agents live on, and their reports."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec
import structlog

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.errors import InvalidInput
from eastwest.ledger.record import Decision
from eastwest.rpc.service import Call, Service
from eastwest.server.control import MAX_ACK, ControlHub
from eastwest.server.gate import Gate
from eastwest.server.telemetry import Metrics
from eastwest.spiffe.id import SpiffeId
from eastwest.store.ledger import SqliteLedger

MAX_REPORT = 20_000
"""Decisions in one report."""
MAX_ROW = 16 * 1024
"""Bytes of one decision; an honest one has some hundreds."""
MAX_COUNT = 1 << 32
"""Calls that one row, or one confession of loss, may stand for."""
_SERVICE = pb.DESCRIPTOR.services_by_name["Control"]
_log = structlog.get_logger()


def control_service(
    hub: ControlHub,
    ledger: SqliteLedger,
    metrics: Metrics,
    gate: Gate,
    services: Callable[[SpiffeId], Collection[str]],
) -> tuple[Service, ...]:
    """What to serve on the agents' port; ``services`` says of which services an agent may report decisions."""

    async def subscribe(_request: None, call: Call) -> None:
        agent = await gate.agent(call)
        await hub.serve(agent.id, call, agent.not_after, lambda: gate.confirm(call))

    async def report(request: pb.ReportDecisionsRequest, call: Call) -> pb.ReportDecisionsResponse:
        agent = await gate.agent(call)
        rows, lost = _checked(request)
        served = services(agent.id)
        foreign = sorted({row.service for row in rows if row.service not in served})
        if foreign:
            kept = [row for row in rows if row.service in served]
            _log.warning(
                "ledger.foreign_decisions", agent=str(agent.id), rows=len(rows) - len(kept), services=foreign[:5]
            )
            rows, lost = kept, lost + len(rows) - len(kept)
        await ledger.add(str(agent.id), [msgspec.Raw(msgspec.json.encode(row)) for row in rows], lost)
        metrics.decisions.inc(len(rows))
        metrics.decisions_lost.inc(lost)
        return pb.ReportDecisionsResponse()

    return (
        Service(_SERVICE, {"Subscribe": subscribe}, guard=gate.enter, limit=MAX_ACK),
        Service(_SERVICE, {"ReportDecisions": report}, guard=gate.enter),
    )


def _checked(request: pb.ReportDecisionsRequest) -> tuple[list[Decision], int]:
    """The decisions and the loss that an agent tells of: nothing that a later reader could stumble over."""
    try:
        rows = msgspec.json.decode(request.decisions or b"[]", type=list[Decision])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"the report is malformed: {error}") from None
    if len(rows) > MAX_REPORT:
        raise InvalidInput(f"a report has at most {MAX_REPORT} decisions")
    if any(not 1 <= row.count <= MAX_COUNT for row in rows):
        raise InvalidInput(f"a decision stands for 1 to {MAX_COUNT} calls")
    if any(len(msgspec.json.encode(row)) > MAX_ROW for row in rows):
        raise InvalidInput(f"a decision has at most {MAX_ROW} bytes")
    return rows, min(request.lost, MAX_COUNT)
