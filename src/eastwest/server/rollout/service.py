"""``eastwest.rollout.v1.Rollout``: versions and rollouts, for administrators."""

from __future__ import annotations

from typing import Any

import msgspec

from eastwest.api.eastwest.rollout.v1 import rollout_pb2 as pb
from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.policy.rollout import State
from eastwest.rpc.service import SMALL_MESSAGE, Call, Service
from eastwest.server.activation import Wish, rollout_facts
from eastwest.server.control import ControlHub
from eastwest.server.estate import EstateKeeper
from eastwest.server.gate import Gate
from eastwest.server.rollout.keeper import RolloutKeeper
from eastwest.server.rollout.status import Verified, status, versions
from eastwest.server.view import AgentView
from eastwest.store.estate import AppliedEstate, SqliteEstates

MAX_VERSIONS = 1_000
MAX_TEXT = 256
_SERVICE = pb.DESCRIPTOR.services_by_name["Rollout"]


class RolloutService:
    """Reports, and steps by people."""

    def __init__(
        self,
        estate: EstateKeeper,
        store: SqliteEstates,
        keeper: RolloutKeeper,
        hub: ControlHub,
        view: AgentView,
        gate: Gate,
    ) -> None:
        self._estate = estate
        self._store = store
        self._keeper = keeper
        self._hub = hub
        self._view = view
        self._gate = gate
        self.verified: Verified = lambda _agent, _node: None

    def service(self) -> Service:
        """To be added to a listener."""
        return Service(
            _SERVICE,
            {
                "GetStatus": self._status,
                "ListVersions": self._versions,
                "GetRollback": self._preview,
                "Rollback": self._rollback,
                "Promote": self._promote,
                "Pause": self._pause,
                "Resume": self._resume,
            },
            guard=self._gate.enter,
            limit=SMALL_MESSAGE,
        )

    async def _status(self, _request: pb.GetStatusRequest, _call: Call) -> pb.Report:
        return _told(status(self._hub, self._estate.tables, self._view, self.verified))

    async def _versions(self, request: pb.ListVersionsRequest, _call: Call) -> pb.Report:
        limit = min(request.limit or 50, MAX_VERSIONS)
        found = versions(await self._store.versions(limit), await self._store.rollouts(limit))
        return _told({"versions": found})

    async def _preview(self, request: pb.RollbackRequest, call: Call) -> pb.Report:
        await self._gate.administrator(call)
        found = await self._wanted(request.version)
        plan = await self._estate.preview(found.files)
        return _told(self._about(found) | {"plan": plan.to_dict()})

    async def _rollback(self, request: pb.RollbackRequest, call: Call) -> pb.Report:
        administrator = await self._gate.administrator(call)
        if request.expected_version not in {"", self._estate.version}:
            raise FailedPrecondition(
                f"version {self._estate.version[:12]} is in force, not {request.expected_version[:12]}",
                fix="look again at what rollback would change",
            )
        if len(request.change) > MAX_TEXT:
            raise InvalidInput(f"the id of a change has at most {MAX_TEXT} characters")
        found = await self._wanted(request.version)
        about = self._about(found)
        if about["unfinished"] or self._estate.cut_short(found) is not None:
            # Nothing is put in force that was not there a moment ago, or when a break-glass began: nobody has to
            # approve of it.
            actor = await self._gate.admin(call)
            await self._estate.restore(
                found.version,
                actor,
                "rollback",
                state=State.ROLLED_BACK,
                reason=f"by {actor}",
                only=self._estate.tables.progress if about["unfinished"] else None,
            )
        else:
            wish = Wish(change=request.change, cause="rollback")
            await self._estate.apply(found.files, self._estate.version, administrator, wish)
        return _told(about | {"version": self._estate.version})

    async def _promote(self, request: pb.StepRequest, call: Call) -> pb.Report:
        return _told(rollout_facts(await self._keeper.promote(await self._gate.admin(call), request.expected_version)))

    async def _pause(self, request: pb.StepRequest, call: Call) -> pb.Report:
        return _told(rollout_facts(await self._keeper.pause(await self._gate.admin(call), request.expected_version)))

    async def _resume(self, request: pb.StepRequest, call: Call) -> pb.Report:
        return _told(rollout_facts(await self._keeper.resume(await self._gate.admin(call), request.expected_version)))

    async def _wanted(self, prefix: str) -> AppliedEstate:
        """The version that is meant: by the beginning of its name, or the one before."""
        progress, applied = self._estate.tables.progress, self._estate.applied
        if not prefix:
            open_ = progress is not None and progress.is_open
            prefix = progress.previous if progress is not None and open_ else applied.previous if applied else ""
            if not open_ and applied is not None and applied.cause:
                # The one before was left on purpose, perhaps by the brake.
                raise FailedPrecondition(
                    f"version {applied.version[:12]} came back itself ({applied.cause})",
                    fix="name the version: see eastwest policy versions",
                )
            if not prefix:
                raise FailedPrecondition("no version was in force before this one", fix="see eastwest policy versions")
        found = await self._estate.find_version(prefix)
        if found.version == self._estate.version:
            raise FailedPrecondition(f"version {found.version[:12]} is in force", fix="see eastwest policy versions")
        return found

    def _about(self, found: AppliedEstate) -> dict[str, Any]:
        progress = self._estate.tables.progress
        unfinished = progress is not None and progress.is_open and progress.previous == found.version
        return {
            "from": self._estate.version,
            "to": found.version,
            "applied_at": found.applied_at.isoformat().replace("+00:00", "Z"),
            "applied_by": found.applied_by,
            "unfinished": unfinished,
        }


def _told(report: object) -> pb.Report:
    return pb.Report(json=msgspec.json.encode(report))
