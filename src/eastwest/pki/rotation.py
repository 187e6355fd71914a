"""Which keys sign, which are to come and which are on their way out: the certificate authority's state as a value.

    prepared ──activate──► active ──(its successor is activated)──► old ──taint──► old, tainted ──revoke──► gone
        └──discard──► gone                                           └──(24 h after its end)──► gone

The same table holds for a root with its issuing CAs (``x509``), for one issuing CA below the active root (``issuing``)
and for a key of JWT-SVIDs (``jwt``). These are SPIRE's rules: only what is prepared is activated, only what is old is
tainted, only what is tainted is revoked. A trust domain has up to two hierarchies side by side, each with its own
active root: the classical one, and one whose keys are all ML-DSA-65.

Each function takes a state and returns the next one, or raises ``FailedPrecondition`` or ``NotFound`` and leaves
everything as it was; whether all have confirmed is asked elsewhere (``eastwest.pki.confirmation``), and when something
is due as well (``eastwest.pki.schedule``). Times are Unix seconds, certificates and public keys DER.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from eastwest.errors import AlreadyExists, FailedPrecondition, InvalidInput, NotFound
from eastwest.spiffe.bundle import Bundle, JwtAuthority, X509Authority
from eastwest.spiffe.id import TrustDomain

REFRESH_HINT = 300
KEPT_AFTER_END = 24 * 3600
"""Seconds for which an authority stays in the bundle after its end, for verifiers whose clocks are behind."""
MAX_ROOTS = 32
MAX_CROSS = 4
MAX_FOREIGN_JWT = 256
MAX_REVOKED = 1024
"""Revoked roots and JWT keys that are remembered; beyond that the one that ends first is forgotten."""
MAX_FOREIGN_JWT_SECONDS = 400 * 24 * 3600
"""How far ahead the end of another server's JWT key may lie."""


class Kind(enum.StrEnum):
    """What is rotated."""

    X509 = "x509"
    ISSUING = "issuing"
    JWT = "jwt"


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


def prepare_root(state: State, root: Root) -> State:
    """Add a generation to the bundle; the first one of a trust domain is active at once.

    The first post-quantum one is not: it comes to nodes that have trusted only the other until now.
    """
    prepared = state.prepared_of(root.hierarchy)
    if prepared is not None:
        raise FailedPrecondition(f"the root {prepared.id} is prepared already", fix="activate it, or discard it first")
    first = root.hierarchy is Hierarchy.CLASSICAL and state.active_root is None
    stage = Stage.ACTIVE if first else Stage.PREPARED
    if stage is Stage.ACTIVE:
        _check_default(root)
    return _with_root(state, replace(root, stage=stage))


def trust_root(state: State, root: Root) -> State:
    """Add a root to the bundle below which nothing is issued here. It counts as old: it can be tainted and revoked."""
    return _with_root(state, replace(root, stage=Stage.OLD))


def reinstate_root(state: State, root_id: str) -> State:
    """Let a revoked root be trusted again, because somebody says so who knows that it was revoked."""
    kept = tuple(one for one in state.revoked if (one.kind, one.id) != (Kind.X509, root_id))
    return replace(state, revoked=kept)


def adopt_root(state: State, root_id: str, source: Source) -> State:
    """Prepare a root that was only trusted until now: issuing CAs below it have come."""
    root = state.root(root_id)
    if root.source not in {Source.EXTERNAL, Source.UPSTREAM} or root.stage is not Stage.OLD or root.issuing:
        raise FailedPrecondition(f"the root {root.id} is {root.stage}: nothing new is issued below it")
    if root.tainted:
        raise FailedPrecondition(f"the root {root.id} is tainted", fix="use another root")
    if state.prepared_root is not None:
        raise FailedPrecondition(
            f"the root {state.prepared_root.id} is prepared already", fix="activate it, or discard it first"
        )
    return _put_root(state, replace(root, stage=Stage.PREPARED, source=source))


def add_issuing(state: State, root_id: str, ca: IssuingCa) -> State:
    """Add an issuing CA: in use at once where its environment has none below this root, else prepared."""
    root = state.root(root_id)
    if any(known.id == ca.id for known in root.issuing):
        raise AlreadyExists(f"the issuing CA {ca.id} is there already")
    beside = [known for known in root.issuing if known.environment == ca.environment]
    if any(known.stage is Stage.PREPARED for known in beside):
        raise FailedPrecondition(
            f"the next issuing CA of {_environment(ca.environment)} is prepared already",
            fix="activate it, or discard it first",
        )
    stage = Stage.PREPARED if any(known.stage is Stage.ACTIVE for known in beside) else Stage.ACTIVE
    changed = _put_root(state, replace(root, issuing=(*root.issuing, replace(ca, stage=stage))))
    return _without_loose(changed)


