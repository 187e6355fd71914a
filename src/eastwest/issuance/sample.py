"""A sample of what a profile will issue, signed by a throw-away key and linted before the real key signs anything."""

from __future__ import annotations

from datetime import timedelta

from cryptography import x509

from eastwest.pki.hierarchy import Authority
from eastwest.pki.lint import Expectation, Role, lint_certificate, require_clean
from eastwest.pki.profile import BACKDATE, Profile, Scope
from eastwest.pki.revocation import RevocationUrls, shard_of
from eastwest.pki.signer import KeyAlgorithm, SoftwareSigner, SubjectKey, generate_private_key
from eastwest.pki.template import LeafTemplate, encode_revocation, encode_validity

_PATHS = {
    Scope.WORKLOAD: "/lint/sample",
    Scope.AGENT: "/spire/agent/lint/sample",
    Scope.SERVER: "/spire/server",
    Scope.CANARY: "/eastwest/canary/sample",
}
_SERIAL = (1 << 126) | 1
_NAMES = ("sample.invalid", "*.sample.invalid")
_URLS = RevocationUrls("http://sample.invalid")


def check_sample(
    authority: Authority,
    above: tuple[x509.Certificate, ...],
    profile: Profile,
    template: LeafTemplate,
    *,
    post_quantum: bool = False,
) -> None:
    """Lint leaves of ``profile`` below ``authority``, with and without DNS names; raise ``LintFailure``.

    ``above`` are the certificates over the leaf, issuing CA first, root last. ``post_quantum``: the authority is for
    ML-DSA-65 keys, which the profile must have; else for the others.
    """
    stand_in = SoftwareSigner(generate_private_key(authority.signer.algorithm))
    expected = Expectation(
        trust_domain=authority.trust_domain,
        keys=profile.keys,
        max_lifetime=timedelta(seconds=profile.max_ttl),
        above=above,
    )
    not_before = authority.not_before
    not_after = min(not_before + BACKDATE + timedelta(seconds=profile.max_ttl), authority.not_after)
    revocation = encode_revocation(_URLS.crl(authority.key_id, shard_of(not_after)), _URLS.ocsp)
    uri = str(authority.trust_domain.id(_PATHS[profile.scope]))
    served = [key for key in profile.keys if (key is KeyAlgorithm.ML_DSA_65) == post_quantum]
    key = SubjectKey.of(generate_private_key(served[0]).public_key())
    for names in ((), _NAMES):
        unsigned = template.to_be_signed(
            _SERIAL, encode_validity(not_before, not_after), key, uri, names, revocation if names else b""
        )
        certificate = template.wrap(unsigned, stand_in.sign(unsigned))
        require_clean(lint_certificate(certificate, Role.LEAF, expected))
