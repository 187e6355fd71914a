"""What callers hand to the ``Issuer``: a request whose right to the identity has been decided already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eastwest.spiffe.id import SpiffeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What every request says: for whom, under which profile, where it came from, why it was admitted. All is logged.

    ``door`` is one of ``eastwest.pki.profile.Door``; ``caller`` the SPIFFE ID that asked, or a local name such as
    ``unix:uid:0``; ``node`` the agent's SPIFFE ID, empty when there is none; ``evidence`` JSON-like facts such as
    selectors; ``environment`` the one whose CA issues, empty for the default CA. Never put a token or secret into
    evidence. ``ttl`` is in seconds; None means the default. ``caller_kind`` says what the caller is to the server:
    "agent", "administrator", "server" (below this one), "device" or "self".
    """

    spiffe_id: SpiffeId
    door: str
    caller: str
    profile: str = "workload"
    node: str = ""
    entry_id: str = ""
    entry_revision: int = 0
    environment: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    ttl: int | None = None
    caller_kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Request(Request):
    """One X.509-SVID to be issued for the key of ``csr_der`` (PKCS #10 in DER, not yet verified).

    ``previous_serial`` is that of the certificate which this one replaces, as far as the server knows it of itself;
    0 where it does not.
    """

    csr_der: bytes = field(repr=False)
    previous_serial: int = 0
    dns_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtRequest(Request):
    """One JWT-SVID to be issued for ``audience``; its default lifetime is five minutes."""

    audience: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownstreamRequest(Request):
    """The CA of a server below this one, to be certified for the key of ``csr_der``; nothing here is verified yet.

    ``spiffe_id`` is that server's own identity, which an entry marked downstream gives it; ``ttl`` is a wish, and
    ``path_length`` how many CAs it wants to have below itself. Both are bounded by the CA that signs.
    """

    csr_der: bytes = field(repr=False)
    path_length: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """Which authority process issued: its name within the trust domain, and its build."""

    name: str
    build: str
