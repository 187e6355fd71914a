"""``eastwest.approvals.v1.Approvals``: what administrators ask and decide."""

from __future__ import annotations

from eastwest.api.eastwest.approvals.v1 import approvals_pb2 as pb
from eastwest.clock import Clock
from eastwest.issuance.transaction import Wanted
from eastwest.registry.approvals import Approval
from eastwest.rpc.service import SMALL_MESSAGE, Call, Service
from eastwest.server.gate import Gate
from eastwest.server.tokens.approvals import Approvals

_SERVICE = pb.DESCRIPTOR.services_by_name["Approvals"]
DEFAULT_PAGE = 100


class ApprovalService:
    """The API over ``Approvals``, for one gate."""

    def __init__(self, approvals: Approvals, gate: Gate, clock: Clock) -> None:
        self._approvals = approvals
        self._gate = gate
        self._clock = clock

    def service(self) -> Service:
        """The gRPC service."""
        return Service(
            _SERVICE,
            {
                "RequestApproval": self._request,
                "GetApproval": self._get,
                "ListApprovals": self._list,
                "GrantApproval": self._grant,
                "RefuseApproval": self._refuse,
                "WithdrawApproval": self._withdraw,
            },
            guard=self._gate.enter,
            limit=SMALL_MESSAGE,
        )

    async def _request(self, request: pb.RequestApprovalRequest, call: Call) -> pb.Approval:
        administrator = await self._gate.administrator(call)
        wanted = Wanted(request.operation, request.tenant)
        self._approvals.check_request(administrator, request.caller, wanted)
        return self._told(await self._approvals.request(request.caller, wanted, request.reason, administrator.name))

    async def _get(self, request: pb.GetApprovalRequest, _call: Call) -> pb.Approval:
        return self._told(await self._approvals.get(request.id))

    async def _list(self, request: pb.ListApprovalsRequest, _call: Call) -> pb.ListApprovalsResponse:
        found = await self._approvals.listed(request.state, request.caller, request.limit or DEFAULT_PAGE)
        return pb.ListApprovalsResponse(approvals=[self._told(one) for one in found])

    async def _grant(self, request: pb.DecideApprovalRequest, call: Call) -> pb.Approval:
        administrator = await self._gate.administrator(call)
        return self._told(await self._approvals.grant(request.id, administrator, request.reason))

    async def _refuse(self, request: pb.DecideApprovalRequest, call: Call) -> pb.Approval:
        administrator = await self._gate.administrator(call)
        return self._told(await self._approvals.refuse(request.id, administrator, request.reason))

    async def _withdraw(self, request: pb.DecideApprovalRequest, call: Call) -> pb.Approval:
        administrator = await self._gate.administrator(call)
        return self._told(await self._approvals.withdraw(request.id, administrator, request.reason))

    def _told(self, approval: Approval) -> pb.Approval:
        return pb.Approval(
            id=approval.id,
            caller=approval.caller,
            operation=approval.operation,
            service=approval.service,
            domain=approval.domain,
            tenant=approval.tenant,
            reason=approval.reason,
            requested_by=approval.requested_by,
            requested_at=approval.requested_at,
            expires_at=approval.ends,
            state=approval.state_at(self._clock.now()),
            decided_by=approval.decided_by,
            decided_at=approval.decided_at,
            decision_reason=approval.decision_reason,
            approver=approval.approver,
            withdrawn_by=approval.withdrawn_by,
            withdrawn_at=approval.withdrawn_at,
            withdrawal_reason=approval.withdrawal_reason,
        )
