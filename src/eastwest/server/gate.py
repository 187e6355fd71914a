"""Who is calling, and what they may call.

Two gates, one for each listener: on the agents' port a caller is what its client certificate proves; on the admin
socket it is a process of this machine. Only whom a gate knows has proved something to the port (``Call.prove``): every
workload has a certificate. Where a call comes from over a network never counts. Which method asks for
which right is in ``eastwest.server.registration.rights``; limits to parts of the estate are asked by the methods
themselves, of the ``Administrator`` that the gate gives them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from weakref import WeakKeyDictionary

from cryptography import x509

from eastwest.api.spire.api.types import types_pb2
from eastwest.clock import Clock
from eastwest.errors import PermissionDenied, Unauthenticated
from eastwest.policy.estate import Right
from eastwest.registry.administrators import Administrator, Administrators, full
from eastwest.registry.entry import Entry
from eastwest.registry.listing import EntryFilter
from eastwest.registry.node import AGENT_PREFIX, Standing
from eastwest.registry.registry import Registry
from eastwest.rpc.peer import peer_credentials
from eastwest.rpc.service import Call
from eastwest.rpc.status import Refused
from eastwest.rpc.tls import certificate_id
from eastwest.server.ca.own_issuers import OwnIssuers
from eastwest.server.registration.rights import AGENT_METHODS, DOWNSTREAM_METHODS, OPEN_METHODS, rights_for
from eastwest.server.tally import Tally
from eastwest.spiffe.id import SpiffeId


@dataclass(frozen=True, slots=True)
class AgentCaller:
    """An agent that is attested, current and not banned."""

    id: SpiffeId
    serial: str
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Presented:
    """What a client certificate says: its SPIFFE ID, decimal serial and end, and the id of the CA that signed it."""

    id: SpiffeId
    serial: str
    not_after: datetime
    issuer: str


class Gate(Protocol):
    """What a service asks before it serves."""

    async def enter(self, call: Call) -> None:
        """Refuse, before anything of the request is read, who may not call at all."""
        ...

    async def agent(self, call: Call) -> AgentCaller:
        """The calling agent, or a refusal with SPIRE's reason."""
        ...

    def confirm(self, call: Call) -> None:
        """Refuse, in the midst of a call, whose certificate has come to prove nothing: its CA was revoked."""
        ...

    async def administrator(self, call: Call) -> Administrator:
        """The calling administrator, who has a right to the method, perhaps for a part of the estate only."""
        ...

    async def admin(self, call: Call) -> str:
        """The administrator's name for the record (``unix:uid:0``); for methods whose rights know no parts."""
        ...

    async def downstream(self, call: Call) -> Entry:
        """The ``downstream`` entry under which the calling server got its certificate, or a refusal."""
        ...


