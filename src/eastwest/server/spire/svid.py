"""``spire.api.server.svid.v1.SVID``: issuance for agents, and minting for administrators."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

from cryptography import x509

from eastwest.api.spire.api.server.svid.v1 import svid_pb2 as pb
from eastwest.api.spire.api.types import types_pb2
from eastwest.clock import Clock
from eastwest.errors import Error, Exhausted, InvalidInput, NotFound
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import DownstreamRequest, JwtRequest, X509Request
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.pki.profile import Door
from eastwest.policy.estate import Right
from eastwest.registry.administrators import Administrator, subject_of
from eastwest.registry.entry import Entry
from eastwest.registry.ports import PrivilegedSvid
from eastwest.registry.registry import Registry
from eastwest.rpc import tracing
from eastwest.rpc.service import Call, Service
from eastwest.rpc.spire import id_from_proto, id_to_proto, svid_to_proto
from eastwest.rpc.status import status_of
from eastwest.server.control import ControlHub
from eastwest.server.gate import AgentCaller, Gate
from eastwest.server.tally import Tally, reason_of
from eastwest.server.telemetry import Metrics
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.selector import Selector
from eastwest.spiffe.svid import JwtSvid, X509Svid

MAX_BATCH = 500
MAX_AUDIENCES = 32
MAX_DEPTH = 8
"""Servers below a server below this one; the signing CA's own path length lets mostly fewer stand there."""
SMALL_BATCH = 16
"""Requests up to which a batch need not take its turn behind others."""
LARGE_AT_ONCE = 2
"""Larger batches that are worked on at a time: one is signed while the other is made durable. Each slows single
requests, and more at once would finish none of them sooner."""
YIELD_EVERY = 32
"""Requests read, or answers written, between two yields to other calls: a third of a millisecond each time."""
_SERVICE = pb.DESCRIPTOR.services_by_name["SVID"]
_UNREADABLE: tuple[type[Exception], ...] = (x509.ExtensionNotFound, *PARSE_ERRORS)


