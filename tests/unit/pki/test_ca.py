"""CAs certified from requests, and cross certificates: two hierarchies that learn to trust each other."""

from __future__ import annotations

import subprocess
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from eastwest.errors import InvalidInput
from eastwest.pki.ca import certify_ca, cross_certify, make_ca_csr, make_cross_csr, read_ca_csr
from eastwest.pki.chain import UntrustedChain, dump_chain_pem, verify_chain
from eastwest.pki.csr import CsrDefect, InvalidCsr
from eastwest.pki.hierarchy import Authority, UnfitAuthority, create_root
from eastwest.pki.signer import CLASSICAL, KeyAlgorithm, SoftwareSigner, UnsupportedKey, generate_private_key
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import TestCA

_CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
TD = TrustDomain("saas.example")
CA = TestCA()
NOW = CA.now


def signer(algorithm=KeyAlgorithm.EC_P256):
    return SoftwareSigner(generate_private_key(algorithm))


def certified(key=None, issuer=CA.root, above=CA.root_signer, serial=77, **options):
    csr = make_ca_csr(key or signer(), TD)
    return certify_ca(csr, issuer, above, TD, serial, NOW, **options)


def extension(der, kind):
    found = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(kind)
    return found.value, found.critical


class TestRequests:
    @pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
    def test_a_request_is_signed_by_its_key_and_names_the_trust_domain(self, algorithm):
        key = signer(algorithm)
        der = make_ca_csr(key, TD)
        assert read_ca_csr(der, TD) == key.public_key
        csr = x509.load_der_x509_csr(der)
        assert csr.is_signature_valid
        assert "O=saas.example" in csr.subject.rfc4514_string()

    def test_openssl_reads_it(self):
        done = subprocess.run(
            ["openssl", "req", "-inform", "DER", "-noout", "-verify", "-text"],
            input=make_ca_csr(signer(), TD),
            capture_output=True,
            check=True,
        )
        assert b"URI:spiffe://saas.example" in done.stdout

    def test_another_trust_domain(self):
        with pytest.raises(InvalidCsr, match=r"names spiffe://other\.example and nothing else") as caught:
            read_ca_csr(make_ca_csr(signer(), TD), TrustDomain("other.example"))
        assert caught.value.defect is CsrDefect.WRONG_NAME

    def test_a_key_type_that_is_not_allowed(self):
        with pytest.raises(UnsupportedKey):
            read_ca_csr(make_ca_csr(signer(KeyAlgorithm.ML_DSA_65), TD), TD, CLASSICAL)

    @pytest.mark.parametrize(
        ("extras", "names", "defect"),
        [
            ([], None, CsrDefect.WRONG_NAME),
            ([], [x509.UniformResourceIdentifier("spiffe://saas.example/workload")], CsrDefect.WRONG_NAME),
            ([], [x509.UniformResourceIdentifier(TD.uri), x509.DNSName("a.example")], CsrDefect.WRONG_NAME),
            ([x509.BasicConstraints(ca=False, path_length=None)], "own", CsrDefect.NOT_A_CA),
            ([x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING])], "own", CsrDefect.UNWANTED_EXTENSION),
            ([x509.NameConstraints([x509.DNSName("a")], None)], "own", CsrDefect.UNWANTED_EXTENSION),
        ],
    )
    def test_what_a_ca_must_not_ask_for(self, extras, names, defect):
        builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
        if names:
            names = [x509.UniformResourceIdentifier(TD.uri)] if names == "own" else names
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        for extra in extras:
            builder = builder.add_extension(extra, critical=True)
        der = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.DER)
        with pytest.raises(InvalidCsr) as caught:
            certify_ca(der, CA.root, CA.root_signer, TD, 5, NOW)
        assert caught.value.defect is defect


