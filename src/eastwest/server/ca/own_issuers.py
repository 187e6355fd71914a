"""Which certificates this server signed itself, as opposed to a server below it or a root that is only trusted.

Both can make certificates for any SPIFFE ID of the trust domain and with any serial number. Peers trust them for that;
but who may call this server is told by ID and serial number, so here only its own signature makes a caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.pki.rotation.state import IssuingCa, State

_NO_PROOF: tuple[type[Exception], ...] = (*PARSE_ERRORS, InvalidSignature)


class OwnIssuers:
    """Judges certificates by the issuing CAs of the CA's state, former generations included until they are revoked."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def issuer(self, certificate: x509.Certificate) -> str | None:
        """The id of the one that signed it; None: none did."""
        signed = (ca.id for ca in _issuing(self._state()) if _signed(_loaded(ca.chain[0]), certificate))
        return next(signed, None)

    def is_current(self, issuer: str) -> bool:
        """Whether the one with this id has not been revoked since."""
        return any(ca.id == issuer for ca in _issuing(self._state()))


def _issuing(state: State) -> Iterable[IssuingCa]:
    return (ca for root in state.roots for ca in root.issuing)


@lru_cache(maxsize=1024)
def _loaded(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def _signed(ca: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except _NO_PROOF:
        return False
    return True
