"""``spire.api.server.bundle.v1.Bundle``: the trust bundle, for anyone who asks."""

from __future__ import annotations

from collections.abc import Callable

from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2 as pb
from eastwest.api.spire.api.types import types_pb2
from eastwest.errors import NotFound
from eastwest.rpc.service import SMALL_MESSAGE, Call, Service
from eastwest.rpc.spire import bundle_to_proto, masked
from eastwest.server.gate import Gate
from eastwest.spiffe.bundle import Bundle

_SERVICE = pb.DESCRIPTOR.services_by_name["Bundle"]


def bundle_service(bundle: Callable[[], Bundle], gate: Gate) -> Service:
    """``bundle`` gives the bundle as it is now."""

    def _mask(request: pb.GetBundleRequest) -> types_pb2.BundleMask | None:
        return request.output_mask if request.HasField("output_mask") else None

    async def get(request: pb.GetBundleRequest, _call: Call) -> types_pb2.Bundle:
        return masked(bundle_to_proto(bundle()), _mask(request), keep=("trust_domain",))

    async def get_federated(request: pb.GetFederatedBundleRequest, _call: Call) -> types_pb2.Bundle:
        raise NotFound(f"no bundle of trust domain {request.trust_domain[:255]!r} is known")

    async def count(_request: pb.CountBundlesRequest, call: Call) -> pb.CountBundlesResponse:
        await gate.admin(call)
        return pb.CountBundlesResponse(count=1)

    async def list_federated(_request: pb.ListFederatedBundlesRequest, call: Call) -> pb.ListFederatedBundlesResponse:
        await gate.admin(call)
        return pb.ListFederatedBundlesResponse()

    return Service(
        _SERVICE,
        {
            "GetBundle": get,
            "GetFederatedBundle": get_federated,
            "CountBundles": count,
            "ListFederatedBundles": list_federated,
        },
        guard=gate.enter,
        limit=SMALL_MESSAGE,
    )
