"""The agent's way to the server: one channel at a time, replaced when certificate or trust changes.

Calls in flight finish on the channel they began on. A refusal that says what became of this agent ends in
``dismissal``, which the process waits for beside everything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from h2.exceptions import StreamClosedError

from eastwest import errors
from eastwest.agent.changes import Changes
from eastwest.agent.own import OwnSvid
from eastwest.api.eastwest.control.v1 import control_pb2 as control
from eastwest.api.eastwest.log.v1 import log_pb2 as log
from eastwest.api.spire.api.server.agent.v1 import agent_pb2 as agent
from eastwest.api.spire.api.server.svid.v1 import svid_pb2 as svid
from eastwest.api.spire.api.types import types_pb2 as types
from eastwest.attest.node import NodeProver
from eastwest.rpc.client import Channel, Untrusted, method
from eastwest.rpc.status import Refused
from eastwest.rpc.tls import client_context, expect_server
from eastwest.spiffe.id import TrustDomain

SERVER_PATH = "/spire/server"
MAX_CHALLENGES = 16
_AGENT = agent.DESCRIPTOR.services_by_name["Agent"]
_SVID = svid.DESCRIPTOR.services_by_name["SVID"]
_LOG = log.DESCRIPTOR.services_by_name["Log"]
_CONTROL = control.DESCRIPTOR.services_by_name["Control"]
_Reason = types.PermissionDeniedDetails


class Dismissed(errors.PermissionDenied):
    """The server no longer takes this agent's certificate. ``banned``: nor will it take another."""

    def __init__(self, message: str, *, banned: bool, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.banned = banned


class Outdated(errors.Unavailable):
    """The server no longer takes this agent's certificate, and the agent can earn another by its evidence."""


class ServerConnection:
    """Calls to one server, which must prove to be ``spiffe://TD/spire/server``.

    ``may_reattest``: a certificate that the server does not take any more is no end: ``outdated`` is set, calls raise
    ``Outdated``, which passes, and whoever renews certificates attests anew.
    """

    def __init__(
        self,
        host: str,
        port: int,
        trust_domain: TrustDomain,
        *,
        timeout: float = 30.0,
        may_reattest: bool = False,
    ) -> None:
        self._host = host
        self._port = port
        self._server_id = trust_domain.id(SERVER_PATH)
        self._timeout = timeout
        self._may_reattest = may_reattest
        self._roots: tuple[bytes, ...] = ()
        self.outdated = asyncio.Event()
        self._current: _Counted | None = None
        self._serial: int | None = None
        self.renewed = Changes()
        self.dismissal: asyncio.Future[Dismissed] = asyncio.get_running_loop().create_future()
        self.target = f"{host}:{port}"

    def use(self, roots: Sequence[bytes], own: OwnSvid | None) -> None:
        """Trust ``roots`` (DER) and prove to be ``own`` from the next call on."""
        self._roots = tuple(roots)
        old, self._current = self._current, _Counted(self._open(own))
        if old is not None:
            old.retire()
        serial = own.serial if own is not None else None
        if serial != self._serial:
            self._serial = serial
            self.outdated.clear()
            self.renewed.bump()

    async def attest(self, prover: NodeProver, csr: bytes) -> agent.AttestAgentResponse.Result:
        """Prove this node; gives the agent's SVID, and whether it is to attest again in place of renewing.

        On a connection of its own and without a certificate, as SPIRE does: the present one may be what is wrong.
        Evidence leaves this machine only after the server has proved to be ours.
        """
        request = agent.AttestAgentRequest()
        try:
            request.params.data.payload = await prover.payload()
            request.params.data.type = prover.name
            request.params.params.csr = csr
            channel = self._open(None)
            result: agent.AttestAgentResponse.Result | None = None
            try:
                async with channel.stream(method(_AGENT, "AttestAgent"), deadline=self._timeout) as stream:
                    result = await _converse(stream, request, prover)
            except errors.Error:
                # Once the result is here, how the stream ends does not matter: servers differ in it.
                if result is None:
                    raise
            finally:
                channel.close()
            assert result is not None
            return result
        finally:
            await prover.finish()

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

    async def report(self, spool: str, sequence: int, rows: bytes) -> int:
        """Hand a batch of the spool over; returns the last sequence of that spool which the server has stored."""
        request = control.ReportDecisionsRequest(decisions=rows, spool=spool, sequence=sequence)
        reply = await self._unary(method(_CONTROL, "ReportDecisions"), request)
        return int(reply.sequence)

    async def use_token(self, token_id: str, expires_at: int, approval: str, operation: str) -> bool:
        """Whether a transaction token that counts once may be used now; true only once, and durably so.

        ``token_id`` and ``expires_at`` (Unix seconds) are the token's ``jti`` and ``exp``, ``approval`` the id that it
        names or "". Raises ``Unavailable`` and the like when nobody can say: then it may not.
        """
        request = control.UseTokenRequest(
            token_id=token_id, expires_at=expires_at, approval_id=approval, operation=operation
        )
        reply = await self._unary(method(_CONTROL, "UseToken"), request)
        return not reply.used

    async def prove(self, certificates: Sequence[bytes]) -> list[log.ProveResponse]:
        """The log's entries of certificates that this agent was issued (by SHA-256), with proofs; nothing is verified.

        In the same order, at most 100; one that the log does not have yet is empty.
        """
        request = log.ProveCertificatesRequest(certificate_sha256=certificates)
        reply = await self._unary(method(_LOG, "ProveCertificates"), request)
        if len(reply.receipts) != len(certificates):
            raise errors.Unavailable(f"the server answered {len(reply.receipts)} of {len(certificates)} receipts")
        return list(reply.receipts)

    @asynccontextmanager
    async def subscription(self) -> AsyncIterator[Any]:
        """The control stream, open and bare."""
        async with self._watched(), self._channel() as channel, channel.stream(method(_CONTROL, "Subscribe")) as stream:
            async with asyncio.timeout(self._timeout):
                await stream.send_request()
            yield stream

    def dismiss(self, dismissed: Dismissed) -> None:
        """End this agent: whoever waits for ``dismissal`` hears of it."""
        if not self.dismissal.done():
            self.dismissal.set_result(dismissed)

    def close(self) -> None:
        """End all calls."""
        if self._current is not None:
            self._current.channel.close()
            self._current = None

    def _open(self, own: OwnSvid | None) -> Channel:
        tls = client_context(self._roots, *((own.chain_pem, own.key_pem) if own is not None else ()))
        return Channel(host=self._host, port=self._port, tls=tls, check=expect_server(self._server_id))

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
        serial = self._serial
        try:
            yield
        except Refused as refused:
            dismissed = dismissed_by(refused)
            if dismissed is None:
                raise
            if self._may_reattest and not dismissed.banned:
                if serial == self._serial:  # else the answer is about a certificate that is replaced already
                    self.outdated.set()
                raise Outdated(dismissed.message, fix="this agent attests again by itself") from None
            self.dismiss(dismissed)
            raise dismissed from None


async def _converse(stream: Any, request: Any, prover: NodeProver) -> agent.AttestAgentResponse.Result:
    # Connects, and checks who is there, before the first message.
    await stream.send_request()
    await stream.send_message(request)
    for _ in range(MAX_CHALLENGES):
        reply = await stream.recv_message()
        if reply is None:
            await stream.recv_trailing_metadata()
            raise errors.Unavailable("the server ended the attestation without a word")
        if reply.WhichOneof("step") == "result":
            return cast("agent.AttestAgentResponse.Result", reply.result)
        answer = await prover.answer(bytes(reply.challenge))
        with suppress(StreamClosedError):  # ended by the server meanwhile; why is what is received next
            await stream.send_message(agent.AttestAgentRequest(challenge_response=answer))
    raise errors.FailedPrecondition(f"the server asked more than {MAX_CHALLENGES} challenges")


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


def dismissed_by(refused: Refused) -> Dismissed | None:
    """What a refusal says of the agent's own standing; None when it is about something else."""
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
