from __future__ import annotations

import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from eastwest.pki.csr import MAX_CSR_BYTES, InvalidCsr, make_csr, verify_csr
from eastwest.pki.signer import KeyAlgorithm, UnsupportedKey, generate_private_key
from eastwest.spiffe.id import SpiffeId

ALL = frozenset(KeyAlgorithm)
ID = SpiffeId.parse("spiffe://saas.example/prod/billing")


def csr_of(key, algorithm):
    return x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, algorithm).public_bytes(Encoding.DER)


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_the_proven_key_comes_out(algorithm):
    private_key = generate_private_key(algorithm)
    key = verify_csr(make_csr(private_key, ID), ALL)
    assert key.algorithm is algorithm
    assert key.spki == private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_a_made_request_names_the_id(algorithm):
    csr = x509.load_der_x509_csr(make_csr(generate_private_key(algorithm), ID))
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(ID)]


@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512(), hashes.SHA3_256()])
def test_any_sound_hash_will_do(digest):
    verify_csr(csr_of(generate_private_key(KeyAlgorithm.EC_P256), digest), ALL)


def test_rsa_is_refused_clearly():
    with pytest.raises(UnsupportedKey, match=r"RSA keys are not accepted.*P-256"):
        verify_csr(csr_of(rsa.generate_private_key(65537, 2048), hashes.SHA256()), ALL)


def test_other_curves_are_refused():
    with pytest.raises(UnsupportedKey, match="secp521r1"):
        verify_csr(csr_of(ec.generate_private_key(ec.SECP521R1()), hashes.SHA512()), ALL)


def test_a_key_type_outside_the_profile_is_refused():
    der = make_csr(generate_private_key(KeyAlgorithm.ED25519), ID)
    with pytest.raises(UnsupportedKey, match=r"ed25519 keys are not accepted here.*ec-p256"):
        verify_csr(der, frozenset({KeyAlgorithm.EC_P256}))


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_somebody_elses_key_is_refused(algorithm):
    own, other = generate_private_key(algorithm), generate_private_key(algorithm)
    der = make_csr(own, ID)
    forms = [key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in (own, other)]
    with pytest.raises(InvalidCsr, match="not signed by its own key"):
        verify_csr(der.replace(forms[0], forms[1]), ALL)


@pytest.mark.parametrize("der", [b"", b"\x30", b"\x30\x00", b"x" * 100, b"\x30\x80" * 500])
def test_noise_is_refused(der):
    with pytest.raises(InvalidCsr):
        verify_csr(der, ALL)


def test_trailing_bytes_are_refused():
    with pytest.raises(InvalidCsr):
        verify_csr(make_csr(generate_private_key(KeyAlgorithm.EC_P256), ID) + b"\0", ALL)


def test_size_is_bounded():
    with pytest.raises(InvalidCsr, match="larger than"):
        verify_csr(bytes(MAX_CSR_BYTES + 1), ALL)


def test_openssl_makes_requests_that_are_read(tmp_path):
    command = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/C=US/O=SPIRE", "-keyout", str(tmp_path / "key.pem"), "-outform", "DER"]
    der = subprocess.run(command, capture_output=True, check=True).stdout
    assert verify_csr(der, ALL).algorithm is KeyAlgorithm.EC_P256
