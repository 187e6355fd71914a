"""Another server of the same trust domain, Eastwest or SPIRE, through SPIRE's downstream calls.

An agent of the server above runs on this machine and attests this process: that is the identity shown to the server
above, under an entry with ``downstream``. It is fetched anew for each call, so that it is never an old one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Self

import msgspec

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.pki.upstream import CaRequest, MintedCa, UpstreamContext
from eastwest.plugins.upstream_chain import minted, requested_key
from eastwest.rpc.downstream_client import DownstreamClient
from eastwest.rpc.workload_client import OwnSvid, fetch_own_svids
from eastwest.spiffe.bundle import Bundle, JwtAuthority
from eastwest.spiffe.id import SpiffeId, TrustDomain

SERVER_PATH = "/spire/server"


class SpireUpstream:
    """The server above. Its JWT keys are the whole trust domain's, so ours are made known there."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[upstreams.spire]``.

        ``server_address`` and ``server_port``: the port for agents of the server above. ``workload_api_socket``: the
        socket of its agent on this machine. ``spiffe_id``: which identity to show, where the agent gives this process
        several; empty: the first. ``timeout``: seconds for each call.
        """

        server_address: str
        workload_api_socket: str
        server_port: int = 8081
        spiffe_id: str = ""
        timeout: float = 15.0

    def __init__(self, options: Options, trust_domain: TrustDomain) -> None:
        self._options = options
        self._trust_domain = trust_domain
        self._wanted = SpiffeId.parse(options.spiffe_id) if options.spiffe_id else None
        self._where = f"{options.server_address}:{options.server_port}"

    @classmethod
    def from_options(cls, options: Options, context: UpstreamContext) -> Self:
        """As the entry point makes it; the first call goes out when a CA is asked for."""
        if not 1 <= options.server_port <= 65535:
            raise InvalidInput("server_port is not a port", fix="a number from 1 to 65535")
        if not 0.1 <= options.timeout <= 300:
            raise InvalidInput("timeout must be 0.1 to 300 seconds")
        if options.workload_api_socket.startswith("unix:"):
            raise InvalidInput("workload_api_socket is a path, without unix:")
        return cls(options, context.trust_domain)

    async def mint(self, request: CaRequest) -> MintedCa:
        requested_key(request)
        async with self._connect(await self._svid()) as client:
            answer = await client.new_ca(request.csr_der, int(request.lifetime.total_seconds()))
        if not answer.chain:
            raise FailedPrecondition("the server above answered without a certificate", where=self._where)
        return minted(request, answer.chain[0], answer.chain[1:], answer.roots, self._where)

    async def roots(self) -> Sequence[bytes]:
        return tuple(authority.der for authority in (await self._bundle()).x509_authorities)

    async def tainted(self) -> Collection[bytes]:
        """The roots that the server above has tainted."""
        return {authority.der for authority in (await self._bundle()).x509_authorities if authority.tainted}

    async def publish_jwt(self, keys: Sequence[JwtAuthority]) -> Sequence[JwtAuthority]:
        async with self._connect(await self._svid()) as client:
            known: Sequence[JwtAuthority] = ()
            for key in keys:
                known = await client.publish_jwt(key)
            return known or (await client.bundle()).jwt_authorities

    async def _bundle(self) -> Bundle:
        async with self._connect(await self._svid()) as client:
            bundle = await client.bundle()
        if bundle.trust_domain != self._trust_domain:
            raise FailedPrecondition(f"the server above is of trust domain {bundle.trust_domain}", where=self._where)
        return bundle

    def _connect(self, svid: OwnSvid) -> AbstractAsyncContextManager[DownstreamClient]:
        options = self._options
        server = self._trust_domain.id(SERVER_PATH)
        return DownstreamClient.connect(options.server_address, options.server_port, svid, server, options.timeout)

    async def _svid(self) -> OwnSvid:
        socket = self._options.workload_api_socket
        found = await fetch_own_svids(socket, self._options.timeout)
        svid = next((svid for svid in found if self._wanted in {None, svid.id}), None)
        if svid is None:
            raise FailedPrecondition(
                f"the agent does not give this process {self._wanted}",
                where=socket,
                fix=f"it gives {', '.join(str(svid.id) for svid in found[:5])}",
            )
        if svid.id.trust_domain != self._trust_domain:
            raise FailedPrecondition(
                f"the agent belongs to trust domain {svid.id.trust_domain}, and this server to {self._trust_domain}",
                where=socket,
                fix="a server below another one is of its trust domain",
            )
        return svid
