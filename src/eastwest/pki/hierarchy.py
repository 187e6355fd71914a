"""The certificate authority of a trust domain: a root, one online intermediate, and the two together as ``Authority``.

A CA certificate is first signed with a throw-away key and looked at; only then does the real key sign the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from eastwest.errors import FailedPrecondition
from eastwest.pki.chain import UntrustedChain, build_path, check_ca
from eastwest.pki.lint import Role, lint_certificate, require_clean
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.pki.profile import BACKDATE, Usage
from eastwest.pki.signer import HASHES, PublicKey, Signer, generate_private_key, key_id_of, verify_signature
from eastwest.pki.template import LeafTemplate, issuer_key_identifier, wrap_signed
from eastwest.spiffe.id import TrustDomain

ROOT_LIFETIME = timedelta(days=3650)
INTERMEDIATE_LIFETIME = timedelta(days=365)


class UnfitAuthority(FailedPrecondition):
    """A CA certificate, its key and its chain do not belong together, or may not issue."""


def create_root(
    signer: Signer, trust_domain: TrustDomain, serial: int, now: datetime, lifetime: timedelta = ROOT_LIFETIME
) -> bytes:
    """A self-signed root in DER, valid from 30 s before ``now``."""
    name = ca_subject(trust_domain, "Eastwest root", signer.public_key)
    not_before = now.replace(microsecond=0) - BACKDATE
    builder = add_ca_extensions(
        x509.CertificateBuilder(name, name, signer.public_key, serial)
        .not_valid_before(not_before)
        .not_valid_after(not_before + lifetime),
        x509.SubjectKeyIdentifier.from_public_key(signer.public_key),
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain.uri)]),
        path_length=None,
    )
    return sign_certificate(builder, signer)


def create_intermediate(
    public_key: PublicKey,
    root: bytes,
    root_signer: Signer,
    trust_domain: TrustDomain,
    serial: int,
    now: datetime,
    lifetime: timedelta = INTERMEDIATE_LIFETIME,
) -> bytes:
    """An issuing CA in DER below ``root`` (path length 0: leaves only), never valid beyond it.

    For a key at hand; ``eastwest.pki.ca.certify_ca`` does it from a request, and has more to choose.
    """
    issuer = x509.load_der_x509_certificate(root)
    not_before, not_after = bounds_below(issuer, now, lifetime)
    builder = add_ca_extensions(
        x509.CertificateBuilder(
            issuer.subject, ca_subject(trust_domain, "Eastwest issuing CA", public_key), public_key, serial
        )
        .not_valid_before(not_before)
        .not_valid_after(not_after),
        x509.SubjectKeyIdentifier.from_public_key(public_key),
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain.uri)]),
        path_length=0,
        issuer=issuer,
    )
    return sign_certificate(builder, root_signer)


@dataclass(frozen=True, slots=True)
class Authority:
    """One generation of a trust domain's issuing CA, checked: made by ``Authority.create``, replaced whole.

    ``chain`` is what follows a leaf (DER, issuing CA first, without the root); ``roots`` are what peers must trust.
    """

    trust_domain: TrustDomain
    signer: Signer
    chain: tuple[bytes, ...] = field(repr=False)
    roots: tuple[bytes, ...] = field(repr=False)
    certificate: x509.Certificate = field(repr=False)

    @classmethod
    def create(
        cls, trust_domain: TrustDomain, signer: Signer, chain: Sequence[bytes], roots: Sequence[bytes]
    ) -> Authority:
        """Check that key, chain, roots and trust domain belong together; raise ``UnfitAuthority`` if not.

        Makes one signature, so that a key store that cannot sign is found at start and not at the first request.
        """
        if not chain:
            raise UnfitAuthority("the chain of the issuing CA is empty")
        try:
            certificates = [x509.load_der_x509_certificate(der) for der in chain]
            certificate = certificates[0]
            check_ca(certificate, trust_domain)
            build_path(certificates, roots, below=1)
        except UntrustedChain as error:
            raise UnfitAuthority(f"the issuing CA is not fit to issue: {error.message}") from None
        except PARSE_ERRORS:
            raise UnfitAuthority("the issuing CA's certificate cannot be read") from None
        if key_id_of(certificate.public_key()) != signer.key_id:
            raise UnfitAuthority(
                "the issuing CA's certificate is for another key", fix="restore key and certificate of one generation"
            )
        _check_signer(signer)
        return cls(trust_domain, signer, tuple(chain), tuple(roots), certificate)

    @property
    def key_id(self) -> str:
        """The issuing key's identifier, lower-case hex; names this generation."""
        return self.signer.key_id

    @property
    def path_length(self) -> int | None:
        """How many CAs may stand below this one; None for no bound, 0 for a CA of leaves only."""
        return self.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length

    @property
    def not_before(self) -> datetime:
        """When the issuing CA begins, in UTC."""
        return self.certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """When the issuing CA ends, in UTC; nothing it issues lasts longer."""
        return self.certificate.not_valid_after_utc

    def template(self, usage: frozenset[Usage]) -> LeafTemplate:
        """A checked template for leaves of this generation."""
        return LeafTemplate(self.certificate, self.signer.algorithm, usage)


