"""The keys that sign transaction tokens: made ahead of their time, published, and destroyed when they are done with.

A change is stored before and after a key is made or destroyed, so that a server that is killed in between finds at its
next start what to clear away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from eastwest.clock import Clock
from eastwest.entropy import Entropy, random_hex
from eastwest.errors import Error, FailedPrecondition, InvalidInput, NotFound
from eastwest.pki.compact import Key
from eastwest.pki.jwks import export_signing_keys
from eastwest.pki.signer import KeyAlgorithm, KeyStore, Signer
from eastwest.pki.token_keys import Calendar, Ring, TokenKey, intending, settled, with_key, without
from eastwest.pki.token_signer import TokenKeyStore, TokenSigner
from eastwest.server.finishing import to_the_end
from eastwest.server.journal import Event, Journal
from eastwest.spiffe.bundle import Bundle, JwtAuthority
from eastwest.spiffe.id import TrustDomain
from eastwest.store.tokens import SqliteTokens

RETRY_SECONDS = 30.0
LONGEST_SECONDS = 3600.0
"""Until the calendar is looked at again, for the wall clock may have been set."""
_log = structlog.get_logger()


class TokenKeys:
    """The ring in force. Open it with ``open``; ``keep`` turns it; ``on_change`` hears of each change."""

    def __init__(
        self,
        trust_domain: TrustDomain,
        store: SqliteTokens,
        keys: KeyStore,
        calendar: Calendar,
        journal: Journal,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._keys = keys
        self._calendar = calendar
        self._journal = journal
        self._clock = clock
        self._entropy = entropy
        self._actor = f"{trust_domain.uri}/spire/server"
        self._ring = Ring()
        self._signers: dict[str, Signer | TokenSigner] = {}
        self.public: dict[str, Key] = {}
        self.document = b""
        self.problem = ""
        self.on_change: Callable[[], None] = lambda: None

    async def open(self) -> None:
        """Read the ring, clear away what an interrupted change left, and have a key that signs."""
        self._ring = await self._store.ring()
        await self._destroy_loose()
        self._publish()
        await self.turn()

    async def signer(self) -> Signer | TokenSigner:
        """The key that signs now. Raises ``FailedPrecondition`` when there is none, or the key store's error."""
        key = self._calendar.signing(self._ring, self._now())
        if key is None:
            raise FailedPrecondition("no key of transaction tokens may sign yet", fix="compare the clock with the log")
        found = self._signers.get(key.name)
        if found is None:
            found = self._signers[key.name] = await asyncio.to_thread(_open, self._keys, key)
        return found

    async def turn(self) -> float:
        """Do what the calendar asks for now; gives the seconds until the next look."""
        now = self._now()
        if ended := self._calendar.ended(self._ring, now):
            await to_the_end(self._drop(ended))
        if self._calendar.wants_key(self._ring, now):
            await to_the_end(self._make())
        following = self._calendar.next_change(self._ring)
        return LONGEST_SECONDS if following is None else min(LONGEST_SECONDS, max(1.0, following - self._now()))

    async def keep(self) -> None:
        """Turn the ring by the calendar, for ever; what fails is told in ``problem`` and tried again."""
        while True:
            try:
                pause = await self.turn()
                self.problem = ""
            except Error as error:
                self.problem = f"the keys of transaction tokens cannot be replaced: {error}"
                _log.error("tokens.keys.failed", error=str(error))
                pause = RETRY_SECONDS
            await self._clock.sleep(pause)

    async def _make(self) -> None:
        name = f"token-{random_hex(self._entropy, 6)}"
        await self._save(intending(self._ring, name))
        signer = await asyncio.to_thread(_create, self._keys, name)
        self._signers[name] = signer
        spki = signer.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        now = self._now()  # verifiers have all of the time from here on: an RSA key may take a second to make
        first_use = self._calendar.first_use(self._ring, now)
        key = TokenKey(id=signer.key_id, name=name, spki=spki, made_at=now, signs_from=first_use)
        await self._journal.record(
            "token_key.published",
            actor=self._actor,
            subject=self._trust_domain.uri,
            key_id=key.id,
            public_key=spki.hex(),
            signs_from=key.signs_from,
        )
        await self._save(with_key(self._ring, key))
        self._publish()

    async def _drop(self, ended: Sequence[TokenKey]) -> None:
        await self._journal.record_all(
            [Event("token_key.dropped", self._actor, self._trust_domain.uri, {"key_id": key.id}) for key in ended]
        )
        await self._save(without(self._ring, ended))
        self._publish()
        await self._destroy_loose()

    async def _destroy_loose(self) -> None:
        names = self._ring.loose
        for name in names:
            self._signers.pop(name, None)
            with suppress(NotFound):
                await asyncio.to_thread(self._keys.delete, name)
        if names:
            await self._save(settled(self._ring, names))

    async def _save(self, ring: Ring) -> None:
        await self._store.save_ring(ring)
        self._ring = ring

    def _publish(self) -> None:
        authorities = tuple(JwtAuthority(key.spki, key.id, 0) for key in self._ring.keys)
        self.document = export_signing_keys(Bundle(self._trust_domain, jwt_authorities=authorities), self._clock.now())
        self.public = {key.id: _loaded(key.spki) for key in self._ring.keys}
        self.on_change()

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


def _create(keys: KeyStore, name: str) -> Signer | TokenSigner:
    """A key of RSA, which is the cheapest to verify by; of P-256 where the key store makes no such keys."""
    why = "it keeps no RSA keys"
    if isinstance(keys, TokenKeyStore):
        try:
            return keys.create_token_key(name)
        except InvalidInput as error:
            why = error.message
    _log.warning("tokens.keys.ec", reason=f"the key store makes no RSA keys, so tokens are signed by P-256: {why}")
    return keys.create(name, KeyAlgorithm.EC_P256)


def _open(keys: KeyStore, key: TokenKey) -> Signer | TokenSigner:
    if not isinstance(_loaded(key.spki), rsa.RSAPublicKey):
        return keys.load(key.name)
    if not isinstance(keys, TokenKeyStore):
        raise FailedPrecondition(
            f"the key {key.name} of transaction tokens is RSA, and this key store keeps no such keys",
            fix="go back to the key store that has it",
        )
    return keys.load_token_key(key.name)


def _loaded(spki: bytes) -> Key:
    key = load_der_public_key(spki)
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey), "only such keys are made"
    return key
