"""Registration entries: which selectors, on which nodes, earn which SPIFFE ID, and how it is issued.

The meaning of every field is SPIRE's (``spire.api.types.Entry``), so that its agents and tools can be served;
``profile``, ``owner``, ``attributes``, ``environment``, ``origin`` and ``managed_by`` are ours.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace
from datetime import datetime

from eastwest.errors import InvalidInput
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.selector import MAX_SELECTOR_LENGTH, Selector

SERVER_PATH = "/spire/server"
PROBE_PREFIX = "/spire-controller-manager/"
GROUP_PREFIX = "/eastwest/group/"
MAX_SVID_TTL = 4 * 3600
MAX_HINT_LENGTH = 1024
MAX_SELECTORS = 100
MAX_DNS_NAMES = 100
MAX_ENTRY_ID_LENGTH = 255
MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE_LENGTH = 4096

Attributes = tuple[tuple[str, str | tuple[str, ...]], ...]
Key = tuple[SpiffeId, SpiffeId, frozenset[Selector]]


class InvalidEntry(InvalidInput):
    """A registration entry contradicts a rule."""


class Origin(enum.StrEnum):
    """Who keeps an entry: callers of the API, or the estate's files."""

    API = "api"
    ESTATE = "estate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One registration entry. Times are Unix seconds, lifetimes seconds; 0 means never, or the profile's default.

    A process that has all ``selectors``, on a node that reaches ``parent_id``, may have ``spiffe_id``.
    ``revision`` starts at 0 and grows by one with every change of content; a changed revision makes agents
    sign anew. An empty ``id`` means that the registry chooses one. ``environment`` is that of the estate's workload,
    or the one that the SPIFFE ID names under the estate's convention; empty when neither says. ``managed_by`` tells
    who keeps the entry: ``estate``, ``api:WHO`` or ``controller:NAME``. ``attributes`` are sorted by name.
    """

    spiffe_id: SpiffeId
    parent_id: SpiffeId
    selectors: frozenset[Selector]
    id: str = ""
    x509_svid_ttl: int = 0
    jwt_svid_ttl: int = 0
    federates_with: tuple[TrustDomain, ...] = ()
    admin: bool = False
    downstream: bool = False
    expires_at: int = 0
    dns_names: tuple[str, ...] = ()
    revision: int = 0
    store_svid: bool = False
    hint: str = ""
    created_at: int = 0
    disable_x509_svid_prefetch: bool = False
    jwt_svid_include_jti: bool = False
    profile: str = "workload"
    owner: str = ""
    origin: Origin = Origin.API
    environment: str = ""
    managed_by: str = ""
    attributes: Attributes = ()

    @property
    def key(self) -> Key:
        """What makes two entries similar; no two similar entries are kept."""
        return (self.spiffe_id, self.parent_id, self.selectors)

    @property
    def is_node_alias(self) -> bool:
        """Whether the entry names a set of nodes (parent ``/spire/server``) and not a workload.

        Such an entry is never issued; entries whose parent is its SPIFFE ID belong to every node that has
        its selectors.
        """
        return self.parent_id.path == SERVER_PATH

    @property
    def is_probe(self) -> bool:
        """Whether this is the entry by which spire-controller-manager finds out which fields a server knows.

        It is its own parent, so no node reaches it, and it is never served to workloads.
        """
        return self.spiffe_id == self.parent_id and self.store_svid and self.spiffe_id.path.startswith(PROBE_PREFIX)

    def is_expired(self, now: datetime) -> bool:
        """Whether the entry's own end has come."""
        return 0 < self.expires_at <= now.timestamp()

    def has_content_of(self, other: Entry) -> bool:
        """Equality apart from ``id``, ``revision`` and ``created_at``."""
        return replace(self, id=other.id, revision=other.revision, created_at=other.created_at) == other

    def check(self, trust_domain: TrustDomain) -> None:
        """Raise ``InvalidEntry`` with the first rule that the entry breaks in ``trust_domain``."""
        _check_ids(self, trust_domain)
        _check_selectors(self)
        _check_numbers(self)
        _check_dns_names(self.dns_names)
        _check_texts(self)


