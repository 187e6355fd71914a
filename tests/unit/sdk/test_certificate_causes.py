"""Why a certificate did not verify is told to the ledger by the same names as a sidecar's."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy_mesh import Ca

from eastwest.errors import Unauthenticated
from eastwest.ledger.failure import classify
from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.policy.failures import FailureClass
from eastwest.sdk.decide import Decision
from eastwest.sdk.peers import verify_peer
from eastwest.sdk.recording import refused_certificate, told
from eastwest.spiffe.id import TrustDomain

CA, WEB = Ca("td.test"), "spiffe://td.test/web"
SOON = timedelta(minutes=1)


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("identity", "after", "kind"),
    [
        (CA.identity(WEB, not_after=SOON), 2 * SOON, FailureClass.EXPIRED),
        (CA.identity(WEB), timedelta(hours=-12), FailureClass.NOT_YET_VALID),
        (Ca("td.test").identity(WEB), SOON, FailureClass.UNKNOWN_AUTHORITY),
        (CA.identity("spiffe://far.test/web"), SOON, FailureClass.WRONG_TRUST_DOMAIN),
        (CA.identity(WEB, "spiffe://td.test/two"), SOON, FailureClass.MALFORMED_SAN),
        (CA.identity("https://td.test/web"), SOON, FailureClass.MALFORMED_SAN),
    ],
)
def test_the_class_of_a_refused_certificate(identity, after, kind):
    now = datetime.now(UTC) + after
    with pytest.raises(Unauthenticated) as refused:
        verify_peer([der(identity.chain)], {TrustDomain("td.test"): [der(CA.pem)]}, now)
    decision = refused_certificate(
        Decision(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, service="svc"), refused.value
    )
    record = told(decision, now)
    assert (record.allowed, record.enforced, record.caller) == (False, True, "")
    assert classify(record.code, record.cause) is kind
