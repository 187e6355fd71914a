"""Why a TLS handshake failed, from the proxy's text to a short stable cause.

The peer's name in such a case comes from a certificate nobody verified: it is a claim, to be shown as one.
"""

from __future__ import annotations

from dataclasses import dataclass

from eastwest.policy.enforcement import DecisionCode

MAX_OTHER = 120


@dataclass(frozen=True, slots=True)
class Cause:
    """A stable code and a stable name of the cause; ``other:`` leads the proxy's text where it is a new one."""

    code: DecisionCode
    name: str

    @property
    def plaintext(self) -> bool:
        """Whether the peer did not try TLS at all."""
        return self.name == _NOT_TLS


_NOT_TLS = "not_tls"
# The first text found wins, so the narrow ones come first.
_CAUSES = (
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", DecisionCode.MTLS_REQUIRED, "no_certificate"),
    ("HTTP_REQUEST", DecisionCode.MTLS_REQUIRED, _NOT_TLS),
    ("WRONG_VERSION_NUMBER", DecisionCode.MTLS_REQUIRED, _NOT_TLS),
    ("UNSUPPORTED_PROTOCOL", DecisionCode.MTLS_REQUIRED, "tls_version"),
    ("EXCESSIVE_MESSAGE_SIZE", DecisionCode.MTLS_REQUIRED, _NOT_TLS),
    ("certificate_has_expired", DecisionCode.CERTIFICATE_REFUSED, "expired"),
    ("certificate_is_not_yet_valid", DecisionCode.CERTIFICATE_REFUSED, "not_yet_valid"),
    ("certificate_signature_failure", DecisionCode.CERTIFICATE_REFUSED, "unknown_authority"),
    ("unable_to_get_local_issuer_certificate", DecisionCode.CERTIFICATE_REFUSED, "unknown_authority"),
    ("self_signed_certificate", DecisionCode.CERTIFICATE_REFUSED, "unknown_authority"),
    ("no_trust_bundle_store", DecisionCode.CERTIFICATE_REFUSED, "unknown_trust_domain"),
    ("certificate_revoked", DecisionCode.CERTIFICATE_REFUSED, "revoked"),
    ("SAN_match", DecisionCode.CERTIFICATE_REFUSED, "wrong_identity"),
    ("cert_precheck", DecisionCode.CERTIFICATE_REFUSED, "not_a_leaf"),
    ("unsupported_certificate_purpose", DecisionCode.CERTIFICATE_REFUSED, "wrong_purpose"),
    ("CERTIFICATE_VERIFY_FAILED", DecisionCode.CERTIFICATE_REFUSED, "not_verified"),
)


def cause_of(reason: str, *, certificate: bool) -> Cause:
    """The cause behind a transport failure; ``certificate``: whether the peer had shown one."""
    reason = reason.replace(" ", "_")  # the proxy writes spaces over gRPC and underscores into files
    for text, code, name in _CAUSES:
        if text in reason:
            return Cause(code, name)
    code = DecisionCode.CERTIFICATE_REFUSED if certificate else DecisionCode.MTLS_REQUIRED
    return Cause(code, f"other:{reason[:MAX_OTHER]}")
