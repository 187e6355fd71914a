"""``eastwest.verification.v1.Verification``: a run by an administrator's prober."""

from __future__ import annotations

import msgspec

from eastwest.api.eastwest.verification.v1 import verification_pb2 as pb
from eastwest.errors import InvalidInput
from eastwest.policy.canary import Observation
from eastwest.rpc.service import MAX_MESSAGE, Call, Service
from eastwest.server.gate import Gate
from eastwest.server.verification.keeper import Verification

_SERVICE = pb.DESCRIPTOR.services_by_name["Verification"]
MAX_SERVICES = 1_000


def verification_service(verification: Verification, gate: Gate) -> Service:
    """The gRPC service, for one gate."""

    async def begin(request: pb.BeginRunRequest, call: Call) -> pb.BeginRunResponse:
        administrator = await gate.admin(call)
        if len(request.services) > MAX_SERVICES:
            raise InvalidInput(f"at most {MAX_SERVICES} services can be named")
        plan = await verification.begin(request.services, administrator)
        return pb.BeginRunResponse(run=plan.run, plan=msgspec.json.encode(plan))

    async def issue(request: pb.IssueCanariesRequest, call: Call) -> pb.IssueCanariesResponse:
        administrator = await gate.admin(call)
        wanted = [(one.spiffe_id, one.csr, one.ttl) for one in request.wanted]
        chains = await verification.issue(request.run, wanted, administrator)
        return pb.IssueCanariesResponse(issued=[pb.IssueCanariesResponse.Issued(chain=chain) for chain in chains])

    async def finish(request: pb.FinishRunRequest, call: Call) -> pb.FinishRunResponse:
        await gate.admin(call)
        if request.abandoned:
            verification.abandon(request.run)
            return pb.FinishRunResponse()
        try:
            seen = msgspec.json.decode(request.observations, type=list[Observation])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInput(f"the observations are malformed: {error}") from None
        report = await verification.finish(request.run, seen, request.allow_ports)
        return pb.FinishRunResponse(report=msgspec.json.encode(report))

    async def last(_request: pb.GetLastRunRequest, call: Call) -> pb.GetLastRunResponse:
        await gate.admin(call)
        report = verification.report
        return pb.GetLastRunResponse(report=msgspec.json.encode(report) if report is not None else b"")

    return Service(
        _SERVICE,
        {"BeginRun": begin, "IssueCanaries": issue, "FinishRun": finish, "GetLastRun": last},
        guard=gate.enter,
        limit=MAX_MESSAGE,
    )
