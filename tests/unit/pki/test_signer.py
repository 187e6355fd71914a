from __future__ import annotations

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from eastwest.pki.signer import (
    KeyAlgorithm,
    SoftwareSigner,
    SubjectKey,
    UnsupportedKey,
    algorithm_of,
    generate_private_key,
    key_id_of,
)


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_a_subject_key_is_what_the_library_says(algorithm):
    signer = SoftwareSigner(generate_private_key(algorithm))
    public_key = signer.public_key
    key = SubjectKey.of(public_key)
    assert key.algorithm is algorithm
    assert key.spki == public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key.identifier == x509.SubjectKeyIdentifier.from_public_key(public_key).digest
    assert key.identifier == hashlib.sha1(key.bits).digest()
    assert key_id_of(public_key) == key.identifier.hex() == signer.key_id


@pytest.mark.parametrize(
    ("public_key", "reason"),
    [
        (lambda: rsa.generate_private_key(65537, 2048).public_key(), "RSA keys"),
        (lambda: ec.generate_private_key(ec.SECP521R1()).public_key(), "secp521r1"),
        (lambda: ec.generate_private_key(ec.SECP256K1()).public_key(), "secp256k1"),
        (object, "keys are not accepted"),
    ],
)
def test_other_key_types_are_refused_with_the_reason(public_key, reason):
    with pytest.raises(UnsupportedKey, match=reason) as caught:
        algorithm_of(public_key())
    assert "P-256" in caught.value.fix