def prepare_jwt(state: State, key: JwtKey) -> State:
    """Add a JWT key to the bundle; the first one is active at once."""
    if state.prepared_jwt is not None:
        raise FailedPrecondition(
            f"the JWT key {state.prepared_jwt.id} is prepared already", fix="activate it, or discard it first"
        )
    if any(known.id == key.id for known in state.jwt):
        raise AlreadyExists(f"the JWT key {key.id} is there already")
    stage = Stage.PREPARED if state.active_jwt is not None else Stage.ACTIVE
    sequence = state.sequence + 1
    added = replace(key, stage=stage, sequence=sequence)
    return _without_loose(replace(state, sequence=sequence, jwt=(*state.jwt, added)))


def add_cross(state: State, root_id: str, certificate: bytes) -> State:
    """Keep another root's certificate for our root's key; it is sent along with what is issued from now on."""
    root = state.root(root_id)
    if certificate in root.cross:
        return state
    if len(root.cross) >= MAX_CROSS:
        raise FailedPrecondition(f"the root {root.id} has {MAX_CROSS} cross-signed certificates already")
    return _put_root(state, replace(root, cross=(*root.cross, certificate)))


def add_request(state: State, request: Request) -> State:
    """Remember a key that waits for its certificate; another one of the same environment is given up."""
    given_up = [known.key for known in state.requests if known.environment == request.environment]
    kept = tuple(known for known in state.requests if known.environment != request.environment)
    return _without_loose(intend(replace(state, requests=(*kept, request)), given_up))


def fulfil(state: State, key_id: str) -> State:
    """The request for this key has its certificate."""
    return replace(state, requests=tuple(known for known in state.requests if known.key_id != key_id))


def activate(state: State, kind: Kind, authority_id: str) -> State:
    """Use what is prepared from now on; what was active becomes old."""
    if kind is Kind.X509:
        chosen = state.root(authority_id)
        _require(chosen.stage is Stage.PREPARED, kind, authority_id, "prepared", "activated", chosen.stage)
        _check_default(chosen)
        active = state.active_of(chosen.hierarchy)
        served = {ca.environment for ca in chosen.issuing if ca.stage is Stage.ACTIVE}
        lacking = sorted(state.issuing(chosen.hierarchy).keys() - served)
        if active is not None and lacking:
            raise FailedPrecondition(
                f"the prepared root has no issuing CA for {', '.join(map(_environment, lacking))}",
                fix="import one for each environment, or discard the root and prepare it anew",
            )
        return replace(
            state,
            roots=tuple(
                _advance(root, chosen.id) if root.hierarchy is chosen.hierarchy else root for root in state.roots
            ),
        )
    if kind is Kind.ISSUING:
        root, ca = state.issuing_ca(authority_id)
        _require(ca.stage is Stage.PREPARED, kind, authority_id, "prepared", "activated", ca.stage)
        beside = tuple(
            _advance(known, ca.id) if known.environment == ca.environment else known for known in root.issuing
        )
        return _put_root(state, replace(root, issuing=beside))
    key = state.jwt_key(authority_id)
    _require(key.stage is Stage.PREPARED, kind, authority_id, "prepared", "activated", key.stage)
    return replace(state, jwt=tuple(_advance(known, key.id) for known in state.jwt))


def taint(state: State, kind: Kind, authority_id: str) -> State:
    """Nothing that stems from this old authority should be held any more; it is trusted until it is revoked."""
    sequence = state.sequence + 1
    marked = {"tainted": True, "tainted_sequence": sequence}
    if kind is Kind.X509:
        root = state.root(authority_id)
        _require_old(kind, authority_id, root.stage, tainted=root.tainted)
        return _put_root(replace(state, sequence=sequence), replace(root, **marked))
    if kind is Kind.ISSUING:
        root, ca = state.issuing_ca(authority_id)
        stage = ca.stage if root.stage is Stage.ACTIVE else Stage.OLD
        _require_old(kind, authority_id, stage, tainted=ca.tainted)
        issuing = tuple(replace(ca, **marked) if known.id == ca.id else known for known in root.issuing)
        return _put_root(replace(state, sequence=sequence, taints=state.taints + 1), replace(root, issuing=issuing))
    key = state.jwt_key(authority_id)
    _require_old(kind, authority_id, key.stage, tainted=key.tainted)
    jwt = tuple(replace(key, **marked) if known.id == key.id else known for known in state.jwt)
    return replace(state, sequence=sequence, jwt=jwt)


