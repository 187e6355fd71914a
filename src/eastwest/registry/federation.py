"""Federation: which foreign trust domains are trusted, and what makes their bundle acceptable.

The rule behind all of it: a foreign bundle may change only to a better one. What comes from an endpoint is judged
against what is held (``check_received``); whatever does not pass changes nothing, and the last good bundle stays.
(SPIFFE Federation; SPIFFE Trust Domain and Bundle, sections 4 and 5.)
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from urllib.parse import urlsplit

from cryptography import x509

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.pki.jwks import parse_bundle
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.registry.entry import Origin
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import SCHEME, SpiffeId, TrustDomain

MAX_DOCUMENT = 1024 * 1024
"""Bytes of a bundle document from elsewhere."""
MAX_AUTHORITIES = 1000
"""X.509 authorities, and JWT authorities, of one foreign bundle."""
MAX_RELATIONSHIPS = 1000
MAX_URL = 2048
MIN_REFRESH, DEFAULT_REFRESH, MAX_REFRESH = 10.0, 300.0, 24 * 3600.0
"""Seconds between two looks at an endpoint: what it may hint at, and what is taken without a hint."""


class EndpointProfile(enum.StrEnum):
    """How a bundle endpoint proves itself: by a certificate of the web's PKI, or by an X.509-SVID."""

    WEB = "https_web"
    SPIFFE = "https_spiffe"


class InvalidRelationship(InvalidInput):
    """A federation relationship contradicts a rule."""


class BundleRefused(FailedPrecondition):
    """A foreign bundle is not acceptable; the one that is held stays."""


class KeptByEstate(FailedPrecondition):
    """The relationship is the estate's, so only the estate's files change it."""


@dataclass(frozen=True, slots=True)
class Relationship:
    """Trust in one foreign trust domain.

    ``endpoint_url`` is where its bundle is fetched; "" where it is only given by hand or in the estate.
    """

    trust_domain: TrustDomain
    endpoint_url: str = ""
    profile: EndpointProfile = EndpointProfile.WEB
    endpoint_spiffe_id: SpiffeId | None = None
    origin: Origin = Origin.API

    def check(self, own: TrustDomain) -> None:
        """Raise ``InvalidRelationship`` with the first rule that is broken in the trust domain ``own``."""
        if self.trust_domain == own:
            raise InvalidRelationship(
                f"{own} is this server's own trust domain", fix="name the foreign trust domain to federate with"
            )
        if self.endpoint_url:
            _check_url(self.endpoint_url)
        elif self.origin is Origin.API:
            raise InvalidRelationship(
                f"the relationship with {self.trust_domain} has no bundle endpoint", fix="give its https:// URL"
            )
        if self.profile is EndpointProfile.WEB and self.endpoint_spiffe_id is not None:
            raise InvalidRelationship(
                "an endpoint of profile https_web has no SPIFFE ID", fix="remove it, or choose https_spiffe"
            )
        if self.profile is EndpointProfile.SPIFFE:
            self._check_endpoint_id(own)

    @property
    def proven_by(self) -> TrustDomain | None:
        """The trust domain whose bundle verifies the endpoint; None for the web's PKI."""
        return None if self.endpoint_spiffe_id is None else self.endpoint_spiffe_id.trust_domain

    def _check_endpoint_id(self, own: TrustDomain) -> None:
        if self.endpoint_spiffe_id is None:
            raise InvalidRelationship(
                "an endpoint of profile https_spiffe needs its SPIFFE ID",
                fix=f"give it, such as {self.trust_domain.uri}/spire/server",
            )
        if self.endpoint_spiffe_id.trust_domain == own:
            raise InvalidRelationship(
                f"the endpoint's SPIFFE ID is of {own}: a foreign endpoint is not one of our own workloads",
                fix="name the ID of the server that holds the foreign bundle",
            )


