"""``eastwest.federation.v1.Federation``: every foreign trust domain, and how its endpoint fares."""

from __future__ import annotations

from datetime import datetime

from eastwest.api.eastwest.federation.v1 import federation_pb2 as pb
from eastwest.rpc.service import SMALL_MESSAGE, Call, Service
from eastwest.server.federation.keeper import Federation
from eastwest.server.gate import Gate
from eastwest.spiffe.id import TrustDomain

_SERVICE = pb.DESCRIPTOR.services_by_name["Federation"]


def federation_service(federation: Federation, gate: Gate) -> Service:
    """The gRPC service."""

    async def list_(_request: pb.ListTrustDomainsRequest, call: Call) -> pb.ListTrustDomainsResponse:
        await gate.admin(call)
        known = sorted(federation.relationships.keys() | federation.bundles.keys())
        return pb.ListTrustDomainsResponse(trust_domains=[_told(federation, domain) for domain in known])

    return Service(_SERVICE, {"ListTrustDomains": list_}, guard=gate.enter, limit=SMALL_MESSAGE)


def _told(federation: Federation, domain: TrustDomain) -> pb.ForeignTrustDomain:
    message = pb.ForeignTrustDomain(trust_domain=domain.name)
    if (relationship := federation.relationships.get(domain)) is not None:
        message.origin = relationship.origin.value
        if relationship.endpoint_url:
            message.endpoint_url = relationship.endpoint_url
            message.profile = relationship.profile.value
            message.endpoint_spiffe_id = str(relationship.endpoint_spiffe_id or "")
    if (bundle := federation.bundles.get(domain)) is not None:
        message.has_bundle = True
        message.sequence = bundle.sequence
        message.x509_authorities = len(bundle.x509_authorities)
        message.jwt_authorities = len(bundle.jwt_authorities)
        message.refresh_hint = bundle.refresh_hint
    status = federation.status(domain)
    message.tried_at, message.succeeded_at = _seconds(status.tried_at), _seconds(status.succeeded_at)
    message.next_at = _seconds(status.next_at)
    message.failures, message.problem = status.failures, status.problem
    return message


def _seconds(time: datetime | None) -> int:
    return 0 if time is None else int(time.timestamp())
