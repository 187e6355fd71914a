"""Each lint rule against a certificate that breaks it alone, and certificates of ours, which break none."""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from eastwest.pki.ca import certify_ca, cross_certify, make_ca_csr
from eastwest.pki.hierarchy import add_ca_extensions, sign_certificate
from eastwest.pki.lint import RULES, Expectation, LintFailure, Role, lint_certificate, require_clean
from eastwest.pki.signer import CLASSICAL, KeyAlgorithm, SoftwareSigner, SubjectKey, generate_private_key
from eastwest.pki.template import encode_validity, wrap_signed
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import TestCA

CA = TestCA()
TD = CA.trust_domain
KEY = ec.generate_private_key(ec.SECP256R1())
ABOVE = (CA.authority.certificate, x509.load_der_x509_certificate(CA.root))
EXPECTED = Expectation(trust_domain=TD, keys=CLASSICAL, max_lifetime=timedelta(hours=4), above=ABOVE)
URI = x509.UniformResourceIdentifier
BOTH_USES = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


def usage(*names):
    every = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    every += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: name in names for name in every})


def made(
    *,
    role=Role.LEAF,
    subject=None,
    names=None,
    names_critical=None,
    key=KEY,
    serial=1 << 100,
    start=CA.now,
    life=timedelta(hours=1),
    constraints=None,
    ca=None,
    key_usage=None,
    uses=None,
    identifier=True,
    authority=None,
    extra=(),
    digest=None,
    signing_key=KEY,
):
    """A good leaf or CA certificate but for what the arguments say."""
    leaf = role is Role.LEAF
    if subject is None:
        subject = "" if leaf else "A CA"
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else [])
    builder = x509.CertificateBuilder(ABOVE[0].subject, name, key.public_key(), serial)
    builder = builder.not_valid_before(start).not_valid_after(start + life)
    names = [URI("spiffe://saas.example/app" if leaf else "spiffe://saas.example")] if names is None else names
    if names:
        critical = not subject if names_critical is None else names_critical
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=critical)
    basic = ca or (x509.BasicConstraints(ca=not leaf, path_length=None), True)
    if basic[0]:
        builder = builder.add_extension(basic[0], critical=basic[1])
    held = key_usage or (usage("digital_signature") if leaf else usage("key_cert_sign", "crl_sign"), True)
    if held[0]:
        builder = builder.add_extension(held[0], critical=held[1])
    if uses is None:
        uses = BOTH_USES if leaf else []
    if uses:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if identifier:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    authority = authority or (x509.AuthorityKeyIdentifier(bytes.fromhex(CA.authority.key_id), None, None), False)
    if authority[0]:
        builder = builder.add_extension(authority[0], critical=authority[1])
    if constraints:
        builder = builder.add_extension(constraints[0], critical=constraints[1])
    for value, critical in extra:
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(signing_key, digest or hashes.SHA256()).public_bytes(Encoding.DER)


