"""What comes into the state: new roots, issuing CAs and JWT keys, cross-signed certificates, requests."""

from __future__ import annotations

from msgspec.structs import replace

from eastwest.errors import AlreadyExists, FailedPrecondition, InvalidInput
from eastwest.pki.rotation.state import (
    Hierarchy,
    IssuingCa,
    JwtKey,
    Kind,
    Request,
    Root,
    Source,
    Stage,
    State,
    environment_words,
    intend,
    put_root,
    require_default,
)
from eastwest.spiffe.bundle import JwtAuthority

MAX_ROOTS = 32
MAX_CROSS = 4
MAX_FOREIGN_JWT = 256
MAX_FOREIGN_JWT_SECONDS = 400 * 24 * 3600
"""How far ahead the end of another server's JWT key may lie."""


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
        require_default(root)
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
    return put_root(state, replace(root, stage=Stage.PREPARED, source=source))


def add_issuing(state: State, root_id: str, ca: IssuingCa) -> State:
    """Add an issuing CA: in use at once where its environment has none below this root, else prepared."""
    root = state.root(root_id)
    if any(known.id == ca.id for known in root.issuing):
        raise AlreadyExists(f"the issuing CA {ca.id} is there already")
    beside = [known for known in root.issuing if known.environment == ca.environment]
    if any(known.stage is Stage.PREPARED for known in beside):
        raise FailedPrecondition(
            f"the next issuing CA of {environment_words(ca.environment)} is prepared already",
            fix="activate it, or discard it first",
        )
    stage = Stage.PREPARED if any(known.stage is Stage.ACTIVE for known in beside) else Stage.ACTIVE
    changed = put_root(state, replace(root, issuing=(*root.issuing, replace(ca, stage=stage))))
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


def add_cross(state: State, root_id: str, certificate: bytes) -> State:
    """Keep another root's certificate for our root's key; it is sent along with what is issued from now on."""
    root = state.root(root_id)
    if certificate in root.cross:
        return state
    if len(root.cross) >= MAX_CROSS:
        raise FailedPrecondition(f"the root {root.id} has {MAX_CROSS} cross-signed certificates already")
    return put_root(state, replace(root, cross=(*root.cross, certificate)))


def add_request(state: State, request: Request) -> State:
    """Remember a key that waits for its certificate; another one of the same environment is given up."""
    given_up = [known.key for known in state.requests if known.environment == request.environment]
    kept = tuple(known for known in state.requests if known.environment != request.environment)
    return _without_loose(intend(replace(state, requests=(*kept, request)), given_up))


def fulfil(state: State, key_id: str) -> State:
    """The request for this key has its certificate."""
    return replace(state, requests=tuple(known for known in state.requests if known.key_id != key_id))


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


def _without_loose(state: State) -> State:
    """A key that something needs is not loose."""
    needed = set(state.key_names())
    return replace(state, loose=tuple(name for name in state.loose if name not in needed))
