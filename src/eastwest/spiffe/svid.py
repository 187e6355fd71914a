"""SVIDs as they travel: values only (SPIFFE X509-SVID and JWT-SVID standards)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from eastwest.spiffe.id import SpiffeId


@dataclass(frozen=True, slots=True)
class X509Svid:
    """An issued X.509-SVID without its key: ``chain`` is DER, leaf first, without the root."""

    id: SpiffeId
    chain: tuple[bytes, ...]
    not_before: datetime
    not_after: datetime
    serial: int


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """An issued JWT-SVID: the compact token is a live credential and is never logged."""

    id: SpiffeId
    token: str
    audience: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime

    def __repr__(self) -> str:
        return f"JwtSvid(id={self.id}, audience={self.audience}, expires_at={self.expires_at:%Y-%m-%dT%H:%M:%SZ})"
