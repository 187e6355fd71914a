"""Whether a certificate chain is a valid X.509-SVID (SPIFFE X509-SVID, section 5; path rules of RFC 5280, section 6).

    InvalidSvid (Unauthenticated)
      ├── MalformedSvid   not a certificate, or not one that may be an SVID
      ├── UntrustedChain  no path to a given root, or a path that breaks a rule
      ├── NotYetValid     a certificate of the path begins later
      └── Expired         a certificate of the path has ended

Written out rather than left to a web-PKI verifier, whose rules for leaf key types and names differ from SPIFFE's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from eastwest.errors import Unauthenticated
from eastwest.pki.constraints import violation
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId, TrustDomain
from eastwest.spiffe.svid import X509Svid

MAX_CHAIN = 8
MAX_CERTIFICATE_BYTES = 64 * 1024
MIN_RSA_BITS = 2048


class InvalidSvid(Unauthenticated):
    """A credential that proves nothing; subclasses say why."""


class MalformedSvid(InvalidSvid):
    """Not a certificate or token, or not one that may be an SVID."""


class UntrustedChain(InvalidSvid):
    """No valid path leads to a trusted authority."""


class NotYetValid(InvalidSvid):
    """The credential, or an authority above it, is valid only later."""


class Expired(InvalidSvid):
    """The credential, or an authority above it, was valid only earlier."""


def verify_chain(
    chain: Sequence[bytes], roots: Sequence[bytes], now: datetime, trust_domain: TrustDomain | None = None
) -> X509Svid:
    """Check a chain (DER, leaf first) against roots (DER) at ``now``, and return what it proves.

    ``roots`` are those of one trust domain: give it as ``trust_domain`` to refuse an ID of another one. A root at the
    end of the chain is allowed and ignored. Raises the errors above; an error in a root raises ``UntrustedChain``.
    """
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise MalformedSvid(f"a chain has 1 to {MAX_CHAIN} certificates, not {len(chain)}")
    certificates = [load_certificate(der) for der in chain]
    leaf = certificates[0]
    spiffe_id = check_leaf(leaf)
    if trust_domain is not None and spiffe_id.trust_domain != trust_domain:
        raise UntrustedChain(f"{spiffe_id} is not in trust domain {trust_domain}")
    path = verify_path(certificates, roots, now)
    return X509Svid(
        spiffe_id,
        tuple(chain[: len(path) - 1]),
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
        leaf.serial_number,
    )


def check_leaf(leaf: x509.Certificate) -> SpiffeId:
    """The SPIFFE ID of a certificate that may be a leaf SVID; raise ``MalformedSvid`` with the reason.

    Exactly one URI name, a SPIFFE ID with a path; not a CA; key usage present and critical, with digitalSignature and
    without keyCertSign and cRLSign (X509-SVID, sections 2, 4.1 and 4.3).
    """
    try:
        extensions = leaf.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise MalformedSvid("the certificate has no subject alternative name") from None
    except PARSE_ERRORS:
        raise MalformedSvid("the certificate's extensions are malformed") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise MalformedSvid(f"an SVID has exactly one URI name, this one has {len(uris)}")
    try:
        spiffe_id = SpiffeId.parse(uris[0])
    except MalformedSpiffeId as error:
        raise MalformedSvid(f"the URI name is no SPIFFE ID: {error.message}") from None
    if not spiffe_id.path:
        raise MalformedSvid(f"a leaf SVID names a workload; {spiffe_id} names a trust domain")
    if _is_ca(extensions):
        raise MalformedSvid("a leaf SVID must not be a CA certificate")
    _check_leaf_usage(extensions)
    _check_critical(extensions, MalformedSvid, _UNDERSTOOD)
    return spiffe_id


def check_ca(certificate: x509.Certificate, trust_domain: TrustDomain) -> None:
    """Raise ``UntrustedChain`` unless the certificate may sign SVIDs of ``trust_domain`` (X509-SVID, 2 and 4)."""
    try:
        extensions = certificate.extensions
        if not _is_ca(extensions) or not _may_sign(extensions):
            raise UntrustedChain("the certificate is not a CA certificate with keyCertSign")
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise UntrustedChain(f"the certificate does not name {trust_domain.uri}") from None
    except PARSE_ERRORS:
        raise UntrustedChain("the certificate's extensions are malformed") from None
    if names.get_values_for_type(x509.UniformResourceIdentifier) != [trust_domain.uri]:
        raise UntrustedChain(f"the certificate does not name {trust_domain.uri}")


def verify_path(
    chain: Sequence[x509.Certificate], roots: Sequence[bytes], now: datetime, *, below: int = 0
) -> list[x509.Certificate]:
    """The first path, root included, on which every rule and every time holds; ``build_path`` says which rules.

    Where none does, raises what is wrong with the first one.
    """
    wrong: InvalidSvid | None = None
    for path in _paths(chain, roots, below):
        try:
            for certificate in path:
                _check_time(certificate, now)
        except InvalidSvid as error:
            wrong = wrong or error
        else:
            return path
    assert wrong is not None  # _paths yields one or raises
    raise wrong


def build_path(chain: Sequence[x509.Certificate], roots: Sequence[bytes], *, below: int = 0) -> list[x509.Certificate]:
    """The path from ``chain[0]`` to the first root that issued a member of the chain, root included.

    Checks signatures, names, CA rules and name constraints, not times. ``below`` is the number of CA certificates under
    ``chain[0]``'s issuer: 0 when ``chain[0]`` is a leaf, 1 when it is an issuing CA. Raises ``UntrustedChain``.
    """
    return next(_paths(chain, roots, below))


def is_strong(public_key: object) -> bool:
    """Whether a CA key is of a type and size that cannot be forged today; foreign CAs may have RSA or P-521."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return public_key.key_size >= MIN_RSA_BITS
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return public_key.curve.name in _CA_CURVES
    return isinstance(public_key, ed25519.Ed25519PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey)


