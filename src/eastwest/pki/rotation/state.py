"""What there is: roots, issuing CAs, JWT keys, and where each stands; the bundle that follows from them."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from eastwest.errors import FailedPrecondition, NotFound
from eastwest.spiffe.bundle import Bundle, JwtAuthority, X509Authority
from eastwest.spiffe.id import TrustDomain

REFRESH_HINT = 300
KEPT_AFTER_END = 24 * 3600
"""Seconds for which an authority stays in the bundle after its end, for verifiers whose clocks are behind."""


class Kind(enum.StrEnum):
    """What is rotated."""

    X509 = "x509"
    ISSUING = "issuing"
    JWT = "jwt"

    @property
    def words(self) -> str:
        """What one of it is called in a sentence."""
        return {Kind.X509: "root", Kind.ISSUING: "issuing CA", Kind.JWT: "JWT key"}[self]


class Stage(enum.StrEnum):
    """Where an authority stands; whether it is tainted is told apart from that."""

    PREPARED = "prepared"
    ACTIVE = "active"
    OLD = "old"


class Hierarchy(enum.StrEnum):
    """Which of the two lines of roots an authority belongs to: what every peer can verify, or what a quantum computer
    cannot forge.
    """

    CLASSICAL = "classical"
    POST_QUANTUM = "post-quantum"


class Source(enum.StrEnum):
    """Who holds a root's key: we do, a machine without a network, an upstream authority, or somebody else whom the
    trust domain trusts and below whom nothing is issued here.
    """

    OWN = "own"
    OFFLINE = "offline"
    UPSTREAM = "upstream"
    EXTERNAL = "external"


class IssuingCa(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One CA that signs leaves. ``key`` is its name in the key store, ``chain`` begins with it and has no root."""

    id: str
    key: str
    environment: str
    chain: tuple[bytes, ...]
    not_before: int
    not_after: int
    stage: Stage
    tainted: bool = False
    tainted_sequence: int = 0


