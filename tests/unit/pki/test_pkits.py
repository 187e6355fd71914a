"""NIST's Public Key Interoperability Test Suite against the path rules of ``eastwest.pki.chain``.

The files come with ``cryptography-vectors``. Every end-entity certificate of the suite is either judged here, on every
chain that its issuers' names allow, or listed in ``NOT_APPLICABLE`` with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography import x509

from eastwest.errors import Error
from eastwest.pki.chain import MAX_CHAIN, load_certificate, verify_path

CERTIFICATES = Path(cryptography_vectors.__file__).parent / "x509" / "PKITS_data" / "certs"
NOW = datetime(2026, 1, 5, tzinfo=UTC)

NOT_APPLICABLE = {
    r"DSA": "DSA keys are refused everywhere",
    r"NameChaining(Whitespace|Capitalization)|UTF8String(Encoded|CaseInsensitive)|RolloverfromPrintable": (
        "issuer and subject are compared byte by byte, as all certificates of ours repeat them; the valid ones are "
        "refused, which is the safe side"
    ),
    r"[Cc]RL|Revoked|IDP|[Dd]istributionPoint|onlyContains|onlySomeReasons": (
        "verifiers of SVIDs read no CRLs (nor does Envoy's SPIFFE validator); a revoked identity is contained by policy"
    ),
    r"InvalidBasicSelfIssued(NewWithOld|OldWithNew)": "invalid by their CRL alone",
    r"(Invalid(Long|Negative)|ValidNegative)SerialNumber": (
        "the invalid ones differ by their CRL alone; a negative serial number is refused when it is read"
    ),
    r"[pP]olicy|Policies|UserNotice|CPSPointer": "certificate policies have no part in an X.509-SVID",
}


def _applicable(name: str) -> bool:
    return not any(re.search(pattern, name) for pattern in NOT_APPLICABLE)


NAMES = sorted(path.name.removesuffix("EE.crt") for path in CERTIFICATES.glob("*EE.crt"))
JUDGED = [name for name in NAMES if _applicable(name)]


@pytest.fixture(scope="module")
def issuers() -> dict[bytes, list[x509.Certificate]]:
    """The CA certificates of the suite by subject."""
    found: dict[bytes, list[x509.Certificate]] = {}
    for path in CERTIFICATES.glob("*.crt"):
        if not path.name.endswith("EE.crt"):
            try:
                certificate = x509.load_der_x509_certificate(path.read_bytes())
            except ValueError:
                assert "DSA" in path.name  # parameters that are left out
                continue
            found.setdefault(certificate.subject.public_bytes(), []).append(certificate)
    return found


def _chains(
    chain: list[x509.Certificate], issuers: dict[bytes, list[x509.Certificate]]
) -> Iterator[list[x509.Certificate]]:
    """Every chain that names allow, the longest included, so that the verifier is offered all there is."""
    yield chain
    if len(chain) < MAX_CHAIN:
        for issuer in issuers.get(chain[-1].issuer.public_bytes(), ()):
            if issuer not in chain:
                yield from _chains([*chain, issuer], issuers)


def _accepted(name: str, issuers: dict[bytes, list[x509.Certificate]]) -> bool:
    root = (CERTIFICATES / "TrustAnchorRootCertificate.crt").read_bytes()
    try:
        leaf = load_certificate((CERTIFICATES / f"{name}EE.crt").read_bytes())
    except Error:
        return False
    for chain in _chains([leaf], issuers):
        try:
            verify_path(chain, [root], NOW)
        except Error:
            continue
        return True
    return False


@pytest.mark.parametrize("name", JUDGED)
def test_the_verdict_is_that_of_the_suite(name, issuers):
    accepted = _accepted(name, issuers)
    assert accepted == name.startswith("Valid")


def test_each_section_that_applies_is_there():
    assert len(NAMES) > 200
    assert len(JUDGED) >= 80
    valid = [name for name in JUDGED if name.startswith("Valid")]
    invalid = [name for name in JUDGED if name.startswith("Invalid")]
    for part in (
        "Date",
        "pathLen",
        "keyUsage",
        "DNname",
        "RFC822",
        "DNSname",
        "URIname",
        "CriticalCertificateExtension",
    ):
        assert any(part in name for name in valid), part
        assert any(part in name for name in invalid), part
    for part in ("CASignature", "EESignature", "NameChaining", "MissingbasicConstraints", "cAFalse"):
        assert any(part in name for name in invalid), part


@pytest.mark.parametrize("pattern", NOT_APPLICABLE)
def test_each_exemption_is_needed(pattern):
    assert any(re.search(pattern, name) for name in NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("Invalid") and "DSA" in name])
def test_what_is_exempt_as_too_strict_is_refused(name, issuers):
    assert not _accepted(name, issuers)