def revoke(state: State, kind: Kind, authority_id: str, *, remember: bool = True) -> State:
    """Take a tainted authority away; its keys become loose.

    Without ``remember`` a root or JWT key may come back when it is named again; else not before its end.
    """
    if kind is Kind.X509:
        root = state.root(authority_id)
        _require(root.tainted, kind, authority_id, "tainted", "revoked", root.stage)
        return _drop_root(_remember(state, kind, root) if remember else state, root)
    if kind is Kind.ISSUING:
        root, ca = state.issuing_ca(authority_id)
        _require(ca.tainted, kind, authority_id, "tainted", "revoked", ca.stage)
        return _drop_issuing(state, root, ca)
    key = state.jwt_key(authority_id)
    _require(key.tainted, kind, authority_id, "tainted", "revoked", key.stage)
    return _drop_jwt(_remember(state, kind, key) if remember else state, key)


def discard(state: State, kind: Kind, authority_id: str) -> State:
    """Take back what was prepared and never used; its keys become loose."""
    if kind is Kind.X509:
        root = state.root(authority_id)
        _require(root.stage is Stage.PREPARED, kind, authority_id, "prepared", "discarded", root.stage)
        return _drop_root(state, root)
    if kind is Kind.ISSUING:
        root, ca = state.issuing_ca(authority_id)
        _require(ca.stage is Stage.PREPARED, kind, authority_id, "prepared", "discarded", ca.stage)
        return _drop_issuing(state, root, ca)
    key = state.jwt_key(authority_id)
    _require(key.stage is Stage.PREPARED, kind, authority_id, "prepared", "discarded", key.stage)
    # The authority above has heard of it and names it for as long as it lives.
    return _drop_jwt(_remember(state, kind, key), key)


def publish_jwt(state: State, authority: JwtAuthority, now: int, *, upstream: bool = False) -> State:
    """With the JWT key of another server of the trust domain in the bundle; the same state where it is there already,
    or was revoked here.

    ``upstream``: the authority above named it, so that it may go when it is not named there any more.
    It never signs here; it may be tainted and revoked, and goes after its end, like any other. Raises ``InvalidInput``,
    or ``AlreadyExists`` when another key has its ``kid``.
    """
    if not 0 < len(authority.key_id) <= 256 or not authority.key_id.isprintable():
        raise InvalidInput("a JWT key has a kid of 1 to 256 printable characters")
    if not now < authority.expires_at <= now + MAX_FOREIGN_JWT_SECONDS:
        raise InvalidInput("the JWT key has ended, or ends too far ahead")
    if state.is_revoked(Kind.JWT, authority.key_id):
        return state
    known = next((key for key in state.jwt if key.id == authority.key_id), None)
    if known is not None:
        if known.spki != authority.spki:
            raise AlreadyExists(f"another JWT key has the kid {authority.key_id}")
        if known.key or known.upstream or not upstream:
            return state
        return replace(
            state, jwt=tuple(replace(key, upstream=True) if key.id == known.id else key for key in state.jwt)
        )
    if sum(not key.key for key in state.jwt) >= MAX_FOREIGN_JWT:
        raise FailedPrecondition(f"the bundle has {MAX_FOREIGN_JWT} JWT keys of other servers already")
    sequence = state.sequence + 1
    added = JwtKey(
        id=authority.key_id,
        key="",
        spki=authority.spki,
        not_before=now,
        not_after=authority.expires_at,
        stage=Stage.OLD,
        sequence=sequence,
        upstream=upstream,
    )
    return replace(state, sequence=sequence, jwt=(*state.jwt, added))


def ended(state: State, now: int) -> list[tuple[Kind, str]]:
    """Authorities out of use whose end lies so far back that they may go."""
    found = []
    for root in state.roots:
        if root.stage is not Stage.ACTIVE and _is_over(root, now):
            found.append((Kind.X509, root.id))
            continue
        found += [(Kind.ISSUING, ca.id) for ca in root.issuing if ca.stage is Stage.OLD and _is_over(ca, now)]
    found += [(Kind.JWT, key.id) for key in state.jwt if key.stage is not Stage.ACTIVE and _is_over(key, now)]
    return found


def prune(state: State, now: int) -> State:
    """Without what ``ended``; its keys become loose."""
    for kind, authority_id in ended(state, now):
        if kind is Kind.X509:
            state = _drop_root(state, state.root(authority_id))
        elif kind is Kind.ISSUING:
            state = _drop_issuing(state, *state.issuing_ca(authority_id))
        else:
            state = _drop_jwt(state, state.jwt_key(authority_id))
    return state


