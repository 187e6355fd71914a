"""Revocation of long-lived certificates, as values: CRLs sharded by expiry (RFC 5280, 5) and OCSP (RFC 6960, 9654).

A leaf of a profile with ``revocation: crl`` points to ``RevocationUrls(base).crl(...)`` of its issuing CA and of the
week in which it ends, and to ``RevocationUrls(base).ocsp``. So no CRL ever holds more than one week's certificates, and
once that week is over its CRL is needed no more. Each CRL names its own address in a critical extension, so that one
shard cannot be passed off as another.

Whoever serves them keeps (serial, ends, when, why) of each revoked certificate, and calls:

- ``build_crl(authority, shard, revoked, number, now, urls)`` for each shard with a certificate that has not ended, also
  when nothing in it is revoked; ``number`` grows with each issue of a shard; serve it until ``next_update``;
- ``read_ocsp_request``, ``OcspQuery.is_for(authority)``, then ``build_ocsp_answer``; ``refuse_ocsp`` for
  what cannot be answered.

The CA signs both itself. Building signs once: call it off the event loop when ``authority.signer.is_remote``.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from eastwest.errors import InvalidInput
from eastwest.pki.chain import UntrustedChain
from eastwest.pki.hierarchy import Authority
from eastwest.pki.lent import lend
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.pki.signer import HASHES, SubjectKey
from eastwest.pki.template import issuer_key_identifier

SHARD = timedelta(days=7)
CRL_LIFETIME = timedelta(hours=24)
OCSP_LIFETIME = timedelta(hours=1)
MAX_CRL_BYTES = 8 * 1024 * 1024
MAX_OCSP_REQUEST_BYTES = 4096
MAX_NONCE_BYTES = 128
"""RFC 9654, 2.1."""


class Reason(enum.StrEnum):
    """Why a certificate is revoked (RFC 5280, 5.3.1)."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "key-compromise"
    AFFILIATION_CHANGED = "affiliation-changed"
    SUPERSEDED = "superseded"
    CESSATION = "cessation-of-operation"
    PRIVILEGE_WITHDRAWN = "privilege-withdrawn"


@dataclass(frozen=True, slots=True)
class Revoked:
    """One revoked certificate of one CA."""

    serial: int
    revoked_at: datetime
    reason: Reason = Reason.UNSPECIFIED


class InvalidRevocationUrl(InvalidInput):
    """The address of CRLs and OCSP cannot be put into certificates."""


@dataclass(frozen=True, slots=True)
class RevocationUrls:
    """Where CRLs and OCSP answers are fetched; ``base`` has no slash at its end. Raises ``InvalidRevocationUrl``."""

    base: str

    def __post_init__(self) -> None:
        if not _BASE_URL.fullmatch(self.base):
            raise InvalidRevocationUrl(
                f"{self.base[:80]!r} cannot be the base of revocation addresses",
                fix="use http://host[:port][/path] without a slash at the end; what is fetched is signed by itself",
            )

    @property
    def ocsp(self) -> str:
        """Where OCSP requests go."""
        return f"{self.base}/ocsp"

    def crl(self, ca_key_id: str, shard: str) -> str:
        """Where the CRL of one CA (its ``Authority.key_id``) and one shard is."""
        return f"{self.base}/crl/{ca_key_id}/{shard}.crl"


def shard_of(not_after: datetime) -> str:
    """The shard of certificates that end then: the first day of that week, as ``20260105``."""
    whole = (not_after - _EPOCH) // SHARD
    return f"{_EPOCH + whole * SHARD:%Y%m%d}"


def shard_end(shard: str) -> datetime:
    """When the last certificate of a shard has ended, so that its CRL may go. Raises ``InvalidInput``."""
    try:
        start = datetime.strptime(shard, "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        raise InvalidInput(f"{shard[:40]!r} is not a CRL shard") from None
    if shard_of(start) != shard:
        raise InvalidInput(f"{shard[:40]!r} is not a CRL shard")
    return start + SHARD


def build_crl(
    authority: Authority,
    shard: str,
    revoked: Iterable[Revoked],
    number: int,
    now: datetime,
    urls: RevocationUrls,
    lifetime: timedelta = CRL_LIFETIME,
) -> bytes:
    """One shard's CRL in DER, signed by ``authority``; ``number`` must grow from issue to issue (RFC 5280, 5.2.3)."""
    shard_end(shard)
    now = now.replace(microsecond=0)
    place = x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier(urls.crl(authority.key_id, shard))],
        relative_name=None,
        only_contains_user_certs=True,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now)
        .next_update(now + lifetime)
        .add_extension(issuer_key_identifier(authority.certificate), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(place, critical=True)
    )
    for each in sorted(revoked, key=lambda item: item.serial):
        builder = builder.add_revoked_certificate(_revoked_certificate(each))
    signer = authority.signer
    # None for the algorithms that hash by themselves.
    crl = builder.sign(lend(signer), HASHES.get(signer.algorithm))  # type: ignore[arg-type]
    return crl.public_bytes(Encoding.DER)


