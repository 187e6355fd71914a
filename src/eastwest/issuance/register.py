"""The register of certificates that can be revoked: each is in it before anybody has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from eastwest.spiffe.id import SpiffeId


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """One certificate of a profile whose revocation is by CRL.

    ``issuer_key_id`` is the issuing key's identifier in lower-case hex; ``shard`` names the CRL that would list it;
    ``node`` and ``entry_id`` say under what it was issued, empty when under nothing.
    """

    issuer_key_id: str
    serial: int
    spiffe_id: SpiffeId
    profile: str
    shard: str
    not_before: datetime
    not_after: datetime
    node: str
    entry_id: str
    der: bytes = field(repr=False)


class Register(Protocol):
    """Remembers what was issued until it ends."""

    async def add(self, certificates: Sequence[IssuedCertificate]) -> None:
        """Store all of them durably, or raise ``Unavailable``; then none of them may be released."""
        ...
