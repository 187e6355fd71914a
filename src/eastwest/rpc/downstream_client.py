"""Calling a server of the same trust domain that stands above this one: SPIRE's downstream calls, as values."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2
from eastwest.api.spire.api.server.svid.v1 import svid_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.pki.chain import dump_chain_pem
from eastwest.rpc.client import Channel, method
from eastwest.rpc.spire import bundle_from_proto
from eastwest.rpc.tls import client_context, expect_server
from eastwest.rpc.workload_client import OwnSvid
from eastwest.spiffe.bundle import Bundle, JwtAuthority
from eastwest.spiffe.id import SpiffeId

_SVID = svid_pb2.DESCRIPTOR.services_by_name["SVID"]
_BUNDLE = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]


@dataclass(frozen=True, slots=True)
class NewCa:
    """A certified CA: ``chain`` in DER, the CA first; ``roots`` in DER."""

    chain: tuple[bytes, ...] = field(repr=False)
    roots: tuple[bytes, ...] = field(repr=False)


class DownstreamClient:
    """One connection to the server above. Every method raises our errors."""

    def __init__(self, channel: Channel, deadline: float) -> None:
        self._channel = channel
        self._deadline = deadline

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, host: str, port: int, svid: OwnSvid, server: SpiffeId, deadline: float
    ) -> AsyncIterator[DownstreamClient]:
        """Show ``svid``, and expect ``server`` to answer; closed at the end."""
        tls = client_context(svid.roots, dump_chain_pem(svid.chain), svid.key_pem)
        channel = Channel(host=host, port=port, tls=tls, check=expect_server(server))
        try:
            yield cls(channel, deadline)
        finally:
            channel.close()

    async def new_ca(self, csr: bytes, ttl: int) -> NewCa:
        """A CA for the key of ``csr`` that lives ``ttl`` seconds or less."""
        request = svid_pb2.NewDownstreamX509CARequest(csr=csr, preferred_ttl=ttl)
        reply = await self._channel.unary(method(_SVID, "NewDownstreamX509CA"), request, deadline=self._deadline)
        return NewCa(tuple(reply.ca_cert_chain), tuple(reply.x509_authorities))

    async def bundle(self) -> Bundle:
        """The trust domain's bundle, as the server above has it."""
        request = bundle_pb2.GetBundleRequest()
        return bundle_from_proto(
            await self._channel.unary(method(_BUNDLE, "GetBundle"), request, deadline=self._deadline)
        )

    async def publish_jwt(self, key: JwtAuthority) -> tuple[JwtAuthority, ...]:
        """Make a JWT key known in the whole trust domain; what comes back are all of its keys."""
        wanted = types_pb2.JWTKey(
            public_key=key.spki, key_id=key.key_id, expires_at=key.expires_at, tainted=key.tainted
        )
        request = bundle_pb2.PublishJWTAuthorityRequest(jwt_authority=wanted)
        reply = await self._channel.unary(method(_BUNDLE, "PublishJWTAuthority"), request, deadline=self._deadline)
        return tuple(JwtAuthority(k.public_key, k.key_id, k.expires_at, k.tainted) for k in reply.jwt_authorities)
