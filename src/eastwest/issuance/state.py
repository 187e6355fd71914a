"""Everything that decides how a certificate looks, as one value that is replaced in one assignment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from eastwest.errors import FailedPrecondition, NotFound, PermissionDenied
from eastwest.issuance.request import Request
from eastwest.issuance.sample import check_sample
from eastwest.pki.chain import build_path, load_certificate
from eastwest.pki.hierarchy import Authority
from eastwest.pki.jwt import JwtSigningKey
from eastwest.pki.profile import AGENT, CANARY, SERVER, WORKLOAD, Profile, Revocation, Usage
from eastwest.pki.revocation import RevocationUrls
from eastwest.pki.signer import KeyAlgorithm, Signer
from eastwest.pki.template import LeafTemplate
from eastwest.spiffe.id import SpiffeId, TrustDomain


@dataclass(frozen=True, slots=True, eq=False)
class IssuingCa:
    """One issuing CA in use, with its templates; compared and hashed by identity."""

    authority: Authority
    templates: dict[frozenset[Usage], LeafTemplate]

    @classmethod
    def make(cls, authority: Authority, profiles: Iterable[Profile], *, post_quantum: bool = False) -> IssuingCa:
        """Make and check a template for each use that a profile has, and lint a sample leaf of each profile.

        Raises ``LintFailure``: what breaks the rules is never put to use.
        """
        above = tuple(build_path([load_certificate(der) for der in authority.chain], authority.roots, below=1))
        templates: dict[frozenset[Usage], LeafTemplate] = {}
        for profile in profiles:
            template = templates.get(profile.usage)
            if template is None:
                template = templates[profile.usage] = authority.template(profile.usage)
            check_sample(authority, above, profile, template, post_quantum=post_quantum)
        return cls(authority, templates)


@dataclass(frozen=True, slots=True)
class State:
    """CAs by environment ("" is the default one), JWT key, profiles by name, environments that have CAs of their own.

    ``post_quantum`` are the CAs for ML-DSA-65 keys: what they sign must not hang on a key that can be forged.
    ``policy_version`` decides nothing here: it goes into the log beside what was issued under it.
    """

    trust_domain: TrustDomain
    issuing: dict[str, IssuingCa]
    post_quantum: dict[str, IssuingCa]
    jwt_key: JwtSigningKey
    profiles: dict[str, Profile]
    awaiting: frozenset[str]
    revocation: RevocationUrls | None
    downstream: Authority | None
    policy_version: str

    @classmethod
    def make(
        cls,
        authorities: Mapping[str, Authority],
        post_quantum: Mapping[str, Authority],
        jwt_key: JwtSigningKey,
        profiles: Iterable[Profile],
        awaiting: frozenset[str],
        revocation: RevocationUrls | None,
        downstream: Authority | None,
        policy_version: str = "",
    ) -> State:
        """Check everything; raise ``FailedPrecondition`` when the parts cannot be used together."""
        if "" not in authorities:
            raise FailedPrecondition("there is no default issuing CA")
        trust_domain = authorities[""].trust_domain
        by_name = {profile.name: profile for profile in (WORKLOAD, *profiles, AGENT, SERVER, CANARY)}
        for environment, authority in (*authorities.items(), *post_quantum.items()):
            if authority.trust_domain != trust_domain:
                raise FailedPrecondition(
                    f"the CA of environment {environment} is of trust domain {authority.trust_domain}"
                )
        classical = [profile for profile in by_name.values() if not profile.is_post_quantum]
        issuing = {name: IssuingCa.make(authority, classical) for name, authority in authorities.items()}
        mixed = [profile for profile in by_name.values() if KeyAlgorithm.ML_DSA_65 in profile.keys]
        quantum_safe = {
            name: IssuingCa.make(authority, mixed, post_quantum=True) for name, authority in post_quantum.items()
        }
        if downstream is not None and downstream.trust_domain != trust_domain:
            raise FailedPrecondition(f"the CA for downstream servers is of trust domain {downstream.trust_domain}")
        return cls(
            trust_domain, issuing, quantum_safe, jwt_key, by_name, awaiting, revocation, downstream, policy_version
        )

    def profile_of(self, request: Request) -> Profile:
        """The request's profile, if that exists and allows the request's door and environment."""
        profile = self.profiles.get(request.profile)
        if profile is None:
            raise NotFound(f"there is no profile {request.profile[:80]!r}")
        profile.check_door(request.door)
        profile.check_environment(request.environment)
        return profile

    def check_identity(self, spiffe_id: SpiffeId, profile: Profile) -> None:
        """Raise ``PermissionDenied`` for an ID of another trust domain, or that the profile may not name."""
        if spiffe_id.trust_domain.name != self.trust_domain.name:
            raise PermissionDenied(f"{spiffe_id} is not in trust domain {self.trust_domain}")
        profile.check_id(spiffe_id)

    def issuing_ca(self, environment: str, *, post_quantum: bool = False) -> IssuingCa:
        """The CA of an environment; the default one for a name that has no CA and awaits none.

        ``post_quantum``: the one for an ML-DSA-65 key.
        """
        cas = self.post_quantum if post_quantum else self.issuing
        found = cas.get(environment)
        if found is not None:
            return found
        if post_quantum and (not cas or environment in self.awaiting):
            raise FailedPrecondition(
                "no CA with an ML-DSA-65 key is in use here yet, and only such a one certifies ML-DSA-65 keys",
                fix="set post_quantum = true in server.toml; `eastwest ca show` says how far its root is",
            )
        if environment in self.awaiting:
            raise FailedPrecondition(
                f"environment {environment} has no issuing CA yet",
                fix=f"run 'eastwest ca export-csr --environment {environment}', have it signed, and import it",
            )
        return cas[""]

    def revocation_of(self, profile: Profile) -> RevocationUrls | None:
        """Where leaves of the profile say that they can be looked up; None for those that end by expiry."""
        if profile.revocation is not Revocation.CRL:
            return None
        if self.revocation is None:
            raise FailedPrecondition(
                f"certificates of profile {profile.name} must be revocable, and no address for CRLs is set",
                fix="set revocation_url in server.toml, or use by-expiry-and-containment in the profile",
            )
        return self.revocation

    def downstream_ca(self, environment: str) -> Authority:
        """The CA that signs CAs: the one set for it, or else the environment's own if that may have CAs below."""
        authority = self.downstream or self.issuing_ca(environment).authority
        if authority.path_length == 0:
            raise FailedPrecondition(
                "the issuing CA may sign leaves only, so no downstream CA can stand below it",
                fix="have it certified with a path length of 1 or more",
            )
        return authority

    def signers(self) -> Iterator[Signer]:
        """Every key that signs."""
        yield self.jwt_key.signer
        for ca in (*self.issuing.values(), *self.post_quantum.values()):
            yield ca.authority.signer
        if self.downstream is not None:
            yield self.downstream.signer
