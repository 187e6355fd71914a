"""Looking at every bundle endpoint as often as its bundle hints, and again later when that failed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.errors import Error, FailedPrecondition, NotFound
from eastwest.registry.federation import (
    EndpointProfile,
    Relationship,
    read_document,
    refresh_seconds,
    retry_seconds,
)
from eastwest.server.federation.client import fetch, spiffe_trust
from eastwest.server.federation.keeper import Federation
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import TrustDomain

JITTER = 0.1
"""The part of a wait by which it may be shorter, so that many servers do not come at once."""
AT_ONCE = 8
"""Endpoints that are looked at in the same moment."""
_log = structlog.get_logger()


class BundlePoller:
    """Keeps the bundles of all relationships fresh. ``run`` does it for ever; ``refresh`` does one now."""

    def __init__(self, federation: Federation, web_trust: ssl.SSLContext, clock: Clock, entropy: Entropy) -> None:
        self._federation = federation
        self._web_trust = web_trust
        self._clock = clock
        self._entropy = entropy
        self._few = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[TrustDomain, tuple[Relationship, asyncio.Task[None]]] = {}
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Follow the relationships: begin with those that come, let go of those that end."""
        unsubscribe = self._federation.subscribe(self._changed.set)
        try:
            while True:
                self._changed.clear()
                await self._follow(self._federation.relationships)
                await self._changed.wait()
                if self._failure is not None:
                    raise self._failure
        finally:
            unsubscribe()
            await self._follow({})

    async def refresh(self, trust_domain: TrustDomain) -> bool:
        """Look now; returns whether the bundle changed. Raises ``NotFound``, ``FetchFailed``, ``BundleRefused``."""
        relationship = self._federation.relationships.get(trust_domain)
        if relationship is None:
            raise NotFound(f"there is no relationship with {trust_domain}")
        if not relationship.endpoint_url:
            raise FailedPrecondition(
                f"the relationship with {trust_domain} has no bundle endpoint", fix="the estate gives its bundle"
            )
        return await self._look(relationship)

    async def _follow(self, wanted: Mapping[TrustDomain, Relationship]) -> None:
        ended = [task for domain, (one, task) in self._tasks.items() if wanted.get(domain) != one]
        for task in ended:
            task.cancel()
        self._tasks = {domain: kept for domain, kept in self._tasks.items() if wanted.get(domain) == kept[0]}
        for domain, relationship in wanted.items():
            if domain not in self._tasks and relationship.endpoint_url:
                task = asyncio.create_task(self._keep(relationship), name=f"federation {domain}")
                task.add_done_callback(self._ended)
                self._tasks[domain] = (relationship, task)
        await asyncio.gather(*ended, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Only a mistake of ours ends a task by itself; it must not go unnoticed."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._changed.set()

    async def _keep(self, relationship: Relationship) -> None:
        while True:
            with suppress(Error):  # noted in the status by then
                await self._look(relationship)
            wait = self._wait(relationship.trust_domain)
            self._federation.schedule(relationship.trust_domain, wait)
            await self._clock.sleep(wait)

    async def _look(self, relationship: Relationship) -> bool:
        """One look; its outcome is noted, whatever it is."""
        domain = relationship.trust_domain
        try:
            async with self._few:
                document = await fetch(relationship.endpoint_url, *self._trust(relationship))
            changed = await self._federation.received(relationship, read_document(domain, document))
        except Error as error:
            await self._note(relationship, error)
            raise
        await self._note(relationship, None)
        if changed:
            _log.info("federation.bundle_changed", trust_domain=domain.name)
        return changed

    async def _note(self, relationship: Relationship, problem: Error | None) -> None:
        domain = relationship.trust_domain
        if self._federation.relationships.get(domain) != relationship:
            return
        if problem is not None:
            _log.warning("federation.refresh_failed", trust_domain=domain.name, error=str(problem))
        await self._federation.note(domain, problem)

    def _trust(self, relationship: Relationship) -> tuple[ssl.SSLContext, Callable[[bytes | None], None] | None]:
        if relationship.profile is EndpointProfile.WEB or relationship.endpoint_spiffe_id is None:
            return self._web_trust, None
        prover = relationship.endpoint_spiffe_id.trust_domain
        bundle: Bundle | None = self._federation.bundles.get(prover)
        if bundle is None:
            raise FailedPrecondition(
                f"no bundle of {prover} is known, which must verify the endpoint of {relationship.trust_domain}",
                fix=f"give one to begin with: eastwest bundle set {prover} FILE, or bundle: in the estate",
            )
        return spiffe_trust(bundle, relationship.endpoint_spiffe_id)

    def _wait(self, domain: TrustDomain) -> float:
        regular = refresh_seconds(self._federation.bundles.get(domain))
        failures = self._federation.status(domain).failures
        wait = retry_seconds(failures, regular) if failures else regular
        return wait * (1.0 - JITTER * int.from_bytes(self._entropy.token_bytes(2)) / 0xFFFF)