@dataclass(frozen=True, slots=True)
class Crl:
    """A verified CRL: ``url`` is the address it says it is for (empty if none), ``revoked`` is by serial number."""

    number: int
    url: str
    this_update: datetime
    next_update: datetime
    revoked: Mapping[int, Revoked] = field(repr=False)


def parse_crl(der: bytes, issuer: x509.Certificate, now: datetime) -> Crl:
    """Read a CRL of ``issuer`` and check its signature and its time; the caller compares ``url``.

    Raises ``InvalidInput`` for bytes that are no such CRL, and ``UntrustedChain`` when it is not by ``issuer``, is not
    yet or no more in force, or has a critical extension that is not understood.
    """
    if len(der) > MAX_CRL_BYTES:
        raise InvalidInput(f"a CRL is larger than {MAX_CRL_BYTES} bytes")
    try:
        crl = x509.load_der_x509_crl(der)
        extensions = crl.extensions
        # A CA key of any type that the library reads.
        key: Any = issuer.public_key()
        genuine = crl.issuer == issuer.subject and crl.is_signature_valid(key)
        revoked = {each.serial_number: _read_revoked(each) for each in crl}
    except PARSE_ERRORS:
        raise InvalidInput("the bytes are not a CRL in DER") from None
    if not genuine:
        raise UntrustedChain("the CRL is not signed by the CA")
    for extension in extensions:
        if extension.critical and not isinstance(extension.value, x509.IssuingDistributionPoint):
            raise UntrustedChain(f"the CRL's critical extension {extension.oid.dotted_string} is not understood")
    end = crl.next_update_utc
    if end is None or not crl.last_update_utc <= now <= end:
        raise UntrustedChain("the CRL is not in force now", fix="fetch the current one, and compare the clocks")
    return Crl(_crl_number(extensions), _crl_url(extensions), crl.last_update_utc, end, revoked)


class OcspRefusal(enum.Enum):
    """Why an OCSP request gets no signed answer (RFC 6960, 2.3)."""

    MALFORMED = ocsp.OCSPResponseStatus.MALFORMED_REQUEST
    INTERNAL = ocsp.OCSPResponseStatus.INTERNAL_ERROR
    TRY_LATER = ocsp.OCSPResponseStatus.TRY_LATER
    UNAUTHORIZED = ocsp.OCSPResponseStatus.UNAUTHORIZED


@dataclass(frozen=True, slots=True)
class OcspQuery:
    """What one OCSP request asks: the state of ``serial`` of the CA with these digests; ``nonce`` is to be repeated."""

    serial: int
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    algorithm: hashes.HashAlgorithm
    nonce: bytes | None

    def is_for(self, authority: Authority) -> bool:
        """Whether it asks about a certificate of this CA."""
        name = hashlib.new(self.algorithm.name, authority.certificate.subject.public_bytes()).digest()
        key = hashlib.new(self.algorithm.name, SubjectKey.of(authority.signer.public_key).bits).digest()
        return (name, key) == (self.issuer_name_hash, self.issuer_key_hash)


def read_ocsp_request(der: bytes) -> OcspQuery:
    """Read a request for one certificate; raise ``InvalidInput`` (answer ``OcspRefusal.MALFORMED``)."""
    if len(der) > MAX_OCSP_REQUEST_BYTES:
        raise InvalidInput(f"an OCSP request is larger than {MAX_OCSP_REQUEST_BYTES} bytes")
    try:
        request = ocsp.load_der_ocsp_request(der)
        algorithm = request.hash_algorithm
        query = OcspQuery(
            request.serial_number, request.issuer_name_hash, request.issuer_key_hash, algorithm, _nonce(request)
        )
    except _REQUEST_ERRORS:
        raise InvalidInput("the bytes are not an OCSP request for one certificate") from None
    if algorithm.name not in _OCSP_HASHES:
        raise InvalidInput("the OCSP request uses an unusual hash", fix="use SHA-1 or SHA-256")
    if query.nonce is not None and not 1 <= len(query.nonce) <= MAX_NONCE_BYTES:
        raise InvalidInput(f"an OCSP nonce has 1 to {MAX_NONCE_BYTES} bytes")
    return query


