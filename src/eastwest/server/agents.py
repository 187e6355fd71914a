"""``eastwest.control.v1.Control``: the stream that agents live on, and their reports."""

from __future__ import annotations

import msgspec

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.errors import InvalidInput
from eastwest.rpc.service import Call, Service
from eastwest.server.control import ControlHub
from eastwest.server.gate import Gate
from eastwest.server.telemetry import Metrics
from eastwest.store.ledger import SqliteLedger

MAX_REPORT = 20_000
"""Decisions in one report."""
_SERVICE = pb.DESCRIPTOR.services_by_name["Control"]


def control_service(hub: ControlHub, ledger: SqliteLedger, metrics: Metrics, gate: Gate) -> Service:
    """The service of the agents' port."""

    async def subscribe(_request: None, call: Call) -> None:
        agent = await gate.agent(call)
        await hub.serve(agent.id, call)

    async def report(request: pb.ReportDecisionsRequest, call: Call) -> pb.ReportDecisionsResponse:
        agent = await gate.agent(call)
        try:
            rows = msgspec.json.decode(request.decisions or b"[]", type=list[msgspec.Raw])
            if len(rows) > MAX_REPORT:
                raise InvalidInput(f"a report has at most {MAX_REPORT} decisions")
            await ledger.add(str(agent.id), rows, request.lost)
        except msgspec.MsgspecError as error:
            raise InvalidInput(f"the report is malformed: {error}") from None
        metrics.decisions.inc(len(rows))
        metrics.decisions_lost.inc(request.lost)
        return pb.ReportDecisionsResponse()

    return Service(_SERVICE, {"Subscribe": subscribe, "ReportDecisions": report})