class TestCertify:
    @pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
    @pytest.mark.parametrize("above", list(KeyAlgorithm))
    def test_a_ca_of_each_type_below_each_type_issues(self, algorithm, above):
        root_key, key = signer(above), signer(algorithm)
        root = create_root(root_key, TD, 1, NOW)
        der = certified(key, root, root_key)
        authority = Authority.create(TD, key, [der], [root])
        assert authority.path_length == 0
        usage, critical = extension(der, x509.KeyUsage)
        assert critical
        assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, True)
        assert extension(der, x509.AuthorityKeyIdentifier)[0].key_identifier.hex() == root_key.key_id

    def test_the_chain_of_three_verifies_and_path_lengths_count_down(self):
        first, second = signer(), signer()
        upper = certified(first, path_length=1)
        lower = certified(second, upper, first, path_length=0)
        assert Authority.create(TD, second, [lower, upper], CA.roots).path_length == 0
        with pytest.raises(UnfitAuthority, match="lets 0 CAs stand below"):
            certified(signer(), lower, second)
        with pytest.raises(UnfitAuthority, match="lets 1 CAs stand below"):
            certified(signer(), upper, first, path_length=1)

    def test_times_are_bounded_by_the_issuer(self):
        der = certified(lifetime=timedelta(days=99999))
        assert x509.load_der_x509_certificate(der).not_valid_after_utc == (
            x509.load_der_x509_certificate(CA.root).not_valid_after_utc
        )
        with pytest.raises(UnfitAuthority, match="expired"):
            certify_ca(make_ca_csr(signer(), TD), CA.root, CA.root_signer, TD, 5, NOW + timedelta(days=3650))

    def test_the_issuer_must_be_a_ca_with_this_key(self):
        svid, key = CA.svid("/a")
        with pytest.raises(UnfitAuthority, match="not that of a CA"):
            certified(issuer=svid.chain[0], above=SoftwareSigner(key))
        with pytest.raises(UnfitAuthority, match="another key"):
            certified(above=signer())
        with pytest.raises(UnfitAuthority, match="cannot be read"):
            certified(issuer=b"noise")

    def test_the_issuers_own_key_is_refused(self):
        with pytest.raises(UnfitAuthority, match="the key of its issuer"):
            certified(CA.root_signer)

    def test_a_constraint_is_critical_and_permits_the_trust_domain_alone(self):
        value, critical = extension(certified(constrained=True), x509.NameConstraints)
        assert critical
        assert value == x509.NameConstraints([x509.UniformResourceIdentifier("saas.example")], None)
        with pytest.raises(x509.ExtensionNotFound):
            extension(certified(), x509.NameConstraints)

    def test_a_corporate_root_without_key_identifiers_and_names_can_stand_above(self):
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Corporate Root")])
        root = (
            x509.CertificateBuilder(name, name, key.public_key(), 5)
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=100))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_CA_USAGE, critical=True)
            .sign(key, hashes.SHA384())
            .public_bytes(Encoding.DER)
        )
        ours = signer()
        der = certified(ours, root, SoftwareSigner(key))
        assert Authority.create(TD, ours, [der], [root]).key_id == ours.key_id


