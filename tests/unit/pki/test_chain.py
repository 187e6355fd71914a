from __future__ import annotations

import json
from base64 import b64encode
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from eastwest.pki.chain import (
    Expired,
    MalformedSvid,
    NotYetValid,
    UntrustedChain,
    dump_chain_pem,
    load_certificate,
    load_chain_pem,
    verify_chain,
)
from eastwest.pki.jwks import MalformedBundle, parse_bundle
from eastwest.pki.signer import KeyAlgorithm
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import TestCA

CA = TestCA()
NOW = CA.now
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_an_svid_proves_its_id(algorithm):
    ca = TestCA(algorithm=algorithm)
    svid, _ = ca.svid("/prod/billing", algorithm=algorithm, dns_names=("billing.saas.example",))
    assert verify_chain(svid.chain, ca.roots, NOW, ca.trust_domain) == svid


def test_a_root_at_the_end_of_the_chain_is_dropped():
    svid, _ = CA.svid("/prod/billing")
    assert verify_chain([*svid.chain, CA.root], CA.roots, NOW).chain == svid.chain


def test_any_of_several_roots_will_do():
    svid, _ = CA.svid("/prod/billing")
    assert verify_chain(svid.chain, [TestCA().root, CA.root], NOW) == svid


def test_an_older_generation_still_verifies():
    svid, _ = CA.svid("/prod/billing")
    CA.new_authority()
    assert verify_chain(svid.chain, CA.roots, NOW) == svid


@pytest.mark.parametrize(
    ("moment", "error"),
    [
        (NOW - timedelta(seconds=31), NotYetValid),
        (NOW - timedelta(seconds=30), None),
        (NOW + HOUR, None),
        (NOW + HOUR + timedelta(milliseconds=900), None),
        (NOW + HOUR + SECOND, Expired),
    ],
)
def test_both_ends_of_the_validity_are_inside(moment, error):
    svid, _ = CA.svid("/prod/billing", HOUR)
    if error is None:
        verify_chain(svid.chain, CA.roots, moment)
    else:
        with pytest.raises(error):
            verify_chain(svid.chain, CA.roots, moment)


def test_an_expired_issuer_ends_its_leaves():
    svid, _ = CA.svid("/prod/billing", timedelta(days=30))
    with pytest.raises(Expired):
        verify_chain(svid.chain, CA.roots, NOW + timedelta(days=2))


def test_an_unknown_root():
    svid, _ = CA.svid("/prod/billing")
    for roots in ([], [TestCA().root]):
        with pytest.raises(UntrustedChain, match="does not lead to a trusted root"):
            verify_chain(svid.chain, roots, NOW)


def test_a_missing_intermediate():
    svid, _ = CA.svid("/prod/billing")
    with pytest.raises(UntrustedChain):
        verify_chain(svid.chain[:1], CA.roots, NOW)


def test_certificates_out_of_order():
    svid, _ = CA.svid("/prod/billing")
    other = CA.new_authority()
    with pytest.raises(UntrustedChain, match="certificate 1 of the chain did not issue certificate 0"):
        verify_chain([svid.chain[0], *other.chain, svid.chain[1]], CA.roots, NOW)


def test_a_leaf_cannot_issue():
    svid, key = CA.svid("/prod/billing")
    issuer = x509.load_der_x509_certificate(svid.chain[0])
    forged = _certificate(issuer=issuer.subject, issuer_key=key)
    with pytest.raises(UntrustedChain):
        verify_chain([forged, *svid.chain], CA.roots, NOW)


def test_the_path_length_is_kept():
    issuer = CA.authority.certificate
    key = ec.generate_private_key(ec.SECP256R1())
    below = _certificate(issuer=issuer.subject, issuer_key=CA.authority.signer._key, key=key, ca=True, subject="below")
    name = x509.load_der_x509_certificate(below).subject
    leaf = _certificate(issuer=name, issuer_key=key)
    with pytest.raises(UntrustedChain):
        verify_chain([leaf, below, *CA.authority.chain], CA.roots, NOW)


