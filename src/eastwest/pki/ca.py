"""CA certificates made from signing requests, and cross certificates between two hierarchies.

The CA's key stays where it is: it signs a request (``make_ca_csr``), and whoever stands above certifies it from that
(``certify_ca``): the own root, a root kept offline, a corporate CA, or this server for one below it. Everything here
signs with a ``Signer`` and does no I/O of its own; call it off the event loop when the signer ``is_remote``.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from eastwest.errors import InvalidInput
from eastwest.pki.chain import is_strong
from eastwest.pki.constraints import uri_host_constraint
from eastwest.pki.csr import CsrDefect, InvalidCsr, load_csr
from eastwest.pki.hierarchy import (
    INTERMEDIATE_LIFETIME,
    UnfitAuthority,
    add_ca_extensions,
    bounds_below,
    ca_subject,
    draft_certificate,
    sign_certificate,
)
from eastwest.pki.lent import lend
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.pki.signer import HASHES, KeyAlgorithm, PublicKey, Signer
from eastwest.pki.template import wrap_signed
from eastwest.spiffe.id import TrustDomain

ALL_KEYS = frozenset(KeyAlgorithm)
ISSUING_CA = "Eastwest issuing CA"
DOWNSTREAM_CA = "Eastwest downstream CA"


def make_ca_csr(signer: Signer, trust_domain: TrustDomain, common_name: str = ISSUING_CA) -> bytes:
    """A request in DER to certify ``signer`` as a CA of ``trust_domain``, whose URI is its only alternative name."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain.uri)])
    return _request(ca_subject(trust_domain, common_name, signer.public_key), names, signer)


def make_cross_csr(signer: Signer, root: bytes) -> bytes:
    """A request in DER by which an outside root can certify ours: our root's key under our root's own subject.

    The outside CA must copy the subject unchanged, or paths through its certificate will not build.
    """
    certificate = _load_ca(root)
    _check_own(signer, certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return _request(certificate.subject, names, signer)


def read_ca_csr(
    der: bytes,
    trust_domain: TrustDomain,
    allowed: Collection[KeyAlgorithm] = ALL_KEYS,
    *,
    nameless: bool = False,
) -> PublicKey:
    """The proven public key of a request for a CA of ``trust_domain``; everything else it says is checked or unused.

    Its only alternative name must be the trust domain's URI (or, where ``nameless`` ones are taken, absent), and what
    it asks for beyond that may not contradict a CA certificate. Raises ``InvalidCsr``, or ``UnsupportedKey`` for a key
    type outside ``allowed``.
    """
    csr, public_key, _ = load_csr(der, allowed)
    try:
        extensions = csr.extensions
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        if not nameless:
            raise InvalidCsr(f"the request does not name {trust_domain.uri}", defect=CsrDefect.WRONG_NAME) from None
        names = [x509.UniformResourceIdentifier(trust_domain.uri)]
    except PARSE_ERRORS:
        raise InvalidCsr("the request's extensions are malformed", defect=CsrDefect.MALFORMED) from None
    if names != [x509.UniformResourceIdentifier(trust_domain.uri)]:
        raise InvalidCsr(f"a CA's request names {trust_domain.uri} and nothing else", defect=CsrDefect.WRONG_NAME)
    for extension in extensions:
        if isinstance(extension.value, x509.BasicConstraints) and not extension.value.ca:
            raise InvalidCsr("the request asks for a certificate that is no CA", defect=CsrDefect.NOT_A_CA)
        if not isinstance(extension.value, _HARMLESS):
            raise InvalidCsr(
                f"the request asks for the extension {extension.oid.dotted_string}", defect=CsrDefect.UNWANTED_EXTENSION
            )
    return public_key


def certify_ca(
    csr: bytes,
    issuer: bytes,
    signer: Signer,
    trust_domain: TrustDomain,
    serial: int,
    now: datetime,
    lifetime: timedelta = INTERMEDIATE_LIFETIME,
    *,
    path_length: int = 0,
    common_name: str = ISSUING_CA,
    constrained: bool = False,
    allowed: Collection[KeyAlgorithm] = ALL_KEYS,
) -> bytes:
    """A CA certificate in DER for a request, below ``issuer`` (DER) whose key ``signer`` is, and never valid beyond it.

    ``path_length`` is how many CAs may stand below the new one; ``constrained`` limits it to URI names of its own trust
    domain (``docs/reference/certificates.md`` says which verifiers read that). ``now`` is the moment of issuance, and
    ``lifetime`` a wish. Raises ``InvalidCsr`` or ``UnsupportedKey`` for the request, and ``UnfitAuthority`` when the
    issuer has ended, is of another key, or may not stand above such a CA.
    """
    public_key = read_ca_csr(csr, trust_domain, allowed)
    return certify_ca_key(
        public_key,
        issuer,
        signer,
        trust_domain,
        serial,
        now,
        lifetime,
        path_length=path_length,
        common_name=common_name,
        constrained=constrained,
    )


def certify_ca_key(
    public_key: PublicKey,
    issuer: bytes,
    signer: Signer,
    trust_domain: TrustDomain,
    serial: int,
    now: datetime,
    lifetime: timedelta = INTERMEDIATE_LIFETIME,
    *,
    path_length: int = 0,
    common_name: str = ISSUING_CA,
    constrained: bool = False,
) -> bytes:
    """``certify_ca`` for a key whose possession is proven already; the same errors but for those of a request."""
    draft = draft_ca(
        public_key,
        _load_ca(issuer),
        signer,
        trust_domain,
        serial,
        now,
        lifetime,
        path_length=path_length,
        common_name=common_name,
        constrained=constrained,
    )
    return wrap_signed(draft, signer.algorithm, signer.sign(draft))


def draft_ca(
    public_key: PublicKey,
    issuer: x509.Certificate,
    signer: Signer,
    trust_domain: TrustDomain,
    serial: int,
    now: datetime,
    lifetime: timedelta,
    *,
    path_length: int = 0,
    common_name: str = ISSUING_CA,
    constrained: bool = False,
) -> bytes:
    """What ``certify_ca_key`` signs, checked and linted, for callers that have it signed elsewhere."""
    _check_own(signer, issuer)
    _check_below(issuer, path_length)
    if public_key == signer.public_key:
        raise UnfitAuthority("the new CA has the key of its issuer", fix="make a new key for it")
    name = ca_subject(trust_domain, common_name, public_key)
    not_before, not_after = bounds_below(issuer, now, lifetime)
    builder = add_ca_extensions(
        x509.CertificateBuilder(issuer.subject, name, public_key, serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after),
        x509.SubjectKeyIdentifier.from_public_key(public_key),
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain.uri)]),
        path_length=path_length,
        issuer=issuer,
        constraints=uri_host_constraint(trust_domain) if constrained else None,
    )
    return draft_certificate(builder, signer)


