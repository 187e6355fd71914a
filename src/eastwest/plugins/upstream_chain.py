"""What an upstream authority answered, put in order and checked before anything relies on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from eastwest.errors import FailedPrecondition
from eastwest.pki.ca import read_ca_csr
from eastwest.pki.chain import UntrustedChain, build_path, check_ca
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.pki.signer import PublicKey
from eastwest.pki.upstream import CaRequest, MintedCa

MAX_CERTIFICATES = 100


class UnfitAnswer(FailedPrecondition):
    """An upstream authority signed something that cannot stand as the CA that was asked for."""


def minted(request: CaRequest, ca: bytes, others: Iterable[bytes], roots: Sequence[bytes], where: str) -> MintedCa:
    """The answer to ``request``: ``ca``, the way from it to a root out of ``others``, and the roots.

    ``others`` may be in any order and hold what is of no use; self-signed certificates in it count as roots only when
    ``roots`` is empty. All are DER. ``where`` names the authority in errors. Raises ``UnfitAnswer``.
    """
    pool = list(dict.fromkeys(others))
    if len(pool) > MAX_CERTIFICATES:
        raise UnfitAnswer(f"the authority answered with more than {MAX_CERTIFICATES} certificates", where=where)
    try:
        certificate = x509.load_der_x509_certificate(ca)
        loaded = [x509.load_der_x509_certificate(der) for der in pool]
        anchors = list(dict.fromkeys(roots)) or [der for der, c in zip(pool, loaded, strict=True) if is_self_signed(c)]
        # A root that is cross-signed may also be an intermediate; one that is trusted never needs to be sent.
        between = [c for der, c in zip(pool, loaded, strict=True) if der not in anchors and der != ca]
        chain = _chain(certificate, between, [x509.load_der_x509_certificate(der) for der in anchors])
        if certificate.public_key() != requested_key(request):
            raise UnfitAnswer("the authority certified another key than was asked", where=where)
        check_ca(certificate, request.trust_domain)
        path = build_path(chain, anchors, below=1)
    except PARSE_ERRORS:
        raise UnfitAnswer("the authority's answer holds what is no certificate", where=where) from None
    except UntrustedChain as error:
        raise UnfitAnswer(
            f"the authority's certificate cannot issue for {request.trust_domain}: {error.message}",
            where=where,
            fix="let it copy the request's URI name, and tell this server all its roots",
        ) from None
    used = set(path[:-1])
    return MintedCa(tuple(_der(c) for c in chain if c in used), tuple(anchors))


def requested_key(request: CaRequest) -> PublicKey:
    """The proven key of a request, checked before anything leaves this process. Raises ``InvalidCsr``."""
    return read_ca_csr(request.csr_der, request.trust_domain)


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Whether the certificate is a root: issued by itself, in name and in signature."""
    return certificate.subject == certificate.issuer and _issued(certificate, certificate)


def _chain(
    first: x509.Certificate, between: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    chain = [first]
    while not any(_issued(anchor, chain[-1]) for anchor in anchors):
        found = next((c for c in between if c not in chain and _issued(c, chain[-1])), None)
        if found is None:
            break
        chain.append(found)
    return chain


def _issued(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    try:
        subject.verify_directly_issued_by(issuer)
    except _NOT_ISSUED:
        return False
    return True


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


_NOT_ISSUED: tuple[type[Exception], ...] = (InvalidSignature, *PARSE_ERRORS)