def test_another_trust_domain():
    svid, _ = CA.svid("/prod/billing")
    with pytest.raises(UntrustedChain, match=r"not in trust domain other\.example"):
        verify_chain(svid.chain, CA.roots, NOW, TrustDomain("other.example"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"uris": []}, "has exactly one URI name, this one has 0"),
        ({"uris": ["spiffe://saas.example/a", "spiffe://saas.example/b"]}, "this one has 2"),
        ({"uris": ["https://saas.example/a"]}, "no SPIFFE ID"),
        ({"uris": ["spiffe://saas.example/a/../b"]}, "no SPIFFE ID"),
        ({"uris": ["spiffe://saas.example"]}, "names a trust domain"),
        ({"names": False}, "no subject alternative name"),
        ({"ca": True}, "must not be a CA"),
        ({"usage": None}, "states its key usage"),
        ({"usage": {"digital_signature": False}}, "has digitalSignature"),
        ({"usage_critical": False}, "is critical"),
        ({"usage": {"key_cert_sign": True}}, "must not sign certificates"),
        ({"usage": {"crl_sign": True}}, "must not sign certificates"),
        ({"extra": (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True)}, "1.2.3 is not"),
    ],
)
def test_what_may_not_be_a_leaf(changes, reason):
    leaf = _certificate(issuer=CA.authority.certificate.subject, issuer_key=CA.authority.signer._key, **changes)
    with pytest.raises(MalformedSvid, match=reason):
        verify_chain([leaf, *CA.authority.chain], CA.roots, NOW)


@pytest.mark.parametrize("names", ["3002a300", "30028000", "ff", ""])
def test_names_that_cannot_be_read(names):
    raw = x509.UnrecognizedExtension(x509.ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes.fromhex(names))
    leaf = _certificate(
        issuer=CA.authority.certificate.subject,
        issuer_key=CA.authority.signer._key,
        names=False,
        extra=(raw, False),
    )
    with pytest.raises(MalformedSvid):
        verify_chain([leaf, *CA.authority.chain], CA.roots, NOW)


def test_an_unknown_extension_that_is_not_critical_is_no_matter():
    extra = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), False)
    leaf = _certificate(issuer=CA.authority.certificate.subject, issuer_key=CA.authority.signer._key, extra=extra)
    verify_chain([leaf, *CA.authority.chain], CA.roots, NOW)


@pytest.mark.parametrize("chain", [[], [b""], [b"noise"], [b"\x30\x00"], [bytes(70_000)], [CA.root] * 9])
def test_what_is_no_chain(chain):
    with pytest.raises(MalformedSvid):
        verify_chain(chain, CA.roots, NOW)


def test_a_ca_certificate_is_not_a_leaf():
    with pytest.raises(MalformedSvid):
        verify_chain([*CA.authority.chain], CA.roots, NOW)


def test_a_damaged_root_is_not_blamed_on_the_peer():
    svid, _ = CA.svid("/prod/billing")
    with pytest.raises(UntrustedChain, match="root cannot be read"):
        verify_chain(svid.chain, [b"noise"], NOW)


def test_pem_and_back():
    svid, _ = CA.svid("/prod/billing")
    assert load_chain_pem(dump_chain_pem(svid.chain)) == svid.chain
    for noise in (b"", b"noise", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(MalformedSvid):
            load_chain_pem(noise)


def _certificate(
    *,
    issuer,
    issuer_key,
    key=None,
    subject="",
    uris=("spiffe://saas.example/prod/billing",),
    names=True,
    ca=False,
    usage=(),
    usage_critical=True,
    extra=None,
):
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else []
    builder = (
        x509.CertificateBuilder(issuer, x509.Name(name), key.public_key(), x509.random_serial_number())
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if usage is not None:
        flags = dict.fromkeys(_FLAGS, False) | {"digital_signature": True, "key_cert_sign": ca} | dict(usage)
        builder = builder.add_extension(x509.KeyUsage(**flags), critical=usage_critical)
    if names:
        alternative = [x509.UniformResourceIdentifier(uri) for uri in uris] or [x509.DNSName("a.example")]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=True)
    if extra is not None:
        builder = builder.add_extension(extra[0], critical=extra[1])
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.DER)


_FLAGS = [
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
]


def test_a_serial_number_that_is_not_positive_is_refused_wherever_it_is_read():
    serial = x509.load_der_x509_certificate(CA.root).serial_number
    number = serial.to_bytes(serial.bit_length() // 8 + 1, "big")
    at = CA.root.index(bytes((0x02, len(number))) + number) + 2
    negative = CA.root[:at] + b"\x80" + CA.root[at + 1 :]
    with pytest.raises(MalformedSvid, match="serial number is positive"):
        load_certificate(negative)
    document = json.dumps({"keys": [{"use": "x509-svid", "kty": "EC", "x5c": [b64encode(negative).decode()]}]})
    with pytest.raises(MalformedBundle, match="serial number"):
        parse_bundle(TrustDomain("td.test"), document.encode())
