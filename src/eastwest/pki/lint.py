"""Lint of our own certificates: what an SVID, or a CA of SVIDs, must and must not say, one rule for each fact.

A linter looks at what is about to be signed (signed by a throw-away key first) and at what others have signed. It knows
no time and trusts nothing: whether a certificate is valid now, and by whom, is ``eastwest.pki.chain``'s question.
``RULES`` is the list; each has a name that never changes, for reports and waivers.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.pki.chain import MAX_CERTIFICATE_BYTES, is_strong
from eastwest.pki.constraints import violation
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.pki.profile import BACKDATE, check_dns_name
from eastwest.pki.signer import KeyAlgorithm, UnsupportedKey, algorithm_of
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId, TrustDomain


class Role(enum.Enum):
    """What a certificate is meant to be."""

    LEAF = "leaf"
    CA = "ca"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the one who issues knows and a certificate alone does not say; what is None or empty is not checked.

    ``above`` are the CA certificates over it, nearest first, for their name constraints and validity.
    """

    trust_domain: TrustDomain | None = None
    keys: Collection[KeyAlgorithm] | None = None
    max_lifetime: timedelta | None = None
    above: tuple[x509.Certificate, ...] = ()


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One rule that a certificate breaks, and how."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


class LintFailure(FailedPrecondition):
    """A certificate was not signed, because its draft breaks rules; ``findings`` says which."""

    def __init__(self, findings: Sequence[LintFinding]) -> None:
        super().__init__(
            "nothing is signed, since the certificate would break the rules: " + "; ".join(map(str, findings))
        )
        self.findings = tuple(findings)


def lint_certificate(der: bytes, role: Role, expected: Expectation | None = None) -> tuple[LintFinding, ...]:
    """Every rule that the certificate breaks, in the order of ``RULES``; none for a good one."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        return (LintFinding("well-formed", f"it is larger than {MAX_CERTIFICATE_BYTES} bytes"),)
    try:
        certificate = x509.load_der_x509_certificate(der)
        subject = _Subject(certificate, certificate.extensions, role, expected or Expectation())
        return tuple(
            LintFinding(rule.name, message)
            for rule in RULES
            if role in rule.roles
            for message in [rule.check(subject)]
            if message
        )
    except x509.DuplicateExtension as error:
        return (LintFinding("well-formed", f"the extension {error.oid.dotted_string} is there twice"),)
    except PARSE_ERRORS:
        return (LintFinding("well-formed", "it cannot be read as an X.509 certificate"),)


def require_clean(findings: Sequence[LintFinding]) -> None:
    """Raise ``LintFailure`` when there is a finding."""
    if findings:
        raise LintFailure(findings)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a rule looks at."""

    certificate: x509.Certificate
    extensions: x509.Extensions
    role: Role
    expected: Expectation

    def find(self, kind: type[_Kind]) -> x509.Extension[_Kind] | None:
        try:
            return self.extensions.get_extension_for_class(kind)
        except x509.ExtensionNotFound:
            return None

    def names(self) -> Iterator[x509.GeneralName]:
        found = self.find(x509.SubjectAlternativeName)
        return iter(found.value if found else ())

    def uris(self) -> list[str]:
        return [name.value for name in self.names() if isinstance(name, x509.UniformResourceIdentifier)]


