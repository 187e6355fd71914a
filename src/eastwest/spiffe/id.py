"""SPIFFE IDs and trust domain names (SPIFFE-ID standard, sections 2.1 to 2.3)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from eastwest.errors import InvalidInput

MAX_ID_LENGTH = 2048
MAX_TRUST_DOMAIN_LENGTH = 255
SCHEME = "spiffe://"
RESERVED = ("/spire", "/eastwest/canary")
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+")


class MalformedSpiffeId(InvalidInput):
    """A text is not a SPIFFE ID or trust domain name."""


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """The name of a trust domain, lower case, without the scheme: ``saas.example``."""

    name: str

    @classmethod
    def parse(cls, text: str) -> TrustDomain:
        """Check a bare name or ``spiffe://name``; raise ``MalformedSpiffeId`` with the reason."""
        name = text.removeprefix(SCHEME)
        if not name:
            raise MalformedSpiffeId("the trust domain is empty", fix="write a name such as saas.example")
        if len(name) > MAX_TRUST_DOMAIN_LENGTH:
            raise MalformedSpiffeId(f"the trust domain is longer than {MAX_TRUST_DOMAIN_LENGTH} characters")
        if not _TRUST_DOMAIN.fullmatch(name):
            raise MalformedSpiffeId(
                f"trust domain {name[:80]!r} has a character outside a-z 0-9 . _ -",
                fix="write a name such as saas.example",
            )
        return cls(name)

    def id(self, path: str = "") -> SpiffeId:
        """The SPIFFE ID of ``path`` in this trust domain; checked."""
        return SpiffeId.parse(f"{SCHEME}{self.name}{path}")

    @property
    def uri(self) -> str:
        """``spiffe://name``, the form that names a bundle."""
        return SCHEME + self.name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A workload's or node's name: ``spiffe://<trust domain><path>``; the path may be empty."""

    trust_domain: TrustDomain
    path: str

    def __hash__(self) -> int:
        # Every index of the registry hashes IDs; nearly all that meet are of one trust domain.
        return hash(self.path)

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Check a whole SPIFFE ID; raise ``MalformedSpiffeId`` with the reason."""
        return _parse(text)

    def is_member_of(self, trust_domain: TrustDomain) -> bool:
        """Whether the ID belongs to ``trust_domain``."""
        return self.trust_domain == trust_domain

    @property
    def is_reserved(self) -> bool:
        """Whether servers and agents keep the path for themselves."""
        return bool(self.reserved)

    @property
    def reserved(self) -> str:
        """The part of the name space (``/spire``, ``/eastwest/canary``) that the path lies in, and nobody may have."""
        return next((part for part in RESERVED if self.path == part or self.path.startswith(f"{part}/")), "")

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain.name}{self.path}"


@lru_cache(maxsize=65536)
def _parse(text: str) -> SpiffeId:
    if len(text) > MAX_ID_LENGTH:
        raise MalformedSpiffeId(f"the SPIFFE ID is longer than {MAX_ID_LENGTH} characters")
    if not text.startswith(SCHEME):
        raise MalformedSpiffeId(
            f"{text[:80]!r} is not a SPIFFE ID", fix="write spiffe://trust-domain/path, lower-case scheme"
        )
    name, slash, rest = text[len(SCHEME) :].partition("/")
    trust_domain = TrustDomain.parse(name)
    if not slash:
        return SpiffeId(trust_domain, "")
    for segment in rest.split("/"):
        if not segment:
            raise MalformedSpiffeId(f"{text[:200]!r} has an empty path segment", fix="remove the extra slash")
        if segment in {".", ".."}:
            raise MalformedSpiffeId(f"{text[:200]!r} has a dot segment", fix="write the path without . or ..")
        if not _SEGMENT.fullmatch(segment):
            raise MalformedSpiffeId(
                f"{text[:200]!r} has a path character outside a-z A-Z 0-9 . _ -", fix="rename that segment"
            )
    return SpiffeId(trust_domain, "/" + rest)
