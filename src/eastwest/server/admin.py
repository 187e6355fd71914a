"""``eastwest.admin.v1.Admin``: what operators ask and change over the admin socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from eastwest import __version__
from eastwest.api.eastwest.admin.v1 import admin_pb2 as pb
from eastwest.api.spire.api.types import types_pb2
from eastwest.clock import Clock
from eastwest.errors import InvalidInput
from eastwest.registry.authorization import BreakGlass
from eastwest.registry.registry import Registry
from eastwest.rpc.service import Call, Service
from eastwest.server.activation import Wish
from eastwest.server.control import AgentStream, ControlHub
from eastwest.server.estate import EstateKeeper
from eastwest.server.gate import Gate
from eastwest.server.journal import Journal
from eastwest.server.ledger.keeper import Ledger
from eastwest.server.ledger.service import DecisionQueries
from eastwest.server.registration.entries import ManagedEntries
from eastwest.server.registration.nodes import NodeQueries
from eastwest.server.registration.tokens import check_token
from eastwest.spiffe.id import SpiffeId
from eastwest.store.log import SqliteLog

MAX_REASON = 1024
_SERVICE = pb.DESCRIPTOR.services_by_name["Admin"]


class AdminService:
    """Status, tokens, estate, mesh and decisions."""

    def __init__(
        self,
        registry: Registry,
        estate: EstateKeeper,
        hub: ControlHub,
        ledger: Ledger,
        log: SqliteLog,
        journal: Journal,
        clock: Clock,
        gate: Gate,
    ) -> None:
        self._registry = registry
        self._estate = estate
        self._hub = hub
        self._log = log
        self._journal = journal
        self._clock = clock
        self._gate = gate
        self._entries = ManagedEntries(registry, hub, journal, clock, gate)
        self._nodes = NodeQueries(registry, hub, journal, clock, gate)
        self._ledger = ledger
        self._decisions = DecisionQueries(ledger, lambda: estate.intended, gate)
        self._started = clock.monotonic()
        self.agent_address = ""
        self.health_address = ""
        self.before_flush: Callable[[], Awaitable[None]] = _nothing_waits

    def service(self) -> Service:
        """The gRPC service."""
        return Service(
            _SERVICE,
            {
                "GetStatus": self._status,
                "CreateJoinToken": self._create_join_token,
                "GetEstate": self._get_estate,
                "ApplyEstate": self._apply_estate,
                "PlanEstate": self._plan_estate,
                **self._entries.handlers(),
                **self._nodes.handlers(),
                "GetMeshStatus": self._mesh_status,
                **self._decisions.handlers(),
                "FlushLog": self._flush_log,
            },
            guard=self._gate.enter,
        )

    async def _status(self, _request: pb.GetStatusRequest, _call: Call) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(
            trust_domain=self._registry.trust_domain.name,
            server_version=__version__,
            uptime_seconds=int(self._clock.monotonic() - self._started),
            log_size=self._log.size,
            policy_version=self._estate.version,
            entries=self._registry.entries.count(),
            agents=self._registry.nodes.count(),
            agents_connected=self._hub.connected,
            agent_address=self.agent_address,
            metrics_address=self.health_address,
        )

    async def _create_join_token(self, request: pb.CreateJoinTokenRequest, call: Call) -> types_pb2.JoinToken:
        caller = await self._gate.administrator(call)
        actor = caller.name
        if request.group:
            self._estate.check_group(request.group)
        alias = SpiffeId.parse(request.spiffe_id) if request.spiffe_id else None
        environment = self._estate.environment_of_group(request.group)
        check_token(caller, self._registry, environment, alias, self._clock.now())
        token = await self._registry.tokens.create(self._clock.now(), ttl=request.ttl, group=request.group, alias=alias)
        await self._journal.record(
            "join_token.created", actor=actor, subject=str(alias or ""), group=request.group, ttl=request.ttl
        )
        return types_pb2.JoinToken(value=token.value, expires_at=token.expires_at)

    async def _get_estate(self, _request: pb.GetEstateRequest, _call: Call) -> pb.Estate:
        applied = self._estate.applied
        if applied is None:
            return pb.Estate()
        return pb.Estate(
            version=applied.version,
            files=applied.files,
            applied_at=int(applied.applied_at.timestamp()),
            applied_by=applied.applied_by,
        )

    async def _apply_estate(self, request: pb.ApplyEstateRequest, call: Call) -> pb.ApplyEstateResponse:
        caller = await self._gate.administrator(call)
        plan = await self._estate.apply(dict(request.files), request.expected_version, caller, _wish(request))
        return pb.ApplyEstateResponse(version=self._estate.version, plan=msgspec.json.encode(plan))

    async def _plan_estate(self, request: pb.PlanEstateRequest, call: Call) -> pb.PlanEstateResponse:
        caller = await self._gate.administrator(call)
        plan, refusal, warnings = await self._estate.plan(dict(request.files), caller)
        return pb.PlanEstateResponse(
            create=len(plan.create),
            update=len(plan.update),
            delete=len(plan.delete),
            foreign=dict(plan.foreign),
            refusal=refusal,
            warnings=warnings,
        )

    async def _mesh_status(self, _request: pb.GetMeshStatusRequest, _call: Call) -> pb.GetMeshStatusResponse:
        reply = pb.GetMeshStatusResponse(policy_version=self._estate.version)
        for agent, stream in sorted(self._hub.streams.items()):
            reply.agents.append(_agent_status(agent, stream))
        return reply

    async def _flush_log(self, request: pb.FlushLogRequest, _call: Call) -> pb.FlushLogResponse:
        await self.before_flush()
        if request.decisions:
            await self._ledger.seal_now()
        checkpoint = await self._log.flush()
        return pb.FlushLogResponse(size=checkpoint.size, checkpoint=checkpoint.text)


def _wish(request: pb.ApplyEstateRequest) -> Wish:
    """What comes with the files. Raises ``InvalidInput`` where it cannot be meant."""
    if max(len(request.change), len(request.break_glass)) > MAX_REASON:
        raise InvalidInput(f"a change's id and a reason have at most {MAX_REASON} characters")
    if bool(request.break_glass) != bool(request.break_glass_seconds) or request.break_glass_seconds < 0:
        raise InvalidInput("skipping approvals takes a reason and a time", fix="--break-glass REASON --for 1h")
    seconds = request.break_glass_seconds
    broken = BreakGlass(request.break_glass, seconds) if request.break_glass else None
    return Wish(request.change, broken, accept_breaks=request.accept_breaks)


async def _nothing_waits() -> None:
    """Where nobody counts events before telling the log."""


def _agent_status(agent: SpiffeId, stream: AgentStream) -> pb.GetMeshStatusResponse.Agent:
    return pb.GetMeshStatusResponse.Agent(
        agent_id=str(agent),
        connected=stream.session is not None,
        intended_number=stream.number,
        acknowledged_number=stream.acknowledged,
        agent_version=stream.version,
        sidecars=[
            pb.GetMeshStatusResponse.Sidecar(
                node_id=status.node_id,
                spiffe_id=status.spiffe_id,
                intended_version=status.intended_version,
                acknowledged_version=status.acknowledged_version,
                error=status.error,
                connected=status.connected,
            )
            for _, status in sorted(stream.sidecars.items())
        ],
    )