class TestCross:
    def outside(self, algorithm=KeyAlgorithm.EC_P256):
        return TestCA("other.example", algorithm=algorithm)

    def cross(self, theirs, **options):
        return cross_certify(theirs.root, CA.root, CA.root_signer, theirs.trust_domain, 99, NOW, **options)

    def test_both_paths_build(self):
        theirs = self.outside()
        svid, _ = theirs.svid("/app")
        between = self.cross(theirs)
        chain = [*svid.chain, between]
        assert verify_chain(chain, [CA.root], NOW).id == svid.id
        assert verify_chain(chain, theirs.roots, NOW).id == svid.id
        with pytest.raises(UntrustedChain):
            verify_chain(svid.chain, [CA.root], NOW)

    def test_openssl_builds_it_too(self, tmp_path):
        theirs = self.outside()
        svid, _ = theirs.svid("/app")
        for name, certificates in (
            ("leaf", svid.chain[:1]),
            ("between", (*svid.chain[1:], self.cross(theirs))),
            ("root", CA.roots),
        ):
            (tmp_path / name).write_bytes(dump_chain_pem(certificates))
        command = ["openssl", "verify", "-x509_strict", "-attime", str(int(NOW.timestamp())), "-CAfile", "root"]
        done = subprocess.run(
            [*command, "-untrusted", "between", "leaf"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.stdout == "leaf: OK\n", done.stderr

    def test_names_and_identifiers_are_taken_over(self):
        theirs = self.outside()
        der, original = x509.load_der_x509_certificate(self.cross(theirs)), x509.load_der_x509_certificate(theirs.root)
        assert der.subject == original.subject
        assert der.public_key() == original.public_key()
        assert extension(self.cross(theirs), x509.SubjectKeyIdentifier) == extension(
            theirs.root, x509.SubjectKeyIdentifier
        )
        assert extension(self.cross(theirs), x509.AuthorityKeyIdentifier)[0].key_identifier.hex() == (
            CA.root_signer.key_id
        )

    def test_the_outside_root_is_held_to_its_own_trust_domain(self):
        # Its operators turn to naming our workloads: the cross certificate does not carry that.
        theirs = self.outside()
        rogue = TestCA("saas.example")
        key = rogue.authority.signer
        csr = make_ca_csr(key, TD)
        below = certify_ca(csr, theirs.root, theirs.root_signer, TD, 7, NOW)
        svid, _ = rogue.svid("/admin", authority=Authority.create(TD, key, [below], theirs.roots))
        chain = [svid.chain[0], below, self.cross(theirs)]
        with pytest.raises(UntrustedChain, match="lies outside"):
            verify_chain(chain, [CA.root], NOW)
        assert verify_chain([*chain[:2], self.cross(theirs, constrained=False)], [CA.root], NOW).id == svid.id

    def test_the_other_way_round_by_their_certificate(self):
        theirs = self.outside()
        between = cross_certify(CA.root, theirs.root, theirs.root_signer, TD, 5, NOW)
        svid, _ = CA.svid("/app")
        assert verify_chain([*svid.chain, between], theirs.roots, NOW).id == svid.id

    def test_the_other_way_round_by_a_request(self):
        csr = x509.load_der_x509_csr(make_cross_csr(CA.root_signer, CA.root))
        assert csr.is_signature_valid
        root = x509.load_der_x509_certificate(CA.root)
        assert csr.subject == root.subject
        assert csr.public_key() == root.public_key()
        with pytest.raises(UnfitAuthority, match="another key"):
            make_cross_csr(signer(), CA.root)

    def test_an_rsa_root_is_welcome_and_a_weak_one_is_not(self):
        for bits, welcome in ((2048, True), (1024, False)):
            root = _rsa_root(bits)
            if welcome:
                der = cross_certify(root, CA.root, CA.root_signer, TrustDomain("other.example"), 5, NOW)
                x509.load_der_x509_certificate(der).verify_directly_issued_by(x509.load_der_x509_certificate(CA.root))
            else:
                with pytest.raises(InvalidInput, match="too weak"):
                    cross_certify(root, CA.root, CA.root_signer, TrustDomain("other.example"), 5, NOW)

    def test_what_cannot_be_cross_certified(self):
        theirs = self.outside()
        svid, _ = theirs.svid("/app")
        with pytest.raises(UnfitAuthority, match="not that of a CA"):
            cross_certify(svid.chain[0], CA.root, CA.root_signer, theirs.trust_domain, 5, NOW)
        with pytest.raises(InvalidInput, match="same key"):
            cross_certify(CA.root, CA.root, CA.root_signer, TD, 5, NOW)
        with pytest.raises(InvalidInput, match="not valid now"):
            cross_certify(theirs.root, CA.root, CA.root_signer, theirs.trust_domain, 5, NOW - timedelta(hours=2))
        with pytest.raises(InvalidInput, match="no domain name"):
            cross_certify(theirs.root, CA.root, CA.root_signer, TrustDomain("under_score"), 5, NOW)


def _rsa_root(bits):
    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "RSA root")])
    return (
        x509.CertificateBuilder(name, name, key.public_key(), 5)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
