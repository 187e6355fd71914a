"""Name constraints (RFC 5280, 4.2.1.10), kind by kind, and along a path."""

from __future__ import annotations

import ipaddress
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from eastwest.pki.chain import UntrustedChain, build_path, dump_chain_pem, verify_chain
from eastwest.pki.constraints import uri_host_constraint, violation
from eastwest.pki.hierarchy import add_ca_extensions, sign_certificate
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import TestCA

NOW = datetime(2026, 1, 5, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
URI, DNS, MAIL, IP, DIR = (
    x509.UniformResourceIdentifier,
    x509.DNSName,
    x509.RFC822Name,
    x509.IPAddress,
    x509.DirectoryName,
)


def name(**parts):
    kinds = {"o": x509.NameOID.ORGANIZATION_NAME, "cn": x509.NameOID.COMMON_NAME, "mail": x509.NameOID.EMAIL_ADDRESS}
    return x509.Name([x509.NameAttribute(kinds[key], value) for key, value in parts.items()])


def certificate(subject, issuer, *, names=(), permitted=None, excluded=None):
    builder = (
        x509.CertificateBuilder(issuer, subject, KEY.public_key(), 7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if permitted or excluded:
        builder = builder.add_extension(x509.NameConstraints(permitted, excluded), critical=True)
    return builder.sign(KEY, hashes.SHA256())


def judge(names, *, permitted=None, excluded=None, subject=None):
    ca = certificate(name(o="ca"), name(o="root"), permitted=permitted, excluded=excluded)
    leaf = certificate(subject or x509.Name([]), name(o="ca"), names=names)
    return violation([leaf, ca])


def net(text):
    return IP(ipaddress.ip_network(text))


def ip(text):
    return IP(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    ("names", "permitted", "fits"),
    [
        ([URI("spiffe://saas.example/a")], [URI("saas.example")], True),
        ([URI("spiffe://SAAS.example/a")], [URI("saas.EXAMPLE")], True),
        ([URI("spiffe://eu.saas.example/a")], [URI("saas.example")], False),
        ([URI("spiffe://eu.saas.example/a")], [URI(".saas.example")], True),
        ([URI("spiffe://saas.example/a")], [URI(".saas.example")], False),
        ([URI("spiffe://other.example/a")], [URI("saas.example"), URI("other.example")], True),
        ([URI("spiffe://saas.example.evil.example/a")], [URI("saas.example")], False),
        ([URI("https://evil.example@saas.example:443/a")], [URI("saas.example")], True),
        ([URI("urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6")], [URI("saas.example")], False),
        ([URI("spiffe://10.0.0.1/a")], [URI("10.0.0.1")], False),
        ([URI("spiffe://[::1/a")], [URI("saas.example")], False),
        ([URI("spiffe://saas.example/a"), DNS("any.example")], [URI("saas.example")], True),
        ([DNS("a.saas.example")], [DNS("saas.example")], True),
        ([DNS("saas.example")], [DNS("saas.example")], True),
        ([DNS("saas.example")], [DNS(".saas.example")], False),
        ([DNS("notsaas.example")], [DNS("saas.example")], False),
        ([DNS("anything")], [DNS("")], True),
        ([MAIL("joe@mail.example")], [MAIL("mail.example")], True),
        ([MAIL("joe@sub.mail.example")], [MAIL("mail.example")], False),
        ([MAIL("joe@sub.mail.example")], [MAIL(".mail.example")], True),
        ([MAIL("joe@mail.example")], [MAIL("joe@mail.example")], True),
        ([MAIL("Joe@mail.example")], [MAIL("joe@mail.example")], False),
        ([ip("10.1.2.3")], [net("10.0.0.0/8")], True),
        ([ip("11.1.2.3")], [net("10.0.0.0/8")], False),
        ([ip("2001:db8::1")], [net("10.0.0.0/8")], False),
        ([ip("2001:db8::1")], [net("2001:db8::/32")], True),
        ([DIR(name(o="Example", cn="x"))], [DIR(name(o="EXAMPLE"))], True),
        ([DIR(name(o="Example  Ltd", cn="x"))], [DIR(name(o="example ltd"))], True),
        ([DIR(name(cn="x", o="Example"))], [DIR(name(o="Example"))], False),
    ],
)
def test_permitted(names, permitted, fits):
    assert (judge(names, permitted=permitted) == "") is fits


@pytest.mark.parametrize(
    ("names", "excluded", "fits"),
    [
        ([URI("spiffe://saas.example/a")], [URI("other.example")], True),
        ([URI("spiffe://other.example/a")], [URI("other.example")], False),
        ([URI("spiffe://eu.other.example/a")], [URI("other.example")], True),
        ([DNS("a.other.example")], [DNS("other.example")], False),
        ([ip("10.1.2.3")], [net("10.0.0.0/8")], False),
        ([URI("spiffe://saas.example/a")], [net("10.0.0.0/8")], True),
    ],
)
def test_excluded(names, excluded, fits):
    assert (judge(names, excluded=excluded) == "") is fits


def test_what_is_excluded_stays_out_though_it_is_permitted():
    names = [DNS("bad.saas.example")]
    assert judge(names, permitted=[DNS("saas.example")], excluded=[DNS("bad.saas.example")])


def test_the_subject_counts_as_a_directory_name_and_its_mail_address_as_mail():
    assert judge([], permitted=[DIR(name(o="Example"))], subject=name(o="Other"))
    assert not judge([], permitted=[DIR(name(o="Example"))], subject=name(o="Example", cn="x"))
    assert judge([], permitted=[MAIL("mail.example")], subject=name(o="x", mail="joe@evil.example"))
    # An alternative name of kind mail takes the place of the subject's.
    assert not judge(
        [MAIL("joe@mail.example")], permitted=[MAIL("mail.example")], subject=name(o="x", mail="joe@evil.example")
    )


def test_a_kind_that_is_not_understood_refuses_the_path():
    registered = x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))
    assert "not understood" in judge([URI("spiffe://saas.example/a")], excluded=[registered])


def test_a_constraint_holds_for_everything_below_but_self_issued_certificates():
    top = certificate(name(o="top"), name(o="top"), permitted=[DIR(name(o="ours"))])
    rollover = certificate(name(o="strange"), name(o="strange"))
    leaf = certificate(name(o="ours"), name(o="strange"))
    assert violation([leaf, rollover, top]) == ""
    stranger = certificate(name(o="strange"), name(o="top"))
    assert "certificate 1" in violation([leaf, stranger, top])
    # The last certificate of a path is held to it, self-issued or not.
    assert "certificate 0" in violation([rollover, top])


def test_too_many_comparisons_are_refused_instead_of_made():
    permitted = [DNS(f"n{number}.example") for number in range(100)]
    assert "too many" in judge([DNS(f"m{number}.example") for number in range(100)], permitted=permitted)


@pytest.mark.parametrize("text", ["under_score.example", "10.0.0.1", "a..b"])
def test_a_trust_domain_that_is_no_domain_name_cannot_be_a_constraint(text):
    assert uri_host_constraint(TrustDomain(text)) is None


def test_verification_refuses_a_leaf_outside_and_accepts_one_inside():
    ca = TestCA()
    inside, outside = (TestCA(constrained_to=TrustDomain(text)) for text in ("saas.example", "other.example"))
    svid, _ = inside.svid("/a")
    assert verify_chain(svid.chain, inside.roots, ca.now).id == svid.id
    svid, _ = outside.svid("/a")
    with pytest.raises(UntrustedChain, match="lies outside"):
        verify_chain(svid.chain, outside.roots, ca.now)


def test_another_root_of_the_same_name_and_key_may_still_lead_there():
    ca = TestCA()
    svid, _ = ca.svid("/a")
    root = x509.load_der_x509_certificate(ca.root)
    # The same root, but constrained to another host: a path through it does not hold.
    narrow = sign_certificate(
        add_ca_extensions(
            x509.CertificateBuilder(root.subject, root.subject, root.public_key(), 9)
            .not_valid_before(root.not_valid_before_utc)
            .not_valid_after(root.not_valid_after_utc),
            x509.SubjectKeyIdentifier.from_public_key(root.public_key()),
            x509.SubjectAlternativeName([URI("spiffe://saas.example")]),
            path_length=None,
            constraints=x509.NameConstraints([URI("other.example")], None),
        ),
        ca.root_signer,
    )
    assert verify_chain(svid.chain, [narrow, ca.root], ca.now).id == svid.id
    with pytest.raises(UntrustedChain, match="lies outside"):
        verify_chain(svid.chain, [narrow], ca.now)
    path = build_path([x509.load_der_x509_certificate(der) for der in svid.chain], [narrow, ca.root])
    assert path[-1].public_bytes(Encoding.DER) == ca.root


@pytest.mark.parametrize(("host", "verdict"), [("saas.example", 0), ("other.example", 2)])
def test_openssl_judges_alike(host, verdict, tmp_path):
    ca = TestCA(constrained_to=TrustDomain(host))
    svid, _ = ca.svid("/a")
    for label, chain in (("leaf", svid.chain[:1]), ("between", svid.chain[1:]), ("root", ca.roots)):
        (tmp_path / label).write_bytes(dump_chain_pem(chain))
    command = ["openssl", "verify", "-x509_strict", "-attime", str(int(ca.now.timestamp())), "-CAfile", "root"]
    done = subprocess.run([*command, "-untrusted", "between", "leaf"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == verdict
    assert (b"permitted subtree violation" in done.stderr) == bool(verdict)


def test_pythons_own_verifier_refuses_even_a_leaf_inside():
    # This is why issuing CAs have no constraint unless asked for; docs/reference/certificates.md has the table.
    for constrained_to, accepted in ((None, True), (TrustDomain("saas.example"), False)):
        ca = TestCA(constrained_to=constrained_to)
        svid, _ = ca.svid("/a", dns_names=("a.saas.example",))
        leaf, between, root = (x509.load_der_x509_certificate(der) for der in (*svid.chain, ca.root))
        verifier = PolicyBuilder().store(Store([root])).time(ca.now).build_client_verifier()
        if accepted:
            verifier.verify(leaf, [between])
        else:
            with pytest.raises(VerificationError, match="unsupported name constraint"):
                verifier.verify(leaf, [between])
