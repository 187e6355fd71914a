"""The one door: profile, build, sign, record, release, in this order and nowhere else.

Invariants:
- What is returned has been recorded, durably. When the log cannot be written nothing is returned.
- A request fails by itself: its neighbours in the batch are issued.
- A certificate never outlives its issuing CA, a token never outlives its key.
- Signing keys, profiles and templates are replaced as a whole between batches, never within one.
- A key whose signature is a round trip is never used on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

from eastwest.clock import Clock
from eastwest.entropy import Entropy, random_hex, random_uuid, serial_numbers
from eastwest.errors import Error, FailedPrecondition, Internal, PermissionDenied
from eastwest.issuance.batch import Batch, Draft
from eastwest.issuance.downstream import DownstreamCa, draft_downstream, finish_downstream
from eastwest.issuance.ports import CsrChecks, SigningPool
from eastwest.issuance.record import Recording
from eastwest.issuance.register import Register
from eastwest.issuance.request import DownstreamRequest, Instance, JwtRequest, X509Request
from eastwest.issuance.state import State
from eastwest.log.entry import timestamp
from eastwest.log.ports import Recorder
from eastwest.pki.csr import MAX_CSR_BYTES
from eastwest.pki.hierarchy import Authority
from eastwest.pki.jwt import JwtSigningKey, check_audience, prepare
from eastwest.pki.profile import Profile, ProfileViolation
from eastwest.pki.revocation import RevocationUrls
from eastwest.pki.signer import KeyAlgorithm, Signer, SubjectKey
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.spiffe.svid import JwtSvid, X509Svid

YIELD_EVERY = 4
"""Certificates between two yields to other tasks: half a millisecond of work each time."""

MAX_BATCH = 1000
CHECKED_BESIDE_FROM = 16
"""Requests of a batch from which on their CSRs are checked in other processes, where there are such."""
JWT_DEFAULT_TTL = 300
JWT_MAX_TTL = 4 * 3600


class Issuer:
    """Issues the SVIDs of one trust domain. Safe to call from many tasks of one event loop."""

    def __init__(
        self,
        authorities: Mapping[str, Authority],
        jwt_key: JwtSigningKey,
        recorder: Recorder,
        clock: Clock,
        entropy: Entropy,
        instance: Instance,
        profiles: Iterable[Profile] = (),
        jwt_issuer: str | None = None,
        *,
        post_quantum: Mapping[str, Authority] | None = None,
        awaiting: Collection[str] = (),
        pool: SigningPool | None = None,
        checks: CsrChecks | None = None,
        revocation: RevocationUrls | None = None,
        downstream: Authority | None = None,
        register: Register | None = None,
    ) -> None:
        """``authorities``: environment -> issuing CA; "" is the default one and must be there.

        ``profiles`` add to the built-in ones, or replace ``workload``. ``jwt_issuer`` becomes the ``iss`` claim.
        ``post_quantum``: the same for ML-DSA-65 keys; without its default CA no such key is certified. ``awaiting`` are
        environments that are to have CAs of their own: while one has none it is refused, and an environment that is
        named nowhere uses the default CA. ``pool`` is needed for signers that are remote.
        ``checks`` takes the CSRs of batches off the event loop; single requests are not worth the way.
        ``revocation`` is where CRLs and OCSP are served, for profiles that demand them; it needs a ``register``, which
        remembers what was issued under these profiles before it is released. ``downstream`` signs CAs for
        servers below this one; without it the environment's own CA does, if its path length lets it.
        """
        self._recorder = recorder
        self._clock = clock
        self._entropy = entropy
        self._instance = instance
        self._jwt_issuer = jwt_issuer
        self._pool = pool
        self._checks = checks
        self._register = register
        self.refuse: Callable[[SpiffeId], None] = _nobody
        """Raises why nothing is issued to an identity now; asked before anything is signed, and again at release."""
        made = State.make(
            authorities, post_quantum or {}, jwt_key, profiles, frozenset(awaiting), revocation, downstream
        )
        self._state = self._checked(made)

    @property
    def trust_domain(self) -> TrustDomain:
        """The trust domain whose SVIDs are issued."""
        return self._state.trust_domain

    @property
    def authorities(self) -> Mapping[str, Authority]:
        """The issuing CAs in use, by environment; "" is the default one."""
        return {name: ca.authority for name, ca in self._state.issuing.items()}

    @property
    def authority(self) -> Authority:
        """The default issuing CA in use."""
        return self._state.issuing[""].authority

    @property
    def jwt_key(self) -> JwtSigningKey:
        """The JWT-SVID key in use."""
        return self._state.jwt_key

    @property
    def policy_version(self) -> str:
        """The version of the estate in force, as the log's entries name it."""
        return self._state.policy_version

    @property
    def profiles(self) -> Sequence[Profile]:
        """All profiles in use, built-in ones included."""
        return tuple(self._state.profiles.values())

    def replace(
        self,
        *,
        authorities: Mapping[str, Authority] | None = None,
        post_quantum: Mapping[str, Authority] | None = None,
        jwt_key: JwtSigningKey | None = None,
        profiles: Iterable[Profile] | None = None,
        awaiting: Collection[str] | None = None,
        downstream: Authority | None = None,
        policy_version: str | None = None,
    ) -> None:
        """Use new signing keys, profiles or environments from the next batch on; those under way end with the old.

        ``authorities`` and ``post_quantum`` are the whole new mappings; ``policy_version`` is that of the estate in
        force, which the log names. Everything is checked before anything changes: raises ``FailedPrecondition`` for
        another trust domain, no default CA, or a remote signer without a pool.
        """
        old = self._state
        new = State.make(
            self.authorities if authorities is None else authorities,
            {name: ca.authority for name, ca in old.post_quantum.items()} if post_quantum is None else post_quantum,
            jwt_key or old.jwt_key,
            old.profiles.values() if profiles is None else profiles,
            old.awaiting if awaiting is None else frozenset(awaiting),
            old.revocation,
            downstream or old.downstream,
            old.policy_version if policy_version is None else policy_version,
        )
        if new.trust_domain != self.trust_domain:
            raise FailedPrecondition(f"the new authority is of trust domain {new.trust_domain}")
        self._state = self._checked(new)

    async def issue_x509(self, requests: Sequence[X509Request]) -> list[X509Svid | Error]:
        """Issue a batch. The result has one item per request, in order: the SVID, or why this one was refused.

        Raises ``LogUnavailable`` when the batch cannot be recorded; then nothing at all is released.
        """
        if len(requests) > MAX_BATCH:
            raise Internal(f"a batch has at most {MAX_BATCH} requests, not {len(requests)}")
        batch = Batch(self._state, self._clock.now(), self._instance, self._request_id())
        results: list[X509Svid | Error] = []
        entries: list[bytes] = []
        remote: list[tuple[int, Draft]] = []
        checked = await self._check(batch, requests)
        for index, serial in enumerate(serial_numbers(self._entropy, len(requests))):
            if index % YIELD_EVERY == 0 and index:
                await self._clock.sleep(0)
            try:
                self.refuse(requests[index].spiffe_id)
                draft = batch.draft(requests[index], serial, checked.get(index))
                if draft.plan.is_remote:
                    remote.append((index, draft))
                    results.append(_UNSIGNED)
                    continue
                svid, entry = batch.finish(draft, draft.plan.signer.sign(draft.unsigned))
            except Error as error:
                results.append(error)
            else:
                results.append(svid)
                entries.append(entry)
        if remote:
            entries += await self._finish_remote(batch, remote, results)
        if batch.revocable:
            assert self._register is not None  # _checked has seen to it
            await self._register.add(batch.revocable)
        if entries:
            await self._recorder.append(entries)
        return [self._released(one) for one in results]

    async def _check(self, batch: Batch, requests: Sequence[X509Request]) -> dict[int, SubjectKey | Error]:
        """What the CSRs of a large batch are, by place; those missing are checked where they are used."""
        if self._checks is None or len(requests) < CHECKED_BESIDE_FROM:
            return {}
        places: list[int] = []
        asked: list[tuple[bytes, Collection[KeyAlgorithm]]] = []
        for index, request in enumerate(requests):
            if len(request.csr_der) > MAX_CSR_BYTES:
                continue
            with suppress(Error):  # raised again, and told, when it is drafted
                asked.append((request.csr_der, batch.profile(request).keys))
                places.append(index)
        return dict(zip(places, await self._checks.check(asked), strict=True))

    async def issue_jwt(self, request: JwtRequest) -> JwtSvid:
        """Issue one token. Raises the refusal, or ``LogUnavailable``."""
        state = self._state
        now = self._clock.now().replace(microsecond=0)
        self.refuse(request.spiffe_id)
        state.check_identity(request.spiffe_id, state.profile_of(request))
        check_audience(request.audience)
        expires_at = min(now + timedelta(seconds=_jwt_ttl(request.ttl)), state.jwt_key.expires_at)
        if expires_at <= now:
            raise FailedPrecondition("the JWT signing key has expired", fix="rotate the JWT authority")
        key, token_id = state.jwt_key, random_uuid(self._entropy)
        unsigned = prepare(key, request.spiffe_id, request.audience, now, expires_at, token_id, self._jwt_issuer)
        (signature,) = await self._sign(key.signer, [unsigned.message])
        minted = unsigned.finish(signature)
        recording = self._recording(timestamp(self._clock.now()), state)
        await self._recorder.append([recording.jwt(request, minted, expires_at)])
        self.refuse(request.spiffe_id)
        return JwtSvid(request.spiffe_id, minted.token, request.audience, now, expires_at)

    async def issue_ca(self, request: DownstreamRequest) -> DownstreamCa:
        """Certify the CA of a server below this one. Raises the refusal, or ``LogUnavailable``."""
        state = self._state
        now = self._clock.now()
        self.refuse(request.spiffe_id)
        if request.spiffe_id.trust_domain != self.trust_domain:
            raise PermissionDenied(f"{request.spiffe_id} is not in trust domain {self.trust_domain}")
        authority = state.downstream_ca(request.environment)
        (serial,) = serial_numbers(self._entropy, 1)
        draft = draft_downstream(request, authority, serial, now)
        (signature,) = await self._sign(authority.signer, [draft])
        issued = finish_downstream(draft, signature, authority)
        recording = self._recording(timestamp(now), state)
        await self._recorder.append([recording.ca(request, issued, authority.key_id)])
        return issued

    def _released(self, result: X509Svid | Error) -> X509Svid | Error:
        """The result, unless its identity was refused everything while it was made: then nobody gets it."""
        try:
            if not isinstance(result, Error):
                self.refuse(result.id)
        except Error as error:
            return error
        return result

    def _recording(self, time: str, state: State) -> Recording:
        return Recording(time, state.trust_domain.name, self._instance, self._request_id(), state.policy_version)

    def _request_id(self) -> str:
        """Names one call in the log: all entries of a batch share it, and nothing else does."""
        return random_hex(self._entropy, 8)

    async def _finish_remote(
        self, batch: Batch, drafts: Sequence[tuple[int, Draft]], results: list[X509Svid | Error]
    ) -> list[bytes]:
        """Sign and finish the drafts of remote keys, each CA's together, so that one CA's outage is its own."""
        by_key: dict[str, list[tuple[int, Draft]]] = {}
        for index, draft in drafts:
            by_key.setdefault(draft.plan.signer.key_id, []).append((index, draft))
        entries: list[bytes] = []
        for group in by_key.values():
            try:
                signatures = await self._sign(group[0][1].plan.signer, [draft.unsigned for _, draft in group])
            except Error as error:
                for index, _ in group:
                    results[index] = error
                continue
            for (index, draft), signature in zip(group, signatures, strict=True):
                try:
                    results[index], entry = batch.finish(draft, signature)
                except Error as error:
                    results[index] = error
                else:
                    entries.append(entry)
        return entries

    async def _sign(self, signer: Signer, messages: Sequence[bytes]) -> Sequence[bytes]:
        if not signer.is_remote:
            return [signer.sign(message) for message in messages]
        assert self._pool is not None  # _checked has seen to it
        return await self._pool.sign(signer, messages)

    def _checked(self, state: State) -> State:
        if state.revocation is not None and self._register is None:
            raise FailedPrecondition("certificates are to be revocable, and nothing is there to remember them")
        if self._pool is None and any(signer.is_remote for signer in state.signers()):
            raise FailedPrecondition("a signing key is remote, and nothing is there to sign away from the event loop")
        return state


def _jwt_ttl(requested: int | None) -> int:
    if not requested:
        return JWT_DEFAULT_TTL
    if not 0 < requested <= JWT_MAX_TTL:
        raise ProfileViolation(f"a JWT-SVID lives at most {JWT_MAX_TTL} s, not {requested} s")
    return requested


def _nobody(_spiffe_id: SpiffeId) -> None: ...


# Holds a place in the results until the signature is there; it never leaves.
_UNSIGNED = Internal("a certificate was not signed")
