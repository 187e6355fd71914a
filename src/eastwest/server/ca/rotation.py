"""The certificate authority's state in force: how it changes, one step at a time, and what each change sets off.

A change is thought out (``eastwest.pki.rotation``), checked against what the nodes have confirmed, recorded in the
log, stored, and only then takes effect. Keys are named in the state before they are made and until they are destroyed,
so that a server killed at any point finds at its next start what to clear away, and destroys nothing else.
"""

from __future__ import annotations

import asyncio
from base64 import standard_b64encode
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key
from msgspec.structs import replace

from eastwest.clock import Clock
from eastwest.errors import Error, FailedPrecondition, InvalidInput
from eastwest.pki.confirmation import (
    Holder,
    NotConfirmed,
    require_confirmed,
    require_published,
    require_released,
)
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.pki.rotation import additions, lifecycle
from eastwest.pki.rotation.state import (
    Hierarchy,
    IssuingCa,
    JwtKey,
    Kind,
    Root,
    Source,
    Stage,
    State,
    bundle_of,
    dated,
    intend,
    settle,
)
from eastwest.pki.signer import algorithm_of
from eastwest.server.ca.authority import DEFAULT, Maker, Signing, root_of
from eastwest.server.ca.trust import Trust
from eastwest.server.finishing import to_the_end
from eastwest.server.journal import Event, Journal
from eastwest.spiffe.bundle import Bundle, JwtAuthority
from eastwest.store.authority import SqliteAuthority

