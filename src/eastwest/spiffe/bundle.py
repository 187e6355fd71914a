"""Trust bundles: the authorities that may speak for a trust domain (SPIFFE Trust Domain and Bundle)."""

from __future__ import annotations

from dataclasses import dataclass

from eastwest.spiffe.id import TrustDomain


@dataclass(frozen=True, slots=True)
class X509Authority:
    """One root certificate in DER. ``tainted``: still trusted, but nothing new should chain to it."""

    der: bytes
    tainted: bool = False


@dataclass(frozen=True, slots=True)
class JwtAuthority:
    """One key that verifies JWT-SVIDs: SubjectPublicKeyInfo in DER, its ``kid``, and its end (Unix seconds)."""

    spki: bytes
    key_id: str
    expires_at: int
    tainted: bool = False


@dataclass(frozen=True, slots=True)
class Bundle:
    """All authorities of one trust domain. ``sequence`` grows with every change; ``refresh_hint`` is in seconds."""

    trust_domain: TrustDomain
    x509_authorities: tuple[X509Authority, ...] = ()
    jwt_authorities: tuple[JwtAuthority, ...] = ()
    sequence: int = 0
    refresh_hint: int = 0

    @property
    def x509_der(self) -> bytes:
        """All roots, concatenated DER, as the Workload API carries them."""
        return b"".join(authority.der for authority in self.x509_authorities)
