"""``eastwest.changes.v1.Changes``: what administrators ask and decide."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from eastwest.api.eastwest.changes.v1 import changes_pb2 as pb
from eastwest.registry.administrators import Administrator
from eastwest.registry.changes import Change, whose
from eastwest.rpc.service import Call, Service
from eastwest.server.changes.judging import told, told_widenings
from eastwest.server.changes.keeper import Changes
from eastwest.server.gate import Gate

_SERVICE = pb.DESCRIPTOR.services_by_name["Changes"]
DEFAULT_PAGE = 100
_Step = Callable[[str, Administrator, str], Awaitable[Change]]


class ChangeService:
    """The API over ``Changes``, for one gate."""

    def __init__(self, changes: Changes, gate: Gate) -> None:
        self._changes = changes
        self._gate = gate

    def service(self) -> Service:
        """The gRPC service."""
        return Service(
            _SERVICE,
            {
                "GetJudgement": self._judge,
                "RequestChange": self._request,
                "GetChange": self._get,
                "ListChanges": self._list,
                "ApproveChange": self._deciding(self._changes.approve),
                "RefuseChange": self._deciding(self._changes.refuse),
                "WithdrawChange": self._deciding(self._changes.withdraw),
            },
            guard=self._gate.enter,
        )

    async def _judge(self, request: pb.GetJudgementRequest, call: Call) -> pb.Reply:
        administrator = await self._gate.administrator(call)
        judgement = await self._changes.judge(dict(request.files))
        change = await self._changes.approved(judgement, administrator.name)
        approved = {"approved_change": change.id if change is not None else ""}
        return _reply(told(judgement, {administrator.name}) | approved)

    async def _request(self, request: pb.RequestChangeRequest, call: Call) -> pb.Reply:
        administrator = await self._gate.administrator(call)
        return _reply(shown(await self._changes.request(dict(request.files), request.reason, administrator)))

    async def _get(self, request: pb.GetChangeRequest, call: Call) -> pb.GetChangeResponse:
        await self._gate.administrator(call)
        change = await self._changes.get(request.id)
        files = await self._changes.files(change.id) if request.files else {}
        return pb.GetChangeResponse(json=msgspec.json.encode(shown(change)), files=files)

    async def _list(self, request: pb.ListChangesRequest, call: Call) -> pb.Reply:
        await self._gate.administrator(call)
        found = await self._changes.listed(request.state, request.limit or DEFAULT_PAGE)
        return _reply([shown(one) for one in found])

    def _deciding(self, step: _Step) -> Callable[[Any, Call], Awaitable[pb.Reply]]:
        async def decide(request: pb.DecideChangeRequest, call: Call) -> pb.Reply:
            administrator = await self._gate.administrator(call)
            return _reply(shown(await step(request.id, administrator, request.reason)))

        return decide


def shown(change: Change) -> dict[str, Any]:
    """A change as commands show it. Times are Unix seconds, 0 where something has not happened."""
    return {
        "id": change.id,
        "state": change.state.value,
        "version": change.version,
        "base": change.base,
        "reason": change.reason,
        "requested_by": change.requested_by,
        "requested_at": change.requested_at,
        "ends": change.ends,
        "evidence": change.evidence,
        "requirements": [
            {"domain": one.domain, "owner": one.owner, "of": whose(one), "why": one.why} for one in change.requirements
        ],
        "widenings": told_widenings(change.widenings),
        "approvals": [msgspec.to_builtins(one) for one in change.approvals],
        "decided_by": change.decided_by,
        "decided_at": change.decided_at,
        "decision_reason": change.decision_reason,
    }


def _reply(value: object) -> pb.Reply:
    return pb.Reply(json=msgspec.json.encode(value))