def load_certificate(der: bytes) -> x509.Certificate:
    """One certificate of version 3 from DER, bounded in size; raise ``MalformedSvid``."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise MalformedSvid(f"a certificate is larger than {MAX_CERTIFICATE_BYTES} bytes")
    try:
        certificate = x509.load_der_x509_certificate(der)
    except PARSE_ERRORS:
        raise MalformedSvid("the bytes are not a certificate in DER") from None
    if certificate.version is not x509.Version.v3:
        raise MalformedSvid("an SVID is an X.509 certificate of version 3")
    if certificate.serial_number <= 0:
        raise MalformedSvid("a certificate's serial number is positive (RFC 5280, 4.1.2.2)")
    return certificate


def load_chain_pem(pem: bytes) -> tuple[bytes, ...]:
    """The certificates of a PEM text, as DER, in order; raise ``MalformedSvid`` when there is none."""
    try:
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in x509.load_pem_x509_certificates(pem))
    except ValueError:
        raise MalformedSvid("the file holds no PEM certificates, or a damaged one") from None


def dump_chain_pem(chain: Sequence[bytes]) -> bytes:
    """DER certificates as one PEM text, in order."""
    return b"".join(load_certificate(der).public_bytes(Encoding.PEM) for der in chain)


def _paths(chain: Sequence[x509.Certificate], roots: Sequence[bytes], below: int) -> Iterator[list[x509.Certificate]]:
    """Every path that keeps the rules but for times; raises ``UntrustedChain`` when there is none."""
    _check_critical(chain[0].extensions, UntrustedChain, _UNDERSTOOD_IN_CA)
    anchors = [_load_root(der) for der in roots]
    path = [chain[0]]
    under = below
    reason = _NO_ROOT
    found = False
    for depth in range(len(chain)):
        for anchor in anchors:
            if _issued(anchor, path[-1], under):
                broken = _violation([*path, anchor])
                if broken:
                    reason = broken
                    continue
                found = True
                yield [*path, anchor]
        if depth + 1 == len(chain):
            break
        if not _issued(chain[depth + 1], path[-1], under):
            if not found and reason == _NO_ROOT:
                raise UntrustedChain(f"certificate {depth + 1} of the chain did not issue certificate {depth}")
            break
        path.append(chain[depth + 1])
        # A self-issued certificate does not count against a path length (RFC 5280, 6.1.4 l).
        under += not _is_self_issued(chain[depth + 1])
    if not found:
        raise UntrustedChain(reason, fix="fetch the trust domain's current bundle" if reason == _NO_ROOT else "")


def _violation(path: Sequence[x509.Certificate]) -> str:
    try:
        return violation(path)
    except PARSE_ERRORS:
        return "the names in the chain are malformed"


def _issued(issuer: x509.Certificate, subject: x509.Certificate, below: int) -> bool:
    try:
        digest = subject.signature_hash_algorithm
        if digest is not None and digest.name in _BROKEN_HASHES:
            return False
        extensions = issuer.extensions
        if not _is_ca(extensions) or not _may_sign(extensions) or not _long_enough(extensions, below):
            return False
        _check_critical(extensions, UntrustedChain, _UNDERSTOOD_IN_CA)
        if not is_strong(issuer.public_key()):
            return False
        subject.verify_directly_issued_by(issuer)
    except _NO_PROOF:
        return False
    return True


def _is_self_issued(certificate: x509.Certificate) -> bool:
    try:
        return certificate.subject == certificate.issuer
    except PARSE_ERRORS:
        raise UntrustedChain("the names in the chain are malformed") from None


def _is_ca(extensions: x509.Extensions) -> bool:
    try:
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _may_sign(extensions: x509.Extensions) -> bool:
    try:
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return False


def _long_enough(extensions: x509.Extensions, below: int) -> bool:
    limit = extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    return limit is None or below <= limit


def _check_leaf_usage(extensions: x509.Extensions) -> None:
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound:
        raise MalformedSvid("an SVID states its key usage") from None
    if not usage.critical or not usage.value.digital_signature:
        raise MalformedSvid("a leaf SVID's key usage is critical and has digitalSignature")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise MalformedSvid("a leaf SVID's key must not sign certificates or CRLs")


def _check_critical(
    extensions: x509.Extensions, error: type[InvalidSvid], understood: tuple[type[x509.ExtensionType], ...]
) -> None:
    for extension in extensions:
        if extension.critical and not isinstance(extension.value, understood):
            raise error(f"the critical extension {extension.oid.dotted_string} is not understood")


def _check_time(certificate: x509.Certificate, now: datetime) -> None:
    # RFC 5280, 4.1.2.5: both ends are inclusive.
    if now < certificate.not_valid_before_utc:
        raise NotYetValid(
            f"a certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ} on, "
            f"and it is {now:%Y-%m-%dT%H:%M:%SZ}",
            fix="compare the clocks of the two machines",
        )
    if now.replace(microsecond=0) > certificate.not_valid_after_utc:
        raise Expired(
            f"a certificate ended at {certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}, "
            f"and it is {now:%Y-%m-%dT%H:%M:%SZ}",
            fix="renew it, and compare the clocks of the two machines",
        )


def _load_root(der: bytes) -> x509.Certificate:
    try:
        return load_certificate(der)
    except MalformedSvid as error:
        raise UntrustedChain(f"a trusted root cannot be read: {error.message}") from None


_NO_PROOF: tuple[type[Exception], ...] = (*PARSE_ERRORS, InvalidSignature, UntrustedChain)
_BROKEN_HASHES = frozenset({"md5", "sha1"})
_NO_ROOT = "the chain does not lead to a trusted root"
_CA_CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})
_UNDERSTOOD: tuple[type[x509.ExtensionType], ...] = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
)
_UNDERSTOOD_IN_CA: tuple[type[x509.ExtensionType], ...] = (*_UNDERSTOOD, x509.NameConstraints)