def build_ocsp_answer(
    query: OcspQuery,
    authority: Authority,
    state: Revoked | None,
    now: datetime,
    lifetime: timedelta = OCSP_LIFETIME,
    *,
    known: bool = True,
) -> bytes:
    """A signed answer in DER: revoked as ``state`` says, good when that is None, unknown when not ``known``.

    ``known`` is whether this CA has issued the serial. The caller has asked ``query.is_for(authority)``.
    """
    now = now.replace(microsecond=0)
    revoked = state if known else None
    status = ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD
    if not known:
        status = ocsp.OCSPCertStatus.UNKNOWN
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response_by_hash(
            issuer_name_hash=query.issuer_name_hash,
            issuer_key_hash=query.issuer_key_hash,
            serial_number=query.serial,
            algorithm=query.algorithm,
            cert_status=status,
            this_update=now,
            next_update=now + lifetime,
            revocation_time=revoked.revoked_at.replace(microsecond=0) if revoked else None,
            revocation_reason=_reason_flag(revoked.reason) if revoked else None,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, authority.certificate)
    )
    if query.nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(query.nonce), critical=False)
    signer = authority.signer
    # The hash is None for the algorithms that hash by themselves.
    answer = builder.sign(lend(signer), HASHES.get(signer.algorithm))
    return answer.public_bytes(Encoding.DER)


def refuse_ocsp(refusal: OcspRefusal) -> bytes:
    """An unsigned answer in DER."""
    return ocsp.OCSPResponseBuilder.build_unsuccessful(refusal.value).public_bytes(Encoding.DER)


def _revoked_certificate(each: Revoked) -> x509.RevokedCertificate:
    builder = (
        x509.RevokedCertificateBuilder()
        .serial_number(each.serial)
        .revocation_date(each.revoked_at.replace(microsecond=0))
    )
    flag = _reason_flag(each.reason)
    if flag is not None:
        builder = builder.add_extension(x509.CRLReason(flag), critical=False)
    return builder.build()


def _read_revoked(entry: x509.RevokedCertificate) -> Revoked:
    reason = Reason.UNSPECIFIED
    for extension in entry.extensions:
        if isinstance(extension.value, x509.CRLReason):
            reason = _REASONS.get(extension.value.reason, Reason.UNSPECIFIED)
        elif extension.critical:
            raise ValueError("an entry has a critical extension")  # such as one of an indirect CRL
    return Revoked(entry.serial_number, entry.revocation_date_utc, reason)


def _reason_flag(reason: Reason) -> x509.ReasonFlags | None:
    # RFC 5280, 5.3.1: unspecified is said by saying nothing.
    return next((flag for flag, known in _REASONS.items() if known is reason), None)


def _crl_number(extensions: x509.Extensions) -> int:
    try:
        return extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _crl_url(extensions: x509.Extensions) -> str:
    try:
        names = extensions.get_extension_for_class(x509.IssuingDistributionPoint).value.full_name or []
    except x509.ExtensionNotFound:
        return ""
    return next((name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)), "")


def _nonce(request: ocsp.OCSPRequest) -> bytes | None:
    try:
        return request.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound:
        return None


# A Monday, so that shards are calendar weeks.
_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
_BASE_URL = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]{1,253}(/[A-Za-z0-9._~-]{1,100}){0,8}")
# The library reads no request for several certificates.
_REQUEST_ERRORS: tuple[type[Exception], ...] = (*PARSE_ERRORS, NotImplementedError)
_OCSP_HASHES = frozenset({"sha1", "sha256"})
_REASONS = {
    x509.ReasonFlags.key_compromise: Reason.KEY_COMPROMISE,
    x509.ReasonFlags.affiliation_changed: Reason.AFFILIATION_CHANGED,
    x509.ReasonFlags.superseded: Reason.SUPERSEDED,
    x509.ReasonFlags.cessation_of_operation: Reason.CESSATION,
    x509.ReasonFlags.privilege_withdrawn: Reason.PRIVILEGE_WITHDRAWN,
}
