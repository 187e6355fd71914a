"""The port behind which the certificate that stands above our issuing CAs is signed.

The trust domain's own root is one such authority (it signs at once); a root kept offline, a corporate CA, Vault or
another SPIFFE server are others. Whoever signs, the issuing CA's key never leaves its own key store.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, runtime_checkable

from eastwest.clock import Clock
from eastwest.spiffe.bundle import JwtAuthority
from eastwest.spiffe.id import TrustDomain


@dataclass(frozen=True, slots=True, kw_only=True)
class CaRequest:
    """One issuing CA to be certified.

    ``csr_der``: PKCS #10 in DER, signed by the CA's key, with the trust domain's URI as its only URI name.
    ``environment``: which environment's CA it will be, empty for the default one. ``path_length``: how many CAs may
    stand below it. ``lifetime`` is a wish; what comes back may be shorter.
    """

    csr_der: bytes = field(repr=False)
    trust_domain: TrustDomain
    environment: str
    lifetime: timedelta
    path_length: int


@dataclass(frozen=True, slots=True)
class MintedCa:
    """A certified CA: ``chain`` in DER, the new CA first, then those between it and a root; ``roots`` in DER."""

    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]


class UpstreamAuthority(Protocol):
    """Signs our issuing CAs. Every method raises ``Unavailable`` when the authority cannot be reached now."""

    async def mint(self, request: CaRequest) -> MintedCa:
        """Certify one CA. Raises ``PermissionDenied`` or ``InvalidInput`` when the authority refuses it."""
        ...

    async def roots(self) -> Sequence[bytes]:
        """The roots (DER) that must be trusted for what this authority has signed and will sign; asked regularly."""
        ...

    async def publish_jwt(self, keys: Sequence[JwtAuthority]) -> Sequence[JwtAuthority] | None:
        """Tell the authority our JWT keys and get all of the trust domain; None where it keeps no JWT keys."""
        ...


@runtime_checkable
class TellsTaint(Protocol):
    """What an upstream authority has besides, where it says which of its roots should not be held to any more."""

    async def tainted(self) -> Collection[bytes]:
        """The tainted ones (DER) of ``roots``. Raises ``Unavailable``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamContext:
    """What an upstream plug-in is given: for whom it works, the time, and a private directory of its own (a path)."""

    trust_domain: TrustDomain
    clock: Clock
    directory: str
