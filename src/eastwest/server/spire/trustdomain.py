"""``spire.api.server.trustdomain.v1.TrustDomain``: federation relationships, on the admin socket."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty

from eastwest.api.spire.api.server.trustdomain.v1 import trustdomain_pb2 as pb
from eastwest.api.spire.api.types import types_pb2
from eastwest.errors import Error, InvalidInput, NotFound
from eastwest.registry.federation import EndpointProfile, Relationship
from eastwest.rpc.service import Call, Service
from eastwest.rpc.spire import bundle_from_proto, bundle_to_proto, masked
from eastwest.rpc.status import status_of
from eastwest.server.federation.keeper import Federation
from eastwest.server.federation.poll import BundlePoller
from eastwest.server.gate import Gate
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import SpiffeId, TrustDomain

PAGE = 50
MAX_BATCH = 1000
_SERVICE = pb.DESCRIPTOR.services_by_name["TrustDomain"]
_ALL = types_pb2.FederationRelationshipMask(
    bundle_endpoint_url=True, bundle_endpoint_profile=True, trust_domain_bundle=True
)
R = TypeVar("R")


class TrustDomainService:
    """Translates between SPIRE's messages and the federation."""

    def __init__(self, federation: Federation, poller: BundlePoller, gate: Gate) -> None:
        self._federation = federation
        self._poller = poller
        self._gate = gate

    def service(self) -> Service:
        """The gRPC service."""
        return Service(
            _SERVICE,
            {
                "ListFederationRelationships": self._list,
                "GetFederationRelationship": self._get,
                "BatchCreateFederationRelationship": self._create,
                "BatchUpdateFederationRelationship": self._update,
                "BatchDeleteFederationRelationship": self._delete,
                "RefreshBundle": self._refresh,
            },
            guard=self._gate.enter,
        )

    async def _list(
        self, request: pb.ListFederationRelationshipsRequest, call: Call
    ) -> pb.ListFederationRelationshipsResponse:
        await self._gate.admin(call)
        names = sorted(domain.name for domain in self._federation.relationships)
        start = bisect_right(names, request.page_token) if request.page_token else 0
        # SPIRE gives everything to a caller that does not ask for pages.
        size = min(request.page_size, PAGE) if request.page_size > 0 else len(names)
        page = names[start : start + size]
        more = page[-1] if page and start + size < len(names) else ""
        found = [self._message(self._federation.relationships[TrustDomain(name)], _mask(request)) for name in page]
        return pb.ListFederationRelationshipsResponse(federation_relationships=found, next_page_token=more)

    async def _get(self, request: pb.GetFederationRelationshipRequest, call: Call) -> types_pb2.FederationRelationship:
        await self._gate.admin(call)
        relationship = self._federation.relationships.get(TrustDomain.parse(request.trust_domain))
        if relationship is None:
            raise NotFound("federation relationship does not exist")
        return self._message(relationship, _mask(request))

    async def _create(
        self, request: pb.BatchCreateFederationRelationshipRequest, call: Call
    ) -> pb.BatchCreateFederationRelationshipResponse:
        actor = await self._gate.admin(call)
        _bound(request.federation_relationships)
        mask = _mask(request)

        async def create(message: types_pb2.FederationRelationship) -> types_pb2.FederationRelationship:
            relationship = relationship_from_proto(message)
            await self._federation.create(relationship, _bundle(message), actor)
            return self._message(relationship, mask)

        response = pb.BatchCreateFederationRelationshipResponse()
        for message in request.federation_relationships:
            status, created = await _one(create, message)
            response.results.add(status=status, federation_relationship=created)
        return response

    async def _update(
        self, request: pb.BatchUpdateFederationRelationshipRequest, call: Call
    ) -> pb.BatchUpdateFederationRelationshipResponse:
        actor = await self._gate.admin(call)
        _bound(request.federation_relationships)
        wanted = request.input_mask if request.HasField("input_mask") else _ALL
        mask = _mask(request)

        async def update(message: types_pb2.FederationRelationship) -> types_pb2.FederationRelationship:
            given = relationship_from_proto(message, wanted)

            def edit(held: Relationship) -> Relationship:
                if wanted.bundle_endpoint_url:
                    held = replace(held, endpoint_url=given.endpoint_url)
                if wanted.bundle_endpoint_profile:
                    held = replace(held, profile=given.profile, endpoint_spiffe_id=given.endpoint_spiffe_id)
                return held

            bundle = _bundle(message) if wanted.trust_domain_bundle else None
            return self._message(await self._federation.update(given.trust_domain, edit, bundle, actor), mask)

        response = pb.BatchUpdateFederationRelationshipResponse()
        for message in request.federation_relationships:
            status, updated = await _one(update, message)
            response.results.add(status=status, federation_relationship=updated)
        return response

    async def _delete(
        self, request: pb.BatchDeleteFederationRelationshipRequest, call: Call
    ) -> pb.BatchDeleteFederationRelationshipResponse:
        actor = await self._gate.admin(call)
        _bound(request.trust_domains)

        async def delete(name: str) -> None:
            await self._federation.delete(TrustDomain.parse(name), actor)

        response = pb.BatchDeleteFederationRelationshipResponse()
        for name in request.trust_domains:
            status, _ = await _one(delete, name)
            response.results.add(status=status, trust_domain=name)
        return response

    async def _refresh(self, request: pb.RefreshBundleRequest, call: Call) -> Empty:
        await self._gate.admin(call)
        await self._poller.refresh(TrustDomain.parse(request.trust_domain))
        return Empty()

    def _message(
        self, relationship: Relationship, mask: types_pb2.FederationRelationshipMask | None
    ) -> types_pb2.FederationRelationship:
        message = relationship_to_proto(relationship, self._federation.bundles.get(relationship.trust_domain))
        if mask is not None and not mask.bundle_endpoint_profile:
            message.ClearField("bundle_endpoint_profile")
        profile = message.WhichOneof("bundle_endpoint_profile")
        return masked(message, mask, keep=("trust_domain", *([profile] if profile else ())))