def bounds_below(issuer: x509.Certificate, now: datetime, lifetime: timedelta) -> tuple[datetime, datetime]:
    """First and last moment of a CA certificate of ``lifetime`` within its issuer's; ``UnfitAuthority`` if none."""
    not_before = max(now.replace(microsecond=0) - BACKDATE, issuer.not_valid_before_utc)
    not_after = min(not_before + lifetime, issuer.not_valid_after_utc)
    if not_after <= now:
        raise UnfitAuthority("the root has expired, so nothing can be issued below it", fix="make a new root")
    return not_before, not_after


def add_ca_extensions(
    builder: x509.CertificateBuilder,
    identifier: x509.SubjectKeyIdentifier,
    names: x509.SubjectAlternativeName,
    *,
    path_length: int | None,
    issuer: x509.Certificate | None = None,
    constraints: x509.NameConstraints | None = None,
) -> x509.CertificateBuilder:
    """What every CA certificate of ours carries; ``issuer`` is None for a root, which is its own."""
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_ROOT_KEY_USAGE if issuer is None else _CA_KEY_USAGE, critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(names, critical=False)
    )
    if issuer is not None:
        builder = builder.add_extension(issuer_key_identifier(issuer), critical=False)
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    return builder


def ca_subject(trust_domain: TrustDomain, common_name: str, key: PublicKey) -> x509.Name:
    """The subject of one generation of a CA."""
    # The key identifier tells generations apart for verifiers that look issuers up by name.
    # An organization name has at most 64 characters; the whole trust domain is in the URI name.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain.name[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, key_id_of(key)),
        ]
    )


def sign_certificate(builder: x509.CertificateBuilder, signer: Signer) -> bytes:
    """The certificate in DER, signed first with a throw-away key and linted; then the real key signs the same bytes.

    Raises ``LintFailure`` with the findings, before ``signer`` is asked for anything.
    """
    unsigned = draft_certificate(builder, signer)
    return wrap_signed(unsigned, signer.algorithm, signer.sign(unsigned))


def draft_certificate(builder: x509.CertificateBuilder, signer: Signer) -> bytes:
    """The bytes that ``signer`` is to sign, after a lint of the same certificate signed by a throw-away key."""
    stand_in = generate_private_key(signer.algorithm)
    # None for the algorithms that hash by themselves.
    draft = builder.sign(stand_in, HASHES.get(signer.algorithm))  # type: ignore[arg-type]
    require_clean(lint_certificate(draft.public_bytes(Encoding.DER), Role.CA))
    return draft.tbs_certificate_bytes


def _check_signer(signer: Signer) -> None:
    message = b"eastwest: proof that this key can sign"
    try:
        verify_signature(signer.public_key, signer.sign(message), message)
    except InvalidSignature:
        raise UnfitAuthority("the key store makes signatures that do not verify") from None


def _key_usage(*, digital_signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


_ROOT_KEY_USAGE = _key_usage(digital_signature=False)
# An issuing CA also signs OCSP answers, which wants digitalSignature (RFC 5280, 4.2.1.3).
_CA_KEY_USAGE = _key_usage(digital_signature=True)
