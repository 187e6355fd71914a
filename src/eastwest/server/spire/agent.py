"""``spire.api.server.agent.v1.Agent``: nodes come in, renew, and are administered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from weakref import WeakValueDictionary

import structlog
from google.protobuf.empty_pb2 import Empty

from eastwest.api.spire.api.server.agent.v1 import agent_pb2 as pb
from eastwest.api.spire.api.types import types_pb2
from eastwest.attest.node import Attested, NodeAttestor
from eastwest.clock import Clock
from eastwest.errors import Error, FailedPrecondition, InvalidInput, NotFound, Unavailable
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import X509Request
from eastwest.pki.csr import verify_csr
from eastwest.pki.profile import AGENT
from eastwest.registry.listing import NodeFilter
from eastwest.registry.node import Node, Standing
from eastwest.registry.nodes import NodeBanned, UnknownNode
from eastwest.registry.registry import Registry
from eastwest.rpc.service import Call, Service
from eastwest.rpc.spire import (
    agent_to_proto,
    id_from_proto,
    masked,
    match_from_proto,
    selectors_from_proto,
    svid_to_proto,
)
from eastwest.server.gate import Gate, refusal
from eastwest.server.journal import Journal
from eastwest.server.registration.tokens import check_token
from eastwest.server.spire.admission import Admission
from eastwest.server.tally import Tally, reason_of
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.svid import X509Svid

MAX_PAYLOAD = 256 * 1024
FIRST_SECONDS = 10.0
ANSWER_SECONDS = 10.0
"""How long an agent may take for its first message, and for each answer."""
EVIDENCE_SECONDS = 30.0
"""How long judging may take in all, with whatever the attestor has to ask elsewhere."""
_SERVICE = pb.DESCRIPTOR.services_by_name["Agent"]
_log = structlog.get_logger()


class AgentService:
    """Attestation, renewal and administration of nodes."""

    def __init__(
        self,
        registry: Registry,
        issuer: Issuer,
        attestors: Mapping[str, NodeAttestor],
        journal: Journal,
        clock: Clock,
        svid_ttl: int,
        gate: Gate,
        admission: Admission,
        tally: Tally | None = None,
    ) -> None:
        """``tally`` tells the log of attempts that were refused."""
        self._tally = tally
        self._registry = registry
        self._issuer = issuer
        self._attestors = attestors
        self._journal = journal
        self._clock = clock
        self._svid_ttl = svid_ttl
        self._gate = gate
        self._admission = admission
        self._turns: WeakValueDictionary[SpiffeId, asyncio.Lock] = WeakValueDictionary()

    def service(self) -> Service:
        """The gRPC service."""
        return Service(
            _SERVICE,
            {
                "AttestAgent": self._attest,
                "RenewAgent": self._renew,
                "PostStatus": self._post_status,
                "CreateJoinToken": self._create_join_token,
                "CountAgents": self._count,
                "ListAgents": self._list,
                "GetAgent": self._get,
                "DeleteAgent": self._delete,
                "BanAgent": self._ban,
            },
            guard=self._gate.enter,
            limit=2 * MAX_PAYLOAD,
        )

    async def _attest(self, _request: None, call: Call) -> None:
        address = call.peer_address.rpartition(":")[0]
        async with self._admission.attempt(address):
            first = await _next(call, FIRST_SECONDS, "params", "the first message of AttestAgent has the params")
            csr, kind = first.params.params.csr, first.params.data.type
            try:
                try:
                    async with asyncio.timeout(EVIDENCE_SECONDS):
                        attested = await self._judge(first, call, address)
                except TimeoutError:
                    raise Unavailable(
                        f"the node's evidence could not be judged within {EVIDENCE_SECONDS:.0f} s", fix="try again"
                    ) from None
                agent = self._registry.trust_domain.id(attested.path)
                # One at a time for each node: of two attempts with the same evidence one sees what the other has done.
                async with self._turns.setdefault(agent, asyncio.Lock()):
                    self._ensure_may_attest(agent, kind, attested)
                    svid = await self._issue(agent, csr, kind, attested)
                    await self._admit(agent, kind, attested, svid)
            except Error as error:
                self._note_refusal(kind, error, address)
                raise
        _log.info("agent.attested", agent=str(agent), attestor=kind, address=call.peer_address)
        result = pb.AttestAgentResponse.Result(svid=svid_to_proto(svid), reattestable=attested.can_reattest)
        await call.send(pb.AttestAgentResponse(result=result))

    def _note_refusal(self, kind: str, error: Error, address: str) -> None:
        """Count a refusal; who it was is not known, so the address is all there is."""
        if self._tally is None:
            return
        attestor = kind if kind in self._attestors else ""
        self._tally.note(
            "node.attestation_refused",
            actor="",
            subject=attestor,
            sample=address,
            code=str(error.code),
            reason=reason_of(error),
        )

    async def _judge(self, first: pb.AttestAgentRequest, call: Call, address: str) -> Attested:
        data = first.params.data
        attestor = self._attestors.get(data.type)
        if attestor is None:
            raise FailedPrecondition(f"no node attestor {data.type[:64]!r} is configured on this server")
        if len(data.payload) > MAX_PAYLOAD:
            raise InvalidInput(f"the attestation payload has more than {MAX_PAYLOAD} bytes")
        # Before the attestor: it is told whose key this is, and need not judge evidence that cannot lead to anything.
        key = verify_csr(first.params.params.csr, AGENT.keys)
        attested = await attestor.attest(data.payload, _Applicant(call, address, key.spki))
        self._ensure_may_attest(self._registry.trust_domain.id(attested.path), data.type, attested)
        return attested

    def _ensure_may_attest(self, agent: SpiffeId, kind: str, attested: Attested) -> None:
        try:
            self._registry.nodes.ensure_may_attest(agent, kind, attested.token)
        except NodeBanned:
            # SPIRE's words at this place: its clients compare them.
            raise refusal(Standing.AGENT_BANNED, agent, "failed to attest: agent is banned") from None

    async def _issue(
        self, agent: SpiffeId, csr: bytes, kind: str, attested: Attested | None = None, replaces: str = "0"
    ) -> X509Svid:
        evidence: dict[str, object] = {"attestation": kind}
        if attested is not None:
            evidence["selectors"] = [str(selector) for selector in sorted(attested.selectors)]
        wanted = X509Request(
            csr_der=csr,
            spiffe_id=agent,
            dns_names=(),
            ttl=self._svid_ttl,
            profile="agent",
            door="spire-api",
            caller=str(agent),
            caller_kind="agent",
            node=str(agent),
            evidence=evidence,
            previous_serial=int(replaces),
        )
        [outcome] = await self._issuer.issue_x509([wanted])
        if isinstance(outcome, Error):
            raise outcome
        return outcome

    async def _admit(self, agent: SpiffeId, kind: str, attested: Attested, svid: X509Svid) -> None:
        selectors = sorted(attested.selectors)
        await self._journal.record(
            "node.attested",
            actor=str(agent),
            subject=str(agent),
            attestation=kind,
            selectors=[str(selector) for selector in selectors],
            serial=str(svid.serial),
        )
        now = self._clock.now()
        node = Node(
            spiffe_id=agent,
            attestation_type=kind,
            serial_current=str(svid.serial),
            not_after=int(svid.not_after.timestamp()),
            can_reattest=attested.can_reattest,
            selectors=frozenset(selectors),
            attested_at=int(now.timestamp()),
        )
        await self._registry.nodes.record_attestation(node, attested.token)
        if attested.token is not None:
            await self._registry.tokens.bring_along(attested.token, agent, now)

    async def _renew(self, request: pb.RenewAgentRequest, call: Call) -> pb.RenewAgentResponse:
        agent = await self._gate.agent(call)
        node = self._registry.nodes.get(agent.id)
        if node is not None and node.can_reattest:
            raise refusal(Standing.AGENT_MUST_REATTEST, agent.id)
        svid = await self._issue(agent.id, request.params.csr, "renewal", replaces=agent.serial)
        await self._registry.nodes.record_renewal(agent.id, str(svid.serial), int(svid.not_after.timestamp()))
        return pb.RenewAgentResponse(svid=svid_to_proto(svid))

    async def _post_status(self, request: pb.PostStatusRequest, call: Call) -> pb.PostStatusResponse:
        agent = await self._gate.agent(call)
        await self._registry.nodes.set_agent_version(agent.id, request.agent_version)
        return pb.PostStatusResponse()

    async def _create_join_token(self, request: pb.CreateJoinTokenRequest, call: Call) -> types_pb2.JoinToken:
        caller = await self._gate.administrator(call)
        actor = caller.name
        alias = id_from_proto(request.agent_id, "agent_id") if request.HasField("agent_id") else None
        check_token(caller, self._registry, "", alias, self._clock.now())
        token = await self._registry.tokens.create(self._clock.now(), ttl=request.ttl, value=request.token, alias=alias)
        await self._journal.record("join_token.created", actor=actor, subject=str(alias or ""), ttl=request.ttl)
        return types_pb2.JoinToken(value=token.value, expires_at=token.expires_at)

    async def _count(self, request: pb.CountAgentsRequest, call: Call) -> pb.CountAgentsResponse:
        await self._gate.admin(call)
        return pb.CountAgentsResponse(count=self._registry.nodes.count(_filter(request.filter)))

    async def _list(self, request: pb.ListAgentsRequest, call: Call) -> pb.ListAgentsResponse:
        await self._gate.admin(call)
        page = self._registry.nodes.list(
            _filter(request.filter), page_size=max(0, min(request.page_size, 1000)), page_token=request.page_token
        )
        mask = request.output_mask if request.HasField("output_mask") else None
        return pb.ListAgentsResponse(
            agents=[masked(agent_to_proto(node), mask) for node in page.items], next_page_token=page.next_token
        )

    async def _get(self, request: pb.GetAgentRequest, call: Call) -> types_pb2.Agent:
        await self._gate.admin(call)
        node = self._registry.nodes.get(id_from_proto(request.id, "id"))
        if node is None:
            raise NotFound("agent not found")
        return masked(agent_to_proto(node), request.output_mask if request.HasField("output_mask") else None)

    async def _delete(self, request: pb.DeleteAgentRequest, call: Call) -> Empty:
        actor = await self._gate.admin(call)
        agent = self._known(id_from_proto(request.id, "id"))
        await self._journal.record("node.evicted", actor=actor, subject=str(agent))
        await self._registry.nodes.evict(agent)
        return Empty()

    async def _ban(self, request: pb.BanAgentRequest, call: Call) -> Empty:
        actor = await self._gate.admin(call)
        agent = self._known(id_from_proto(request.id, "id"))
        await self._journal.record("node.banned", actor=actor, subject=str(agent))
        await self._registry.nodes.ban(agent)
        return Empty()

    def _known(self, agent: SpiffeId) -> SpiffeId:
        if self._registry.nodes.get(agent) is None:
            raise UnknownNode(f"no node {agent} is known", fix="see eastwest node list")
        return agent


class _Applicant:
    """Serves ``eastwest.attest.node.Challenge`` on the stream of one attestation."""

    def __init__(self, call: Call, address: str, spki: bytes) -> None:
        self._call = call
        self.address = address
        self.spki = spki

    async def __call__(self, question: bytes, /) -> bytes:
        await self._call.send(pb.AttestAgentResponse(challenge=question))
        answer = await _next(self._call, ANSWER_SECONDS, "challenge_response", "the challenge was not answered")
        return bytes(answer.challenge_response)


async def _next(call: Call, seconds: float, step: str, otherwise: str) -> pb.AttestAgentRequest:
    try:
        async with asyncio.timeout(seconds):
            message: pb.AttestAgentRequest | None = await call.receive()
    except TimeoutError:
        raise InvalidInput(f"{otherwise}, and nothing came in {seconds:.0f} s") from None
    if message is None or message.WhichOneof("step") != step:
        raise InvalidInput(otherwise)
    return message


def _filter(message: pb.ListAgentsRequest.Filter | pb.CountAgentsRequest.Filter) -> NodeFilter:
    wanted = message.by_selector_match
    return NodeFilter(
        attestation_type=message.by_attestation_type or None,
        selectors=(
            (frozenset(selectors_from_proto(wanted.selectors)), match_from_proto(wanted.match))
            if message.HasField("by_selector_match")
            else None
        ),
        banned=message.by_banned.value if message.HasField("by_banned") else None,
        can_reattest=message.by_can_reattest.value if message.HasField("by_can_reattest") else None,
        expires_before=_moment(message.by_expires_before) if message.by_expires_before else None,
    )


def _moment(text: str) -> int:
    # The CLI prints Go's form, "2026-11-22 10:00:00 +0000 -07"; the first two words and the offset count.
    words = text.split()
    try:
        return int(datetime.strptime(" ".join(words[:3]), "%Y-%m-%d %H:%M:%S %z").timestamp())
    except ValueError:
        raise InvalidInput(f"{text[:64]!r} is not a time", fix='write it as "2006-01-02 15:04:05 -0700 -07"') from None