MAX_RECORDED = 50
"""Nodes named in the record of a forced change."""
_UNREADABLE: tuple[type[Exception], ...] = (x509.ExtensionNotFound, *PARSE_ERRORS)
_log = structlog.get_logger()
Item = Root | IssuingCa | JwtKey


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change came to: the authority as it is now, or as it was when it went."""

    kind: Kind
    item: Item
    sequence: int


class AuthorityKeeper:
    """The CA's state, and the only one who changes it. Open it with ``open``.

    ``signing`` is what issues now, None before the first issuing CA has its certificate. ``on_change`` is awaited after
    each change, with ``trust`` in force by then. ``holders`` says who has confirmed what, and ``publish_wait`` for how
    many seconds a kind of authority must have been published, for those outside who cannot confirm.
    """

    def __init__(
        self, state: State, revision: int, store: SqliteAuthority, maker: Maker, journal: Journal, clock: Clock
    ) -> None:
        self.state = state
        self.signing: Signing | None = None
        self.trust = Trust(bundle_of(state, maker.trust_domain), state.tainted_issuing())
        self.on_change: Callable[[], Awaitable[None]] = _nothing
        self.holders: Callable[[], Sequence[Holder]] = tuple
        self.publish_wait: Callable[[Kind], int] = lambda _kind: 0
        self.environments: frozenset[str] = frozenset()
        self.problems: dict[str, str] = {}
        self.maker = maker
        self._revision = revision
        self._store = store
        self._journal = journal
        self._clock = clock
        self.turn = asyncio.Lock()

    @classmethod
    async def open(cls, store: SqliteAuthority, maker: Maker, journal: Journal, clock: Clock) -> AuthorityKeeper:
        """Read the state and clear away keys that an interrupted change left behind."""
        found = await store.load()
        if found is None:
            raise FailedPrecondition("the trust domain has no CA", fix="run `eastwest server init`")
        keeper = cls(*found, store, maker, journal, clock)
        await keeper._destroy_loose()
        if keeper.state.active_root is not None:
            keeper.signing = await maker.assemble(keeper.state)
        return keeper

    @property
    def subject(self) -> str:
        """What records about the CA are about."""
        return self.maker.trust_domain.uri

    @property
    def awaiting(self) -> frozenset[str]:
        """Environments of the estate that have no CA yet."""
        return self.environments - self.state.issuing().keys()

    @property
    def awaiting_post_quantum(self) -> frozenset[str]:
        """Environments of the estate that have no CA for ML-DSA-65 keys yet; empty where the trust domain has none."""
        issuing = self.state.issuing(Hierarchy.POST_QUANTUM)
        return self.environments - issuing.keys() if issuing else frozenset()

    def without_ca(self, environments: Collection[str]) -> list[str]:
        """A sentence for each of these environments that waits for a CA which people have to have signed."""
        if not self.is_remote:
            return []
        return [
            f"environment {name} has no issuing CA, so nothing is issued in it: the root is offline"
            f" (eastwest ca export-csr --environment {name}, have it signed, then eastwest ca import)"
            for name in sorted(set(environments) - self.state.issuing().keys())
        ]

    @property
    def is_remote(self) -> bool:
        """Whether the root's key is elsewhere: then issuing CAs come by file."""
        root = self.state.active_root or self.state.prepared_root
        return root is not None and root.source is Source.OFFLINE and self.maker.upstream is None

    async def prepare(
        self,
        kind: Kind,
        actor: str,
        environment: str = DEFAULT,
        hierarchy: Hierarchy = Hierarchy.CLASSICAL,
    ) -> Changed:
        """Make a successor and let everybody know it."""
        async with self.turn:
            try:
                return await self._prepare(kind, actor, environment, hierarchy)
            except Error:
                await self._destroy_loose()
                raise

    async def activate(
        self, kind: Kind, authority_id: str, actor: str, *, force: bool = False, at_last: bool = False
    ) -> Changed:
        """Sign with what is prepared from now on. Raises ``NotConfirmed`` while somebody would not trust it.

        ``force`` goes ahead all the same, as does ``at_last``, which the schedule says when no time is left; both are
        recorded. An issuing CA needs no confirmation: it is sent along with each leaf. Those outside the trust domain
        are given time (``usable_at``).
        """
        async with self.turn:
            after = lifecycle.activate(self.state, kind, authority_id)
            facts: dict[str, Any] = {}
            if kind is not Kind.ISSUING:
                item = find(self.state, kind, authority_id)
                assert not isinstance(item, IssuingCa)
                what = f"the {'root' if kind is Kind.X509 else 'JWT key'} {authority_id}"
                wait, now = self.publish_wait(kind), int(self._clock.now().timestamp())
                facts = self._checked(
                    lambda: require_confirmed(self.holders(), item.sequence, what),
                    lambda: require_published(item.published, wait, now, what),
                    force=force or at_last,
                )
                facts["by_schedule_at_last"] = at_last
            return await self._change("ca.activated", kind, authority_id, after, actor, facts)

    def usable_at(self, kind: Kind, item: Item) -> int:
        """From when (Unix seconds) those outside the trust domain have what is prepared; 0: none need be waited for."""
        wait = self.publish_wait(kind)
        if isinstance(item, IssuingCa) or item.stage is not Stage.PREPARED or not (wait and item.published):
            return 0
        return item.published + wait

    async def taint(self, kind: Kind, authority_id: str, actor: str) -> Changed:
        """Have everybody let go of what stems from an old authority."""
        async with self.turn:
            after = lifecycle.taint(self.state, kind, authority_id)
            return await self._change("ca.tainted", kind, authority_id, after, actor)

    async def revoke(
        self, kind: Kind, authority_id: str, actor: str, *, force: bool = False, remember: bool = True
    ) -> Changed:
        """Take a tainted authority out of the bundle. Raises ``NotConfirmed`` while somebody holds what stems from it;
        with ``force`` it goes all the same, which is recorded. Whoever names it, it is not adopted again before its
        end, but without ``remember``.
        """
        async with self.turn:
            after = lifecycle.revoke(self.state, kind, authority_id, remember=remember)
            item = find(self.state, kind, authority_id)
            issuers = {ca.id for ca in item.issuing} | {item.id} if isinstance(item, Root) else {item.id}
            facts = self._checked(
                lambda: require_released(self.holders(), item.tainted_sequence, issuers, f"{kind} {authority_id}"),
                force=force,
            )
            return await self._change("ca.revoked", kind, authority_id, after, actor, facts)

    async def discard(self, kind: Kind, authority_id: str, actor: str) -> Changed:
        """Take back what was prepared."""
        async with self.turn:
            after = lifecycle.discard(self.state, kind, authority_id)
            return await self._change("ca.discarded", kind, authority_id, after, actor)

    async def prune(self, actor: str) -> None:
        """Drop what ended long ago."""
        async with self.turn:
            now = int(self._clock.now().timestamp())
            gone = lifecycle.ended(self.state, now)
            if gone:
                events = [
                    self.event("ca.expired", actor, kind, find(self.state, kind, authority_id))
                    for kind, authority_id in gone
                ]
                await self.commit(lifecycle.prune(self.state, now), events)

    async def want(self, environments: Collection[str], actor: str) -> None:
        """These environments are to have CAs of their own: made at once where we can, else awaited.

        Never raises: what keeps a CA from being made is a problem of the server, and the environment waits.
        """
        self.environments = frozenset(environments)
        try:
            async with self.turn:
                try:
                    for environment in sorted(self.awaiting):
                        if self.signing is not None and not self.is_remote:
                            await self._prepare_issuing(actor, environment, Hierarchy.CLASSICAL)
                    for environment in sorted(self.awaiting_post_quantum):
                        await self._prepare_issuing(actor, environment, Hierarchy.POST_QUANTUM)
                except Error:
                    await self._destroy_loose()
                    raise
            self.problems.pop("environments", None)
        except Error as error:
            self.problems["environments"] = f"an environment has no issuing CA yet: {error}"
            _log.error("ca.environment.failed", error=str(error))
        await self.on_change()

    async def offer_post_quantum(self, actor: str) -> None:
        """Make the first root for ML-DSA-65 keys where there is none; it is used once all nodes trust it.

        Never raises: what keeps it from being made is a problem of the server.
        """
        hierarchy = Hierarchy.POST_QUANTUM
        if self.state.active_of(hierarchy) is not None or self.state.prepared_of(hierarchy) is not None:
            return
        try:
            await self.prepare(Kind.X509, actor, hierarchy=hierarchy)
        except Error as error:
            self.problems["post-quantum"] = f"there is no post-quantum root: {error}"
            _log.error("ca.post_quantum.failed", error=str(error))

    async def adopt(
        self,
        roots: Iterable[bytes] = (),
        jwt: Iterable[JwtAuthority] = (),
        *,
        actor: str,
        source: Source = Source.UPSTREAM,
    ) -> Bundle:
        """Take an upstream's roots (DER), and JWT keys of other servers of the trust domain, into the bundle; give it.

        ``source`` says where they come from: what the upstream named goes when it is not named there any more. What is
        known already changes nothing, nor does what an upstream names although it was revoked here. Raises
        ``InvalidInput`` for a JWT key that cannot be trusted.
        """
        async with self.turn:
            now = int(self._clock.now().timestamp())
            before = self.state
            after = _trusting(before, roots, source)
            for authority in jwt:
                _check_jwt_key(authority)
                after = additions.publish_jwt(after, authority, now, upstream=source is Source.UPSTREAM)
            if after is not before:
                known = {root.id for root in before.roots} | {key.id for key in before.jwt}
                added: list[tuple[Kind, Item]] = [(Kind.X509, root) for root in after.roots if root.id not in known]
                added += [(Kind.JWT, key) for key in after.jwt if key.id not in known]
                await self.commit(after, [self.event("ca.trusted", actor, kind, item) for kind, item in added])
        return self.trust.bundle

    async def append(self, roots: Sequence[bytes], jwt: Sequence[JwtAuthority], actor: str) -> Bundle:
        """Take what an administrator brings into the bundle, ended roots too; raises ``InvalidInput``.

        What was revoked here is refused with ``FailedPrecondition``: who brings it may only have an old bundle.
        """
        for der in roots:
            _check_ca(der)
        for authority in jwt:
            if self.state.is_revoked(Kind.JWT, authority.key_id):
                raise FailedPrecondition(f"the JWT key {authority.key_id} was revoked here", fix="bring a newer bundle")
        return await self.adopt(roots, jwt, actor=actor, source=Source.EXTERNAL)

    async def commit(self, after: State, events: Iterable[Event]) -> None:
        """Record, store, take effect. The caller holds ``turn``. Nothing has changed where this raises.

        Done to its end even when the caller is cancelled: a state that is stored and not in force would stop every
        later change.
        """
        await to_the_end(self._commit(after, events))

    async def _commit(self, after: State, events: Iterable[Event]) -> None:
        after = dated(self.state, after, int(self._clock.now().timestamp()))
        signing = await self.maker.assemble(after) if after.active_root is not None else None
        events = list(events)
        if after.sequence != self.state.sequence:
            events.append(self._bundle_event(after, events[0].actor if events else self.subject))
        await self._journal.record_all(events)
        self._revision = await self._store.save(after, self._revision)
        self.state, self.signing = after, signing
        self.trust.replace(bundle_of(after, self.maker.trust_domain), after.tainted_issuing())
        await self.on_change()
        await self._destroy_loose()

    async def intend(self, *kinds: str) -> list[str]:
        """Fresh key names, stored as such before a key has them."""
        names = self.maker.names(*kinds)
        await self._store_quietly(intend(self.state, names))
        return names

    def event(self, what: str, actor: str, kind: Kind, item: Item, **facts: Any) -> Event:
        """One change of one authority, as the log has it."""
        told: dict[str, Any] = {
            "authority": kind.value,
            "authority_id": item.id,
            "not_after": datetime.fromtimestamp(item.not_after, UTC),
        }
        if isinstance(item, Root):
            told |= {
                "source": item.source.value,
                "hierarchy": item.hierarchy.value,
                "certificate": _text(item.certificate),
            }
        elif isinstance(item, IssuingCa):
            told |= {"environment": item.environment, "certificate": _text(item.chain[0])}
        else:
            told["public_key"] = _text(item.spki)
        return Event(what, actor, self.subject, told | facts)

    async def _prepare(self, kind: Kind, actor: str, environment: str, hierarchy: Hierarchy) -> Changed:
        if kind is Kind.JWT:
            return await self._prepare_jwt(actor)
        own = hierarchy is Hierarchy.POST_QUANTUM  # its root is always ours
        if self.is_remote and not own:
            raise FailedPrecondition(
                "the root is offline, so nothing can be prepared from here",
                fix="run `eastwest ca export-csr --all`, have the requests signed, then `eastwest ca import`",
            )
        if kind is Kind.ISSUING:
            return await self._prepare_issuing(actor, environment, hierarchy)
        if self.maker.upstream is not None and not own:
            return await self._prepare_upstream(actor)
        return await self._prepare_root(actor, hierarchy)

    async def _prepare_root(self, actor: str, hierarchy: Hierarchy) -> Changed:
        _refuse_second(self.state.prepared_of(hierarchy))
        environments = sorted({DEFAULT, *self.environments, *self.state.issuing(hierarchy)})
        names = await self.intend("root", *("issuing" for _ in environments))
        root = await self.maker.root(names, environments, hierarchy)
        return await self._prepared(Kind.X509, additions.prepare_root(self.state, root), root, actor)

    async def _prepare_issuing(self, actor: str, environment: str, hierarchy: Hierarchy) -> Changed:
        root = self.state.active_of(hierarchy)
        if root is None:
            raise FailedPrecondition("there is no active root", fix="import an issuing CA first")
        if environment and environment not in self.environments and environment not in self.state.issuing(hierarchy):
            known = ", ".join(sorted(self.environments)) or "none"
            raise FailedPrecondition(f"the estate has no environment {environment!r}", fix=f"known: {known}")
        _refuse_second(next((ca for ca in root.issuing if _is_next(ca, environment)), None))
        [name] = await self.intend("issuing")
        if self.maker.upstream is not None and root.source is Source.UPSTREAM:
            ca, above, roots = await self.maker.upstream_issuing(name, environment)
            if above.id != root.id:
                raise FailedPrecondition(
                    "the upstream authority has another root now", fix="prepare a whole generation: kind x509"
                )
            after = _trusting(self.state, roots, Source.UPSTREAM)
        elif root.source is Source.OWN:
            ca = await self.maker.issuing(root, name, environment)
            after = self.state
        else:
            raise FailedPrecondition(
                f"the key of the root {root.id} is not here", fix="run `eastwest ca export-csr`, then `ca import`"
            )
        after = additions.add_issuing(after, root.id, ca)
        in_use = after.issuing(hierarchy).get(environment)
        what = "ca.activated" if in_use is not None and in_use.id == ca.id else "ca.prepared"
        return await self._prepared(Kind.ISSUING, after, ca, actor, what)

    async def _prepare_upstream(self, actor: str) -> Changed:
        """New issuing CAs from above: below the active root they are prepared there, else as a new generation."""
        assert self.maker.upstream is not None
        environments = sorted({DEFAULT, *self.environments, *self.state.issuing()})
        names = await self.intend(*("issuing" for _ in environments))
        made = [
            await self.maker.upstream_issuing(name, environment)
            for name, environment in zip(names, environments, strict=True)
        ]
        above = made[0][1]
        if any(root.id != above.id for _, root, _ in made):
            raise FailedPrecondition("the upstream authority certified below several roots at once", fix="try again")
        cas = [ca for ca, _, _ in made]
        after = self.state
        if any(root.id == above.id and root.stage is Stage.ACTIVE for root in after.roots):
            for ca in cas:
                after = additions.add_issuing(after, above.id, ca)
            after = _trusting(after, made[0][2], Source.UPSTREAM)
            return await self._prepared(Kind.ISSUING, after, cas[0], actor)
        if any(root.id == above.id for root in after.roots):
            after = additions.adopt_root(after, above.id, Source.UPSTREAM)
            for ca in cas:
                after = additions.add_issuing(after, above.id, ca)
        else:
            after = additions.prepare_root(after, replace(above, issuing=tuple(cas)))
        return await self._prepared(Kind.X509, _trusting(after, made[0][2], Source.UPSTREAM), above, actor)

    async def _prepare_jwt(self, actor: str) -> Changed:
        _refuse_second(self.state.prepared_jwt)
        [name] = await self.intend("jwt")
        key = await self.maker.jwt(name)
        return await self._prepared(Kind.JWT, additions.prepare_jwt(self.state, key), key, actor)

    async def _prepared(self, kind: Kind, after: State, item: Item, actor: str, what: str = "ca.prepared") -> Changed:
        await self.commit(after, [self.event(what, actor, kind, item, sequence=after.sequence)])
        return Changed(kind, find(self.state, kind, item.id), self.state.sequence)

    async def _change(
        self, what: str, kind: Kind, authority_id: str, after: State, actor: str, facts: dict[str, Any] | None = None
    ) -> Changed:
        before = find(self.state, kind, authority_id)
        event = self.event(what, actor, kind, before, sequence=after.sequence, **(facts or {}))
        await self.commit(after, [event])
        _log.info(what, kind=kind.value, authority=authority_id, actor=actor)
        try:
            item = find(after, kind, authority_id)
        except Error:
            item = before
        return Changed(kind, item, after.sequence)

    def _checked(self, *checks: Callable[[], None], force: bool) -> dict[str, Any]:
        """What to record of the checks; raises the first ``NotConfirmed`` unless forced."""
        passed_over = []
        for check in checks:
            try:
                check()
            except NotConfirmed as error:
                if not force:
                    raise
                passed_over.append(error.message)
        return {"forced": True, "unconfirmed": "; ".join(passed_over)} if passed_over else {"forced": False}

    def _bundle_event(self, after: State, actor: str) -> Event:
        facts = {
            "sequence": after.sequence,
            "x509_authorities": [root.id for root in after.roots],
            "jwt_authorities": [key.id for key in after.jwt],
            "tainted": sorted(
                [root.id for root in after.roots if root.tainted]
                + [key.id for key in after.jwt if key.tainted]
                + list(after.tainted_issuing())
            ),
        }
        return Event("bundle.changed", actor, self.subject, facts)

    async def _destroy_loose(self) -> None:
        """Destroy what nothing needs; what cannot be reached now is destroyed at the next start."""
        if not self.state.loose:
            return
        try:
            gone = await self.maker.destroy(self.state.loose)
        except Error as error:
            _log.warning("ca.key.not_destroyed", error=str(error))
            return
        await self._store_quietly(settle(self.state, gone))

    async def _store_quietly(self, after: State) -> None:
        """Store a state that differs only in its loose keys."""

        async def stored() -> None:
            self._revision = await self._store.save(after, self._revision)
            self.state = after

        await to_the_end(stored())


