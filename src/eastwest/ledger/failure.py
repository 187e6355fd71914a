"""Failures of identity as classes of reliability events: what kind, why, and what mends it.

A class follows from a row's ``code`` and ``cause`` alone, so rows that were stored before have theirs too.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from eastwest.ledger.record import Decision
from eastwest.policy.enforcement import DecisionCode
from eastwest.policy.failures import FailureClass

_UNKNOWN = "unknown_authority"
_OF_CAUSE = {
    "no_certificate": FailureClass.NO_CERTIFICATE,
    "not_tls": FailureClass.NO_CERTIFICATE,
    "tls_version": FailureClass.NO_CERTIFICATE,
    "expired": FailureClass.EXPIRED,
    "alert_certificate_expired": FailureClass.EXPIRED,
    "not_yet_valid": FailureClass.NOT_YET_VALID,
    _UNKNOWN: FailureClass.UNKNOWN_AUTHORITY,
    "not_verified": FailureClass.UNKNOWN_AUTHORITY,
    "alert_certificate_unknown": FailureClass.UNKNOWN_AUTHORITY,
    "alert_bad_certificate": FailureClass.UNKNOWN_AUTHORITY,
    "alert_unreadable": FailureClass.UNKNOWN_AUTHORITY,
    "unknown_trust_domain": FailureClass.WRONG_TRUST_DOMAIN,
    "no_spiffe_id": FailureClass.MALFORMED_SAN,
    "several_ids": FailureClass.MALFORMED_SAN,
    "malformed_san": FailureClass.MALFORMED_SAN,
    "not_a_leaf": FailureClass.MALFORMED_SAN,
    "wrong_purpose": FailureClass.MALFORMED_SAN,
    "alert_unsupported_certificate": FailureClass.MALFORMED_SAN,
    "revoked": FailureClass.REVOKED,
    "alert_certificate_revoked": FailureClass.REVOKED,
    "contained": FailureClass.CONTAINED,
    "authority_left": FailureClass.STALE_BUNDLE,
    "alert_unknown_ca": FailureClass.STALE_BUNDLE,
    "wrong_identity": FailureClass.POLICY,
    "alert_access_denied": FailureClass.POLICY,
}
CAUSES = tuple(_OF_CAUSE)
"""Names of causes that have a class of their own, whatever the code."""
_OF_CODE = {
    DecisionCode.MTLS_REQUIRED: FailureClass.NO_CERTIFICATE,
    DecisionCode.CERTIFICATE_REFUSED: FailureClass.UNKNOWN_AUTHORITY,
    DecisionCode.SERVER_REFUSED: FailureClass.UNKNOWN_AUTHORITY,
    DecisionCode.CALLER_CONTAINED: FailureClass.CONTAINED,
    DecisionCode.TOKEN_CONTAINED: FailureClass.CONTAINED,
    DecisionCode.IDENTITY_CONTAINED: FailureClass.CONTAINED,
}


def class_of(decision: Decision, ours: Container[str] = ()) -> FailureClass | None:
    """The class of a decision; None for one that allowed. ``ours`` as in ``classify``."""
    return classify(decision.code, decision.cause, ours)


def classify(code: str, cause: str, ours: Container[str] = ()) -> FailureClass | None:
    """The class of a row with this code and cause; None for one that allowed.

    ``ours``: key identifiers (hex) of authorities that this trust domain has or had. An enforcement point that does
    not know such a one has an old bundle, which by itself it cannot know.
    """
    if code == DecisionCode.ALLOWED:
        return None
    name, _, detail = cause.partition(":")
    if name == _UNKNOWN and detail and detail in ours:
        return FailureClass.STALE_BUNDLE
    found = _OF_CAUSE.get(name)
    if found is not None:
        return found
    return _OF_CODE.get(DecisionCode(code), FailureClass.POLICY)


@dataclass(frozen=True, slots=True)
class Advice:
    """What happened, and what mends it, a sentence each."""

    what: str
    fix: str


def advice(kind: FailureClass, code: str, cause: str) -> Advice:
    """What to tell people about failures of one class with this code and cause."""
    name = cause.partition(":")[0]
    found = _SPECIAL.get(name)
    if found is None or classify(code, cause) is not kind:
        found = _ADVICE[kind]
    if code == DecisionCode.SERVER_REFUSED and name in _OF_A_SERVER:
        return _OF_A_SERVER[name]
    if code == DecisionCode.SERVER_REFUSED and not name.startswith("alert_"):
        return Advice(f"the caller's sidecar refused the service: {found.what}", f"on the service's side: {found.fix}")
    return found


_ADVICE = {
    FailureClass.NO_CERTIFICATE: Advice(
        "the peer showed no certificate",
        "send the call through a sidecar or the SDK; while callers move over, the service's mtls may be permissive",
    ),
    FailureClass.EXPIRED: Advice(
        "the certificate has ended",
        "see why the peer's agent does not renew: `eastwest agent check` there, and that it reaches the server",
    ),
    FailureClass.NOT_YET_VALID: Advice(
        "the certificate begins in the future: the clocks differ",
        "set the clocks of both nodes by NTP; the later one is likely wrong",
    ),
    FailureClass.UNKNOWN_AUTHORITY: Advice(
        "the certificate was signed by no authority that is trusted here",
        "find out who made it: a forged or foreign certificate, or a workload outside of the estate",
    ),
    FailureClass.WRONG_TRUST_DOMAIN: Advice(
        "the certificate is of a trust domain that is not admitted here",
        "if it should be, federate with it and let a policy permit its workloads",
    ),
    FailureClass.MALFORMED_SAN: Advice(
        "the certificate is no X.509-SVID: it must have exactly one URI name, a SPIFFE ID with a path, and be no CA's",
        "get a certificate from an agent or by `eastwest certificate`; correct the tool that made this one",
    ),
    FailureClass.REVOKED: Advice(
        "the certificate was revoked", "if that was right, take the device out of service; else issue it a new one"
    ),
    FailureClass.CONTAINED: Advice("the identity is cut off", "see who contained it and why before it is let in again"),
    FailureClass.STALE_BUNDLE: Advice(
        "one side has an old trust bundle: an authority was replaced, and not both know it",
        "connect the agents of both nodes to the server again (`eastwest ca status` tells who is behind)",
    ),
    FailureClass.POLICY: Advice(
        "the caller proved who it is, and may not",
        "see `eastwest explain REFERENCE`; permit it by a policy if it should",
    ),
}
_OF_A_SERVER = {
    _UNKNOWN: Advice(
        "the caller's sidecar knows no authority that signed the service's certificate",
        "look whether both agents reach the server (one trust bundle may be old); else somebody else listens there",
    ),
    "unknown_trust_domain": Advice(
        "the service's certificate is not of the trust domain that the caller expects, or has no SPIFFE ID",
        "correct the service's endpoints in the estate, or what listens there",
    ),
}
_SPECIAL = {
    "not_tls": Advice("the peer spoke plaintext", _ADVICE[FailureClass.NO_CERTIFICATE].fix),
    "tls_version": Advice(
        "the peer does not speak TLS 1.3", "renew the peer's TLS library, or put a sidecar before it"
    ),
    "not_a_leaf": Advice("the certificate is a CA's, or lacks the key usage of a leaf", "show a leaf"),
    "authority_left": Advice(
        "the peer's certificate was signed by an authority that was replaced and is trusted no more",
        "let the peer's agent reach the server, so that it renews",
    ),
    "wrong_identity": Advice(
        "the service proved to be somebody else than the estate says",
        "correct the service's endpoints or its workload in the estate",
    ),
    "alert_unknown_ca": Advice(
        "the caller refused our certificate: it does not know our authority",
        "give the caller the present trust bundle",
    ),
    "alert_certificate_expired": Advice(
        "the caller refused our certificate: it has ended by the caller's clock",
        "see why this node's agent does not renew, and the clock of the caller",
    ),
    "alert_unreadable": Advice(
        "the caller broke the handshake off, most likely because it refuses our certificate",
        "see the caller's log; give it the present trust bundle",
    ),
    "alert_certificate_unknown": Advice(
        "the caller refused our certificate and did not say why",
        "see the caller's own rows (`eastwest failures` with its edge), or its log",
    ),
}