def relationship_to_proto(relationship: Relationship, bundle: Bundle | None) -> types_pb2.FederationRelationship:
    """All fields, the bundle as it is held now."""
    message = types_pb2.FederationRelationship(
        trust_domain=relationship.trust_domain.name, bundle_endpoint_url=relationship.endpoint_url
    )
    if relationship.profile is EndpointProfile.SPIFFE:
        message.https_spiffe.endpoint_spiffe_id = str(relationship.endpoint_spiffe_id or "")
    else:
        message.https_web.SetInParent()
    if bundle is not None:
        message.trust_domain_bundle.CopyFrom(bundle_to_proto(bundle))
    return message


def relationship_from_proto(
    message: types_pb2.FederationRelationship, wanted: types_pb2.FederationRelationshipMask = _ALL
) -> Relationship:
    """Well-formed fields, of which only those in ``wanted`` are looked at; the rules are ``Relationship.check``."""
    relationship = Relationship(TrustDomain.parse(message.trust_domain), message.bundle_endpoint_url)
    if not wanted.bundle_endpoint_profile:
        return relationship
    profile = message.WhichOneof("bundle_endpoint_profile")
    if profile is None:
        raise InvalidInput("the bundle endpoint profile is missing", fix="choose https_web or https_spiffe")
    if profile == "https_web":
        return relationship
    endpoint = message.https_spiffe.endpoint_spiffe_id
    return replace(
        relationship,
        profile=EndpointProfile.SPIFFE,
        endpoint_spiffe_id=SpiffeId.parse(endpoint) if endpoint else None,
    )


def _bundle(message: types_pb2.FederationRelationship) -> Bundle | None:
    return bundle_from_proto(message.trust_domain_bundle) if message.HasField("trust_domain_bundle") else None


async def _one(work: Callable[[Any], Awaitable[R]], item: Any) -> tuple[types_pb2.Status, R | None]:
    """One item of a batch: what became of it, and the result where there is one."""
    try:
        result = await work(item)
    except Error as error:
        return types_pb2.Status(code=status_of(error).value, message=str(error)), None
    return types_pb2.Status(), result


def _mask(request: Any) -> types_pb2.FederationRelationshipMask | None:
    return request.output_mask if request.HasField("output_mask") else None


def _bound(items: Any) -> None:
    if len(items) > MAX_BATCH:
        raise InvalidInput(f"a batch has at most {MAX_BATCH} items")
