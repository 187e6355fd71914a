"""Why a TLS handshake failed, from the proxy's text and the certificate shown to a short stable cause.

The peer's name in such a case comes from a certificate nobody verified: it is a claim, to be shown as one. A cause is
a name, and may have a detail after a colon, which the peer may have chosen: ``unknown_authority:<key identifier>``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509

from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.policy.enforcement import DecisionCode
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId

MAX_OTHER = 120
_UNREADABLE: tuple[type[Exception], ...] = (x509.ExtensionNotFound, *PARSE_ERRORS)


@dataclass(frozen=True, slots=True)
class Cause:
    """A stable code and a stable name of the cause; ``other:`` leads the proxy's text where it is a new one."""

    code: DecisionCode
    name: str

    @property
    def plaintext(self) -> bool:
        """Whether the peer did not try TLS at all."""
        return self.name == _NOT_TLS


@dataclass(frozen=True, slots=True)
class Shown:
    """What the peer showed of itself: URI names as the proxy lists them, and its certificate (DER, or none)."""

    uris: tuple[str, ...] = ()
    certificate: bytes = b""

    @property
    def anything(self) -> bool:
        """Whether a certificate came at all."""
        return bool(self.uris or self.certificate)


def _never(_certificate: bytes) -> bool:
    return False


_NOT_TLS = "not_tls"
_UNKNOWN_AUTHORITY = "unknown_authority"
# The first text found wins, so the narrow ones come first.
_OF_THE_PEER = (
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", DecisionCode.MTLS_REQUIRED, "no_certificate"),
    ("HTTP_REQUEST", DecisionCode.MTLS_REQUIRED, _NOT_TLS),
    ("WRONG_VERSION_NUMBER", DecisionCode.MTLS_REQUIRED, _NOT_TLS),
    ("UNSUPPORTED_PROTOCOL", DecisionCode.MTLS_REQUIRED, "tls_version"),
    ("ALERT_PROTOCOL_VERSION", DecisionCode.MTLS_REQUIRED, "tls_version"),
    ("EXCESSIVE_MESSAGE_SIZE", DecisionCode.MTLS_REQUIRED, _NOT_TLS),
    ("certificate_has_expired", DecisionCode.CERTIFICATE_REFUSED, "expired"),
    ("certificate_is_not_yet_valid", DecisionCode.CERTIFICATE_REFUSED, "not_yet_valid"),
    ("certificate_signature_failure", DecisionCode.CERTIFICATE_REFUSED, _UNKNOWN_AUTHORITY),
    ("unable_to_get_local_issuer_certificate", DecisionCode.CERTIFICATE_REFUSED, _UNKNOWN_AUTHORITY),
    ("unable_to_get_issuer_certificate", DecisionCode.CERTIFICATE_REFUSED, _UNKNOWN_AUTHORITY),
    ("unable_to_verify_the_first_certificate", DecisionCode.CERTIFICATE_REFUSED, _UNKNOWN_AUTHORITY),
    ("self_signed_certificate", DecisionCode.CERTIFICATE_REFUSED, _UNKNOWN_AUTHORITY),
    ("self-signed_certificate", DecisionCode.CERTIFICATE_REFUSED, _UNKNOWN_AUTHORITY),
    ("no_trust_bundle_store", DecisionCode.CERTIFICATE_REFUSED, "unknown_trust_domain"),
    ("certificate_revoked", DecisionCode.CERTIFICATE_REFUSED, "revoked"),
    ("SAN_match", DecisionCode.CERTIFICATE_REFUSED, "wrong_identity"),
    ("cert_precheck", DecisionCode.CERTIFICATE_REFUSED, "not_a_leaf"),
    ("KEY_USAGE_BIT_INCORRECT", DecisionCode.CERTIFICATE_REFUSED, "not_a_leaf"),
    ("unsupported_certificate_purpose", DecisionCode.CERTIFICATE_REFUSED, "wrong_purpose"),
    ("CERTIFICATE_VERIFY_FAILED", DecisionCode.CERTIFICATE_REFUSED, "not_verified"),
)
# TLS alerts (RFC 8446, section 6.2) that the peer sent because of the certificate on this side.
_OF_OURS = (
    ("ALERT_UNKNOWN_CA", "alert_unknown_ca"),
    ("ALERT_CERTIFICATE_EXPIRED", "alert_certificate_expired"),
    ("ALERT_CERTIFICATE_REVOKED", "alert_certificate_revoked"),
    ("ALERT_CERTIFICATE_UNKNOWN", "alert_certificate_unknown"),
    ("ALERT_BAD_CERTIFICATE", "alert_bad_certificate"),
    ("ALERT_UNSUPPORTED_CERTIFICATE", "alert_unsupported_certificate"),
    ("ALERT_ACCESS_DENIED", "alert_access_denied"),
    # OpenSSL clients do not encrypt the alert by which they refuse a TLS 1.3 server; it reads as a broken record.
    ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "alert_unreadable"),
)


def cause_of(reason: str, shown: Shown, left: Callable[[bytes], bool] = _never) -> Cause:
    """The cause behind a listener's transport failure.

    ``left(certificate)``: whether an authority signed it that was trusted here once and is no more.
    """
    reason = reason.replace(" ", "_")  # the proxy writes spaces over gRPC and underscores into files
    for text, name in _OF_OURS:
        if text in reason:
            return Cause(DecisionCode.SERVER_REFUSED, name)
    for text, code, name in _OF_THE_PEER:
        if text in reason:
            return Cause(code, _refined(name, shown, left))
    code = DecisionCode.CERTIFICATE_REFUSED if shown.anything else DecisionCode.MTLS_REQUIRED
    return Cause(code, f"other:{reason[:MAX_OTHER]}")


def server_cause_of(reason: str) -> Cause | None:
    """The cause for which a caller's own sidecar refused a service.

    None where the connection failed before or beside TLS, which says nothing about identity. The proxy does not keep
    what the service showed, so an old authority looks like an unknown one, and a certificate without a SPIFFE ID like
    one of an unknown trust domain.
    """
    if "TLS_error" not in reason.replace(" ", "_"):
        return None
    reason = reason.replace(" ", "_")
    name = next((name for text, _, name in _OF_THE_PEER if text in reason), "")
    return Cause(DecisionCode.SERVER_REFUSED, name or f"other:{reason[:MAX_OTHER]}")


def form_of(uris: tuple[str, ...]) -> str:
    """What is wrong with URI names as those of an X.509-SVID (SPIFFE X509-SVID, section 2); "": nothing."""
    if not uris:
        return "no_spiffe_id"
    if len(uris) > 1:
        return "several_ids"
    try:
        return "" if SpiffeId.parse(uris[0]).path else "malformed_san"
    except MalformedSpiffeId:
        return "malformed_san"


def _refined(name: str, shown: Shown, left: Callable[[bytes], bool]) -> str:
    """What the proxy has one text for and the certificate tells apart."""
    if name == "unknown_trust_domain":
        # The validator looks a bundle up by the first URI name, and says so too where that is none.
        return form_of(shown.uris) or name
    if name == _UNKNOWN_AUTHORITY and shown.certificate:
        if left(shown.certificate):
            return "authority_left"
        key_id = _issuer_key(shown.certificate)
        return f"{name}:{key_id}" if key_id else name
    return name


def _issuer_key(certificate: bytes) -> str:
    """The key identifier (hex) of who is said to have signed."""
    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        identifier = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except _UNREADABLE:
        return ""
    return identifier[:32].hex() if identifier else ""