class SvidService:
    """Turns requests into the issuer's, and its outcomes into answers."""

    def __init__(
        self,
        registry: Registry,
        issuer: Issuer,
        hub: ControlHub,
        clock: Clock,
        metrics: Metrics,
        jwt_ttl: int,
        gate: Gate,
        tally: Tally | None = None,
    ) -> None:
        """``tally`` tells the log of what was refused."""
        self._tally = tally
        self._last = LastSerials()
        self._registry = registry
        self._issuer = issuer
        self._hub = hub
        self._jwt_ttl = jwt_ttl
        self._clock = clock
        self._metrics = metrics
        self._gate = gate
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    def service(self) -> Service:
        """The gRPC service."""
        return Service(
            _SERVICE,
            {
                "BatchNewX509SVID": self._batch_new_x509,
                "NewJWTSVID": self._new_jwt,
                "MintX509SVID": self._mint_x509,
                "MintJWTSVID": self._mint_jwt,
                "NewDownstreamX509CA": self._new_downstream_ca,
            },
            guard=self._gate.enter,
        )

    async def _batch_new_x509(self, request: pb.BatchNewX509SVIDRequest, call: Call) -> pb.BatchNewX509SVIDResponse:
        agent = await self._gate.agent(call)
        if len(request.params) > MAX_BATCH:
            raise Exhausted(f"a batch has at most {MAX_BATCH} requests, not {len(request.params)}")
        if len(request.params) <= SMALL_BATCH:
            return await self._issue(agent, request)
        async with self._large:
            return await self._issue(agent, request)

    async def _issue(self, agent: AgentCaller, request: pb.BatchNewX509SVIDRequest) -> pb.BatchNewX509SVIDResponse:
        now = self._clock.now()
        planned: list[X509Request | Error] = []
        attestation = self._attestation(agent)
        for number, params in enumerate(request.params, 1):
            planned.append(self._plan(agent, params, now, attestation))
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        wanted = [item for item in planned if isinstance(item, X509Request)]
        took = self._metrics.issuance_seconds.labels(self._door(agent))
        with took.time(), tracing.span("issuance.issue", requests=len(wanted)):
            outcomes = await self._issuer.issue_x509(wanted) if wanted else []
        reply = pb.BatchNewX509SVIDResponse()
        results = reply.results
        await self._note_privileged(wanted, outcomes, now)
        issued: Counter[str] = Counter()
        outcome_of = iter(outcomes)
        for number, item in enumerate(planned, 1):
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)
            outcome = next(outcome_of) if isinstance(item, X509Request) else item
            self._fill(results.add(), outcome)
            if isinstance(outcome, Error):
                self._denied(agent, request.params[number - 1].entry_id, outcome)
            elif isinstance(item, X509Request):
                issued[item.profile] += 1
                self._last.note(item.node, item.entry_id, outcome.serial)
        for profile, count in issued.items():
            self._metrics.issue("x509", profile, self._door(agent), count)
        return reply

    def _plan(
        self, agent: AgentCaller, params: pb.NewX509SVIDParams, now: datetime, attestation: str
    ) -> X509Request | Error:
        entry = self._registry.find_authorized(agent.id, params.entry_id, now)
        if entry is None:
            return NotFound("the entry does not exist or this agent is not authorized for it")
        name = str(agent.id)
        previous = self._last.of(name, entry.id)
        return x509_request(entry, params.csr, name, self._door(agent), attestation, previous)

    def _attestation(self, agent: AgentCaller) -> str:
        """How the calling agent's node was attested."""
        node = self._registry.nodes.get(agent.id)
        return node.attestation_type if node is not None else ""

    def _denied(self, agent: AgentCaller, entry_id: str, error: Error) -> None:
        """Count a refusal. An id that no entry has is a caller's own words, and so nothing for the log."""
        entry = self._registry.entries.get(entry_id)
        subject = str(entry.spiffe_id) if entry is not None else ""
        self._count_denial(str(agent.id), "agent", subject, error, self._door(agent), entry.id if entry else "")

    def _count_denial(
        self, caller: str, caller_kind: str, subject: str, error: Error, door: str, entry_id: str = ""
    ) -> None:
        self._metrics.issuances.labels(str(door), error.code).inc()
        if self._tally is None:
            return
        self._tally.note(
            "issuance.denied",
            actor=caller,
            subject=subject,
            caller_kind=caller_kind,
            code=str(error.code),
            reason=reason_of(error),
            door=str(door),
            entry_id=entry_id,
            policy_version=self._issuer.policy_version,
        )

    @contextmanager
    def _denials_of(self, caller: str, caller_kind: str, subject: str, door: str, entry_id: str = "") -> Iterator[None]:
        """Count the refusal that is raised within."""
        try:
            yield
        except Error as error:
            self._count_denial(caller, caller_kind, subject, error, door, entry_id)
            raise

    async def _note_privileged(
        self, requests: Sequence[X509Request], outcomes: Sequence[X509Svid | Error], now: datetime
    ) -> None:
        """Keep the serials of certificates under entries that give rights, before any of them leaves."""
        noted = []
        for request, outcome in zip(requests, outcomes, strict=True):
            entry = self._registry.entries.get(request.entry_id)
            if entry is not None and (entry.admin or entry.downstream) and isinstance(outcome, X509Svid):
                noted.append(PrivilegedSvid(str(outcome.serial), entry.id, int(outcome.not_after.timestamp())))
        if noted:
            await self._registry.privileged.note(noted, now)

    def _door(self, agent: AgentCaller) -> str:
        # Our agents ask for what their Workload API serves; of a stock agent only its own API is known.
        return Door.WORKLOAD_API if self._hub.serves(agent.id) else Door.SPIRE_API

    def _fill(self, result: pb.BatchNewX509SVIDResponse.Result, outcome: X509Svid | Error) -> None:
        if isinstance(outcome, Error):
            result.status.code = status_of(outcome).value
            result.status.message = str(outcome)
            self._metrics.refused.labels(outcome.code).inc()
            return
        # Set even when OK: agents read it unchecked.
        result.status.code = 0
        result.status.message = "OK"
        svid = result.svid
        svid.cert_chain.extend(outcome.chain)
        svid.id.trust_domain = outcome.id.trust_domain.name
        svid.id.path = outcome.id.path
        svid.expires_at = int(outcome.not_after.timestamp())

    async def _new_jwt(self, request: pb.NewJWTSVIDRequest, call: Call) -> pb.NewJWTSVIDResponse:
        agent = await self._gate.agent(call)
        entry = self._registry.find_authorized(agent.id, request.entry_id, self._clock.now())
        if entry is None:
            error = NotFound("the entry does not exist or this agent is not authorized for it")
            self._denied(agent, request.entry_id, error)
            raise error
        origin = _origin(entry, str(agent.id), self._door(agent), self._attestation(agent))
        with self._denials_of(str(agent.id), "agent", str(entry.spiffe_id), origin["door"], entry.id):
            svid = await self._issuer.issue_jwt(
                JwtRequest(
                    spiffe_id=entry.spiffe_id,
                    audience=_audience(request.audience),
                    ttl=entry.jwt_svid_ttl or self._jwt_ttl,
                    **origin,
                )
            )
        self._metrics.issue("jwt", entry.profile, origin["door"])
        return pb.NewJWTSVIDResponse(svid=_jwt_to_proto(svid))

    async def _mint_x509(self, request: pb.MintX509SVIDRequest, call: Call) -> pb.MintX509SVIDResponse:
        admin = await self._gate.administrator(call)
        spiffe_id, dns_names = _names(request.csr)
        with self._denials_of(admin.name, "administrator", str(spiffe_id), Door.SPIRE_API):
            svid = await self._mint(request, admin, spiffe_id, dns_names)
        return pb.MintX509SVIDResponse(svid=svid_to_proto(svid))

    async def _mint(
        self, request: pb.MintX509SVIDRequest, admin: Administrator, spiffe_id: SpiffeId, dns_names: tuple[str, ...]
    ) -> X509Svid:
        environment = self._may_mint(admin, spiffe_id, dns_names)
        wanted = X509Request(
            csr_der=request.csr,
            spiffe_id=spiffe_id,
            dns_names=dns_names,
            ttl=request.ttl or None,
            profile="workload",
            door=Door.SPIRE_API,
            caller=admin.name,
            caller_kind="administrator",
            environment=environment,
        )
        [outcome] = await self._issuer.issue_x509([wanted])
        if isinstance(outcome, Error):
            raise outcome
        self._metrics.issue("x509", wanted.profile, wanted.door)
        return outcome

    async def _mint_jwt(self, request: pb.MintJWTSVIDRequest, call: Call) -> pb.MintJWTSVIDResponse:
        admin = await self._gate.administrator(call)
        spiffe_id = id_from_proto(request.id, "id")
        with self._denials_of(admin.name, "administrator", str(spiffe_id), Door.SPIRE_API):
            environment = self._may_mint(admin, spiffe_id)
            svid = await self._issuer.issue_jwt(
                JwtRequest(
                    spiffe_id=spiffe_id,
                    audience=_audience(request.audience),
                    ttl=request.ttl or self._jwt_ttl,
                    door=Door.SPIRE_API,
                    caller=admin.name,
                    caller_kind="administrator",
                    environment=environment,
                )
            )
        self._metrics.issue("jwt", "workload", Door.SPIRE_API)
        return pb.MintJWTSVIDResponse(svid=_jwt_to_proto(svid))

    def _may_mint(self, admin: Administrator, spiffe_id: SpiffeId, dns_names: Sequence[str] = ()) -> str:
        """The environment of the ID; raises the refusal when the administrator may not mint it, or not these names."""
        subject = subject_of(spiffe_id, self._registry.entries.rules)
        named = f" as {', '.join(dns_names)[:200]}" if dns_names else ""
        admin.require_for(Right.MINT, subject, f"mint {spiffe_id}{named}", dns_names)
        return subject.environment

    async def _new_downstream_ca(
        self, request: pb.NewDownstreamX509CARequest, call: Call
    ) -> pb.NewDownstreamX509CAResponse:
        entry = await self._gate.downstream(call)
        caller = str(entry.spiffe_id)
        with self._denials_of(caller, "server", caller, Door.SPIRE_API, entry.id):
            issued = await self._issuer.issue_ca(
                DownstreamRequest(
                    csr_der=request.csr,
                    spiffe_id=entry.spiffe_id,
                    ttl=request.preferred_ttl or None,
                    path_length=MAX_DEPTH,
                    **_origin(entry, caller, Door.SPIRE_API, "") | {"node": "", "caller_kind": "server"},
                )
            )
        self._metrics.issue("x509_ca", "downstream", Door.SPIRE_API)
        return pb.NewDownstreamX509CAResponse(ca_cert_chain=issued.chain, x509_authorities=issued.roots)