class Root(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A generation: a root in the bundle, and the issuing CAs below it.

    ``id`` is its subject key identifier in hex; ``key`` names its key where we hold it. ``cross`` are certificates for
    this root's key by other roots, sent along behind each leaf. ``sequence`` is the first bundle that has the root, and
    ``published`` when that was (0: before this was kept).
    """

    id: str
    source: Source
    certificate: bytes
    key: str = ""
    not_before: int
    not_after: int
    stage: Stage
    hierarchy: Hierarchy = Hierarchy.CLASSICAL
    issuing: tuple[IssuingCa, ...] = ()
    cross: tuple[bytes, ...] = ()
    tainted: bool = False
    sequence: int = 0
    tainted_sequence: int = 0
    published: int = 0


class JwtKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key for JWT-SVIDs; ``id`` is its ``kid``. ``key`` is empty for that of another server of the trust domain, and
    ``upstream`` says that the authority above named it. ``published``: as of a root.
    """

    id: str
    key: str
    spki: bytes
    not_before: int
    not_after: int
    stage: Stage
    tainted: bool = False
    sequence: int = 0
    tainted_sequence: int = 0
    published: int = 0
    upstream: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An issuing CA's key that waits for its certificate."""

    environment: str
    key: str
    key_id: str
    csr: bytes


class Revoked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A root or JWT key that was revoked here: whoever may still name it, it does not come back before its end."""

    kind: Kind
    id: str
    not_after: int


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. ``sequence`` is that of the bundle.

    ``loose`` names keys that are about to be made or destroyed: whoever starts and finds one here destroys it.
    ``taints`` counts how often issuing CAs were tainted, and never falls. ``revoked`` is what is never adopted again.
    """

    sequence: int = 0
    roots: tuple[Root, ...] = ()
    jwt: tuple[JwtKey, ...] = ()
    requests: tuple[Request, ...] = ()
    loose: tuple[str, ...] = ()
    log_key: str = ""
    taints: int = 0
    revoked: tuple[Revoked, ...] = ()

    @property
    def active_root(self) -> Root | None:
        """The classical generation that issues; None before the first CA has its certificate."""
        return self.active_of(Hierarchy.CLASSICAL)

    @property
    def prepared_root(self) -> Root | None:
        """The classical generation to come."""
        return self.prepared_of(Hierarchy.CLASSICAL)

    def active_of(self, hierarchy: Hierarchy) -> Root | None:
        """The generation of ``hierarchy`` that issues."""
        return next((r for r in self.roots if r.stage is Stage.ACTIVE and r.hierarchy is hierarchy), None)

    def prepared_of(self, hierarchy: Hierarchy) -> Root | None:
        """The generation of ``hierarchy`` to come."""
        return next((r for r in self.roots if r.stage is Stage.PREPARED and r.hierarchy is hierarchy), None)

    @property
    def active_jwt(self) -> JwtKey | None:
        """The key that signs tokens."""
        return next((key for key in self.jwt if key.stage is Stage.ACTIVE), None)

    @property
    def prepared_jwt(self) -> JwtKey | None:
        """The key that is to sign tokens next."""
        return next((key for key in self.jwt if key.stage is Stage.PREPARED), None)

    def issuing(self, hierarchy: Hierarchy = Hierarchy.CLASSICAL) -> Mapping[str, IssuingCa]:
        """The CAs of ``hierarchy`` in use, by environment; "" is the default one."""
        root = self.active_of(hierarchy)
        return {ca.environment: ca for ca in root.issuing if ca.stage is Stage.ACTIVE} if root is not None else {}

    def root(self, authority_id: str) -> Root:
        """The root with this id; raises ``NotFound``."""
        return _find(self.roots, authority_id, Kind.X509)

    def issuing_ca(self, authority_id: str) -> tuple[Root, IssuingCa]:
        """The issuing CA with this id, and the root above it; raises ``NotFound``."""
        for root in self.roots:
            for ca in root.issuing:
                if ca.id == authority_id:
                    return root, ca
        raise _missing(Kind.ISSUING, authority_id)

    def jwt_key(self, authority_id: str) -> JwtKey:
        """The JWT key with this ``kid``; raises ``NotFound``."""
        return _find(self.jwt, authority_id, Kind.JWT)

    def is_revoked(self, kind: Kind, authority_id: str) -> bool:
        """Whether this root or JWT key was revoked here, and has not ended since."""
        return any(known.kind is kind and known.id == authority_id for known in self.revoked)

    def key_names(self) -> Iterator[str]:
        """The names of all keys that something here needs."""
        for root in self.roots:
            if root.key:
                yield root.key
            yield from (ca.key for ca in root.issuing)
        yield from (key.key for key in self.jwt if key.key)
        yield from (request.key for request in self.requests)
        if self.log_key:
            yield self.log_key

    def issuing_certificates(self) -> tuple[bytes, ...]:
        """The certificates (DER) of all CAs that have signed leaves here and are not tainted."""
        roots = (root for root in self.roots if root.stage is not Stage.PREPARED)
        used = (ca for root in roots for ca in root.issuing if ca.stage is not Stage.PREPARED and not ca.tainted)
        return tuple(der for ca in used for der in ca.chain)

    def tainted_issuing(self) -> tuple[str, ...]:
        """The ids of issuing CAs below which nothing should be held any more, sorted."""
        return tuple(sorted(ca.id for root in self.roots for ca in root.issuing if ca.tainted))


def bundle_of(state: State, trust_domain: TrustDomain) -> Bundle:
    """What peers must trust, in the order in which it came."""
    roots = sorted(state.roots, key=lambda root: root.sequence)
    keys = sorted(state.jwt, key=lambda key: key.sequence)
    return Bundle(
        trust_domain=trust_domain,
        x509_authorities=tuple(X509Authority(root.certificate, root.tainted) for root in roots),
        jwt_authorities=tuple(JwtAuthority(key.spki, key.id, key.not_after, key.tainted) for key in keys),
        sequence=state.sequence,
        refresh_hint=REFRESH_HINT,
    )


def dated(before: State, after: State, now: int) -> State:
    """``after``, with ``now`` as the time at which what ``before`` lacks came into the bundle, and without what was
    revoked and has ended by then.
    """
    known = {root.id for root in before.roots} | {key.id for key in before.jwt}
    return replace(
        after,
        roots=tuple(root if root.id in known else replace(root, published=now) for root in after.roots),
        jwt=tuple(key if key.id in known else replace(key, published=now) for key in after.jwt),
        revoked=tuple(one for one in after.revoked if one.not_after + KEPT_AFTER_END >= now),
    )


def intend(state: State, keys: Iterable[str]) -> State:
    """Say which keys will be made next, before they are."""
    return replace(state, loose=tuple(sorted({*state.loose, *keys})))


def settle(state: State, keys: Iterable[str]) -> State:
    """These loose keys are no more."""
    gone = set(keys)
    return replace(state, loose=tuple(name for name in state.loose if name not in gone))


def put_root(state: State, root: Root) -> State:
    """With ``root`` in the place of the one that has its id."""
    return replace(state, roots=tuple(root if known.id == root.id else known for known in state.roots))


def require_default(root: Root) -> None:
    """Raise ``FailedPrecondition`` where no CA below ``root`` issues for the default environment."""
    if not any(ca.environment == "" for ca in root.issuing):
        raise FailedPrecondition(f"the root {root.id} has no default issuing CA", fix="import one, then try again")


def environment_words(name: str) -> str:
    """What an environment is called in a sentence."""
    return f"environment {name}" if name else "the default"


_Named = TypeVar("_Named", Root, JwtKey)


def _find(known: Iterable[_Named], authority_id: str, kind: Kind) -> _Named:
    for authority in known:
        if authority.id == authority_id:
            return authority
    raise _missing(kind, authority_id)


def _missing(kind: Kind, authority_id: str) -> NotFound:
    return NotFound(f"there is no {kind.words} {authority_id[:80]!r}", fix="`eastwest ca show` lists them")
