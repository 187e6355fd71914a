"""``spire.api.server.bundle.v1.Bundle``: the trust bundle, for anyone who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2 as pb
from eastwest.api.spire.api.types import types_pb2
from eastwest.errors import Error
from eastwest.rpc.service import SMALL_MESSAGE, TINY_MESSAGE, Call, Service
from eastwest.rpc.spire import bundle_to_proto, masked
from eastwest.server.gate import Gate
from eastwest.server.spire.federated_bundle import FederatedBundles
from eastwest.spiffe.bundle import Bundle, JwtAuthority
from eastwest.spiffe.id import SpiffeId

_SERVICE = pb.DESCRIPTOR.services_by_name["Bundle"]


def bundle_service(
    bundle: Callable[[], Bundle],
    federated: FederatedBundles,
    gate: Gate,
    limit: int | None = SMALL_MESSAGE,
    on_fetch: Callable[[SpiffeId, bytes], None] = lambda _agent, _certificate: None,
    *,
    publish: Callable[[JwtAuthority, str], Awaitable[Bundle]],
    append: Callable[[Sequence[bytes], Sequence[JwtAuthority], str], Awaitable[Bundle]],
) -> Service:
    """``bundle`` gives the own bundle as it is now; ``federated`` serves what is about others.

    ``on_fetch`` hears which agent has fetched the own bundle, and the certificate (DER) that it showed.
    ``publish`` takes a JWT key of a server below this one, whose SPIFFE ID it is told, into the own bundle.
    ``append`` takes roots (DER) and JWT keys into it, and is told which administrator brings them.
    """

    def _mask(request: pb.GetBundleRequest | pb.AppendBundleRequest) -> types_pb2.BundleMask | None:
        return request.output_mask if request.HasField("output_mask") else None

    async def get(request: pb.GetBundleRequest, call: Call) -> types_pb2.Bundle:
        if call.peer_certificate is not None:
            # Anybody may have the bundle; only an agent in good standing confirms anything by it.
            with suppress(Error):
                on_fetch((await gate.agent(call)).id, call.peer_certificate)
        return masked(bundle_to_proto(bundle()), _mask(request), keep=("trust_domain",))

    async def count(_request: pb.CountBundlesRequest, call: Call) -> pb.CountBundlesResponse:
        await gate.admin(call)
        return pb.CountBundlesResponse(count=1 + federated.count)

    async def publish_jwt(request: pb.PublishJWTAuthorityRequest, call: Call) -> pb.PublishJWTAuthorityResponse:
        entry = await gate.downstream(call)
        key = request.jwt_authority
        authority = JwtAuthority(key.public_key, key.key_id, key.expires_at)
        known = bundle_to_proto(await publish(authority, str(entry.spiffe_id)))
        return pb.PublishJWTAuthorityResponse(jwt_authorities=known.jwt_authorities)

    async def add(request: pb.AppendBundleRequest, call: Call) -> types_pb2.Bundle:
        actor = await gate.admin(call)
        roots = [certificate.asn1 for certificate in request.x509_authorities]
        keys = [JwtAuthority(key.public_key, key.key_id, key.expires_at) for key in request.jwt_authorities]
        return masked(bundle_to_proto(await append(roots, keys, actor)), _mask(request), keep=("trust_domain",))

    return Service(
        _SERVICE,
        {
            "GetBundle": get,
            "AppendBundle": add,
            "PublishJWTAuthority": publish_jwt,
            "CountBundles": count,
            **federated.handlers(),
        },
        guard=gate.enter,
        limit=limit,
        limits={"GetBundle": TINY_MESSAGE},  # which anybody may call
    )