def x509_request(
    entry: Entry, csr: bytes, agent: str, door: str, attestation: str = "", previous_serial: int = 0
) -> X509Request:
    """What an agent asks for under one of its entries. Names and lifetime come from the entry, never the CSR.

    ``attestation`` is how the agent's node was attested; ``previous_serial`` that of what this replaces, 0: not known.
    """
    return X509Request(
        csr_der=csr,
        spiffe_id=entry.spiffe_id,
        dns_names=entry.dns_names,
        ttl=entry.x509_svid_ttl or None,
        profile=entry.profile,
        previous_serial=previous_serial,
        **_origin(entry, agent, door, attestation),
    )


def _origin(entry: Entry, agent: str, door: str, attestation: str) -> dict[str, Any]:
    return {
        "door": door,
        "caller": agent,
        "caller_kind": "agent",
        "node": agent,
        "entry_id": entry.id,
        "entry_revision": entry.revision,
        "environment": entry.environment,
        "evidence": _evidence(entry.selectors, attestation),
    }


@lru_cache(maxsize=65536)
def _evidence(selectors: frozenset[Selector], attestation: str) -> Mapping[str, Any]:
    """Why an entry's identity is given out; one value for equal evidence, so nobody may change it."""
    evidence: dict[str, Any] = {"selectors": tuple(str(selector) for selector in sorted(selectors))}
    if attestation:
        evidence["node_attestation"] = attestation
    return evidence