PERMITTED = x509.NameConstraints([URI("saas.example")], None)
BROKEN_LEAVES = {
    "serial-number": {"serial": 1 << 159},
    "one-uri": {"names": [URI("spiffe://saas.example/a"), URI("spiffe://saas.example/b")]},
    "spiffe-id": {"names": [URI("spiffe://saas.example")]},
    "trust-domain": {"names": [URI("spiffe://saas.example.evil/app")]},
    "no-other-names": {"names": [URI("spiffe://saas.example/a"), x509.IPAddress(ipaddress.ip_address("10.0.0.1"))]},
    "dns-names": {"names": [URI("spiffe://saas.example/a"), x509.DNSName("not a name")]},
    "names-critical": {"names_critical": False},
    "basic-constraints": {"ca": (None, True)},
    "key-usage": {"key_usage": (usage("digital_signature", "crl_sign"), True)},
    "extended-key-usage": {"uses": [*BOTH_USES, ExtendedKeyUsageOID.CODE_SIGNING]},
    "subject-key-identifier": {"identifier": False},
    "authority-key-identifier": {"authority": (None, False)},
    "no-leaf-constraints": {"constraints": (PERMITTED, True)},
    "known-critical": {"extra": [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"), True)]},
    "key-type": {"key": rsa.generate_private_key(65537, 2048)},
    "validity": {"life": timedelta(days=2)},
    "lifetime": {"life": timedelta(hours=5)},
}
BROKEN_CAS = {
    "one-uri": {"names": []},
    "spiffe-id": {"names": [URI("spiffe://saas.example/path")]},
    "no-other-names": {"names": [URI("spiffe://saas.example"), x509.DNSName("a.example")]},
    "ca-subject": {"subject": "", "names_critical": True, "role": Role.CA},
    "basic-constraints": {"ca": (x509.BasicConstraints(ca=True, path_length=0), False)},
    "key-usage": {"key_usage": (usage("key_cert_sign"), True)},
    "extended-key-usage": {"uses": BOTH_USES},
    "constraints-critical": {"constraints": (PERMITTED, False)},
    "key-type": {"key": rsa.generate_private_key(65537, 1024)},
}
SPELLINGS = {
    "key-usage": [
        {"key_usage": (usage("digital_signature"), False)},
        {"key_usage": (usage("key_encipherment"), True)},
        {"key_usage": (None, True)},
    ],
    "spiffe-id": [
        {"names": [URI(text)]}
        for text in (
            "https://saas.example/app",
            "spiffe://saas.example/app?x=1",
            "spiffe://saas.example/app#x",
            "spiffe://saas.example:443/app",
            "spiffe://user@saas.example/app",
            "spiffe://saas.example/a//b",
            "spiffe://saas.example/../b",
            "spiffe://saas.example/%41",
            "spiffe://saas.example/" + "a" * 2048,
        )
    ],
    "extended-key-usage": [{"uses": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}],
    "authority-key-identifier": [{"authority": (x509.AuthorityKeyIdentifier(b"other", None, None), False)}],
    "basic-constraints": [{"ca": (x509.BasicConstraints(ca=False, path_length=None), False)}],
}


def rules(der, role=Role.LEAF, expected=EXPECTED):
    return [finding.rule for finding in lint_certificate(der, role, expected)]


def ca_expected():
    return Expectation(trust_domain=TD)


@pytest.mark.parametrize("rule", BROKEN_LEAVES)
def test_a_leaf_that_breaks_one_rule(rule):
    expected = EXPECTED
    if rule == "validity":
        expected = Expectation(trust_domain=TD, keys=CLASSICAL, above=ABOVE)
    if rule == "trust-domain":
        # With its issuer unconstrained, only the expected trust domain is against it.
        assert rules(made(**BROKEN_LEAVES[rule]), expected=Expectation(keys=CLASSICAL)) == []
    assert rules(made(**BROKEN_LEAVES[rule]), expected=expected) == [rule]


@pytest.mark.parametrize("rule", BROKEN_CAS)
def test_a_ca_that_breaks_one_rule(rule):
    assert rules(made(**{"role": Role.CA} | BROKEN_CAS[rule]), Role.CA, ca_expected()) == [rule]


@pytest.mark.parametrize(("rule", "changes"), [(rule, each) for rule, some in SPELLINGS.items() for each in some])
def test_other_ways_to_break_a_rule(rule, changes):
    expected = Expectation(keys=CLASSICAL, above=ABOVE) if rule == "spiffe-id" else EXPECTED
    assert rules(made(**changes), expected=expected) == [rule]


def test_the_constraints_of_the_issuer_are_kept():
    narrow = TestCA(constrained_to=TrustDomain("other.example"))
    above = (narrow.authority.certificate,)
    svid, _ = narrow.svid("/app")
    assert rules(svid.chain[0], expected=Expectation(above=above)) == ["name-constraints"]


def test_a_weak_hash():
    # Ours is the only rule it breaks: SHA-1 is refused by the library's builder, SHA-224 is not.
    assert rules(made(digest=hashes.SHA224())) == ["signature-hash"]


def test_version_1_is_found():
    der = _version_1()
    assert "version-3" in rules(der, expected=Expectation())


def test_every_rule_has_a_case_here():
    others = {"version-3", "signature-hash", "name-constraints"}
    assert {rule.name for rule in RULES} == {*BROKEN_LEAVES, *BROKEN_CAS, *others}
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_what_we_make_is_clean(algorithm):
    ca = TestCA(algorithm=algorithm)
    svid, _ = ca.svid("/app", dns_names=("app.saas.example",))
    above = (ca.authority.certificate, x509.load_der_x509_certificate(ca.root))
    assert rules(svid.chain[0], expected=Expectation(trust_domain=TD, above=above)) == []
    assert rules(svid.chain[1], Role.CA, Expectation(trust_domain=TD, above=above[1:])) == []
    assert rules(ca.root, Role.CA, Expectation(trust_domain=TD)) == []
    below = certify_ca(
        make_ca_csr(SoftwareSigner(generate_private_key(algorithm)), TD),
        ca.root,
        ca.root_signer,
        TD,
        1 << 90,
        ca.now,
        constrained=True,
    )
    assert rules(below, Role.CA, Expectation(trust_domain=TD, above=above[1:])) == []
    other = TestCA("other.example", algorithm=algorithm)
    cross = cross_certify(other.root, ca.root, ca.root_signer, other.trust_domain, 1 << 91, ca.now)
    assert rules(cross, Role.CA, Expectation(trust_domain=other.trust_domain, above=above[1:])) == []


def test_the_reference_leaf_of_these_tests_is_clean():
    assert rules(made()) == []
    assert rules(made(role=Role.CA), Role.CA, ca_expected()) == []


@pytest.mark.parametrize("der", [b"", b"noise", bytes(70_000)])
def test_bytes_that_are_no_certificate(der):
    assert rules(der) == ["well-formed"]


def test_the_real_key_is_not_asked_when_the_draft_breaks_a_rule():
    class Witness(SoftwareSigner):
        asked = 0

        def sign(self, data):
            type(self).asked += 1
            return super().sign(data)

    signer = Witness(generate_private_key(KeyAlgorithm.EC_P256))
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    builder = add_ca_extensions(
        x509.CertificateBuilder(name, name, signer.public_key, 5)
        .not_valid_before(CA.now)
        .not_valid_after(CA.now + timedelta(days=1)),
        x509.SubjectKeyIdentifier.from_public_key(signer.public_key),
        x509.SubjectAlternativeName([URI("spiffe://saas.example/not-a-ca-name")]),
        path_length=None,
    )
    with pytest.raises(LintFailure, match="spiffe-id") as caught:
        sign_certificate(builder, signer)
    assert [finding.rule for finding in caught.value.findings] == ["spiffe-id"]
    assert Witness.asked == 0
    require_clean(())


def _version_1():
    """A certificate without the version field and extensions, put together by hand."""
    good = x509.load_der_x509_certificate(made())
    fields = (
        _tlv(0x02, b"\x05"),
        bytes.fromhex("300a06082a8648ce3d040302"),
        good.issuer.public_bytes(),
        encode_validity(good.not_valid_before_utc, good.not_valid_after_utc),
        good.subject.public_bytes(),
        SubjectKey.of(good.public_key()).spki,
    )
    return wrap_signed(_tlv(0x30, b"".join(fields)), KeyAlgorithm.EC_P256, good.signature)


def _tlv(tag, content):
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + content


def test_the_reference_page_lists_every_rule():
    page = (Path(__file__).parents[3] / "docs/reference/certificates.md").read_text()
    words = {frozenset(Role): "both", frozenset({Role.LEAF}): "leaf", frozenset({Role.CA}): "CA"}
    for rule in RULES:
        assert f"| `{rule.name}` | {words[rule.roles]} | {rule.source} |" in page