class PortGate:
    """The gate of the agents' TLS port.

    Only certificates that this server signed itself count, and only until the CA that signed them is revoked: that is
    asked at each call, and of subscriptions at each change, so that nothing which is open outlives a revocation. Agents
    are known by their serial number. Anybody else of the trust domain is an administrator if the estate says so of its
    SPIFFE ID, or if its very certificate was issued under an entry with ``admin``: another entry that gives the same ID
    gives no rights.
    """

    def __init__(
        self,
        registry: Registry,
        administrators: Administrators,
        clock: Clock,
        issuers: OwnIssuers,
        tally: Tally | None = None,
    ) -> None:
        """``issuers`` says whether this server signed a certificate itself; any other makes no caller.

        ``tally`` tells the log who came as an administrator, and who was refused.
        """
        self._tally = tally
        self._registry = registry
        self._issuers = issuers
        self._administrators = administrators
        self._clock = clock
        self._presented: WeakKeyDictionary[object, Presented] = WeakKeyDictionary()
        self.refuse: Callable[[SpiffeId], None] = lambda _spiffe_id: None
        """Raises why an identity is nobody here now, whatever its certificate proves; asked at each call."""

    async def enter(self, call: Call) -> None:
        if call.method in OPEN_METHODS:
            return
        shown = self._shown(call)
        if shown.id.path.startswith(AGENT_PREFIX):
            await self.agent(call)
            if call.method not in AGENT_METHODS:
                await _tell(self._tally, "admin.refused", str(shown.id), call, "port")
                raise PermissionDenied(f"{call.method} is not for agents", fix="call it as an administrator")
        elif call.method in DOWNSTREAM_METHODS:
            await self.downstream(call)
        else:
            try:
                administrator = await self.administrator(call)
            except PermissionDenied:
                await _tell(self._tally, "admin.refused", str(shown.id), call, "port")
                raise
            await _tell(self._tally, "admin.login", administrator.name, call, "port")

    async def agent(self, call: Call) -> AgentCaller:
        shown = self._shown(call)
        verdict = self._registry.judge(shown.id, shown.serial, shown.not_after, self._clock.now())
        if verdict.standing is not Standing.OK:
            raise refusal(verdict.standing, shown.id)
        if verdict.promote:
            await self._registry.nodes.promote(shown.id, shown.serial)
        call.prove(str(shown.id))
        await self._registry.nodes.note_seen(shown.id, self._clock.now())
        return AgentCaller(shown.id, shown.serial, shown.not_after)

    def confirm(self, call: Call) -> None:
        self._shown(call)

    async def administrator(self, call: Call) -> Administrator:
        shown = self._shown(call)
        entry = self._entry(shown)
        found = full(str(shown.id)) if entry is not None and entry.admin else None
        if found is None and not shown.id.is_reserved and self._clock.now() <= shown.not_after:
            found = self._administrators.find(str(shown.id))
        if found is None:
            raise PermissionDenied(
                f"{shown.id} is no administrator of this server",
                fix="name it in administrators of estate.yaml, or call with an SVID of an entry with admin",
            )
        call.prove(str(shown.id))
        return _checked(found, call)

    async def admin(self, call: Call) -> str:
        return _unlimited(await self.administrator(call), call)

    async def downstream(self, call: Call) -> Entry:
        shown = self._shown(call)
        entry = self._entry(shown)
        if entry is None or not entry.downstream:
            raise PermissionDenied(
                f"{shown.id} is no downstream server", fix="register it with downstream, and renew its certificate"
            )
        call.prove(str(shown.id))
        return entry

    def _entry(self, shown: Presented) -> Entry | None:
        """The privileged entry under which this very certificate was issued, while both live."""
        now = self._clock.now()
        return None if now > shown.not_after else self._registry.privileged.entry_of(shown.serial, shown.id, now)

    def _shown(self, call: Call) -> Presented:
        shown = self._presented.get(call.connection)
        if shown is None or not self._issuers.is_current(shown.issuer):
            shown = self._read_certificate(call)
        self.refuse(shown.id)
        return shown

    def _read_certificate(self, call: Call) -> Presented:
        der = call.peer_certificate
        if der is None:
            raise Unauthenticated(f"{call.method} needs a client certificate: the agent's X.509-SVID")
        spiffe_id = certificate_id(der)
        if spiffe_id is None or not spiffe_id.is_member_of(self._registry.trust_domain):
            raise PermissionDenied("the client certificate names no identity of this trust domain")
        certificate = x509.load_der_x509_certificate(der)
        issuer = self._issuers.issuer(certificate)
        if issuer is None:
            # A nested server, or a root that is only trusted, can name anybody and copy any serial number.
            raise PermissionDenied(
                f"the client certificate of {spiffe_id} was not issued by this server, or its CA was revoked",
                fix="call with an SVID of an agent of this very server",
            )
        shown = Presented(spiffe_id, str(certificate.serial_number), certificate.not_valid_after_utc, issuer)
        self._presented[call.connection] = shown
        return shown


