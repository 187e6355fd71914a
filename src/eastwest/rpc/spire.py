"""Between SPIRE's messages and our values: the only place that knows both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import Message

from eastwest.api.spire.api.types import types_pb2 as pb
from eastwest.errors import InvalidInput
from eastwest.registry.entry import Entry
from eastwest.registry.listing import Match
from eastwest.registry.node import Node
from eastwest.spiffe.bundle import Bundle, JwtAuthority, X509Authority
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import Selector
from eastwest.spiffe.svid import X509Svid

M = TypeVar("M", bound=Message)


def id_to_proto(spiffe_id: SpiffeId) -> pb.SPIFFEID:
    """Trust domain and path apart, as SPIRE carries them."""
    return pb.SPIFFEID(trust_domain=spiffe_id.trust_domain.name, path=spiffe_id.path)


def id_from_proto(message: pb.SPIFFEID, what: str) -> SpiffeId:
    """Checked; ``what`` names the field in the error."""
    if not message.trust_domain:
        raise InvalidInput(f"{what} is missing")
    return SpiffeId.parse(f"spiffe://{message.trust_domain}{message.path}")


def selectors_to_proto(selectors: Iterable[Selector]) -> list[pb.Selector]:
    """In the order given."""
    return [pb.Selector(type=selector.type, value=selector.value) for selector in selectors]


def selectors_from_proto(messages: Iterable[pb.Selector]) -> tuple[Selector, ...]:
    """Checked and sorted."""
    return tuple(sorted(Selector.parse(f"{message.type}:{message.value}") for message in messages))


def match_from_proto(value: int) -> Match:
    """How two sets are to compare; raises ``InvalidInput`` for a number that has no meaning (proto3 lets any pass)."""
    try:
        return Match(value)
    except ValueError:
        raise InvalidInput(f"match {value} is not known", fix="choose 0 to 3") from None


def svid_to_proto(svid: X509Svid, hint: str = "") -> pb.X509SVID:
    """Chain, ID and end."""
    message = pb.X509SVID(cert_chain=svid.chain, expires_at=int(svid.not_after.timestamp()), hint=hint)
    message.id.trust_domain = svid.id.trust_domain.name
    message.id.path = svid.id.path
    return message


def bundle_to_proto(bundle: Bundle) -> pb.Bundle:
    """All of it; masks are the caller's affair."""
    return pb.Bundle(
        trust_domain=bundle.trust_domain.name,
        x509_authorities=[pb.X509Certificate(asn1=a.der, tainted=a.tainted) for a in bundle.x509_authorities],
        jwt_authorities=[
            pb.JWTKey(public_key=a.spki, key_id=a.key_id, expires_at=a.expires_at, tainted=a.tainted)
            for a in bundle.jwt_authorities
        ],
        refresh_hint=bundle.refresh_hint,
        sequence_number=bundle.sequence,
    )


def bundle_from_proto(message: pb.Bundle) -> Bundle:
    """Checked as far as names go; certificates are checked by who uses them."""
    return Bundle(
        trust_domain=TrustDomain.parse(message.trust_domain),
        x509_authorities=tuple(X509Authority(c.asn1, c.tainted) for c in message.x509_authorities),
        jwt_authorities=tuple(
            JwtAuthority(k.public_key, k.key_id, k.expires_at, k.tainted) for k in message.jwt_authorities
        ),
        sequence=message.sequence_number,
        refresh_hint=message.refresh_hint,
    )


def entry_to_proto(entry: Entry) -> pb.Entry:
    """All fields; ``masked`` takes away what was not asked for."""
    message = pb.Entry(
        id=entry.id,
        spiffe_id=id_to_proto(entry.spiffe_id),
        parent_id=id_to_proto(entry.parent_id),
        selectors=selectors_to_proto(sorted(entry.selectors)),
        x509_svid_ttl=entry.x509_svid_ttl,
        federates_with=[domain.name for domain in entry.federates_with],
        admin=entry.admin,
        downstream=entry.downstream,
        expires_at=entry.expires_at,
        dns_names=entry.dns_names,
        revision_number=entry.revision,
        store_svid=entry.store_svid,
        jwt_svid_ttl=entry.jwt_svid_ttl,
        hint=entry.hint,
        created_at=entry.created_at,
    )
    if entry.disable_x509_svid_prefetch or entry.jwt_svid_include_jti:
        message.additional_attributes.disable_x509_svid_prefetch = entry.disable_x509_svid_prefetch
        message.additional_attributes.jwt_svid_include_jti = entry.jwt_svid_include_jti
    return message


def entry_from_proto(message: pb.Entry) -> Entry:
    """Well-formed fields; whether the entry is allowed is the registry's affair (``Entry.check``)."""
    if len(set(message.federates_with)) != len(message.federates_with):
        raise InvalidInput("federates_with names a trust domain twice")
    return Entry(
        id=message.id,
        spiffe_id=id_from_proto(message.spiffe_id, "spiffe_id"),
        parent_id=id_from_proto(message.parent_id, "parent_id"),
        selectors=frozenset(selectors_from_proto(message.selectors)),
        x509_svid_ttl=message.x509_svid_ttl,
        jwt_svid_ttl=message.jwt_svid_ttl,
        federates_with=tuple(sorted(TrustDomain.parse(name) for name in message.federates_with)),
        admin=message.admin,
        downstream=message.downstream,
        expires_at=message.expires_at,
        dns_names=tuple(message.dns_names),
        revision=message.revision_number,
        store_svid=message.store_svid,
        hint=message.hint,
        created_at=message.created_at,
        disable_x509_svid_prefetch=message.additional_attributes.disable_x509_svid_prefetch,
        jwt_svid_include_jti=message.additional_attributes.jwt_svid_include_jti,
    )


def agent_to_proto(node: Node) -> pb.Agent:
    """A node on the wire; a banned one has no serial number, as SPIRE shows it."""
    return pb.Agent(
        id=id_to_proto(node.spiffe_id),
        attestation_type=node.attestation_type,
        x509svid_serial_number="" if node.banned else node.serial_current,
        x509svid_expires_at=node.not_after,
        selectors=selectors_to_proto(sorted(node.selectors)),
        banned=node.banned,
        can_reattest=node.can_reattest,
        agent_version=node.agent_version,
    )


def masked(message: M, mask: Message | None, keep: Iterable[str] = ("id",)) -> M:
    """Clear the fields that ``mask`` does not ask for; no mask asks for everything."""
    if mask is None:
        return message
    wanted = {field.name for field, _ in mask.ListFields()} | set(keep)
    for field in message.DESCRIPTOR.fields:
        if field.name not in wanted:
            message.ClearField(field.name)
    return message