def _check_ca(der: bytes) -> None:
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.public_key()
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except _UNREADABLE:
        is_ca = False
    if not is_ca:
        raise InvalidInput("an X.509 authority is no CA certificate", fix="give the CA's own certificate")


def _check_jwt_key(authority: JwtAuthority) -> None:
    try:
        algorithm_of(load_der_public_key(authority.spki))
    except PARSE_ERRORS:
        raise InvalidInput("the JWT key cannot be read") from None


def find(state: State, kind: Kind, authority_id: str) -> Item:
    """The authority with this id; raises ``NotFound``."""
    if kind is Kind.X509:
        return state.root(authority_id)
    if kind is Kind.ISSUING:
        return state.issuing_ca(authority_id)[1]
    return state.jwt_key(authority_id)


def _trusting(state: State, roots: Iterable[bytes], source: Source) -> State:
    """With all of these roots in the bundle, but those of an upstream that were revoked here."""
    for der in roots:
        root = root_of(der, source)
        if source is Source.UPSTREAM and state.is_revoked(Kind.X509, root.id):
            continue
        if all(known.id != root.id for known in state.roots):
            state = additions.trust_root(state, root)
    return state


def _refuse_second(prepared: Item | None) -> None:
    if prepared is not None:
        raise FailedPrecondition(f"{prepared.id} is prepared already", fix="activate it, or discard it first")


def _is_next(ca: IssuingCa, environment: str) -> bool:
    return ca.environment == environment and ca.stage is Stage.PREPARED


def _text(der: bytes) -> str:
    return standard_b64encode(der).decode()


async def _nothing() -> None:
    return None
