"""Federation in force: relationships, foreign bundles, and everything that may change them.

    federation = await Federation.open(trust_domain, store, journal, clock)
    federation.subscribe(lambda: hub.wake())
    federation.bundles[TrustDomain("partner.example")]

Invariants:

- A change is recorded in the log, then stored, then visible, then told; what fails on the way changes nothing.
- What an endpoint says is judged against what is held. A refused answer leaves the last good bundle in force, and
  ``status`` says why.
- Without a relationship, and without a bundle that an administrator set by hand, a foreign trust domain is a stranger.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TypeVar

import structlog

from eastwest.clock import Clock
from eastwest.errors import AlreadyExists, Error, Exhausted, NotFound
from eastwest.registry.entry import Origin
from eastwest.registry.federation import (
    MAX_RELATIONSHIPS,
    EndpointStatus,
    FederationStore,
    Intended,
    KeptByEstate,
    Relationship,
    check_bundle,
    check_received,
    refresh_seconds,
    same_content,
)
from eastwest.server.journal import Event, Journal
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import TrustDomain

KIND = "federation.changed"
_log = structlog.get_logger()
T = TypeVar("T")


class Federation:
    """Which foreign trust domains are trusted, and by which roots. Make it with ``open``."""

    def __init__(self, own: TrustDomain, store: FederationStore, journal: Journal, clock: Clock) -> None:
        self._own = own
        self._store = store
        self._journal = journal
        self._clock = clock
        self._turn = asyncio.Lock()
        self._relationships: dict[TrustDomain, Relationship] = {}
        self._bundles: dict[TrustDomain, Bundle] = {}
        self._statuses: dict[TrustDomain, EndpointStatus] = {}
        self._listeners: list[Callable[[], None]] = []
        self._actor = f"{own.uri}/spire/server"

    @classmethod
    async def open(cls, own: TrustDomain, store: FederationStore, journal: Journal, clock: Clock) -> Federation:
        """Read the store and be ready to answer."""
        federation = cls(own, store, journal, clock)
        stored = await store.load()
        federation._relationships = {one.trust_domain: one for one in stored.relationships}
        federation._bundles = {bundle.trust_domain: bundle for bundle in stored.bundles}
        federation._statuses = await store.statuses()
        return federation

    @property
    def own(self) -> TrustDomain:
        """The server's own trust domain, which never appears among the others."""
        return self._own

    @property
    def bundles(self) -> Mapping[TrustDomain, Bundle]:
        """The bundle in force of each foreign trust domain."""
        return MappingProxyType(self._bundles)

    @property
    def relationships(self) -> Mapping[TrustDomain, Relationship]:
        """Every relationship, the estate's and those made by API."""
        return MappingProxyType(self._relationships)

    def knows(self, trust_domain: TrustDomain) -> bool:
        """Whether a bundle of that trust domain is held, or a relationship will bring one."""
        return trust_domain in self._bundles or trust_domain in self._relationships

    def status(self, trust_domain: TrustDomain) -> EndpointStatus:
        """How the endpoint of a relationship fares."""
        return self._statuses.get(trust_domain, EndpointStatus())

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after every change of relationships or bundles; the function returned ends that."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    async def create(self, relationship: Relationship, bundle: Bundle | None, actor: str) -> None:
        """Begin to trust; raises ``AlreadyExists``, ``InvalidRelationship``, ``BundleRefused``."""
        domain = relationship.trust_domain
        relationship.check(self._own)
        self._check_given(domain, bundle)

        async def change() -> None:
            if domain in self._relationships:
                raise AlreadyExists(f"there is a relationship with {domain} already", fix="update or delete it")
            if len(self._relationships) >= MAX_RELATIONSHIPS:
                raise Exhausted(f"there are {MAX_RELATIONSHIPS} relationships already", fix="delete one")
            await self._commit(actor, put=[("relationship_created", relationship)], bundles=_listed(bundle))

        await self._in_turn(change)

    async def update(
        self,
        trust_domain: TrustDomain,
        edit: Callable[[Relationship], Relationship],
        bundle: Bundle | None,
        actor: str,
    ) -> Relationship:
        """Change a relationship made by API; raises ``NotFound``, ``KeptByEstate`` and what ``create`` raises."""
        self._check_given(trust_domain, bundle)

        async def change() -> Relationship:
            edited = edit(self._editable(trust_domain))
            edited.check(self._own)
            self._statuses.pop(trust_domain, None)
            await self._commit(actor, put=[("relationship_updated", edited)], bundles=_listed(bundle))
            return edited

        return await self._in_turn(change)

    async def delete(self, trust_domain: TrustDomain, actor: str) -> None:
        """End the trust: relationship and bundle go. Raises ``NotFound``, ``KeptByEstate``."""

        async def change() -> None:
            self._editable(trust_domain)
            await self._commit(actor, drop=[trust_domain])

        await self._in_turn(change)

    async def set_bundle(self, bundle: Bundle, actor: str, *, useless: bool = False) -> None:
        """Put a bundle in force that an administrator brings, whatever sequence is held; raises ``BundleRefused``.

        ``useless``: also one that ``check_bundle`` takes only so.
        """
        check_bundle(bundle, self._own, self._clock.now(), useless=useless)

        async def change() -> None:
            held = self._relationships.get(bundle.trust_domain)
            if held is not None and held.origin is Origin.ESTATE and not held.endpoint_url:
                raise _kept_by_estate(bundle.trust_domain)
            await self._commit(actor, bundles=[bundle])

        await self._in_turn(change)

    async def delete_bundle(self, trust_domain: TrustDomain, actor: str) -> None:
        """Forget a bundle; an endpoint may bring it back. Raises ``NotFound``, ``KeptByEstate``."""

        async def change() -> None:
            if trust_domain not in self._bundles:
                raise NotFound(f"no bundle of trust domain {trust_domain} is known")
            held = self._relationships.get(trust_domain)
            if held is not None and held.origin is Origin.ESTATE:
                raise _kept_by_estate(trust_domain)
            await self._commit(actor, drop_bundles=[trust_domain])

        await self._in_turn(change)

    async def received(self, relationship: Relationship, bundle: Bundle) -> bool:
        """Take what an endpoint gave, if it may follow what is held; returns whether anything changed.

        Raises ``BundleRefused``; then the held one stays. What comes after its relationship ended is dropped.
        """

        async def change() -> bool:
            if self._relationships.get(relationship.trust_domain) != relationship:
                return False
            held = self._bundles.get(relationship.trust_domain)
            check_received(bundle, held, self._own, self._clock.now())
            if same_content(bundle, held):
                return False
            await self._commit(self._actor, bundles=[bundle])
            return True

        return await self._in_turn(change)

    def warnings(self) -> list[str]:
        """One sentence for each endpoint that fails, and whose bundle is older than twice its refresh hint."""
        found = []
        for domain in sorted(self._relationships):
            status = self.status(domain)
            since = status.succeeded_at or status.failing_since
            age = (self._clock.now() - since).total_seconds() if since is not None else 0.0
            if status.failures and age > 2 * refresh_seconds(self._bundles.get(domain)):
                seen = f"{status.succeeded_at:%Y-%m-%d %H:%M:%SZ}" if status.succeeded_at else "never"
                looks = f"last {seen}; {status.failures} failures"
                found.append(f"the bundle of {domain} is not refreshed ({looks}): {status.problem}")
        return found

    def ages(self) -> list[tuple[TrustDomain, float, float]]:
        """Of each bundle that has an endpoint: seconds since, and the moment (Unix seconds) of the last good look.

        Those that were never seen there are left out.
        """
        now = self._clock.now()
        seen = [(domain, self.status(domain).succeeded_at) for domain in sorted(self._relationships)]
        return [(domain, (now - at).total_seconds(), at.timestamp()) for domain, at in seen if at is not None]

    async def note(self, trust_domain: TrustDomain, problem: Error | None) -> None:
        """Remember how a look at an endpoint went, across restarts too where it can be stored."""
        now = self._clock.now()
        last = self.status(trust_domain)
        if problem is None:
            status = replace(last, problem="", failures=0, tried_at=now, succeeded_at=now, failing_since=None)
        else:
            since = last.failing_since or now
            failures = last.failures + 1
            status = replace(last, problem=str(problem), failures=failures, tried_at=now, failing_since=since)
        self._statuses[trust_domain] = status
        try:
            await self._store.keep_status(trust_domain, status)
        except Error as error:
            _log.warning("federation.status_unsaved", trust_domain=trust_domain.name, error=str(error))

    def schedule(self, trust_domain: TrustDomain, wait: float) -> None:
        """Remember that the next look comes in ``wait`` seconds."""
        next_at = self._clock.now() + timedelta(seconds=wait)
        self._statuses[trust_domain] = replace(self.status(trust_domain), next_at=next_at)

    def check_estate(self, intended: Iterable[Intended]) -> None:
        """Raise what ``replace_estate`` would raise; call before an estate is recorded."""
        now = self._clock.now()
        for one in intended:
            domain = one.relationship.trust_domain
            one.relationship.check(self._own)
            self._check_given(domain, one.bundle, now)
            held = self._relationships.get(domain)
            if held is not None and held.origin is Origin.API:
                raise AlreadyExists(
                    f"a relationship with {domain} was made by API",
                    where="estate.yaml",
                    fix=f"delete it (eastwest federation delete {domain}), then apply again",
                )

    async def replace_estate(self, intended: Iterable[Intended], actor: str) -> None:
        """Bring the estate's relationships in line with ``intended``; others are never touched."""
        wanted = {one.relationship.trust_domain: one for one in intended}

        async def change() -> None:
            kept = {d: r for d, r in self._relationships.items() if r.origin is Origin.ESTATE}
            put = [
                ("relationship_updated" if domain in kept else "relationship_created", one.relationship)
                for domain, one in sorted(wanted.items())
                if kept.get(domain) != one.relationship
            ]
            for domain in (one.trust_domain for _, one in put):
                self._statuses.pop(domain, None)
            bundles = [one.bundle for one in wanted.values() if one.bundle is not None and self._wants(one)]
            drop = [domain for domain in sorted(kept) if domain not in wanted]
            await self._commit(actor, put=put, drop=drop, bundles=bundles)

        await self._in_turn(change)

    def _wants(self, intended: Intended) -> bool:
        """Whether the estate's bundle replaces the held one: always without an endpoint, else only to begin with."""
        held = self._bundles.get(intended.relationship.trust_domain)
        if same_content(intended.bundle, held):
            return False
        if held is None or not intended.relationship.endpoint_url:
            return True
        return intended.bundle is not None and intended.bundle.sequence > held.sequence

    def _editable(self, trust_domain: TrustDomain) -> Relationship:
        relationship = self._relationships.get(trust_domain)
        if relationship is None:
            raise NotFound(f"there is no relationship with {trust_domain}")
        if relationship.origin is Origin.ESTATE:
            raise _kept_by_estate(trust_domain)
        return relationship

    def _check_given(self, domain: TrustDomain, bundle: Bundle | None, now: datetime | None = None) -> None:
        if bundle is None:
            return
        if bundle.trust_domain != domain:
            raise NotFound(f"the bundle given is of {bundle.trust_domain}, not of {domain}")
        check_bundle(bundle, self._own, now or self._clock.now())

    async def _commit(
        self,
        actor: str,
        *,
        put: Iterable[tuple[str, Relationship]] = (),
        drop: Iterable[TrustDomain] = (),
        bundles: Iterable[Bundle] = (),
        drop_bundles: Iterable[TrustDomain] = (),
    ) -> None:
        put, drop, bundles = list(put), list(drop), list(bundles)
        gone = [domain for domain in (*drop, *drop_bundles) if domain in self._bundles]
        events = [_event(actor, one.trust_domain, change, **_facts(one)) for change, one in put]
        events += [_event(actor, domain, "relationship_deleted") for domain in drop]
        events += [_event(actor, domain, "bundle_deleted") for domain in gone]
        events += [_event(actor, bundle.trust_domain, "bundle_changed", **_content(bundle)) for bundle in bundles]
        if not events:
            return
        await self._journal.record_all(events)
        relationships = [one for _, one in put]
        await self._store.apply(put=relationships, drop=drop, put_bundles=bundles, drop_bundles=gone)
        for domain in drop:
            self._relationships.pop(domain, None)
            self._statuses.pop(domain, None)
        for domain in gone:
            del self._bundles[domain]
        self._relationships.update({one.trust_domain: one for one in relationships})
        self._bundles.update({bundle.trust_domain: bundle for bundle in bundles})
        for listener in tuple(self._listeners):
            listener()

    async def _in_turn(self, change: Callable[[], Awaitable[T]]) -> T:
        """One change after another, each to its end even when its caller goes away."""

        async def alone() -> T:
            async with self._turn:
                return await change()

        return await asyncio.shield(asyncio.ensure_future(alone()))


def _event(actor: str, domain: TrustDomain, change: str, **facts: object) -> Event:
    return Event(KIND, actor, domain.uri, {"change": change, **facts})


def _facts(relationship: Relationship) -> dict[str, str]:
    endpoint = relationship.endpoint_spiffe_id
    return {
        "endpoint_url": relationship.endpoint_url,
        "profile": relationship.profile.value,
        "endpoint_spiffe_id": "" if endpoint is None else str(endpoint),
        "origin": relationship.origin.value,
    }


def _content(bundle: Bundle) -> dict[str, object]:
    return {
        "sequence": bundle.sequence,
        "x509_authorities": sorted(hashlib.sha256(one.der).hexdigest() for one in bundle.x509_authorities),
        "jwt_key_ids": sorted(one.key_id for one in bundle.jwt_authorities),
    }


def _listed(bundle: Bundle | None) -> list[Bundle]:
    return [] if bundle is None else [bundle]


def _kept_by_estate(domain: TrustDomain) -> KeptByEstate:
    return KeptByEstate(
        f"the relationship with {domain} is the estate's",
        where="estate.yaml",
        fix="change federation there, then apply",
    )
