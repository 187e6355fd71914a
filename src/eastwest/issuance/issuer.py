"""The one door: profile, build, sign, record, release, in this order and nowhere else.

Invariants:
- What is returned has been recorded, durably. When the log cannot be written nothing is returned.
- A request fails by itself: its neighbours in the batch are issued.
- A certificate never outlives its issuing CA, a token never outlives its key.
- Signing keys, profiles and templates are replaced as a whole between batches, never within one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from eastwest.clock import Clock
from eastwest.entropy import Entropy, random_uuid, serial_numbers
from eastwest.errors import Error, FailedPrecondition, Internal, NotFound, PermissionDenied
from eastwest.issuance.record import Recording
from eastwest.issuance.request import Instance, JwtRequest, Request, X509Request
from eastwest.log.entry import timestamp
from eastwest.log.ports import Recorder
from eastwest.pki.csr import verify_csr
from eastwest.pki.hierarchy import Authority
from eastwest.pki.jwt import JwtSigningKey, check_audience, mint
from eastwest.pki.profile import AGENT, BACKDATE, SERVER, WORKLOAD, Profile, ProfileViolation, Usage
from eastwest.pki.template import LeafTemplate, encode_validity
from eastwest.spiffe.id import TrustDomain
from eastwest.spiffe.svid import JwtSvid, X509Svid

YIELD_EVERY = 4
"""Certificates between two yields to other tasks: half a millisecond of work each time."""

MAX_BATCH = 1000
JWT_DEFAULT_TTL = 300
JWT_MAX_TTL = 4 * 3600


class Issuer:
    """Issues the SVIDs of one trust domain. Safe to call from many tasks of one event loop."""

    def __init__(
        self,
        authority: Authority,
        jwt_key: JwtSigningKey,
        recorder: Recorder,
        clock: Clock,
        entropy: Entropy,
        instance: Instance,
        profiles: Iterable[Profile] = (),
        jwt_issuer: str | None = None,
    ) -> None:
        """``profiles`` add to the built-in ones, or replace ``workload``. ``jwt_issuer`` becomes the ``iss`` claim."""
        self._recorder = recorder
        self._clock = clock
        self._entropy = entropy
        self._instance = instance
        self._jwt_issuer = jwt_issuer
        self._state = _State.make(authority, jwt_key, profiles)

    @property
    def trust_domain(self) -> TrustDomain:
        """The trust domain whose SVIDs are issued."""
        return self._state.authority.trust_domain

    @property
    def authority(self) -> Authority:
        """The issuing CA in use."""
        return self._state.authority

    @property
    def jwt_key(self) -> JwtSigningKey:
        """The JWT-SVID key in use."""
        return self._state.jwt_key

    @property
    def profiles(self) -> Sequence[Profile]:
        """All profiles in use, built-in ones included."""
        return tuple(self._state.profiles.values())

    def replace(
        self,
        *,
        authority: Authority | None = None,
        jwt_key: JwtSigningKey | None = None,
        profiles: Iterable[Profile] | None = None,
    ) -> None:
        """Use new signing keys or profiles from the next batch on; batches under way end with the old ones.

        Everything is checked before anything changes. Raises ``FailedPrecondition`` for another trust domain.
        """
        old = self._state
        authority = authority or old.authority
        if authority.trust_domain != self.trust_domain:
            raise FailedPrecondition(f"the new authority is of trust domain {authority.trust_domain}")
        chosen = old.profiles.values() if profiles is None else profiles
        self._state = _State.make(authority, jwt_key or old.jwt_key, chosen)

    async def issue_x509(self, requests: Sequence[X509Request]) -> list[X509Svid | Error]:
        """Issue a batch. The result has one item per request, in order: the SVID, or why this one was refused.

        Raises ``LogUnavailable`` when the batch cannot be recorded, and ``FailedPrecondition`` when the issuing CA
        has ended; then nothing at all is released.
        """
        if len(requests) > MAX_BATCH:
            raise Internal(f"a batch has at most {MAX_BATCH} requests, not {len(requests)}")
        batch = _Batch(self._state, self._clock.now(), self._instance)
        results: list[X509Svid | Error] = []
        entries: list[bytes] = []
        for index, serial in enumerate(serial_numbers(self._entropy, len(requests))):
            if index % YIELD_EVERY == 0 and index:
                await self._clock.sleep(0)
            try:
                svid, entry = batch.issue(requests[index], serial)
            except Error as error:
                results.append(error)
            else:
                results.append(svid)
                entries.append(entry)
        if entries:
            await self._recorder.append(entries)
        return results

    async def issue_jwt(self, request: JwtRequest) -> JwtSvid:
        """Issue one token. Raises the refusal, or ``LogUnavailable``."""
        state = self._state
        now = self._clock.now().replace(microsecond=0)
        state.admit(request)
        check_audience(request.audience)
        expires_at = min(now + timedelta(seconds=_jwt_ttl(request.ttl)), state.jwt_key.expires_at)
        if expires_at <= now:
            raise FailedPrecondition("the JWT signing key has expired", fix="rotate the JWT authority")
        token_id = random_uuid(self._entropy)
        minted = mint(state.jwt_key, request.spiffe_id, request.audience, now, expires_at, token_id, self._jwt_issuer)
        recording = Recording(timestamp(self._clock.now()), self.trust_domain.name, self._instance)
        await self._recorder.append([recording.jwt(request, minted, expires_at)])
        return JwtSvid(request.spiffe_id, minted.token, request.audience, now, expires_at)


@dataclass(frozen=True, slots=True)
class _State:
    """Everything that decides how a certificate looks, replaced in one assignment."""

    authority: Authority
    jwt_key: JwtSigningKey
    profiles: dict[str, Profile]
    templates: dict[frozenset[Usage], LeafTemplate]

    @classmethod
    def make(cls, authority: Authority, jwt_key: JwtSigningKey, profiles: Iterable[Profile]) -> _State:
        by_name = {profile.name: profile for profile in (WORKLOAD, *profiles, AGENT, SERVER)}
        usages = {profile.usage for profile in by_name.values()}
        return cls(authority, jwt_key, by_name, {usage: authority.template(usage) for usage in usages})

    def admit(self, request: Request) -> Profile:
        """The request's profile, if that exists and allows the request's door and identity."""
        profile = self.profiles.get(request.profile)
        if profile is None:
            raise NotFound(f"there is no profile {request.profile[:80]!r}")
        if request.spiffe_id.trust_domain != self.authority.trust_domain:
            raise PermissionDenied(f"{request.spiffe_id} is not in trust domain {self.authority.trust_domain}")
        profile.check_door(request.door)
        profile.check_id(request.spiffe_id)
        return profile


@dataclass(frozen=True, slots=True)
class _Validity:
    not_before: datetime
    not_after: datetime
    der: bytes
    not_before_text: str
    not_after_text: str


class _Batch:
    """One batch: a fixed state, a fixed time, and what is worth encoding only once."""

    def __init__(self, state: _State, now: datetime, instance: Instance) -> None:
        self._state = state
        self._now = now.replace(microsecond=0)
        self._validities: dict[int, _Validity] = {}
        self._recording = Recording(timestamp(now), state.authority.trust_domain.name, instance)
        if self._now >= state.authority.not_after:
            raise FailedPrecondition("the issuing CA has expired", fix="rotate the X.509 authority")

    def issue(self, request: X509Request, serial: int) -> tuple[X509Svid, bytes]:
        """Profile, build, sign: the SVID and its log entry. Raises the refusal."""
        authority = self._state.authority
        profile = self._state.admit(request)
        if request.dns_names:
            profile.check_dns_names(request.dns_names)
        validity = self._validity(profile.ttl(request.ttl))
        key = verify_csr(request.csr_der, profile.keys)

        template = self._state.templates[profile.usage]
        unsigned = template.to_be_signed(serial, validity.der, key, str(request.spiffe_id), request.dns_names)
        certificate = template.wrap(unsigned, authority.signer.sign(unsigned))

        entry = self._recording.x509(
            request,
            certificate=certificate,
            serial=serial,
            spki=key.spki,
            issuer_key_id=authority.key_id,
            not_before=validity.not_before_text,
            not_after=validity.not_after_text,
        )
        chain = (certificate, *authority.chain)
        return X509Svid(request.spiffe_id, chain, validity.not_before, validity.not_after, serial), entry

    def _validity(self, ttl: int) -> _Validity:
        found = self._validities.get(ttl)
        if found is None:
            authority = self._state.authority
            not_before = max(self._now - BACKDATE, authority.not_before)
            not_after = min(self._now + timedelta(seconds=ttl), authority.not_after)
            der = encode_validity(not_before, not_after)
            found = _Validity(not_before, not_after, der, timestamp(not_before), timestamp(not_after))
            self._validities[ttl] = found
        return found


def _jwt_ttl(requested: int | None) -> int:
    if not requested:
        return JWT_DEFAULT_TTL
    if not 0 < requested <= JWT_MAX_TTL:
        raise ProfileViolation(f"a JWT-SVID lives at most {JWT_MAX_TTL} s, not {requested} s")
    return requested