@dataclass(frozen=True, slots=True)
class Intended:
    """What the estate wants: a relationship, and a bundle to begin with or, without an endpoint, the bundle."""

    relationship: Relationship
    bundle: Bundle | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything kept about federation."""

    relationships: tuple[Relationship, ...] = ()
    bundles: tuple[Bundle, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """How the last look at an endpoint went. ``problem`` is "" when it went well; times are None before the first.

    ``failing_since``: the first failure after the last success. All but ``next_at`` outlives a restart.
    """

    problem: str = ""
    failures: int = 0
    tried_at: datetime | None = None
    succeeded_at: datetime | None = None
    failing_since: datetime | None = None
    next_at: datetime | None = None


class FederationStore(Protocol):
    """Durable relationships and foreign bundles. What a method returned from survives a power cut."""

    async def load(self) -> Stored:
        """All of it."""
        ...

    async def apply(
        self,
        *,
        put: Sequence[Relationship] = (),
        drop: Sequence[TrustDomain] = (),
        put_bundles: Sequence[Bundle] = (),
        drop_bundles: Sequence[TrustDomain] = (),
    ) -> None:
        """Carry out all of it or nothing; dropping what is absent is no error. Drops come first.

        The status of each relationship that is put or dropped is forgotten: it was another endpoint's.
        """
        ...

    async def statuses(self) -> dict[TrustDomain, EndpointStatus]:
        """How each endpoint fared when that was last kept."""
        ...

    async def keep_status(self, trust_domain: TrustDomain, status: EndpointStatus) -> None:
        """Keep how an endpoint fares; nothing where there is no such relationship any more."""
        ...


def read_document(trust_domain: TrustDomain, document: bytes) -> Bundle:
    """A bundle document from elsewhere as a value; raises ``BundleRefused`` for what is none, or too large."""
    if len(document) > MAX_DOCUMENT:
        raise BundleRefused(f"the bundle of {trust_domain} is larger than {MAX_DOCUMENT} bytes")
    try:
        return parse_bundle(trust_domain, document)
    except InvalidInput as error:
        raise BundleRefused(f"the bundle of {trust_domain} cannot be read: {error.message}") from None


def check_bundle(bundle: Bundle, own: TrustDomain, now: datetime, *, useless: bool = False) -> None:
    """Whether ``bundle`` may be that of a foreign trust domain at all; raises ``BundleRefused``.

    ``useless``: also one by which nobody of that trust domain could be verified, since it has no X.509 authority or
    none that lives, and authorities that name a third trust domain: SPIRE's administrators may set such bundles.
    """
    name = bundle.trust_domain
    if name == own:
        raise BundleRefused(f"{own} is this server's own trust domain; its bundle is not taken from elsewhere")
    if not bundle.x509_authorities and not useless:
        raise BundleRefused(f"the bundle of {name} has no X.509 authority")
    if max(len(bundle.x509_authorities), len(bundle.jwt_authorities)) > MAX_AUTHORITIES:
        raise BundleRefused(f"the bundle of {name} has more than {MAX_AUTHORITIES} authorities")
    if not 0 <= bundle.sequence < 1 << 63 or not 0 <= bundle.refresh_hint < 1 << 31:
        raise BundleRefused(f"the bundle of {name} has a sequence or refresh hint out of range")
    ends = [_check_authority(each.der, name, own if useless else None) for each in bundle.x509_authorities]
    if not useless and max(ends) <= now:
        raise BundleRefused(f"every X.509 authority of the bundle of {name} has ended")


def check_received(bundle: Bundle, held: Bundle | None, own: TrustDomain, now: datetime) -> None:
    """Whether ``bundle``, as an endpoint gave it, may follow ``held``; raises ``BundleRefused``."""
    check_bundle(bundle, own, now)
    if held is not None and bundle.sequence < held.sequence:
        raise BundleRefused(
            f"the endpoint of {bundle.trust_domain} gave sequence {bundle.sequence}, and {held.sequence} is held",
            fix="if the foreign server was set back, set its bundle by hand",
        )


def same_content(one: Bundle | None, other: Bundle | None) -> bool:
    """Whether two bundles say the same; their order and known ends of keys do not count."""
    return one is not None and other is not None and _content(one) == _content(other)


def refresh_seconds(bundle: Bundle | None) -> float:
    """How long to wait before the next look, by the bundle's own hint within our bounds."""
    hint = bundle.refresh_hint if bundle is not None else 0
    return min(max(float(hint), MIN_REFRESH), MAX_REFRESH) if hint else DEFAULT_REFRESH


def retry_seconds(failures: int, regular: float) -> float:
    """How long to wait after the ``failures``-th failure in a row: doubling, and never beyond ``regular``."""
    return float(min(regular, MIN_REFRESH * 2.0 ** min(max(failures - 1, 0), 20)))


def _content(bundle: Bundle) -> tuple[object, ...]:
    return (
        bundle.sequence,
        bundle.refresh_hint,
        frozenset(authority.der for authority in bundle.x509_authorities),
        frozenset((authority.key_id, authority.spki) for authority in bundle.jwt_authorities),
    )


def _check_url(url: str) -> None:
    fix = "write it as https://host:port/path"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidRelationship("the bundle endpoint is not a URL", fix=fix) from None
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidRelationship("the bundle endpoint is not a URL of printable ASCII", fix=fix)
    if parts.scheme != "https":
        raise InvalidRelationship("the bundle endpoint is not an https:// URL", fix=fix)
    if not parts.hostname or port == 0:
        raise InvalidRelationship("the bundle endpoint's URL names no host", fix=fix)
    if parts.username is not None or parts.password is not None:
        raise InvalidRelationship("the bundle endpoint's URL holds a user or password", fix="leave it out")
    if parts.fragment or parts.query:
        raise InvalidRelationship("the bundle endpoint's URL has a query or a fragment", fix="leave it out")


def _check_authority(der: bytes, trust_domain: TrustDomain, never: TrustDomain | None) -> datetime:
    """The end of an authority that may speak for ``trust_domain``: it names no other one, or only not ``never``."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
        certificate.public_key()
        end = certificate.not_valid_after_utc
    except PARSE_ERRORS:
        raise BundleRefused(f"an X.509 authority of the bundle of {trust_domain} is no certificate") from None
    try:
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise BundleRefused(f"an X.509 authority of the bundle of {trust_domain} is not a CA certificate")
    except x509.ExtensionNotFound:
        raise BundleRefused(f"an X.509 authority of the bundle of {trust_domain} is not a CA certificate") from None
    for uri in _uris(extensions):
        named = uri.removeprefix(SCHEME).partition("/")[0] if uri.startswith(SCHEME) else trust_domain.name
        if named != trust_domain.name and (never is None or named == never.name):
            raise BundleRefused(
                f"an X.509 authority of the bundle of {trust_domain} names {uri[:200]!r}, another trust domain"
            )
    return end


def _uris(extensions: x509.Extensions) -> list[str]:
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return list(names.get_values_for_type(x509.UniformResourceIdentifier))
