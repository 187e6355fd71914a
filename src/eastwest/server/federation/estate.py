"""What an estate intends for federation, as values of the registry."""

from __future__ import annotations

from eastwest.policy.enforcement import Sidecar
from eastwest.policy.estate import Estate, Federation
from eastwest.registry.entry import Origin
from eastwest.registry.federation import BundleRefused, EndpointProfile, Intended, Relationship, read_document
from eastwest.spiffe.id import SpiffeId, TrustDomain


def intended_federation(estate: Estate) -> list[Intended]:
    """The relationships that the estate keeps; those it only refers to (no endpoint, no bundle) are not among them.

    Raises ``BundleRefused`` with the file of a bundle that cannot be read.
    """
    return [_intended(one, estate) for one in estate.settings.federation if one.endpoint or one.bundle]


def foreign_domains(sidecar: Sidecar) -> tuple[TrustDomain, ...]:
    """The foreign trust domains that a sidecar's callers and servers come from."""
    own = f"{SpiffeId.parse(sidecar.spiffe_id).trust_domain.uri}/"
    servers = {outbound.spiffe_id for outbound in sidecar.outbound if not outbound.spiffe_id.startswith(own)}
    domains = {SpiffeId.parse(server).trust_domain for server in servers}
    domains.update(map(TrustDomain.parse, sidecar.federated_callers))
    return tuple(sorted(domains))


def _intended(one: Federation, estate: Estate) -> Intended:
    domain = TrustDomain.parse(one.trust_domain)
    relationship = Relationship(
        trust_domain=domain,
        endpoint_url=one.endpoint or "",
        profile=EndpointProfile(one.profile),
        endpoint_spiffe_id=SpiffeId.parse(one.endpoint_spiffe_id) if one.endpoint_spiffe_id else None,
        origin=Origin.ESTATE,
    )
    if one.bundle is None:
        return Intended(relationship)
    try:
        return Intended(relationship, read_document(domain, estate.bundles[one.bundle]))
    except BundleRefused as error:
        raise BundleRefused(error.message, where=one.bundle, fix=error.fix) from None
