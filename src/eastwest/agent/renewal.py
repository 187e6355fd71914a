"""The agent's own certificate: made anew at half life, over the connection that the old one still proves."""

from __future__ import annotations

import asyncio
import random

import structlog

from eastwest import errors
from eastwest.agent.attestation import Attestation
from eastwest.agent.backoff import Backoff
from eastwest.agent.connection import Dismissed, ServerConnection
from eastwest.agent.identities import LONGEST_SLEEP
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.own import OwnIdentity, OwnSvid
from eastwest.agent.received import check_svid
from eastwest.agent.taint import Standing
from eastwest.clock import Clock

TAINT_SPREAD = 1.0
"""Seconds over which nodes that hear of a taint in the same moment come back."""
_log = structlog.get_logger()


class Renewal:
    """Keeps ``own`` alive."""

    def __init__(
        self,
        connection: ServerConnection,
        identity: OwnIdentity,
        own: OwnSvid,
        knowledge: Knowledge,
        clock: Clock,
        jitter: random.Random,
        attestation: Attestation,
    ) -> None:
        self.own = own
        self._attestation = attestation
        self._since = own.not_before
        self._connection = connection
        self._identity = identity
        self._knowledge = knowledge
        self._clock = clock
        self._jitter = jitter

    async def run(self) -> None:
        """Renew for ever. Raises only ``Dismissed``."""
        backoff = Backoff(self._jitter, first=1.0, most=60.0)
        while True:
            await self._until_due()
            try:
                await self._renew()
                backoff.reset()
            except Dismissed:
                raise
            except errors.Error as error:
                _log.warning("agent.renewal.failed", error=str(error), not_after=self.own.not_after.isoformat())
                await self._clock.sleep(backoff.delay())

    async def _until_due(self) -> None:
        due = self._since + (self.own.not_after - self._since) * self._jitter.uniform(0.45, 0.55)
        outdated = asyncio.ensure_future(self._connection.outdated.wait())
        unsafe = asyncio.ensure_future(self._unsafe())
        early = {outdated, unsafe}
        try:
            while not any(task.done() for task in early) and (left := (due - self._clock.now()).total_seconds()) > 0:
                sleeping = asyncio.ensure_future(self._clock.sleep(min(left, LONGEST_SLEEP)))
                await asyncio.wait({*early, sleeping}, return_when=asyncio.FIRST_COMPLETED)
                sleeping.cancel()
        finally:
            for task in early:
                task.cancel()

    async def _unsafe(self) -> None:
        """Until the authority above the own certificate is on its way out; each node a little later than the other."""
        while True:
            seen = self._knowledge.states.count
            # Before the first state nothing is known of any authority, which is no reason for a new certificate.
            known = bool(self._knowledge.state.bundle.x509_authorities)
            if known and self._knowledge.ground.standing(self.own.chain, self._clock.now()) is not Standing.FINE:
                await self._clock.sleep(self._jitter.uniform(0.0, TAINT_SPREAD))
                return
            await self._knowledge.states.beyond(seen)

    async def _renew(self) -> None:
        pending = self._identity.prepare(self.own.id.trust_domain)
        try:
            svid = await self._attestation.certify(pending.csr, self.own, self._clock.now())
            # By evidence a node may get another name: its certificate from elsewhere was replaced, for instance.
            expected = None if self._attestation.repeatable else self.own.id
            check_svid(list(svid.cert_chain), pending.spki, expected, self._knowledge.state.bundle, self._clock.now())
        except BaseException:
            self._identity.discard(pending)
            raise
        self.own = await asyncio.to_thread(self._identity.keep, pending, list(svid.cert_chain))
        # From receipt on: a certificate is dated back, and one of a short life would be due again at once.
        self._since = self._clock.now()
        # Trust may have changed meanwhile.
        roots = [authority.der for authority in self._knowledge.state.bundle.x509_authorities]
        self._connection.use(roots, self.own)
        self._knowledge.changes.bump()
        _log.info("agent.renewed", id=str(self.own.id), not_after=self.own.not_after.isoformat())
