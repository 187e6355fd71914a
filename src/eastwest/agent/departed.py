"""Authorities that this node trusted once: so that a peer with an old certificate is told from a forger."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.spiffe.bundle import Bundle

MAX_AUTHORITIES = 256
"""Certificates that are remembered; the oldest go first."""
_DER = Encoding.DER
_UNREADABLE: tuple[type[Exception], ...] = (x509.ExtensionNotFound, *PARSE_ERRORS)
_REFUSED: tuple[type[Exception], ...] = (InvalidSignature, *_UNREADABLE)


class Departed:
    """Remembers, until the agent ends, the roots it was given and the issuing CAs that its own SVIDs came from."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, x509.Certificate] = OrderedDict()  # by subject key identifier
        self._ders: set[bytes] = set()
        self._trusted: frozenset[bytes] = frozenset()

    def learn(self, bundles: Iterable[Bundle], chains: Iterable[Sequence[bytes]] = ()) -> None:
        """Take what is trusted now, and chains (DER, leaf first) of SVIDs held."""
        roots = [root.der for bundle in bundles for root in bundle.x509_authorities]
        for der in (*roots, *{der for chain in chains for der in chain[1:]}):
            if der not in self._ders:
                self._remember(der)
        self._trusted = frozenset(roots)

    def left(self, certificate: bytes) -> bool:
        """Whether a certificate was signed below a root that was trusted here and is no more.

        The signature counts, not the name: a forger knows names too.
        """
        try:
            leaf = x509.load_der_x509_certificate(certificate)
        except PARSE_ERRORS:
            return False
        issuer = self._issuer_of(leaf)
        for _ in range(8):  # no honest chain is longer
            if issuer is None:
                return False
            above = self._issuer_of(issuer)
            if above is None or above == issuer:
                return issuer.public_bytes(_DER) not in self._trusted
            issuer = above
        return False

    def _issuer_of(self, certificate: x509.Certificate) -> x509.Certificate | None:
        try:
            extensions = certificate.extensions
            key_id = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
            issuer = self._seen.get(key_id or b"")
            if issuer is not None:
                certificate.verify_directly_issued_by(issuer)
        except _REFUSED:
            return None
        return issuer

    def _remember(self, der: bytes) -> None:
        try:
            certificate = x509.load_der_x509_certificate(der)
            key_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        except _UNREADABLE:
            return  # of a kind that others may know
        self._seen[key_id] = certificate
        self._ders.add(der)
        while len(self._seen) > MAX_AUTHORITIES:
            _, oldest = self._seen.popitem(last=False)
            self._ders.discard(oldest.public_bytes(_DER))
