"""CA certificates for servers below this one (nested servers): bounded in depth and time by the CA that signs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509

from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.issuance.request import DownstreamRequest
from eastwest.pki.ca import DOWNSTREAM_CA, draft_ca, read_ca_csr
from eastwest.pki.hierarchy import Authority
from eastwest.pki.signer import CLASSICAL, SubjectKey
from eastwest.pki.template import wrap_signed

DEFAULT_LIFETIME = timedelta(hours=24)
MAX_LIFETIME = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class DownstreamCa:
    """An issued CA certificate: ``chain`` in DER, the new CA first; ``roots`` are what its leaves lead to."""

    chain: tuple[bytes, ...] = field(repr=False)
    roots: tuple[bytes, ...] = field(repr=False)
    serial: int
    key_id: str
    spki: bytes = field(repr=False)
    not_before: datetime
    not_after: datetime
    path_length: int

    @property
    def certificate(self) -> bytes:
        """The new CA certificate in DER."""
        return self.chain[0]


def draft_downstream(request: DownstreamRequest, authority: Authority, serial: int, now: datetime) -> bytes:
    """What ``authority`` has to sign.

    Raises ``InvalidCsr``, ``UnsupportedKey``, ``InvalidInput``, or ``FailedPrecondition`` for an unfit authority.
    The key may be of the signing CA's type or a classical one: a chain that peers can read now must stay readable.
    """
    if now >= authority.not_after:
        raise FailedPrecondition("the issuing CA has expired", fix="rotate the X.509 authority")
    if request.path_length < 0:
        raise InvalidInput("a path length is 0 or more")
    if request.ttl is not None and request.ttl < 0:
        raise InvalidInput(f"a lifetime of {request.ttl} s is not possible")
    allowed = CLASSICAL | {authority.signer.algorithm}
    # SPIRE's own client names nothing; what the certificate says is ours to say.
    key = read_ca_csr(request.csr_der, authority.trust_domain, allowed, nameless=True)
    limit = authority.path_length
    depth = request.path_length if limit is None else min(request.path_length, limit - 1)
    lifetime = min(timedelta(seconds=request.ttl) if request.ttl else DEFAULT_LIFETIME, MAX_LIFETIME)
    return draft_ca(
        key,
        authority.certificate,
        authority.signer,
        authority.trust_domain,
        serial,
        now,
        lifetime,
        path_length=depth,
        common_name=DOWNSTREAM_CA,
    )


def finish_downstream(draft: bytes, signature: bytes, authority: Authority) -> DownstreamCa:
    """The signed CA with its chain."""
    der = wrap_signed(draft, authority.signer.algorithm, signature)
    certificate = x509.load_der_x509_certificate(der)
    key = SubjectKey.of(certificate.public_key())
    depth = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    return DownstreamCa(
        chain=(der, *authority.chain),
        roots=authority.roots,
        serial=certificate.serial_number,
        key_id=key.identifier.hex(),
        spki=key.spki,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        path_length=depth or 0,
    )
