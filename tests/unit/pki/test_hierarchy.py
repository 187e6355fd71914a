from __future__ import annotations

import subprocess
from datetime import timedelta

import pytest
from cryptography import x509

from eastwest.pki.chain import dump_chain_pem
from eastwest.pki.hierarchy import Authority, UnfitAuthority, create_intermediate, create_root
from eastwest.pki.signer import CLASSICAL, KeyAlgorithm, SoftwareSigner, generate_private_key
from eastwest.spiffe.id import TrustDomain
from eastwest.testing import TestCA

TD = TrustDomain("saas.example")


@pytest.fixture(params=list(KeyAlgorithm), scope="module")
def ca(request):
    return TestCA(algorithm=request.param)


def test_the_root(ca):
    root = x509.load_der_x509_certificate(ca.root)
    root.verify_directly_issued_by(root)
    assert _extension(root, x509.BasicConstraints) == (x509.BasicConstraints(ca=True, path_length=None), True)
    usage, critical = _extension(root, x509.KeyUsage)
    assert critical
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    assert _uris(root) == ["spiffe://saas.example"]
    assert _extension(root, x509.SubjectKeyIdentifier)[0].digest.hex() == ca.root_signer.key_id
    assert root.not_valid_before_utc == ca.now - timedelta(seconds=30)


def test_the_intermediate(ca):
    certificate = ca.authority.certificate
    certificate.verify_directly_issued_by(x509.load_der_x509_certificate(ca.root))
    assert _extension(certificate, x509.BasicConstraints) == (x509.BasicConstraints(ca=True, path_length=0), True)
    assert _uris(certificate) == ["spiffe://saas.example"]
    assert _extension(certificate, x509.AuthorityKeyIdentifier)[0].key_identifier.hex() == ca.root_signer.key_id
    assert _extension(certificate, x509.SubjectKeyIdentifier)[0].digest.hex() == ca.authority.key_id


@pytest.mark.parametrize("algorithm", sorted(CLASSICAL))
def test_openssl_verifies_a_leaf(algorithm, tmp_path):
    # ML-DSA-65 is judged by cryptography below: the openssl command of the distributions of today does not read it.
    ca = TestCA(algorithm=algorithm)
    svid, _ = ca.svid("/prod/billing", dns_names=("billing.saas.example",))
    for name, chain in (("leaf", svid.chain[:1]), ("between", svid.chain[1:]), ("root", ca.roots)):
        (tmp_path / name).write_bytes(dump_chain_pem(chain))
    command = ["openssl", "verify", "-x509_strict", "-attime", str(int(ca.now.timestamp())), "-CAfile", "root"]
    command += ["-untrusted", "between", "leaf"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "leaf: OK\n"), done.stderr


def test_cryptography_verifies_a_leaf(ca):
    svid, _ = ca.svid("/prod/billing", dns_names=("billing.saas.example",))
    chain = [x509.load_der_x509_certificate(der) for der in (*svid.chain, ca.root)]
    for certificate, issuer in zip(chain, [*chain[1:], chain[-1]], strict=True):
        certificate.verify_directly_issued_by(issuer)
    assert len(chain) == 3


def test_openssl_reads_the_fields_of_a_leaf(tmp_path):
    ca = TestCA()
    svid, _ = ca.svid("/prod/billing", dns_names=("billing.saas.example",))
    done = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-text"], input=svid.chain[0], capture_output=True, check=True
    )
    text = " ".join(done.stdout.decode().split())
    for part in (
        "Version: 3 (0x2)",
        "Signature Algorithm: ecdsa-with-SHA256",
        "Not Before: Jan 5 11:59:30 2026 GMT Not After : Jan 5 13:00:00 2026 GMT",
        "Subject: CN = billing.saas.example",
        "X509v3 Key Usage: critical Digital Signature X509v3",
        "X509v3 Extended Key Usage: TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Basic Constraints: critical CA:FALSE",
        "X509v3 Subject Alternative Name: URI:spiffe://saas.example/prod/billing, DNS:billing.saas.example",
    ):
        assert part in text
    assert ca.authority.key_id in text.replace(":", "").lower()


def test_an_intermediate_never_outlives_its_root():
    signer = SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P256))
    now = TestCA().now
    root = create_root(signer, TD, 1, now, timedelta(days=2))
    public_key = generate_private_key(KeyAlgorithm.EC_P256).public_key()
    der = create_intermediate(public_key, root, signer, TD, 2, now, timedelta(days=365))
    assert (
        x509.load_der_x509_certificate(der).not_valid_after_utc
        == x509.load_der_x509_certificate(root).not_valid_after_utc
    )
    with pytest.raises(UnfitAuthority, match="root has expired"):
        create_intermediate(public_key, root, signer, TD, 3, now + timedelta(days=2))


def test_the_longest_trust_domain_fits():
    signer = SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P256))
    trust_domain = TrustDomain.parse("a" * 251 + ".xyz")
    root = x509.load_der_x509_certificate(create_root(signer, trust_domain, 1, TestCA().now))
    assert _uris(root) == [trust_domain.uri]


class TestAuthority:
    CA = TestCA()

    def test_names_its_generation_and_its_end(self):
        authority = self.CA.authority
        assert authority.key_id == authority.signer.key_id
        assert authority.not_after == self.CA.now - timedelta(seconds=30) + timedelta(days=1)
        assert "0x" not in repr(authority)

    def test_another_key(self):
        other = SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P256))
        with pytest.raises(UnfitAuthority, match="another key"):
            Authority.create(TD, other, self.CA.authority.chain, self.CA.roots)

    def test_another_root(self):
        with pytest.raises(UnfitAuthority, match="trusted root"):
            Authority.create(TD, self.CA.authority.signer, self.CA.authority.chain, TestCA().roots)

    def test_another_trust_domain(self):
        with pytest.raises(UnfitAuthority, match=r"does not name spiffe://other\.example"):
            Authority.create(
                TrustDomain("other.example"), self.CA.authority.signer, self.CA.authority.chain, self.CA.roots
            )

    def test_a_leaf_or_nothing_in_place_of_a_ca(self):
        svid, key = self.CA.svid("/prod/billing")
        with pytest.raises(UnfitAuthority, match="not a CA"):
            Authority.create(TD, SoftwareSigner(key), svid.chain, self.CA.roots)
        with pytest.raises(UnfitAuthority, match="empty"):
            Authority.create(TD, SoftwareSigner(key), [], self.CA.roots)

    def test_damaged_bytes(self):
        with pytest.raises(UnfitAuthority, match="cannot be read"):
            Authority.create(TD, self.CA.authority.signer, [b"noise"], self.CA.roots)

    def test_a_key_store_that_signs_wrongly_is_found_at_start(self):
        class Broken(SoftwareSigner):
            def sign(self, data):
                return super().sign(data + b"!")

        signer = Broken(generate_private_key(KeyAlgorithm.EC_P256))
        certificate = create_intermediate(
            signer.public_key, self.CA.root, self.CA.root_signer, TD, 5, self.CA.now, timedelta(days=1)
        )
        with pytest.raises(UnfitAuthority, match="do not verify"):
            Authority.create(TD, signer, [certificate], self.CA.roots)


def _extension(certificate, kind):
    found = certificate.extensions.get_extension_for_class(kind)
    return found.value, found.critical


def _uris(certificate):
    names = _extension(certificate, x509.SubjectAlternativeName)[0]
    return names.get_values_for_type(x509.UniformResourceIdentifier)