class SocketGate:
    """The gate of the admin socket: whom the estate names by user; else root, and the user that the server runs as."""

    def __init__(self, administrators: Administrators, tally: Tally | None = None) -> None:
        """``tally`` is as of ``PortGate``."""
        self._administrators = administrators
        self._tally = tally

    async def enter(self, call: Call) -> None:
        if call.method in OPEN_METHODS:
            return
        try:
            administrator = await self.administrator(call)
        except PermissionDenied:
            await _tell(self._tally, "admin.refused", _user(call), call, "socket")
            raise
        await _tell(self._tally, "admin.login", administrator.name, call, "socket")

    async def agent(self, call: Call) -> AgentCaller:
        raise PermissionDenied(f"{call.method} is served to agents on the TLS port only")

    def confirm(self, call: Call) -> None:
        raise PermissionDenied(f"{call.method} is served to agents on the TLS port only")

    async def administrator(self, call: Call) -> Administrator:
        name = _user(call)
        uid = int(name.rpartition(":")[2])
        found = self._administrators.find(name)
        if found is None and uid in {0, os.geteuid()}:
            found = full(name)
        if found is None:
            raise PermissionDenied(
                f"uid {uid} is no administrator of this server", fix=f"name {name} in administrators of estate.yaml"
            )
        return _checked(found, call)

    async def admin(self, call: Call) -> str:
        return _unlimited(await self.administrator(call), call)

    async def downstream(self, call: Call) -> Entry:
        raise PermissionDenied(f"{call.method} is served to downstream servers on the TLS port only")


def standing(name: str, administrators: Administrators, registry: Registry, now: datetime) -> Administrator | None:
    """Whom a gate would find now by the name of an administrator who called before; None: nobody any more."""
    found = administrators.find(name)
    if not name.startswith("spiffe:"):
        return full(name) if found is None and name in {"unix:uid:0", f"unix:uid:{os.geteuid()}"} else found
    entries = registry.entries.list(EntryFilter(spiffe_id=SpiffeId.parse(name))).items
    return full(name) if any(entry.admin and not entry.is_expired(now) for entry in entries) else found


def _user(call: Call) -> str:
    _pid, uid, _gid = peer_credentials(call.socket)
    return f"unix:uid:{uid}"


async def _tell(tally: Tally | None, kind: str, actor: str, call: Call, door: str) -> None:
    if tally is not None:
        await tally.tell(kind, actor=actor, subject=call.method, door=door)


def _checked(administrator: Administrator, call: Call) -> Administrator:
    rights = rights_for(call.method)
    if not any(administrator.may(right) for right in rights):
        raise administrator.refusal(rights[0], f"call {call.method.rpartition('.')[2]}")
    return administrator


def _unlimited(administrator: Administrator, call: Call) -> str:
    """The name, for a method that asks no limits: then a right that is limited to a part does not do."""
    what = f"call {call.method.rpartition('.')[2]}"
    rights = rights_for(call.method)
    if Right.READ not in rights:
        administrator.require_unlimited(rights[0], what)
    return administrator.name


def refusal(standing: Standing, agent: SpiffeId, words: str = "") -> Refused:
    """The refusal that tells an agent what to do next, in other ``words`` where they are given."""
    sentence = {
        Standing.AGENT_EXPIRED: "the agent's certificate has expired",
        Standing.AGENT_NOT_ATTESTED: "the agent is not attested",
        Standing.AGENT_NOT_ACTIVE: "the agent's certificate is not its current one",
        Standing.AGENT_BANNED: "the agent is banned",
        Standing.AGENT_MUST_REATTEST: "the agent must attest again",
    }[standing]
    reason = types_pb2.PermissionDeniedDetails.Reason.Name(standing.value)  # type: ignore[arg-type]
    details = types_pb2.PermissionDeniedDetails(reason=reason)  # type: ignore[arg-type]
    return Refused(words or f"{sentence}: {agent}", [details])
