"""What becomes of what is in the state: it is activated, tainted, revoked or discarded, or goes after its end."""

from __future__ import annotations

from typing import TypeVar

from msgspec.structs import replace

from eastwest.errors import FailedPrecondition
from eastwest.pki.rotation.state import (
    KEPT_AFTER_END,
    IssuingCa,
    JwtKey,
    Kind,
    Revoked,
    Root,
    Stage,
    State,
    environment_words,
    intend,
    put_root,
    require_default,
)

MAX_REVOKED = 1024
"""Revoked roots and JWT keys that are remembered; beyond that the one that ends first is forgotten."""


def activate(state: State, kind: Kind, authority_id: str) -> State:
    """Use what is prepared from now on; what was active becomes old."""
    if kind is Kind.X509:
        chosen = state.root(authority_id)
        _require(chosen.stage is Stage.PREPARED, kind, authority_id, "prepared", "activated", chosen.stage)
        require_default(chosen)
        active = state.active_of(chosen.hierarchy)
        served = {ca.environment for ca in chosen.issuing if ca.stage is Stage.ACTIVE}
        lacking = sorted(state.issuing(chosen.hierarchy).keys() - served)
        if active is not None and lacking:
            raise FailedPrecondition(
                f"the prepared root has no issuing CA for {', '.join(map(environment_words, lacking))}",
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
        return put_root(state, replace(root, issuing=beside))
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
        return put_root(replace(state, sequence=sequence), replace(root, **marked))
    if kind is Kind.ISSUING:
        root, ca = state.issuing_ca(authority_id)
        stage = ca.stage if root.stage is Stage.ACTIVE else Stage.OLD
        _require_old(kind, authority_id, stage, tainted=ca.tainted)
        issuing = tuple(replace(ca, **marked) if known.id == ca.id else known for known in root.issuing)
        return put_root(replace(state, sequence=sequence, taints=state.taints + 1), replace(root, issuing=issuing))
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


_Staged = TypeVar("_Staged", Root, IssuingCa, JwtKey)


def _is_over(authority: Root | IssuingCa | JwtKey, now: int) -> bool:
    return now > authority.not_after + KEPT_AFTER_END


def _advance(authority: _Staged, chosen: str) -> _Staged:
    """``authority`` after the one with the id ``chosen`` of its kind was activated."""
    if authority.id == chosen:
        return replace(authority, stage=Stage.ACTIVE)
    return replace(authority, stage=Stage.OLD) if authority.stage is Stage.ACTIVE else authority


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
    return intend(put_root(replace(state, sequence=state.sequence + 1), kept), [ca.key])


def _drop_jwt(state: State, key: JwtKey) -> State:
    kept = tuple(known for known in state.jwt if known.id != key.id)
    return intend(replace(state, sequence=state.sequence + 1, jwt=kept), [key.key] if key.key else [])


def _require(met: bool, kind: Kind, authority_id: str, needed: str, verb: str, stage: Stage) -> None:
    if not met:
        raise FailedPrecondition(
            f"the {kind.words} {authority_id} is {stage}: only what is {needed} can be {verb}",
            fix="`eastwest ca show` says where each stands",
        )


def _require_old(kind: Kind, authority_id: str, stage: Stage, *, tainted: bool) -> None:
    if tainted:
        raise FailedPrecondition(f"the {kind.words} {authority_id} is tainted already", fix="revoke it")
    _require(stage is Stage.OLD, kind, authority_id, "old", "tainted", stage)
