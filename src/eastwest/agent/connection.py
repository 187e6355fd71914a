"""The agent's way to the server: one channel at a time, replaced when certificate or trust changes.

Calls in flight finish on the channel they began on. A refusal that says what became of this agent ends in
``dismissal``, which the process waits for beside everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from eastwest import errors
from eastwest.agent.changes import Changes
from eastwest.agent.own import OwnSvid
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.api.spire.api.server.agent.v1 import agent_pb2 as agent
from eastwest.api.spire.api.server.svid.v1 import svid_pb2 as svid
from eastwest.api.spire.api.types import types_pb2 as types
from eastwest.rpc.client import Channel, Untrusted, method
from eastwest.rpc.status import Refused
from eastwest.rpc.tls import client_context, expect_server
from eastwest.spiffe.id import TrustDomain

SERVER_PATH = "/spire/server"
_AGENT = agent.DESCRIPTOR.services_by_name["Agent"]
_SVID = svid.DESCRIPTOR.services_by_name["SVID"]
_CONTROL = control.DESCRIPTOR.services_by_name["Control"]
_Reason = types.PermissionDeniedDetails


class Dismissed(errors.PermissionDenied):
    """The server no longer takes this agent's certificate. ``banned``: nor will it take another."""

    def __init__(self, message: str, *, banned: bool, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.banned = banned


class ServerConnection:
    """Calls to one server, which must prove to be ``spiffe://TD/spire/server``."""

    def __init__(self, host: str, port: int, trust_domain: TrustDomain, *, timeout: float = 30.0) -> None:
        self._host = host
        self._port = port
        self._server_id = trust_domain.id(SERVER_PATH)
        self._timeout = timeout
        self._current: _Counted | None = None
        self._serial: int | None = None
        self.renewed = Changes()
        self.dismissal: asyncio.Future[Dismissed] = asyncio.get_running_loop().create_future()
        self.target = f"{host}:{port}"

    def use(self, roots: Sequence[bytes], own: OwnSvid | None) -> None:
        """Trust ``roots`` (DER) and prove to be ``own`` from the next call on."""
        tls = client_context(roots, *((own.chain_pem, own.key_pem) if own is not None else ()))
        old, self._current = (
            self._current,
            _Counted(Channel(host=self._host, port=self._port, tls=tls, check=expect_server(self._server_id))),
        )
        if old is not None:
            old.retire()
        serial = own.serial if own is not None else None
        if serial != self._serial:
            self._serial = serial
            self.renewed.bump()

    async def attest(self, kind: str, payload: bytes, csr: bytes) -> types.X509SVID:
        """Prove this node by evidence that needs no challenge; gives the agent's SVID."""
        request = agent.AttestAgentRequest()
        request.params.data.type = kind
        request.params.data.payload = payload
        request.params.params.csr = csr
        async with (
            self._channel() as channel,
            channel.stream(method(_AGENT, "AttestAgent"), deadline=self._timeout) as s,
        ):
            # Ended at once: a Go server that answers first would otherwise reset the call and its answer with it.
            await s.send_message(request, end=True)
            reply = await s.recv_message()
            if reply is None:
                await s.recv_trailing_metadata()
                raise errors.Unavailable("the server ended the attestation without a word")
        if reply.WhichOneof("step") != "result":
            raise errors.FailedPrecondition(f"the server asks a challenge that {kind} does not know")
        return cast("types.X509SVID", reply.result.svid)

    async def renew(self, csr: bytes) -> types.X509SVID:
        """A new SVID for this agent, asked for with the present one."""
        request = agent.RenewAgentRequest()
        request.params.csr = csr
        reply = await self._unary(method(_AGENT, "RenewAgent"), request)
        return cast("types.X509SVID", reply.svid)

    async def sign(self, params: Sequence[tuple[str, bytes]]) -> list[types.X509SVID | errors.Error]:
        """Certify ``(entry id, CSR)`` pairs, at most 500; each gets an SVID or its own error, in order."""
        request = svid.BatchNewX509SVIDRequest(
            params=[svid.NewX509SVIDParams(entry_id=entry, csr=csr) for entry, csr in params]
        )
        reply = await self._unary(method(_SVID, "BatchNewX509SVID"), request)
        if len(reply.results) != len(params):
            raise errors.Unavailable(f"the server answered {len(reply.results)} of {len(params)} requests")
        return [
            result.svid
            if result.status.code == 0
            else errors.Unavailable(f"status {result.status.code}: {result.status.message}")
            for result in reply.results
        ]

    async def new_jwt(self, entry: str, audience: Sequence[str]) -> types.JWTSVID:
        """A JWT-SVID for ``entry``."""
        request = svid.NewJWTSVIDRequest(entry_id=entry, audience=audience)
        reply = await self._unary(method(_SVID, "NewJWTSVID"), request)
        return cast("types.JWTSVID", reply.svid)

    async def report(self, decisions: bytes, lost: int) -> None:
        """Hand decisions over; returning means that the server has stored them."""
        await self._unary(
            method(_CONTROL, "ReportDecisions"), control.ReportDecisionsRequest(decisions=decisions, lost=lost)
        )

    @asynccontextmanager
    async def subscription(self) -> AsyncIterator[Any]:
        """The control stream, open and bare."""
        async with self._watched(), self._channel() as channel, channel.stream(method(_CONTROL, "Subscribe")) as stream:
            async with asyncio.timeout(self._timeout):
                await stream.send_request()
            yield stream

    def close(self) -> None:
        """End all calls."""
        if self._current is not None:
            self._current.channel.close()
            self._current = None

    async def _unary(self, descriptor: Any, request: Any) -> Any:
        async with self._watched(), self._channel() as channel:
            return await channel.unary(descriptor, request, deadline=self._timeout)

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[Channel]:
        counted = self._current
        if counted is None:
            raise errors.Unavailable("the agent has no connection yet")
        counted.users += 1
        try:
            yield counted.channel
        finally:
            counted.leave()

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        try:
            yield
        except Refused as refused:
            dismissed = _dismissed(refused)
            if dismissed is None:
                raise
            if not self.dismissal.done():
                self.dismissal.set_result(dismissed)
            raise dismissed from None


class _Counted:
    """A channel that is closed when it is retired and its last call has ended."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.users = 0
        self._retired = False

    def retire(self) -> None:
        self._retired = True
        if self.users == 0:
            self.channel.close()

    def leave(self) -> None:
        self.users -= 1
        if self._retired and self.users == 0:
            self.channel.close()


def skew_or(error: errors.Error) -> errors.Error:
    """The same error, told as a clock problem where a certificate's times are all that is wrong with it."""
    if isinstance(error, Untrusted) and error.outside_validity:
        return errors.FailedPrecondition(
            f"{error.message}: clock skew, if the server is running",
            fix="compare this machine's clock with the server's and set both by NTP",
        )
    return error


def _dismissed(refused: Refused) -> Dismissed | None:
    for detail in refused.details:
        if not isinstance(detail, _Reason):
            continue
        if detail.reason == _Reason.AGENT_BANNED:
            return Dismissed("the server has banned this agent", banned=True, fix="ask who administers the server")
        if detail.reason in {
            _Reason.AGENT_EXPIRED,
            _Reason.AGENT_NOT_ATTESTED,
            _Reason.AGENT_NOT_ACTIVE,
            _Reason.AGENT_MUST_REATTEST,
        }:
            name = _Reason.Reason.Name(detail.reason)
            return Dismissed(
                f"the server no longer knows this agent ({name}: {refused.message})",
                banned=False,
                fix="start it again with a new join token",
            )
    return None