class LastSerials:
    """The last serial issued to each agent under each entry, for the log: what a new certificate replaces.

    In memory only, and bounded: after a restart, or for the longest unused of very many, nothing is known.
    """

    def __init__(self, most: int = 65536) -> None:
        self._most = most
        self._serials: dict[tuple[str, str], int] = {}

    def of(self, agent: str, entry_id: str) -> int:
        """The serial, or 0 where none is known."""
        return self._serials.get((agent, entry_id), 0)

    def note(self, agent: str, entry_id: str, serial: int) -> None:
        """Remember what has been issued."""
        key = (agent, entry_id)
        self._serials.pop(key, None)
        self._serials[key] = serial
        if len(self._serials) > self._most:
            del self._serials[next(iter(self._serials))]


def _audience(names: Iterable[str]) -> tuple[str, ...]:
    audience = tuple(names)
    if not audience or len(audience) > MAX_AUDIENCES or any(not 0 < len(name) <= 1024 for name in audience):
        raise InvalidInput(f"a JWT-SVID needs 1 to {MAX_AUDIENCES} audiences of 1 to 1024 characters")
    return audience


def _names(csr: bytes) -> tuple[SpiffeId, tuple[str, ...]]:
    """SPIFFE ID and DNS names that an administrator put into a CSR."""
    try:
        names = x509.load_der_x509_csr(csr).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _UNREADABLE:
        raise InvalidInput("the CSR is malformed or names no SPIFFE ID") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise InvalidInput("the CSR must name exactly one SPIFFE ID")
    return SpiffeId.parse(uris[0]), tuple(names.get_values_for_type(x509.DNSName))


def _jwt_to_proto(svid: JwtSvid) -> types_pb2.JWTSVID:
    return types_pb2.JWTSVID(
        token=svid.token,
        id=id_to_proto(svid.id),
        issued_at=int(svid.issued_at.timestamp()),
        expires_at=int(svid.expires_at.timestamp()),
    )
