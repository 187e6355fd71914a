"""The server's own X.509-SVID: issued through the door like any other, renewed at half life, swapped under the port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import X509Request
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.csr import make_csr
from eastwest.rpc.tls import SwappableContext, mutual_context, server_context, web_context

SERVER_PATH = "/spire/server"
RETRY_SECONDS = 30.0
_log = structlog.get_logger()


class ServerIdentity:
    """Key and certificate of ``spiffe://TD/spire/server``; the key lives in memory only."""

    def __init__(self, issuer: Issuer, roots: Callable[[], Sequence[bytes]], clock: Clock) -> None:
        """``roots`` gives what callers' certificates may chain to, as it is now (DER): the roots, and the CAs below
        them that callers need not show.
        """
        self._issuer = issuer
        self._roots = roots
        self._clock = clock
        self._overdue = asyncio.Event()
        self.chain: tuple[bytes, ...] = ()
        self._not_before = self._not_after = clock.now()
        self.tls: SwappableContext | None = None
        self.web: SwappableContext | None = None
        self.mutual: SwappableContext | None = None

    async def renew(self) -> None:
        """Issue anew and use it from the next handshake on."""
        key = ec.generate_private_key(ec.SECP256R1())
        spiffe_id = self._issuer.trust_domain.id(SERVER_PATH)
        wanted = X509Request(
            csr_der=make_csr(key, spiffe_id),
            spiffe_id=spiffe_id,
            profile="server",
            door="internal",
            caller=str(spiffe_id),
            caller_kind="self",
        )
        [svid] = await self._issuer.issue_x509([wanted])
        if isinstance(svid, Error):
            raise svid
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        context = server_context(dump_chain_pem(svid.chain), pem, self._roots())
        if self.tls is None:
            self.tls = SwappableContext(context)
        else:
            self.tls.swap(context)
        public = web_context(dump_chain_pem(svid.chain), pem)
        if self.web is None:
            self.web = SwappableContext(public)
        else:
            self.web.swap(public)
        mutual = mutual_context(dump_chain_pem(svid.chain), pem, self._roots())
        if self.mutual is None:
            self.mutual = SwappableContext(mutual)
        else:
            self.mutual.swap(mutual)
        self.chain, self._not_before, self._not_after = svid.chain, svid.not_before, svid.not_after

    @property
    def expires_at(self) -> datetime:
        """The end of the certificate in use."""
        return self._not_after

    async def follow(self) -> None:
        """Renew now, because what signs or what is trusted has changed; where that fails, soon again."""
        try:
            await self.renew()
        except Error as error:
            _log.error("server.identity.not_renewed", error=str(error))
            self._overdue.set()

    async def keep(self) -> None:
        """Renew at half life, for ever; a failure is tried again while the old certificate lives."""
        while True:
            half = self._not_before + (self._not_after - self._not_before) / 2
            await self._until(max(1.0, (half - self._clock.now()).total_seconds()))
            try:
                await self.renew()
            except Error:
                await self._clock.sleep(RETRY_SECONDS)
                self._overdue.set()

    async def _until(self, seconds: float) -> None:
        """Wait so long, or until a renewal is overdue."""
        waiting = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._overdue.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        self._overdue.clear()
