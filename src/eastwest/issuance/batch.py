"""One batch of X.509-SVIDs: a fixed state, a fixed time, and what is worth encoding only once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from eastwest.errors import Error, FailedPrecondition
from eastwest.issuance.record import Recording
from eastwest.issuance.register import IssuedCertificate
from eastwest.issuance.request import Instance, X509Request
from eastwest.issuance.state import State
from eastwest.log.entry import timestamp
from eastwest.pki.csr import verify_csr
from eastwest.pki.profile import BACKDATE, Profile
from eastwest.pki.revocation import shard_of
from eastwest.pki.signer import KeyAlgorithm, Signer, SubjectKey
from eastwest.pki.template import LeafTemplate, encode_revocation, encode_validity
from eastwest.spiffe.svid import X509Svid


@dataclass(frozen=True, slots=True)
class Plan:
    """What all requests of one profile, door, environment and lifetime have in common; times also as the log has them.

    ``signer`` is to sign what is built; ``is_remote`` is whether it must do so off the event loop.
    """

    profile: Profile
    template: LeafTemplate
    not_before: datetime
    not_after: datetime
    validity: bytes
    revocation: bytes
    not_before_text: str
    not_after_text: str
    issuer_key_id: str
    chain: tuple[bytes, ...]
    signer: Signer
    is_remote: bool


class Draft(NamedTuple):
    """A certificate that wants only its signature over ``unsigned``."""

    request: X509Request
    plan: Plan
    serial: int
    spki: bytes
    unsigned: bytes


class Batch:
    """Makes drafts of requests, and SVIDs with their log entries of signed drafts.

    ``revocable`` are the finished certificates that can be revoked.
    """

    def __init__(self, state: State, now: datetime, instance: Instance, request_id: str = "") -> None:
        self.revocable: list[IssuedCertificate] = []
        self._state = state
        self._now = now.replace(microsecond=0)
        self._profiles: dict[tuple[str, str, str, int | None], Profile] = {}
        self._plans: dict[tuple[str, str, str, int | None, bool], Plan] = {}
        self._recording = Recording(timestamp(now), state.trust_domain.name, instance, request_id, state.policy_version)

    def profile(self, request: X509Request) -> Profile:
        """The request's profile, if it allows the request's door, environment and lifetime. Raises the refusal."""
        kind = (request.profile, request.door, request.environment, request.ttl)
        profile = self._profiles.get(kind)
        if profile is None:
            profile = self._profiles[kind] = self._state.profile_of(request)
            profile.ttl(request.ttl)
        return profile

    def draft(self, request: X509Request, serial: int, checked: SubjectKey | Error | None = None) -> Draft:
        """Profile and build. Raises the refusal. ``checked`` is what its CSR was found to be, where that is known."""
        profile = self.profile(request)
        self._state.check_identity(request.spiffe_id, profile)
        if request.dns_names:
            profile.check_dns_names(request.dns_names)
        if isinstance(checked, Error):
            raise checked
        key = checked or verify_csr(request.csr_der, profile.keys)
        kind = (request.profile, request.door, request.environment, request.ttl)
        post_quantum = key.algorithm is KeyAlgorithm.ML_DSA_65
        plan = self._plans.get((*kind, post_quantum))
        if plan is None:
            plan = self._plans[*kind, post_quantum] = self._plan(request, profile, post_quantum=post_quantum)
        unsigned = plan.template.to_be_signed(
            serial, plan.validity, key, str(request.spiffe_id), request.dns_names, plan.revocation
        )
        return Draft(request, plan, serial, key.spki, unsigned)

    def finish(self, draft: Draft, signature: bytes) -> tuple[X509Svid, bytes]:
        """The SVID and its log entry. Raises ``InvalidInput`` when the entry would be too large or not plain JSON."""
        request, plan = draft.request, draft.plan
        certificate = plan.template.wrap(draft.unsigned, signature)
        entry = self._recording.x509(
            request,
            certificate=certificate,
            serial=draft.serial,
            spki=draft.spki,
            issuer_key_id=plan.issuer_key_id,
            not_before=plan.not_before_text,
            not_after=plan.not_after_text,
        )
        if plan.revocation:
            self.revocable.append(_registered(draft, certificate))
        chain = (certificate, *plan.chain)
        return X509Svid(request.spiffe_id, chain, plan.not_before, plan.not_after, draft.serial), entry

    def _plan(self, request: X509Request, profile: Profile, *, post_quantum: bool) -> Plan:
        ca = self._state.issuing_ca(request.environment, post_quantum=post_quantum)
        authority = ca.authority
        if self._now >= authority.not_after:
            raise FailedPrecondition("the issuing CA has expired", fix="rotate the X.509 authority")
        not_before = max(self._now - BACKDATE, authority.not_before)
        not_after = min(self._now + timedelta(seconds=profile.ttl(request.ttl)), authority.not_after)
        urls = self._state.revocation_of(profile)
        revocation = b""
        if urls is not None:
            revocation = encode_revocation(urls.crl(authority.key_id, shard_of(not_after)), urls.ocsp)
        return Plan(
            profile=profile,
            template=ca.templates[profile.usage],
            not_before=not_before,
            not_after=not_after,
            validity=encode_validity(not_before, not_after),
            revocation=revocation,
            not_before_text=timestamp(not_before),
            not_after_text=timestamp(not_after),
            issuer_key_id=authority.key_id,
            chain=authority.chain,
            signer=authority.signer,
            is_remote=authority.signer.is_remote,
        )


def _registered(draft: Draft, certificate: bytes) -> IssuedCertificate:
    request, plan = draft.request, draft.plan
    return IssuedCertificate(
        issuer_key_id=plan.issuer_key_id,
        serial=draft.serial,
        spiffe_id=request.spiffe_id,
        profile=request.profile,
        shard=shard_of(plan.not_after),
        not_before=plan.not_before,
        not_after=plan.not_after,
        node=request.node,
        entry_id=request.entry_id,
        der=certificate,
    )
