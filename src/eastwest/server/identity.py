"""The server's own X.509-SVID: issued through the door like any other, renewed at half life, swapped under the port."""

from __future__ import annotations

from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from eastwest.clock import Clock
from eastwest.errors import Error
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import X509Request
from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.csr import make_csr
from eastwest.rpc.tls import SwappableContext, server_context

SERVER_PATH = "/spire/server"
RETRY_SECONDS = 30.0


class ServerIdentity:
    """Key and certificate of ``spiffe://TD/spire/server``; the key lives in memory only."""

    def __init__(self, issuer: Issuer, clock: Clock) -> None:
        self._issuer = issuer
        self._clock = clock
        self.chain: tuple[bytes, ...] = ()
        self._not_before = self._not_after = clock.now()
        self.tls: SwappableContext | None = None

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
        )
        [svid] = await self._issuer.issue_x509([wanted])
        if isinstance(svid, Error):
            raise svid
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        context = server_context(dump_chain_pem(svid.chain), pem, self._issuer.authority.roots)
        if self.tls is None:
            self.tls = SwappableContext(context)
        else:
            self.tls.swap(context)
        self.chain, self._not_before, self._not_after = svid.chain, svid.not_before, svid.not_after

    @property
    def expires_at(self) -> datetime:
        """The end of the certificate in use."""
        return self._not_after

    async def keep(self) -> None:
        """Renew at half life, for ever; a failure is tried again while the old certificate lives."""
        while True:
            half = self._not_before + (self._not_after - self._not_before) / 2
            await self._clock.sleep(max(1.0, (half - self._clock.now()).total_seconds()))
            try:
                await self.renew()
            except Error:
                await self._clock.sleep(RETRY_SECONDS)
