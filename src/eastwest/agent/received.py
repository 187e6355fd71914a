"""Checking what the server sends before anything is done with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from eastwest import errors
from eastwest.pki.chain import Expired, InvalidSvid, NotYetValid, verify_chain
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import SpiffeId
from eastwest.spiffe.svid import X509Svid

MAX_SKEW = timedelta(minutes=1)


class BadSvid(errors.Unavailable):
    """The server answered with a certificate that is not what was asked for."""


class ClockSkew(errors.FailedPrecondition):
    """Our clock and the server's are more than a minute apart."""


def check_clock(ours: datetime, theirs: datetime) -> None:
    """Raise ``ClockSkew`` when the two clocks are more than ``MAX_SKEW`` apart."""
    behind = theirs - ours
    if abs(behind) > MAX_SKEW:
        direction = "behind" if behind > timedelta(0) else "ahead of"
        raise ClockSkew(
            f"clock skew: this machine's clock is {abs(behind.total_seconds()):.0f} s {direction} the server's",
            fix="set both clocks by NTP and start the agent again; nothing is lost",
        )


def check_svid(
    chain: Sequence[bytes], spki: bytes, expected: SpiffeId | None, bundle: Bundle, now: datetime
) -> X509Svid:
    """The SVID in ``chain``, if it is for our key and ``expected`` (None: whatever it says) and chains to ``bundle``.

    Raises ``BadSvid`` otherwise, or ``ClockSkew`` when it is right but for its times.
    """
    roots = [authority.der for authority in bundle.x509_authorities]
    try:
        svid = verify_chain(chain, roots, now, bundle.trust_domain)
    except (NotYetValid, Expired) as error:
        raise ClockSkew(f"clock skew: {error.message}", fix="set both clocks by NTP; nothing is lost") from None
    except InvalidSvid as error:
        raise BadSvid(f"the server sent a certificate that proves nothing: {error.message}") from None
    key = x509.load_der_x509_certificate(chain[0]).public_key()
    if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
        raise BadSvid("the server certified another key than ours")
    if expected is not None and svid.id != expected:
        raise BadSvid(f"the server certified {svid.id}, not {expected}")
    # What leads to other roots as well is served along: a verifier may know only one of them.
    sent = tuple(der for der in chain if der not in roots)
    return replace(svid, chain=sent)
