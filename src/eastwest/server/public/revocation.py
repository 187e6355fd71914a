"""Revocation of long-lived certificates: recorded, then in force, then published as CRLs and by OCSP.

A shard's CRL is signed at once when something in it is revoked, and otherwise at half of its lifetime. Revocations that
come while one is being signed share the next signature, so a thousand at once cost two. Signing happens in threads.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from eastwest.clock import Clock
from eastwest.errors import Error, FailedPrecondition, InvalidInput
from eastwest.pki.hierarchy import Authority
from eastwest.pki.revocation import (
    OCSP_LIFETIME,
    OcspQuery,
    OcspRefusal,
    Reason,
    RevocationUrls,
    Revoked,
    build_crl,
    build_ocsp_answer,
    read_ocsp_request,
    refuse_ocsp,
    shard_end,
)
from eastwest.server.journal import Event, Journal
from eastwest.store.revocation import Registered, SqliteRevocations, StoredCrl

MAX_AT_ONCE = 1000
MAX_CACHED_ANSWERS = 20_000
SIGNATURES_PER_SECOND = 100.0
"""OCSP answers that callers can have signed at will (a nonce, an unknown serial), at most; beyond, see ``answer``."""

SHORTEST_CRL = timedelta(minutes=1)
RETRY_SECONDS = 30.0
LONGEST_WAIT = 3600.0
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class OcspReply:
    """An answer in DER, and how many seconds a cache may keep it; 0: not at all."""

    der: bytes
    max_age: int = 0


class Revocations:
    """What is revoked, and what the world is told of it."""

    def __init__(
        self,
        store: SqliteRevocations,
        journal: Journal,
        authorities: Callable[[], Awaitable[Mapping[str, Authority]]],
        urls: RevocationUrls,
        clock: Clock,
        lifetime: timedelta,
    ) -> None:
        """``authorities``: by key id, every issuing CA whose key is at hand, former generations included.

        ``lifetime`` is that of CRLs. Call ``load`` once, and run ``keep``.
        """
        self._store = store
        self._journal = journal
        self._authorities = authorities
        self._urls = urls
        self._clock = clock
        self._lifetime = lifetime
        self._shards: dict[tuple[str, str], _Shard] = {}
        self._answers: OrderedDict[tuple[str, int, str], tuple[bytes, datetime]] = OrderedDict()
        self._budget = _Budget(SIGNATURES_PER_SECOND, clock)

    async def load(self) -> None:
        """Bring back what was published; a CRL that a crash kept from being replaced is due at once."""
        last = await self._store.last_revocations()
        for crl in await self._store.crls():
            shard = self._shard(crl.issuer_key_id, crl.shard)
            shard.crl = crl
            shard.wanted = int(last.get((crl.issuer_key_id, crl.shard), 0) > crl.covers)

    async def revoke(self, wanted: Sequence[Registered], reason: Reason, actor: str) -> list[Registered]:
        """Revoke certificates for good, and publish it; returns them as they are now.

        Each is recorded as ``certificate.revoked`` first. Those that are revoked already stay as they were. Raises
        ``FailedPrecondition`` when a CA that issued one of them cannot sign any more; then nothing is revoked.
        """
        if not 1 <= len(wanted) <= MAX_AT_ONCE:
            raise InvalidInput(f"1 to {MAX_AT_ONCE} certificates can be revoked at once, not {len(wanted)}")
        fresh = [each.issued for each in wanted if each.revoked is None]
        authorities = await self._authorities()
        for issued in fresh:
            if issued.issuer_key_id not in authorities:
                raise FailedPrecondition(
                    f"the CA {issued.issuer_key_id} that issued {issued.serial:x} has no key here any more",
                    fix="it cannot publish a revocation: remove that CA from the trust bundle, or contain the identity",
                )
        now = self._clock.now().replace(microsecond=0)
        await self._journal.record_all(
            [
                Event(
                    "certificate.revoked",
                    actor,
                    str(issued.spiffe_id),
                    {
                        "serial": f"{issued.serial:x}",
                        "issuer_key_id": issued.issuer_key_id,
                        "reason": reason.value,
                        "profile": issued.profile,
                        "not_after": issued.not_after,
                    },
                )
                for issued in fresh
            ]
        )
        await self._store.revoke([(issued.issuer_key_id, issued.serial) for issued in fresh], now, reason)
        touched = {(issued.issuer_key_id, issued.shard) for issued in fresh}
        for issued in fresh:
            self._forget_answers(issued.issuer_key_id, issued.serial)
        for place in touched:
            self._shard(*place).wanted += 1
        await asyncio.gather(*(self._publish(*place) for place in touched))
        revoked = {(issued.issuer_key_id, issued.serial): Revoked(issued.serial, now, reason) for issued in fresh}
        return [
            replace(each, revoked=each.revoked or revoked[each.issued.issuer_key_id, each.issued.serial])
            for each in wanted
        ]

    async def crl(self, issuer_key_id: str, shard: str) -> StoredCrl | None:
        """The CRL in force, signed now if need be; None when there is no such shard, or nobody who could sign it."""
        now = self._clock.now()
        known = self._shards.get((issuer_key_id, shard))
        if known is not None and known.crl is not None and known.is_current and now < known.crl.next_update:
            return known.crl
        if issuer_key_id not in await self._authorities() or not _is_shard(shard):
            return None
        if known is None and (issuer_key_id, shard) not in await self._store.shards(self._oldest()):
            return None
        return await self._publish(issuer_key_id, shard)

    async def answer(self, request: bytes) -> OcspReply:
        """The OCSP answer to a request in DER. Never raises for what a caller can send.

        Good and revoked answers are kept and given again. A request with a nonce has an answer of its own, as long as
        not too many ask for one; then it gets the kept one, without the nonce, as RFC 9654 allows. Unknown serials
        are then told to try later.
        """
        try:
            query = read_ocsp_request(request)
        except InvalidInput:
            return OcspReply(refuse_ocsp(OcspRefusal.MALFORMED))
        authority = next((each for each in (await self._authorities()).values() if query.is_for(each)), None)
        if authority is None:
            return OcspReply(refuse_ocsp(OcspRefusal.UNAUTHORIZED))
        try:
            return await self._answer(query, authority)
        except Error as error:
            _log.error("ocsp.failed", error=str(error))
            return OcspReply(refuse_ocsp(OcspRefusal.INTERNAL))

    async def keep(self) -> None:
        """Publish what is due and forget what has ended, for ever."""
        while True:
            try:
                wait = await self._round()
            except Error as error:
                _log.error("crl.failed", error=str(error))
                wait = RETRY_SECONDS
            await self._clock.sleep(wait)

    async def _round(self) -> float:
        """Publish each CRL that is missing or half through its life; the seconds until the next is."""
        await self._store.forget(self._oldest())
        places = await self._store.shards(self._oldest())
        for place in list(self._shards):
            if place not in places and not self._shards[place].lock.locked():
                del self._shards[place]
        authorities = await self._authorities()
        wait = LONGEST_WAIT
        for issuer_key_id, name in sorted(places):
            shard = self._shard(issuer_key_id, name)
            if issuer_key_id not in authorities:
                continue
            left = shard.seconds_left(self._clock.now(), self._lifetime / 2)
            if left <= 0:
                shard.wanted += 1
                await self._publish(issuer_key_id, name)
                left = shard.seconds_left(self._clock.now(), self._lifetime / 2)
            wait = min(wait, left)
        return max(wait, 1.0)

    async def _publish(self, issuer_key_id: str, name: str) -> StoredCrl:
        shard = self._shard(issuer_key_id, name)
        goal = shard.wanted
        async with shard.lock:
            now = self._clock.now()
            if shard.done >= goal and shard.crl is not None and now < shard.crl.next_update:
                return shard.crl
            going = shard.wanted
            authority = (await self._authorities())[issuer_key_id]
            revoked, covers = await self._store.revoked(issuer_key_id, name, self._oldest())
            number = shard.crl.number + 1 if shard.crl is not None else 1
            # It ends with its issuer, like everything else.
            lifetime = max(min(self._lifetime, authority.not_after - now), SHORTEST_CRL)
            der = await asyncio.to_thread(build_crl, authority, name, revoked, number, now, self._urls, lifetime)
            crl = StoredCrl(issuer_key_id, name, number, now.replace(microsecond=0) + lifetime, covers, der)
            await self._journal.record(
                "crl.published",
                actor=f"{authority.trust_domain.uri}/spire/server",
                subject=self._urls.crl(issuer_key_id, name),
                issuer_key_id=issuer_key_id,
                shard=name,
                number=number,
                revoked=len(revoked),
                next_update=crl.next_update,
            )
            if not await self._store.save_crl(crl):
                raise FailedPrecondition(
                    "another process has published this CRL", fix="run one server on this data directory"
                )
            shard.crl, shard.done = crl, going
            return crl

    async def _answer(self, query: OcspQuery, authority: Authority) -> OcspReply:
        now = self._clock.now()
        key = (authority.key_id, query.serial, query.algorithm.name)
        kept = self._answers.get(key)
        if query.nonce is not None and not self._budget.take():
            # Without its nonce when too many ask for a signature of their own (RFC 9654, 2.1 lets us).
            query = replace(query, nonce=None)
        if kept is not None and now < kept[1] and query.nonce is None:
            return OcspReply(kept[0], int((kept[1] - now).total_seconds()))
        found = await self._store.one(authority.key_id, query.serial)
        known = found is not None and found.issued.not_after > now
        if not known and query.nonce is None and not self._budget.take():
            return OcspReply(refuse_ocsp(OcspRefusal.TRY_LATER))
        state = found.revoked if found is not None else None
        der = await asyncio.to_thread(build_ocsp_answer, query, authority, state, now, OCSP_LIFETIME, known=known)
        if query.nonce is not None:
            return OcspReply(der)
        if not known:
            return OcspReply(der)
        fresh = await self._store.one(authority.key_id, query.serial)
        if fresh is None or fresh.revoked != state:
            # Revoked while this was being signed.
            return await self._answer(query, authority)
        until = now + OCSP_LIFETIME / 2
        self._answers[key] = (der, until)
        while len(self._answers) > MAX_CACHED_ANSWERS:
            self._answers.popitem(last=False)
        return OcspReply(der, int((until - now).total_seconds()))

    def _forget_answers(self, issuer_key_id: str, serial: int) -> None:
        for algorithm in ("sha1", "sha256"):
            self._answers.pop((issuer_key_id, serial, algorithm), None)

    def _oldest(self) -> datetime:
        """Whatever ended after this is still listed: on one more regular CRL beyond its end (RFC 5280, 3.3)."""
        return self._clock.now() - self._lifetime

    def _shard(self, issuer_key_id: str, name: str) -> _Shard:
        return self._shards.setdefault((issuer_key_id, name), _Shard())


class _Shard:
    """One shard's CRL, and how much of what was wanted of it is done."""

    def __init__(self) -> None:
        self.crl: StoredCrl | None = None
        self.wanted = 0
        self.done = 0
        self.lock = asyncio.Lock()

    @property
    def is_current(self) -> bool:
        """Whether the CRL holds every revocation."""
        return self.done >= self.wanted

    def seconds_left(self, now: datetime, margin: timedelta) -> float:
        """Until the CRL should be replaced; not above 0 when it should be now."""
        if self.crl is None or not self.is_current:
            return 0.0
        return (self.crl.next_update - margin - now).total_seconds()


class _Budget:
    """So many a second, saved up for one second at most."""

    def __init__(self, rate: float, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._left = rate
        self._at = clock.monotonic()

    def take(self) -> bool:
        now = self._clock.monotonic()
        self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def decode_get(path: str) -> bytes:
    """The request in the path of an OCSP GET (RFC 6960, A.1: base64, then percent-encoded); raises ``InvalidInput``."""
    try:
        return b64decode(path, validate=True)
    except ValueError:
        raise InvalidInput("the path is not an OCSP request in base64") from None


def _is_shard(name: str) -> bool:
    try:
        shard_end(name)
    except InvalidInput:
        return False
    return True
