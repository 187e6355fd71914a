"""``spire.api.server.agent.v1.Agent``: nodes come in, renew, and are administered."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import structlog
from google.protobuf.empty_pb2 import Empty

from eastwest.api.spire.api.server.agent.v1 import agent_pb2 as pb
from eastwest.api.spire.api.types import types_pb2
from eastwest.attest.node import Attested, NodeAttestor
from eastwest.clock import Clock
from eastwest.errors import Error, FailedPrecondition, InvalidInput, NotFound
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import X509Request
from eastwest.pki.csr import verify_csr
from eastwest.pki.profile import AGENT
from eastwest.registry.listing import Match, NodeFilter
from eastwest.registry.node import Node, Standing
from eastwest.registry.registry import Registry
from eastwest.rpc.service import Call, Service
from eastwest.rpc.spire import (
    id_from_proto,
    id_to_proto,
    masked,
    selectors_from_proto,
    selectors_to_proto,
    svid_to_proto,
)
from eastwest.server.gate import Gate, refusal
from eastwest.server.journal import Journal
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.svid import X509Svid

MAX_PAYLOAD = 256 * 1024
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
    ) -> None:
        self._registry = registry
        self._issuer = issuer
        self._attestors = attestors
        self._journal = journal
        self._clock = clock
        self._svid_ttl = svid_ttl
        self._gate = gate

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
        first = await call.receive()
        if first is None or first.WhichOneof("step") != "params":
            raise InvalidInput("the first message of AttestAgent has the params")
        data = first.params.data
        attestor = self._attestors.get(data.type)
        if attestor is None:
            raise FailedPrecondition(f"no node attestor {data.type[:64]!r} is configured on this server")
        if len(data.payload) > MAX_PAYLOAD:
            raise InvalidInput(f"the attestation payload has more than {MAX_PAYLOAD} bytes")
        # Before the attestor: evidence that works once must not be used up by a request that cannot succeed.
        verify_csr(first.params.params.csr, AGENT.keys)

        async def challenge(question: bytes) -> bytes:
            await call.send(pb.AttestAgentResponse(challenge=question))
            answer = await call.receive()
            if answer is None or answer.WhichOneof("step") != "challenge_response":
                raise InvalidInput("the challenge was not answered")
            return bytes(answer.challenge_response)

        attested = await attestor.attest(data.payload, challenge)
        agent = self._registry.trust_domain.id(attested.path)
        self._registry.nodes.ensure_may_attest(agent)
        svid = await self._issue(agent, first.params.params.csr, data.type, attested)
        await self._admit(agent, data.type, attested, svid)
        _log.info("agent.attested", agent=str(agent), attestor=data.type, address=call.peer_address)
        result = pb.AttestAgentResponse.Result(svid=svid_to_proto(svid), reattestable=attested.can_reattest)
        await call.send(pb.AttestAgentResponse(result=result))

    async def _issue(self, agent: SpiffeId, csr: bytes, kind: str, attested: Attested | None = None) -> X509Svid:
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
            node=str(agent),
            evidence=evidence,
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
        await self._registry.nodes.record_attestation(
            Node(
                spiffe_id=agent,
                attestation_type=kind,
                serial_current=str(svid.serial),
                not_after=int(svid.not_after.timestamp()),
                can_reattest=attested.can_reattest,
                selectors=frozenset(selectors),
            )
        )

    async def _renew(self, request: pb.RenewAgentRequest, call: Call) -> pb.RenewAgentResponse:
        agent = await self._gate.agent(call)
        node = self._registry.nodes.get(agent.id)
        if node is not None and node.can_reattest:
            raise refusal(Standing.AGENT_MUST_REATTEST, agent.id)
        svid = await self._issue(agent.id, request.params.csr, "renewal")
        await self._registry.nodes.record_renewal(agent.id, str(svid.serial), int(svid.not_after.timestamp()))
        return pb.RenewAgentResponse(svid=svid_to_proto(svid))

    async def _post_status(self, request: pb.PostStatusRequest, call: Call) -> pb.PostStatusResponse:
        agent = await self._gate.agent(call)
        await self._registry.nodes.set_agent_version(agent.id, request.agent_version)
        return pb.PostStatusResponse()

    async def _create_join_token(self, request: pb.CreateJoinTokenRequest, call: Call) -> types_pb2.JoinToken:
        actor = await self._gate.admin(call)
        alias = id_from_proto(request.agent_id, "agent_id") if request.HasField("agent_id") else None
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
            agents=[masked(_to_proto(node), mask) for node in page.items], next_page_token=page.next_token
        )

    async def _get(self, request: pb.GetAgentRequest, call: Call) -> types_pb2.Agent:
        await self._gate.admin(call)
        node = self._registry.nodes.get(id_from_proto(request.id, "id"))
        if node is None:
            raise NotFound("agent not found")
        return masked(_to_proto(node), request.output_mask if request.HasField("output_mask") else None)

    async def _delete(self, request: pb.DeleteAgentRequest, call: Call) -> Empty:
        actor = await self._gate.admin(call)
        agent = id_from_proto(request.id, "id")
        await self._registry.nodes.evict(agent)
        await self._journal.record("node.evicted", actor=actor, subject=str(agent))
        return Empty()

    async def _ban(self, request: pb.BanAgentRequest, call: Call) -> Empty:
        actor = await self._gate.admin(call)
        agent = id_from_proto(request.id, "id")
        await self._registry.nodes.ban(agent)
        await self._journal.record("node.banned", actor=actor, subject=str(agent))
        return Empty()


def _to_proto(node: Node) -> types_pb2.Agent:
    return types_pb2.Agent(
        id=id_to_proto(node.spiffe_id),
        attestation_type=node.attestation_type,
        x509svid_serial_number="" if node.banned else node.serial_current,
        x509svid_expires_at=node.not_after,
        selectors=selectors_to_proto(sorted(node.selectors)),
        banned=node.banned,
        can_reattest=node.can_reattest,
        agent_version=node.agent_version,
    )


def _filter(message: pb.ListAgentsRequest.Filter | pb.CountAgentsRequest.Filter) -> NodeFilter:
    wanted = message.by_selector_match
    return NodeFilter(
        attestation_type=message.by_attestation_type or None,
        selectors=(
            (frozenset(selectors_from_proto(wanted.selectors)), Match(wanted.match))
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
