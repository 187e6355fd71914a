from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from eastwest.pki.jwks import MAX_BUNDLE_BYTES, MalformedBundle, export_bundle, export_jwks, parse_bundle
from eastwest.pki.signer import KeyAlgorithm
from eastwest.spiffe.bundle import Bundle, JwtAuthority, X509Authority
from eastwest.testing import TestCA

CA = TestCA()


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_a_bundle_survives_the_journey(algorithm):
    ca = TestCA(algorithm=algorithm)
    bundle = replace(
        ca.bundle,
        x509_authorities=(X509Authority(ca.root), X509Authority(CA.root)),
        jwt_authorities=(JwtAuthority(ca.jwt_key.authority.spki, "kid-1", 0), _rsa_authority("kid-2")),
        sequence=7,
        refresh_hint=300,
    )
    assert parse_bundle(bundle.trust_domain, export_bundle(bundle)) == bundle


def test_the_spiffe_form():
    document = json.loads(export_bundle(CA.bundle))
    x509_key, jwt_key = document["keys"]
    assert document["spiffe_sequence"] == 1
    assert "spiffe_refresh_hint" not in document
    assert x509_key.keys() == {"use", "kty", "crv", "x", "y", "x5c"}
    assert (x509_key["use"], len(x509_key["x5c"])) == ("x509-svid", 1)
    assert jwt_key.keys() == {"use", "kid", "kty", "crv", "x", "y"}
    assert (jwt_key["use"], jwt_key["kid"], jwt_key["crv"]) == ("jwt-svid", CA.jwt_key.key_id, "P-256")


def test_the_plain_form():
    (key,) = json.loads(export_jwks(CA.bundle))["keys"]
    assert key.keys() == {"kid", "kty", "crv", "x", "y"}


def test_an_empty_bundle():
    bundle = Bundle(CA.trust_domain)
    assert parse_bundle(CA.trust_domain, export_bundle(bundle)) == bundle
    assert json.loads(export_jwks(bundle)) == {"keys": []}


def test_keys_of_other_uses_are_ignored():
    data = json.dumps({"keys": [{"use": "wit-svid", "kty": "EC"}, {"kty": "EC"}], "extra": 1}).encode()
    assert parse_bundle(CA.trust_domain, data) == Bundle(CA.trust_domain)


GOOD = json.loads(export_bundle(CA.bundle))["keys"]


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"keys": {}},
        {"keys": [1]},
        {"keys": [], "spiffe_sequence": "1"},
        {"keys": [{"use": "x509-svid"}]},
        {"keys": [{**GOOD[0], "x5c": []}]},
        {"keys": [{**GOOD[0], "x5c": GOOD[0]["x5c"] * 2}]},
        {"keys": [{**GOOD[0], "x5c": ["!"]}]},
        {"keys": [{**GOOD[0], "x5c": ["AAAA"]}]},
        {"keys": [{**GOOD[1], "kid": ""}]},
        {"keys": [{**GOOD[1], "kty": "oct", "k": "AAAA"}]},
        {"keys": [{**GOOD[1], "x": "AAAA"}]},
        {"keys": [{**GOOD[1], "crv": "P-999"}]},
        {"keys": [GOOD[1], GOOD[1]]},
    ],
)
def test_damaged_bundles_are_refused(document):
    with pytest.raises(MalformedBundle):
        parse_bundle(CA.trust_domain, json.dumps(document).encode())


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 5000, b'{"keys":[{"a":' + b"[" * 50_000, bytes(MAX_BUNDLE_BYTES + 1)]
)
def test_noise_is_refused(data):
    with pytest.raises(MalformedBundle):
        parse_bundle(CA.trust_domain, data)


def _rsa_authority(key_id):
    public_key = rsa.generate_private_key(65537, 2048).public_key()
    return JwtAuthority(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo), key_id, 0)