_Named = TypeVar("_Named", Root, JwtKey)
_Staged = TypeVar("_Staged", Root, IssuingCa, JwtKey)


def _is_over(authority: Root | IssuingCa | JwtKey, now: int) -> bool:
    return now > authority.not_after + KEPT_AFTER_END


def _advance(authority: _Staged, chosen: str) -> _Staged:
    """``authority`` after the one with the id ``chosen`` of its kind was activated."""
    if authority.id == chosen:
        return replace(authority, stage=Stage.ACTIVE)
    return replace(authority, stage=Stage.OLD) if authority.stage is Stage.ACTIVE else authority


def _with_root(state: State, root: Root) -> State:
    if any(known.id == root.id for known in state.roots):
        raise AlreadyExists(f"the root {root.id} is in the bundle already")
    if state.is_revoked(Kind.X509, root.id):
        raise FailedPrecondition(
            f"the root {root.id} was revoked here",
            fix="use another one; if it was a mistake, `eastwest ca import FILE --trust-only` trusts it again",
        )
    if len(state.roots) >= MAX_ROOTS:
        raise FailedPrecondition(f"the bundle has {MAX_ROOTS} roots already", fix="taint and revoke old ones")
    sequence = state.sequence + 1
    added = replace(root, sequence=sequence)
    return _without_loose(replace(state, sequence=sequence, roots=(*state.roots, added)))


def _put_root(state: State, root: Root) -> State:
    return replace(state, roots=tuple(root if known.id == root.id else known for known in state.roots))


def _remember(state: State, kind: Kind, authority: Root | JwtKey) -> State:
    revoked = Revoked(kind=kind, id=authority.id, not_after=authority.not_after)
    others = [one for one in state.revoked if (one.kind, one.id) != (kind, authority.id)]
    kept = sorted([*others, revoked], key=lambda one: one.not_after)
    return replace(state, revoked=tuple(kept[-MAX_REVOKED:]))


def _drop_root(state: State, root: Root) -> State:
    keys = [*([root.key] if root.key else []), *(ca.key for ca in root.issuing)]
    kept = tuple(known for known in state.roots if known.id != root.id)
    return intend(replace(state, sequence=state.sequence + 1, roots=kept), keys)


def _drop_issuing(state: State, root: Root, ca: IssuingCa) -> State:
    kept = replace(root, issuing=tuple(known for known in root.issuing if known.id != ca.id))
    return intend(_put_root(replace(state, sequence=state.sequence + 1), kept), [ca.key])


def _drop_jwt(state: State, key: JwtKey) -> State:
    kept = tuple(known for known in state.jwt if known.id != key.id)
    return intend(replace(state, sequence=state.sequence + 1, jwt=kept), [key.key] if key.key else [])


def _without_loose(state: State) -> State:
    """A key that something needs is not loose."""
    needed = set(state.key_names())
    return replace(state, loose=tuple(name for name in state.loose if name not in needed))


def _find(known: Iterable[_Named], authority_id: str, kind: Kind) -> _Named:
    for authority in known:
        if authority.id == authority_id:
            return authority
    raise _missing(kind, authority_id)


def _missing(kind: Kind, authority_id: str) -> NotFound:
    return NotFound(f"there is no {_WORDS[kind]} {authority_id[:80]!r}", fix="`eastwest ca show` lists them")


def _check_default(root: Root) -> None:
    if not any(ca.environment == "" for ca in root.issuing):
        raise FailedPrecondition(f"the root {root.id} has no default issuing CA", fix="import one, then try again")


def _require(met: bool, kind: Kind, authority_id: str, needed: str, verb: str, stage: Stage) -> None:
    if not met:
        raise FailedPrecondition(
            f"the {_WORDS[kind]} {authority_id} is {stage}: only what is {needed} can be {verb}",
            fix="`eastwest ca show` says where each stands",
        )


def _require_old(kind: Kind, authority_id: str, stage: Stage, *, tainted: bool) -> None:
    if tainted:
        raise FailedPrecondition(f"the {_WORDS[kind]} {authority_id} is tainted already", fix="revoke it")
    _require(stage is Stage.OLD, kind, authority_id, "old", "tainted", stage)


def _environment(name: str) -> str:
    return f"environment {name}" if name else "the default"


_WORDS = {Kind.X509: "root", Kind.ISSUING: "issuing CA", Kind.JWT: "JWT key"}