_ENTRY_ID = re.compile(r"[A-Za-z0-9._-]+")
_DNS_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_OWNER = re.compile(r"[a-z]+:\S{1,255}")
_ATTRIBUTE = re.compile(r"[a-z][a-z0-9_]{0,62}")
_PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def _check_ids(entry: Entry, trust_domain: TrustDomain) -> None:
    if entry.id and (len(entry.id) > MAX_ENTRY_ID_LENGTH or not _ENTRY_ID.fullmatch(entry.id)):
        raise InvalidEntry(
            "the entry id has a character outside A-Z a-z 0-9 . _ -, or more than 255 of them",
            fix="leave the id out to have one made",
        )
    for field, spiffe_id in (("spiffe_id", entry.spiffe_id), ("parent_id", entry.parent_id)):
        if not spiffe_id.is_member_of(trust_domain):
            raise InvalidEntry(
                f"{field} {spiffe_id} is not in the trust domain {trust_domain}",
                fix=f"write an ID that begins with {trust_domain.uri}/",
            )
        if not spiffe_id.path:
            raise InvalidEntry(f"{field} {spiffe_id} has no path", fix="name a workload or node, not the trust domain")
    if entry.spiffe_id.is_reserved:
        raise InvalidEntry(
            f"spiffe_id {entry.spiffe_id} lies in {entry.spiffe_id.reserved}, which servers and agents keep for "
            "themselves",
            fix="choose another path",
        )
    if entry.spiffe_id.path.startswith(GROUP_PREFIX) and not entry.is_node_alias:
        raise InvalidEntry(
            f"spiffe_id {entry.spiffe_id} names a node group and cannot be a workload's",
            fix=f"choose a path outside {GROUP_PREFIX}",
        )
    if entry.spiffe_id == entry.parent_id and not entry.is_probe:
        raise InvalidEntry(f"{entry.spiffe_id} is its own parent", fix="name the node, or its group, as the parent")


def _check_selectors(entry: Entry) -> None:
    if not entry.selectors:
        raise InvalidEntry(
            f"the entry for {entry.spiffe_id} has no selector", fix="add at least one, such as unix:uid:1000"
        )
    if len(entry.selectors) > MAX_SELECTORS:
        raise InvalidEntry(f"the entry for {entry.spiffe_id} has more than {MAX_SELECTORS} selectors")
    for selector in entry.selectors:
        if not selector.type or ":" in selector.type or not selector.value:
            raise InvalidEntry(
                f"{str(selector)[:80]!r} is not a selector", fix="write type:value, such as unix:uid:1000"
            )
        if len(selector.type) + 1 + len(selector.value) > MAX_SELECTOR_LENGTH:
            raise InvalidEntry(f"a selector is longer than {MAX_SELECTOR_LENGTH} characters")
    if entry.store_svid and len({selector.type for selector in entry.selectors}) > 1:
        raise InvalidEntry("an entry with store_svid must have selectors of one type only")


def _check_numbers(entry: Entry) -> None:
    for field, seconds in (("x509_svid_ttl", entry.x509_svid_ttl), ("jwt_svid_ttl", entry.jwt_svid_ttl)):
        if not 0 <= seconds <= MAX_SVID_TTL:
            raise InvalidEntry(
                f"{field} is {seconds} s", fix=f"choose 1 to {MAX_SVID_TTL}, or 0 for the profile's default"
            )
    if entry.expires_at < 0:
        raise InvalidEntry("expires_at is negative", fix="write Unix seconds, or 0 for never")


def _check_dns_names(names: tuple[str, ...]) -> None:
    if len(names) > MAX_DNS_NAMES:
        raise InvalidEntry(f"the entry has more than {MAX_DNS_NAMES} DNS names")
    seen: set[str] = set()
    for name in names:
        labels = name.removeprefix("*.").split(".")
        well_formed = len(name) <= 253 and all(_DNS_LABEL.fullmatch(label) for label in labels)
        # An all-numeric last label would make the name read as an IPv4 address.
        if not well_formed or labels[-1].isdigit():
            raise InvalidEntry(
                f"{name[:80]!r} is not a DNS name", fix="write a name such as billing.internal or *.billing.internal"
            )
        if name.lower() in seen:
            raise InvalidEntry(f"DNS name {name} appears twice")
        seen.add(name.lower())


def _check_texts(entry: Entry) -> None:
    if len(entry.hint) > MAX_HINT_LENGTH:
        raise InvalidEntry(f"the hint is longer than {MAX_HINT_LENGTH} characters")
    if not _PROFILE.fullmatch(entry.profile):
        raise InvalidEntry(
            f"{entry.profile[:80]!r} is not a profile's name", fix="use letters, digits, dot, underscore, dash"
        )
    if entry.owner and not _OWNER.fullmatch(entry.owner):
        raise InvalidEntry(f"{entry.owner[:80]!r} is not an owner", fix="write kind:name, such as group:commerce")
    if len(entry.attributes) > MAX_ATTRIBUTES:
        raise InvalidEntry(f"the entry has more than {MAX_ATTRIBUTES} attributes")
    for name, value in entry.attributes:
        if not _ATTRIBUTE.fullmatch(name):
            raise InvalidEntry(f"{name[:80]!r} is not an attribute's name", fix="use a-z, 0-9 and _")
        values = (value,) if isinstance(value, str) else value
        if any(not text or len(text) > MAX_ATTRIBUTE_LENGTH for text in values):
            raise InvalidEntry(f"attribute {name!r} has an empty or overlong value")