_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: ``check`` returns what is wrong, or an empty text. ``source`` is where it comes from."""

    name: str
    roles: frozenset[Role]
    source: str
    check: Callable[[_Subject], str]


def _version(subject: _Subject) -> str:
    return "" if subject.certificate.version is x509.Version.v3 else "it is not of version 3"


def _serial(subject: _Subject) -> str:
    bits = subject.certificate.serial_number.bit_length()
    return "" if 1 <= bits <= 159 else f"its serial number has {bits} bits; 1 to 159 fit into 20 octets"


def _one_uri(subject: _Subject) -> str:
    count = len(subject.uris())
    return "" if count == 1 else f"it has {count} URI names; an SVID has exactly one"


def _spiffe_id(subject: _Subject) -> str:
    for uri in subject.uris():
        try:
            spiffe_id = SpiffeId.parse(uri)
        except MalformedSpiffeId as error:
            return f"its URI name is no SPIFFE ID: {error.message}"
        if subject.role is Role.LEAF and not spiffe_id.path:
            return "its SPIFFE ID has no path"
        if subject.role is Role.CA and spiffe_id.path:
            return "its SPIFFE ID has a path; a CA's names the trust domain alone"
    return ""


def _trust_domain(subject: _Subject) -> str:
    wanted = subject.expected.trust_domain
    if wanted is not None:
        for uri in subject.uris():
            if uri != wanted.uri and not uri.startswith(wanted.uri + "/"):
                return f"its URI name is not in trust domain {wanted}"
    return ""


def _other_names(subject: _Subject) -> str:
    allowed = (x509.UniformResourceIdentifier, x509.DNSName)
    if subject.role is Role.CA:
        allowed = (x509.UniformResourceIdentifier,)  # type: ignore[assignment]  # a shorter tuple of the same kind
    odd = [type(name).__name__ for name in subject.names() if not isinstance(name, allowed)]
    return f"it has a name of kind {odd[0]}" if odd else ""


def _dns_names(subject: _Subject) -> str:
    for name in subject.names():
        if isinstance(name, x509.DNSName):
            try:
                check_dns_name(name.value)
            except InvalidInput as error:
                return error.message
    return ""


def _names_critical(subject: _Subject) -> str:
    found = subject.find(x509.SubjectAlternativeName)
    if found and not list(subject.certificate.subject) and not found.critical:
        return "its subject is empty, so its alternative names must be critical"
    return ""


def _subject_present(subject: _Subject) -> str:
    return "" if list(subject.certificate.subject) else "a CA's subject must not be empty"


def _basic_constraints(subject: _Subject) -> str:
    found = subject.find(x509.BasicConstraints)
    if found is None or not found.critical:
        return "basic constraints must be present and critical"
    if found.value.ca != (subject.role is Role.CA):
        return "it is a CA" if found.value.ca else "it is no CA"
    return ""


def _key_usage(subject: _Subject) -> str:
    found = subject.find(x509.KeyUsage)
    if found is None or not found.critical:
        return "key usage must be present and critical"
    usage = found.value
    if subject.role is Role.CA:
        return "" if usage.key_cert_sign and usage.crl_sign else "a CA needs keyCertSign and cRLSign"
    if usage.key_cert_sign or usage.crl_sign:
        return "a leaf must not have keyCertSign or cRLSign"
    return "" if usage.digital_signature else "a leaf needs digitalSignature"


def _extended_usage(subject: _Subject) -> str:
    found = subject.find(x509.ExtendedKeyUsage)
    if subject.role is Role.CA:
        return "a CA's extended key usage would limit its leaves" if found else ""
    if found is None:
        return "a leaf needs an extended key usage, or it serves for anything"
    extra = [oid.dotted_string for oid in found.value if oid not in _TLS_USES]
    return f"the extended key usage {extra[0]} is not one of TLS" if extra else ""


def _key_identifier(subject: _Subject) -> str:
    found = subject.find(x509.SubjectKeyIdentifier)
    if found is None or found.critical:
        return "the subject key identifier must be present and not critical"
    return "" if 1 <= len(found.value.digest) <= 64 else "the subject key identifier has an odd length"


def _authority_identifier(subject: _Subject) -> str:
    found = subject.find(x509.AuthorityKeyIdentifier)
    if found is None:
        self_issued = subject.certificate.issuer == subject.certificate.subject
        return "" if self_issued and subject.role is Role.CA else "the authority key identifier is missing"
    if found.critical or not found.value.key_identifier:
        return "the authority key identifier must carry the issuer's key identifier and not be critical"
    if subject.expected.above:
        try:
            above = subject.expected.above[0].extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            return ""
        if above.digest != found.value.key_identifier:
            return "the authority key identifier is not the issuer's"
    return ""


def _constraints_critical(subject: _Subject) -> str:
    found = subject.find(x509.NameConstraints)
    return "name constraints must be critical" if found and not found.critical else ""


def _leaf_constraints(subject: _Subject) -> str:
    return "a leaf cannot have name constraints" if subject.find(x509.NameConstraints) else ""


def _known_extensions(subject: _Subject) -> str:
    odd = [each.oid.dotted_string for each in subject.extensions if each.critical and each.oid not in _MAY_BE_CRITICAL]
    return f"the critical extension {odd[0]} is one that many verifiers refuse" if odd else ""


def _key_type(subject: _Subject) -> str:
    key = subject.certificate.public_key()
    if subject.role is Role.CA and subject.expected.keys is None:
        return "" if is_strong(key) else "its key is too weak or of an unknown type"
    try:
        algorithm = algorithm_of(key)
    except UnsupportedKey as error:
        return error.message
    if subject.expected.keys is not None and algorithm not in subject.expected.keys:
        return f"its key is {algorithm}, which its profile does not allow"
    return ""


def _signature_hash(subject: _Subject) -> str:
    digest = subject.certificate.signature_hash_algorithm
    return f"it is signed with {digest.name}" if digest is not None and digest.digest_size < 32 else ""


def _validity(subject: _Subject) -> str:
    certificate = subject.certificate
    if certificate.not_valid_after_utc <= certificate.not_valid_before_utc:
        return "it ends before it begins"
    for issuer in subject.expected.above[:1]:
        if certificate.not_valid_after_utc > issuer.not_valid_after_utc:
            return "it outlives its issuer"
    return ""


def _lifetime(subject: _Subject) -> str:
    limit = subject.expected.max_lifetime
    life = subject.certificate.not_valid_after_utc - subject.certificate.not_valid_before_utc
    if limit is not None and life > limit + BACKDATE:
        return f"it is valid for {life}, and at most {limit} are allowed"
    return ""


def _constraints_kept(subject: _Subject) -> str:
    return violation([subject.certificate, *subject.expected.above]) if subject.expected.above else ""


_BOTH = frozenset(Role)
_LEAF = frozenset({Role.LEAF})
_CA = frozenset({Role.CA})
_TLS_USES = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH})
_MAY_BE_CRITICAL = frozenset(
    {
        x509.BasicConstraints.oid,
        x509.KeyUsage.oid,
        x509.ExtendedKeyUsage.oid,
        x509.SubjectAlternativeName.oid,
        x509.NameConstraints.oid,
    }
)
RULES: tuple[Rule, ...] = (
    Rule("version-3", _BOTH, "RFC 5280, 4.1.2.1", _version),
    Rule("serial-number", _BOTH, "RFC 5280, 4.1.2.2", _serial),
    Rule("one-uri", _BOTH, "X509-SVID, 2", _one_uri),
    Rule("spiffe-id", _BOTH, "X509-SVID, 2; SPIFFE-ID, 2", _spiffe_id),
    Rule("trust-domain", _BOTH, "X509-SVID, 3", _trust_domain),
    Rule("no-other-names", _BOTH, "X509-SVID, 2", _other_names),
    Rule("dns-names", _LEAF, "RFC 5280, 4.2.1.6", _dns_names),
    Rule("names-critical", _BOTH, "RFC 5280, 4.2.1.6", _names_critical),
    Rule("ca-subject", _CA, "RFC 5280, 4.1.2.6", _subject_present),
    Rule("basic-constraints", _BOTH, "X509-SVID, 4.1; RFC 5280, 4.2.1.9", _basic_constraints),
    Rule("key-usage", _BOTH, "X509-SVID, 4.3", _key_usage),
    Rule("extended-key-usage", _BOTH, "X509-SVID, 4.4", _extended_usage),
    Rule("subject-key-identifier", _BOTH, "RFC 5280, 4.2.1.2", _key_identifier),
    Rule("authority-key-identifier", _BOTH, "RFC 5280, 4.2.1.1", _authority_identifier),
    Rule("constraints-critical", _CA, "RFC 5280, 4.2.1.10", _constraints_critical),
    Rule("no-leaf-constraints", _LEAF, "RFC 5280, 4.2.1.10", _leaf_constraints),
    Rule("known-critical", _BOTH, "RFC 5280, 4.2", _known_extensions),
    Rule("key-type", _BOTH, "the profile", _key_type),
    Rule("signature-hash", _BOTH, "RFC 9155", _signature_hash),
    Rule("validity", _BOTH, "RFC 5280, 4.1.2.5", _validity),
    Rule("lifetime", _BOTH, "the profile", _lifetime),
    Rule("name-constraints", _BOTH, "RFC 5280, 4.2.1.10", _constraints_kept),
)