def cross_certify(
    outside: bytes,
    issuer: bytes,
    signer: Signer,
    trust_domain: TrustDomain,
    serial: int,
    now: datetime,
    lifetime: timedelta = INTERMEDIATE_LIFETIME,
    *,
    constrained: bool = True,
) -> bytes:
    """A cross certificate in DER: the key and subject of the CA ``outside`` (DER), certified by ``issuer``.

    Whoever trusts ``issuer`` then accepts what ``outside`` has issued: its subject, key and subject key identifier are
    taken over as they are, so that both paths build. ``trust_domain`` is the one that ``outside`` issues for; with
    ``constrained`` the certificate permits URI names of that one alone. Ends with the sooner of ``lifetime``, the
    issuer and ``outside``. The other way round, call it with the two exchanged, or give the outside
    ``make_cross_csr``. Raises ``UnfitAuthority``, ``InvalidInput`` for an ``outside`` that is no CA or is weak.
    """
    above, theirs = _load_ca(issuer), _load_ca(outside)
    _check_own(signer, above)
    public_key = theirs.public_key()
    _check_outside(theirs, public_key)
    if public_key == above.public_key():
        raise InvalidInput("the two CAs have the same key, so there is nothing to cross-certify")
    constraints = uri_host_constraint(trust_domain) if constrained else None
    if constrained and constraints is None:
        raise InvalidInput(
            f"trust domain {trust_domain} is no domain name, so a name constraint cannot hold it",
            fix="cross-certify without a constraint if you trust the outside root with every name",
        )
    not_before, not_after = bounds_below(above, now, lifetime)
    not_after = min(not_after, theirs.not_valid_after_utc)
    not_before = max(not_before, theirs.not_valid_before_utc)
    if not not_before <= now <= not_after:
        raise InvalidInput("the outside CA is not valid now")
    builder = add_ca_extensions(
        x509.CertificateBuilder(above.subject, theirs.subject, public_key, serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after),
        _key_identifier(theirs),
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(trust_domain.uri)]),
        path_length=_path_length(theirs),
        issuer=above,
        constraints=constraints,
    )
    return sign_certificate(builder, signer)


def _request(subject: x509.Name, names: x509.SubjectAlternativeName, signer: Signer) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=False)
    # None for the algorithms that hash by themselves.
    return builder.sign(lend(signer), HASHES.get(signer.algorithm)).public_bytes(Encoding.DER)  # type: ignore[arg-type]


def _load_ca(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        raise UnfitAuthority("the certificate says nothing of being a CA") from None
    except PARSE_ERRORS:
        raise UnfitAuthority("the CA certificate cannot be read") from None
    if not constraints.ca or not usage.key_cert_sign:
        raise UnfitAuthority("the certificate is not that of a CA with keyCertSign")
    return certificate


def _check_own(signer: Signer, certificate: x509.Certificate) -> None:
    if certificate.public_key() != signer.public_key:
        raise UnfitAuthority("the CA certificate is for another key", fix="use key and certificate of one generation")


def _check_outside(certificate: x509.Certificate, public_key: object) -> None:
    if not is_strong(public_key):
        raise InvalidInput("the outside CA's key is too weak or of an unknown type", fix="use RSA 2048, P-256 or more")
    critical = [each.oid.dotted_string for each in certificate.extensions if each.critical]
    unknown = set(critical) - _CARRIED
    if unknown:
        raise InvalidInput(
            f"the outside CA has the critical extension {min(unknown)}, which a cross certificate would lose"
        )


def _path_length(certificate: x509.Certificate) -> int | None:
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length


def _key_identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())


def _check_below(issuer: x509.Certificate, path_length: int) -> None:
    limit = _path_length(issuer)
    if limit is not None and path_length >= limit:
        raise UnfitAuthority(
            f"the issuer lets {limit} CAs stand below it, so no CA with path length {path_length} can",
            fix="ask for a smaller path length, or have the issuer certified with a greater one",
        )


_CARRIED = frozenset({x509.BasicConstraints.oid.dotted_string, x509.KeyUsage.oid.dotted_string})
_HARMLESS = (
    x509.SubjectAlternativeName,
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.SubjectKeyIdentifier,
)
