"""Federation over the admin socket, as ``eastwest federation`` and ``eastwest bundle`` ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from google.protobuf.message import Message

from eastwest.api.eastwest.federation.v1 import federation_pb2
from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2
from eastwest.api.spire.api.server.trustdomain.v1 import trustdomain_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.cli.admin import admin_channel
from eastwest.rpc.client import Channel, method
from eastwest.rpc.status import error_of

_BUNDLE = bundle_pb2.DESCRIPTOR.services_by_name["Bundle"]
_FEDERATION = federation_pb2.DESCRIPTOR.services_by_name["Federation"]
_TRUST_DOMAIN = trustdomain_pb2.DESCRIPTOR.services_by_name["TrustDomain"]
MODES = {
    "restrict": bundle_pb2.BatchDeleteFederatedBundleRequest.RESTRICT,
    "delete": bundle_pb2.BatchDeleteFederatedBundleRequest.DELETE,
    "dissociate": bundle_pb2.BatchDeleteFederatedBundleRequest.DISSOCIATE,
}
"""What becomes of entries that federate with a trust domain whose bundle goes."""


class FederationClient:
    """Use as ``async with FederationClient.connect(data) as federation``; raises what the server says."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    def connect(cls, data: Path) -> FederationClient:
        """Reach the server of ``data``; raises ``Unavailable`` when none runs there."""
        return cls(admin_channel(data))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._channel.close()

    async def statuses(self) -> list[federation_pb2.ForeignTrustDomain]:
        """Every foreign trust domain that is known, with how its endpoint fares."""
        request = federation_pb2.ListTrustDomainsRequest()
        reply = await self._channel.unary(method(_FEDERATION, "ListTrustDomains"), request)
        return list(reply.trust_domains)

    async def create(self, relationship: types_pb2.FederationRelationship) -> None:
        """Begin to trust."""
        request = trustdomain_pb2.BatchCreateFederationRelationshipRequest(federation_relationships=[relationship])
        await self._one(_TRUST_DOMAIN, "BatchCreateFederationRelationship", request)

    async def update(
        self, relationship: types_pb2.FederationRelationship, changed: types_pb2.FederationRelationshipMask
    ) -> None:
        """Change those fields of a relationship; the others stay."""
        request = trustdomain_pb2.BatchUpdateFederationRelationshipRequest(
            federation_relationships=[relationship], input_mask=changed
        )
        await self._one(_TRUST_DOMAIN, "BatchUpdateFederationRelationship", request)

    async def delete(self, trust_domain: str) -> None:
        """End the trust."""
        request = trustdomain_pb2.BatchDeleteFederationRelationshipRequest(trust_domains=[trust_domain])
        await self._one(_TRUST_DOMAIN, "BatchDeleteFederationRelationship", request)

    async def refresh(self, trust_domain: str) -> None:
        """Look at the endpoint now."""
        request = trustdomain_pb2.RefreshBundleRequest(trust_domain=trust_domain)
        await self._channel.unary(method(_TRUST_DOMAIN, "RefreshBundle"), request)

    async def bundle(self, trust_domain: str) -> types_pb2.Bundle:
        """The bundle of a foreign trust domain."""
        request = bundle_pb2.GetFederatedBundleRequest(trust_domain=trust_domain)
        reply: types_pb2.Bundle = await self._channel.unary(method(_BUNDLE, "GetFederatedBundle"), request)
        return reply

    async def set_bundle(self, bundle: types_pb2.Bundle) -> None:
        """Put a foreign bundle in force."""
        request = bundle_pb2.BatchSetFederatedBundleRequest(bundle=[bundle])
        await self._one(_BUNDLE, "BatchSetFederatedBundle", request)

    async def delete_bundle(self, trust_domain: str, mode: str) -> None:
        """Forget a foreign bundle."""
        request = bundle_pb2.BatchDeleteFederatedBundleRequest(trust_domains=[trust_domain], mode=MODES[mode])
        await self._one(_BUNDLE, "BatchDeleteFederatedBundle", request)

    async def _one(self, service: Any, name: str, request: Message) -> None:
        reply = await self._channel.unary(method(service, name), request)
        [result] = reply.results
        error = error_of(result.status.code, result.status.message)
        if error is not None:
            raise error
