"""Rules for applications that enforce by themselves (``eastwest.sdk``), on the agent's socket.

Each caller hears of its own workload only, and is believed only about services that its workload serves.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message

from eastwest.agent.callers import Attest, Caller, live_entries
from eastwest.agent.entries import path_of
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.recording import Recording
from eastwest.api.eastwest.enforcement.v1 import enforcement_pb2 as api
from eastwest.clock import Clock
from eastwest.errors import InvalidInput, PermissionDenied
from eastwest.ledger.record import Decision, Lost, LostReason
from eastwest.mesh.action import inbound_version
from eastwest.policy.emergency import is_emergency
from eastwest.policy.enforcement import DecisionCode, Inbound, Sidecar, Verdict, encode_sidecar
from eastwest.rpc.service import Call, Service
from eastwest.spiffe.id import SpiffeId, TrustDomain

MAX_REPORT = 4 * 1024 * 1024
MAX_DECISIONS = 20_000
"""Decisions of one report."""
MAX_TEXT = 256
MAX_TIME = 1 << 40
MAX_LOST = 1 << 24
"""Decisions that one confession may be about."""
_RECENT = timedelta(hours=1)
_TRACE = re.compile("[0-9a-f]{32}")

UseToken = Callable[[str, int, str, str], Awaitable[bool]]
"""As ``eastwest.agent.connection.ServerConnection.use_token``."""


class Enforcement:
    """Serves callers that ``attest`` vouches for; ``record`` takes decisions and must not block."""

    def __init__(
        self,
        knowledge: Knowledge,
        attest: Attest,
        clock: Clock,
        use_token: UseToken,
        record: Callable[[Sequence[Decision]], None],
        confess: Callable[[Sequence[Lost]], None],
        recording: Recording,
    ) -> None:
        """``confess`` takes what callers say they lost; ``recording`` knows whether decisions can be kept."""
        self._knowledge = knowledge
        self._attest = attest
        self._clock = clock
        self._use_token = use_token
        self._record = record
        self._confess = confess
        self._recording = recording

    def service(self) -> Service:
        """To be added to the agent's listener."""
        return Service(
            api.DESCRIPTOR.services_by_name["Enforcement"],
            {"Watch": self._watch, "UseToken": self._use, "Report": self._report},
            limit=MAX_REPORT,
        )

    async def _watch(self, _: api.WatchRequest, call: Call) -> None:
        caller = await self._attest(call)
        sent: bytes | None = None
        while True:
            seen = self._knowledge.changes.count
            message = self._rules(self._sidecar(caller))
            body = message.SerializeToString(deterministic=True)
            if body != sent:
                await call.send(message)
                sent = body
                continue
            await self._knowledge.changes.beyond(seen)

    async def _use(self, request: api.UseTokenRequest, call: Call) -> api.UseTokenResponse:
        if not 0 < len(request.token_id) <= MAX_TEXT or not 0 < request.expires_at < MAX_TIME:
            raise InvalidInput("a token has an id and a time of expiry")
        if len(request.approval_id) > MAX_TEXT:
            raise InvalidInput("the approval's id is too long")
        sidecar = self._sidecar(await self._attest(call))
        if not any(o.name == request.operation and o.single_use for i in _inbound(sidecar) for o in i.operations):
            raise PermissionDenied("the caller serves no such operation that demands single-use")
        usable = await self._use_token(request.token_id, request.expires_at, request.approval_id, request.operation)
        return api.UseTokenResponse(usable=usable)

    async def _report(self, request: api.ReportRequest, call: Call) -> api.ReportResponse:
        if len(request.decisions) > MAX_DECISIONS:
            raise InvalidInput(f"a report has at most {MAX_DECISIONS} decisions")
        sidecar = self._sidecar(await self._attest(call))
        served = {inbound.service: inbound for inbound in _inbound(sidecar)}
        version = ""
        if sidecar is not None:
            told = self._knowledge.state.policy_version_of(SpiffeId.parse(sidecar.spiffe_id))
            version = told or sidecar.version
        decisions = [self._decision(said, served, version) for said in request.decisions]
        self._record(decisions)
        if request.lost:
            now = self._clock.now()
            since = _time(request.lost_since_unix_ms, now)
            service = next(iter(served)) if len(served) == 1 else ""
            count = min(request.lost, MAX_LOST)
            self._confess([Lost(time=since, until=now, count=count, cause=LostReason.SDK_DROPPED, service=service)])
        return api.ReportResponse()

    def _sidecar(self, caller: Caller) -> Sidecar | None:
        """The table of the first of the caller's identities that has one."""
        entries = live_entries(self._knowledge, caller.selectors, self._clock)
        sidecars = self._knowledge.state.sidecars
        found = next((sidecars[entry.spiffe_id] for entry in entries if entry.spiffe_id in sidecars), None)
        return self._recording.now(found) if found is not None else None

    def _rules(self, sidecar: Sidecar | None) -> Message:
        state = self._knowledge.state
        callers = sidecar.federated_callers if sidecar is not None else ()
        domains = {state.trust_domain, *map(TrustDomain, callers)}
        return api.Rules(
            trust_domain=state.trust_domain.name,
            sidecar=encode_sidecar(sidecar) if sidecar is not None else b"",
            token_keys=state.token_keys,
            contained=state.contained.spiffe_ids,
            bundles={d.name: state.bundles[d].x509_der for d in sorted(domains) if d in state.bundles},
        )

    def _decision(self, said: api.Decision, served: dict[str, Inbound], version: str) -> Decision:
        inbound = served.get(said.service)
        if inbound is None:
            raise PermissionDenied("the caller serves no such service")
        if said.code not in DecisionCode.__members__ or said.report_code not in {"", *DecisionCode.__members__}:
            raise InvalidInput("there is no such decision code")
        texts = (said.caller, said.operation, said.tenant, said.method, said.policy, said.transaction, said.approver)
        caller, operation, tenant, method, policy, transaction, approver = (text[:MAX_TEXT] for text in texts)
        return Decision(
            time=_time(said.time_unix_ms, self._clock.now()),
            service=inbound.service,
            verdict=Verdict.ALLOW if said.allowed else Verdict.DENY,
            code=DecisionCode(said.code),
            mode=inbound.mode,
            enforced=said.enforced,
            caller=caller,
            operation=operation,
            tenant=tenant,
            method=method,
            policy=policy,
            policy_version=version,
            rules_version=inbound_version(inbound),
            reference=said.reference[:MAX_TEXT],
            source=said.source[:MAX_TEXT],
            transaction=transaction,
            approver=approver,
            sensor="sdk",
            path=path_of(said.path),
            cause=said.cause[:MAX_TEXT],
            token=said.token,
            origin=said.origin[:MAX_TEXT],
            trace=said.trace if _TRACE.fullmatch(said.trace) else "",
            break_glass=said.allowed and is_emergency(inbound, operation, caller, tenant),
            report_code=said.report_code,
            report_policy=said.report_policy[:MAX_TEXT],
        )


def _time(unix_ms: int, now: datetime) -> datetime:
    try:
        time = datetime.fromtimestamp(unix_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return now
    return time if abs(now - time) <= _RECENT else now


def _inbound(sidecar: Sidecar | None) -> tuple[Inbound, ...]:
    return sidecar.inbound if sidecar is not None else ()
