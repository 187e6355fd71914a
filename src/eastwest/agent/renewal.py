"""The agent's own certificate: made anew at half life, over the connection that the old one still proves."""

from __future__ import annotations

import asyncio
import random

import structlog

from eastwest import errors
from eastwest.agent.backoff import Backoff
from eastwest.agent.connection import Dismissed, ServerConnection
from eastwest.agent.identities import LONGEST_SLEEP
from eastwest.agent.knowledge import Knowledge
from eastwest.agent.own import OwnIdentity, OwnSvid
from eastwest.agent.received import check_svid
from eastwest.clock import Clock

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
    ) -> None:
        self.own = own
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
        while (left := (due - self._clock.now()).total_seconds()) > 0:
            await self._clock.sleep(min(left, LONGEST_SLEEP))

    async def _renew(self) -> None:
        bundle = self._knowledge.state.bundle
        pending = self._identity.prepare(self.own.id.trust_domain)
        try:
            svid = await self._connection.renew(pending.csr)
            check_svid(list(svid.cert_chain), pending.spki, self.own.id, bundle, self._clock.now())
        except BaseException:
            self._identity.discard(pending)
            raise
        self.own = await asyncio.to_thread(self._identity.keep, pending, list(svid.cert_chain))
        # From receipt on: a certificate is dated back, and one of a short life would be due again at once.
        self._since = self._clock.now()
        self._connection.use([authority.der for authority in bundle.x509_authorities], self.own)
        _log.info("agent.renewed", id=str(self.own.id), not_after=self.own.not_after.isoformat())
