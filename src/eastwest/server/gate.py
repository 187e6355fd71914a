"""Who is calling, and what they may call.

Two gates, one for each listener: on the agents' port a caller is what its client certificate proves; on the admin
socket it is a process of this machine whose user owns the server. Where a call comes from over a network never counts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from weakref import WeakKeyDictionary

from cryptography import x509

from eastwest.api.spire.api.types import types_pb2
from eastwest.clock import Clock
from eastwest.errors import PermissionDenied, Unauthenticated
from eastwest.registry.node import Standing
from eastwest.registry.registry import Registry
from eastwest.rpc.peer import peer_credentials
from eastwest.rpc.service import Call
from eastwest.rpc.status import Refused
from eastwest.rpc.tls import certificate_id
from eastwest.spiffe.id import SpiffeId

OPEN_METHODS = frozenset(
    {
        "/spire.api.server.agent.v1.Agent/AttestAgent",
        "/spire.api.server.bundle.v1.Bundle/GetBundle",
        "/spire.api.server.bundle.v1.Bundle/GetFederatedBundle",
    }
)
"""What is served on the agents' port to callers without a certificate."""


@dataclass(frozen=True, slots=True)
class AgentCaller:
    """An agent that is attested, current and not banned."""

    id: SpiffeId
    serial: str
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Presented:
    """What a client certificate says: its SPIFFE ID, decimal serial and end."""

    id: SpiffeId
    serial: str
    not_after: datetime


class Gate(Protocol):
    """What a service asks before it serves."""

    async def enter(self, call: Call) -> None:
        """Refuse, before anything of the request is read, who may not call at all."""
        ...

    async def agent(self, call: Call) -> AgentCaller:
        """The calling agent, or a refusal with SPIRE's reason."""
        ...

    async def admin(self, call: Call) -> str:
        """The administrator's name for the record (``unix:uid:0``), or a refusal."""
        ...


class PortGate:
    """The gate of the agents' TLS port."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._presented: WeakKeyDictionary[object, Presented] = WeakKeyDictionary()

    async def enter(self, call: Call) -> None:
        if call.method not in OPEN_METHODS:
            await self.agent(call)

    async def agent(self, call: Call) -> AgentCaller:
        shown = self._presented.get(call.connection) or self._read_certificate(call)
        verdict = self._registry.judge(shown.id, shown.serial, shown.not_after, self._clock.now())
        if verdict.standing is not Standing.OK:
            raise refusal(verdict.standing, shown.id)
        if verdict.promote:
            await self._registry.nodes.promote(shown.id, shown.serial)
        return AgentCaller(shown.id, shown.serial, shown.not_after)

    async def admin(self, call: Call) -> str:
        raise PermissionDenied(f"{call.method} is served on the admin socket only")

    def _read_certificate(self, call: Call) -> Presented:
        der = call.peer_certificate
        if der is None:
            raise Unauthenticated(f"{call.method} needs a client certificate: the agent's X.509-SVID")
        spiffe_id = certificate_id(der)
        if spiffe_id is None or not spiffe_id.is_member_of(self._registry.trust_domain):
            raise PermissionDenied("the client certificate names no identity of this trust domain")
        certificate = x509.load_der_x509_certificate(der)
        shown = Presented(spiffe_id, str(certificate.serial_number), certificate.not_valid_after_utc)
        self._presented[call.connection] = shown
        return shown


class SocketGate:
    """The gate of the admin socket: root, and the user that the server runs as."""

    async def enter(self, call: Call) -> None:
        await self.admin(call)

    async def agent(self, call: Call) -> AgentCaller:
        raise PermissionDenied(f"{call.method} is served to agents on the TLS port only")

    async def admin(self, call: Call) -> str:
        _pid, uid, _gid = peer_credentials(call.socket)
        if uid not in {0, os.geteuid()}:
            raise PermissionDenied(f"uid {uid} is no administrator of this server")
        return f"unix:uid:{uid}"


def refusal(standing: Standing, agent: SpiffeId) -> Refused:
    """The refusal that tells an agent what to do next."""
    sentence = {
        Standing.AGENT_EXPIRED: "the agent's certificate has expired",
        Standing.AGENT_NOT_ATTESTED: "the agent is not attested",
        Standing.AGENT_NOT_ACTIVE: "the agent's certificate is not its current one",
        Standing.AGENT_BANNED: "the agent is banned",
        Standing.AGENT_MUST_REATTEST: "the agent must attest again",
    }[standing]
    reason = types_pb2.PermissionDeniedDetails.Reason.Name(standing.value)  # type: ignore[arg-type]
    details = types_pb2.PermissionDeniedDetails(reason=reason)  # type: ignore[arg-type]
    return Refused(f"{sentence}: {agent}", [details])
