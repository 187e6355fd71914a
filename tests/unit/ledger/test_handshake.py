import pytest

from eastwest.ledger.handshake import cause_of
from eastwest.policy.enforcement import DecisionCode

LEAD = "TLS_error:|268435581:SSL routines:OPENSSL_internal:"


@pytest.mark.parametrize(
    ("text", "code", "name"),
    [
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "MTLS_REQUIRED", "no_certificate"),
        ("HTTP_REQUEST", "MTLS_REQUIRED", "not_tls"),
        ("UNSUPPORTED_PROTOCOL", "MTLS_REQUIRED", "tls_version"),
        (
            "CERTIFICATE_VERIFY_FAILED:verify cert failed: X509_verify_cert: certificate has expired",
            "CERTIFICATE_REFUSED",
            "expired",
        ),
        ("CERTIFICATE_VERIFY_FAILED:..._certificate_is_not_yet_valid", "CERTIFICATE_REFUSED", "not_yet_valid"),
        (
            "CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_no_trust_bundle_store",
            "CERTIFICATE_REFUSED",
            "unknown_trust_domain",
        ),
        ("CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_SAN_match", "CERTIFICATE_REFUSED", "wrong_identity"),
        ("CERTIFICATE_VERIFY_FAILED:a_text_of_next_year", "CERTIFICATE_REFUSED", "not_verified"),
    ],
)
def test_known_texts(text, code, name):
    cause = cause_of(LEAD + text, certificate=False)
    assert (cause.code, cause.name) == (code, name)


def test_unknown_texts_are_kept_short():
    cause = cause_of("x" * 500, certificate=True)
    assert cause.code is DecisionCode.CERTIFICATE_REFUSED
    assert cause.name.startswith("other:xxx")
    assert len(cause.name) < 130
    assert cause_of("", certificate=False).code is DecisionCode.MTLS_REQUIRED
