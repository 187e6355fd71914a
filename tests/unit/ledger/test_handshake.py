import pytest

from eastwest.ledger.handshake import Shown, cause_of, form_of, server_cause_of
from eastwest.policy.enforcement import DecisionCode

LEAD = "TLS_error:|268435581:SSL routines:OPENSSL_internal:"
WEB = "spiffe://td.test/web"


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
        ("CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_SAN_match", "CERTIFICATE_REFUSED", "wrong_identity"),
        ("CERTIFICATE_VERIFY_FAILED:a_text_of_next_year", "CERTIFICATE_REFUSED", "not_verified"),
        ("TLSV1_ALERT_UNKNOWN_CA", "SERVER_REFUSED", "alert_unknown_ca"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "SERVER_REFUSED", "alert_certificate_expired"),
    ],
)
def test_known_texts(text, code, name):
    cause = cause_of(LEAD + text, Shown())
    assert (cause.code, cause.name) == (code, name)


@pytest.mark.parametrize(
    ("uris", "name"),
    [
        (("spiffe://other.test/web",), "unknown_trust_domain"),
        ((), "no_spiffe_id"),
        (("https://td.test/web",), "malformed_san"),
        (("spiffe://TD.test/web",), "malformed_san"),
        (("spiffe://td.test",), "malformed_san"),
        (("spiffe://other.test/web", WEB), "several_ids"),
    ],
)
def test_without_a_bundle_the_names_say_what_is_wrong(uris, name):
    text = LEAD + "CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_no_trust_bundle_store"
    assert cause_of(text, Shown(uris)).name == name


def test_an_unknown_authority_is_asked_for_its_past():
    text = LEAD + "CERTIFICATE_VERIFY_FAILED:unable to get local issuer certificate"
    asked = []

    def left(certificate):
        asked.append(certificate)
        return certificate == b"old"

    assert cause_of(text, Shown((WEB,), b"old"), left).name == "authority_left"
    assert cause_of(text, Shown((WEB,), b"no certificate"), left).name == "unknown_authority"
    assert cause_of(text, Shown((WEB,)), left).name == "unknown_authority"
    assert asked == [b"old", b"no certificate"]
    assert cause_of(LEAD + "certificate has expired", Shown((WEB,), b"old"), left).name == "expired"


def test_unknown_texts_are_kept_short():
    cause = cause_of("x" * 500, Shown((WEB,)))
    assert cause.code is DecisionCode.CERTIFICATE_REFUSED
    assert cause.name.startswith("other:xxx")
    assert len(cause.name) < 130
    assert cause_of("", Shown()).code is DecisionCode.MTLS_REQUIRED


def test_on_the_way_out_only_handshakes_are_about_identity():
    assert server_cause_of("delayed connect error: Connection refused") is None
    assert server_cause_of("") is None
    cause = server_cause_of(LEAD + "CERTIFICATE_VERIFY_FAILED:verify cert failed: SAN match")
    assert (cause.code, cause.name) == (DecisionCode.SERVER_REFUSED, "wrong_identity")
    assert server_cause_of(LEAD + "A_NEW_ONE").name.startswith("other:TLS_error")


def test_the_form_of_names():
    assert form_of((WEB,)) == ""
    assert form_of((WEB, WEB)) == "several_ids"
