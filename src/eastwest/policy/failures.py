"""Classes of identity failure: the vocabulary that SLO objects of the estate and the ledger share."""

from __future__ import annotations

import enum


class FailureClass(enum.StrEnum):
    """Kinds of failure: stable names that dashboards, alerts and SLO objects may rely on."""

    NO_CERTIFICATE = "no_certificate"  # plaintext, an old TLS, or TLS without a certificate
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"  # a clock is wrong
    UNKNOWN_AUTHORITY = "unknown_authority"  # signed by nobody who is trusted
    WRONG_TRUST_DOMAIN = "wrong_trust_domain"  # of a trust domain that is not admitted
    MALFORMED_SAN = "malformed_san"  # no X.509-SVID: no SPIFFE ID, several, a misspelt one, or a CA's certificate
    REVOKED = "revoked"
    CONTAINED = "contained"  # an identity that was cut off
    STALE_BUNDLE = "stale_bundle"  # one side does not know the other's authority yet, or knows it no more
    POLICY = "policy"  # proved who it is, and may not


IDENTITY_CLASSES = tuple(kind for kind in FailureClass if kind is not FailureClass.POLICY)
"""Those that say the identity did not work; a policy that denies does what it should."""

PROVEN_CLASSES = frozenset(
    {
        FailureClass.EXPIRED,
        FailureClass.NOT_YET_VALID,
        FailureClass.REVOKED,
        FailureClass.CONTAINED,
        FailureClass.STALE_BUNDLE,
        FailureClass.POLICY,
    }
)
"""Those in which the name on the certificate was signed by an authority that is or was trusted: nobody made it up."""
