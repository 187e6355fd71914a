"""TLS where both sides are SPIFFE IDs: contexts, and changing trust under a listening port.

Python's ``ssl`` wants key and certificates as files and cannot forget a CA, so contexts are made anew at each
change and swapped; the key passes through an anonymous memory file, never through a disk.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from eastwest.errors import InvalidInput, Unauthenticated
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId

_UNREADABLE: tuple[type[Exception], ...] = (x509.ExtensionNotFound, MalformedSpiffeId, *PARSE_ERRORS)
_UNUSABLE: tuple[type[Exception], ...] = (ssl.SSLError, *PARSE_ERRORS)


def server_context(chain_pem: bytes, key_pem: bytes, roots: Sequence[bytes]) -> ssl.SSLContext:
    """For one server identity: asks for a client certificate, takes none as well, refuses a bad one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    _prepare(context, chain_pem, key_pem, roots)
    context.num_tickets = 0
    return context


def mutual_context(chain_pem: bytes, key_pem: bytes, roots: Sequence[bytes]) -> ssl.SSLContext:
    """For HTTPS, by HTTP/2 or 1.1, to callers that prove who they are: TLS 1.3, and a client certificate or nothing."""
    context = server_context(chain_pem, key_pem, roots)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def web_context(chain_pem: bytes, key_pem: bytes, *, where: str = "") -> ssl.SSLContext:
    """For HTTPS to callers that prove nothing: no client certificate is asked for.

    Raises ``InvalidInput`` with ``where`` unless the two are a certificate chain and its unencrypted key in PEM.
    """
    try:
        # Looked at first: OpenSSL would ask on the terminal for the password of an encrypted key.
        load_pem_private_key(key_pem, None)
        x509.load_pem_x509_certificates(chain_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _harden(context, "http/1.1")
        _load_identity(context, chain_pem, key_pem)
    except _UNUSABLE:
        raise InvalidInput(
            "not a certificate chain and its key in PEM",
            where=where,
            fix="give a leaf certificate with its intermediates, and the unencrypted key that belongs to it",
        ) from None
    context.num_tickets = 0
    return context


class SwappableContext:
    """A listening context whose certificate and trust can change between handshakes.

    Open connections keep what they had. The SNI callback runs for every handshake, with or without a name.
    """

    def __init__(self, current: ssl.SSLContext) -> None:
        self.current = current
        self.listening = current

        def choose(sock: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
            sock.context = self.current

        current.sni_callback = choose

    def swap(self, context: ssl.SSLContext) -> None:
        """Use ``context`` from the next handshake on."""
        self.current = context


def client_context(
    roots: Sequence[bytes], chain_pem: bytes | None = None, key_pem: bytes | None = None
) -> ssl.SSLContext:
    """For calling a server that chains to ``roots`` (DER); with a client certificate where one is given.

    The host name is not checked: ``expect_server`` checks the SPIFFE ID after the handshake.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    _prepare(context, chain_pem, key_pem, roots)
    return context


def expect_server(expected: SpiffeId) -> Callable[[bytes | None], None]:
    """A check of the peer's certificate: it must be an X.509-SVID of ``expected``."""

    def check(certificate: bytes | None) -> None:
        found = certificate_id(certificate) if certificate is not None else None
        if found != expected:
            raise Unauthenticated(f"the server proved to be {found or 'nobody'}, not {expected}")

    return check


def certificate_id(der: bytes) -> SpiffeId | None:
    """The one SPIFFE ID of a certificate that TLS has verified, or None when there is not exactly one URI SAN."""
    try:
        names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
        return SpiffeId.parse(uris[0]) if len(uris) == 1 else None
    except _UNREADABLE:
        return None


def _prepare(context: ssl.SSLContext, chain_pem: bytes | None, key_pem: bytes | None, roots: Sequence[bytes]) -> None:
    _harden(context, "h2")
    pem = b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in roots)
    if pem:
        context.load_verify_locations(cadata=pem.decode())
    if chain_pem is not None and key_pem is not None:
        _load_identity(context, chain_pem, key_pem)


def _harden(context: ssl.SSLContext, protocol: str) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def _load_identity(context: ssl.SSLContext, chain_pem: bytes, key_pem: bytes) -> None:
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, key_pem + b"\n" + chain_pem)
        os.lseek(descriptor, 0, os.SEEK_SET)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
