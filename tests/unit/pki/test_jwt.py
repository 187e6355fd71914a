from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from joserfc import jwk, jwt

from eastwest.errors import InvalidInput
from eastwest.pki.chain import Expired, InvalidSvid, MalformedSvid, NotYetValid
from eastwest.pki.jwks import export_jwks
from eastwest.pki.jwt import (
    JwtSigningKey,
    UnknownJwtAuthority,
    WrongAudience,
    check_audience,
    mint,
    unverified_subject,
    validate,
)
from eastwest.pki.signer import KeyAlgorithm, SoftwareSigner, UnsupportedKey, generate_private_key
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import SpiffeId, TrustDomain
from eastwest.testing import TestCA

CA = TestCA()
NOW = CA.now
ID = SpiffeId.parse("spiffe://saas.example/prod/billing")
END = NOW + timedelta(minutes=5)


def signing_key(algorithm=KeyAlgorithm.EC_P256):
    return JwtSigningKey(SoftwareSigner(generate_private_key(algorithm)), NOW + timedelta(days=1))


def token(key=CA.jwt_key, **changes):
    """A token with joserfc as the signer, so that it can say what `mint` never would."""
    header = {"alg": "ES256", "kid": key.key_id, "typ": "JWT"} | changes.pop("header", {})
    claims = {"sub": str(ID), "aud": ["db"], "exp": int(END.timestamp()), "iat": int(NOW.timestamp())} | changes
    kept = {name: value for name, value in claims.items() if value is not None}
    header = {name: value for name, value in header.items() if value is not None}
    algorithms = ["ES256", "ES384", "HS256", "none"]
    return jwt.encode(header, kept, jwk.ECKey.import_key(key.signer._key), algorithms, default_type=None)


@pytest.mark.parametrize(("algorithm", "name"), [(KeyAlgorithm.EC_P256, "ES256"), (KeyAlgorithm.EC_P384, "ES384")])
def test_a_minted_token_is_read_by_another_library(algorithm, name):
    key = signing_key(algorithm)
    minted = mint(key, ID, ["db", "cache"], NOW, END, "id-1", issuer="https://issuer.example")
    bundle = Bundle(ID.trust_domain, jwt_authorities=(key.authority,))
    decoded = jwt.decode(minted.token, jwk.KeySet.import_key_set(json.loads(export_jwks(bundle))), [name])
    assert decoded.header == {"alg": name, "kid": key.key_id, "typ": "JWT"} == minted.header
    assert decoded.claims == minted.claims
    assert decoded.claims == {
        "aud": ["db", "cache"],
        "exp": int(END.timestamp()),
        "iat": int(NOW.timestamp()),
        "iss": "https://issuer.example",
        "jti": "id-1",
        "sub": str(ID),
    }


def test_many_signatures_have_the_right_length():
    # The halves of a signature have leading zeros now and then.
    key = signing_key()
    bundle = Bundle(ID.trust_domain, jwt_authorities=(key.authority,))
    for number in range(300):
        minted = mint(key, ID, ["db"], NOW, END, str(number))
        validate(minted.token, "db", bundle, NOW)


def test_a_token_proves_its_subject():
    valid = validate(CA.jwt("/prod/billing", "db"), "db", CA.bundle, NOW)
    assert (valid.id, valid.audience, valid.expires_at) == (ID, ("db",), END)
    assert valid.claims["sub"] == str(ID)


def test_a_single_audience_may_be_a_text():
    assert validate(token(aud="db"), "db", CA.bundle, NOW).audience == ("db",)


def test_neither_token_nor_signature_is_shown():
    minted = mint(CA.jwt_key, ID, ["db"], NOW, END, "1")
    assert minted.token not in repr(minted)
    assert minted.token.split(".")[2] not in repr(minted)


def test_a_flipped_bit_anywhere_is_refused():
    text = CA.jwt("/prod/billing", "db")
    for position in range(0, len(text) - 1, 7):
        changed = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
        with pytest.raises(InvalidSvid):
            validate(changed, "db", CA.bundle, NOW)


@pytest.mark.parametrize(
    ("changes", "moment", "error"),
    [
        ({}, NOW, None),
        ({}, END - timedelta(seconds=1), None),
        ({}, END, Expired),
        ({"exp": None}, NOW, MalformedSvid),
        ({"exp": "soon"}, NOW, MalformedSvid),
        ({"exp": True}, NOW, MalformedSvid),
        ({"exp": 1e300}, NOW, MalformedSvid),
        ({"nbf": int(NOW.timestamp()) + 60}, NOW, None),
        ({"nbf": int(NOW.timestamp()) + 61}, NOW, NotYetValid),
        ({"iat": int(NOW.timestamp()) + 61}, NOW, NotYetValid),
        ({"iat": None}, NOW, None),
        ({"aud": ["cache"]}, NOW, WrongAudience),
        ({"aud": []}, NOW, MalformedSvid),
        ({"aud": None}, NOW, MalformedSvid),
        ({"aud": [1]}, NOW, MalformedSvid),
        ({"sub": None}, NOW, MalformedSvid),
        ({"sub": "billing"}, NOW, MalformedSvid),
        ({"sub": "spiffe://other.example/x"}, NOW, UnknownJwtAuthority),
        ({"header": {"kid": "unknown"}}, NOW, UnknownJwtAuthority),
        ({"header": {"kid": None}}, NOW, MalformedSvid),
        ({"header": {"kid": ""}}, NOW, MalformedSvid),
        ({"header": {"typ": "JOSE"}}, NOW, None),
        ({"header": {"typ": None}}, NOW, None),
        ({"header": {"typ": "at+jwt"}}, NOW, MalformedSvid),
        ({"header": {"cty": "json"}}, NOW, MalformedSvid),
    ],
)
def test_claims_and_header(changes, moment, error):
    text = token(**changes)
    if error is None:
        validate(text, "db", CA.bundle, moment)
    else:
        with pytest.raises(error):
            validate(text, "db", CA.bundle, moment)


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES256K", "EdDSA", "RS256", "ES384"])
def test_the_algorithm_cannot_be_chosen_by_the_token(algorithm):
    header, claims, signature = CA.jwt("/prod/billing", "db").split(".")
    header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "kid": CA.jwt_key.key_id}).encode()).decode()
    for forged in (signature, ""):
        with pytest.raises(InvalidSvid):
            validate(f"{header.rstrip('=')}.{claims}.{forged}", "db", CA.bundle, NOW)


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", "e30.e30.", "é.e30.e30", "x" * 20_000, "bnVsbA.e30.AA"])
def test_what_is_no_token(text):
    with pytest.raises(MalformedSvid) as caught:
        validate(text, "db", CA.bundle, NOW)
    assert not text.strip(".") or text not in str(caught.value)


@pytest.mark.parametrize("part", [0, 1])
def test_deep_nesting_is_refused(part):
    parts = CA.jwt("/prod/billing", "db").split(".")
    deep = b'{"a":' + b"[" * 5_500
    parts[part] = base64.urlsafe_b64encode(deep).decode().rstrip("=")
    with pytest.raises(MalformedSvid):
        validate(".".join(parts), "db", CA.bundle, NOW)


def test_the_subject_can_be_read_to_find_the_bundle():
    assert unverified_subject(CA.jwt("/prod/billing", "db")) == ID
    with pytest.raises(MalformedSvid):
        unverified_subject("noise")


def test_another_trust_domains_bundle():
    with pytest.raises(UnknownJwtAuthority, match=r"not in trust domain other\.example"):
        validate(CA.jwt("/prod/billing", "db"), "db", Bundle(TrustDomain("other.example")), NOW)


def test_ed25519_cannot_sign_jwt_svids():
    with pytest.raises(UnsupportedKey):
        signing_key(KeyAlgorithm.ED25519)


def test_the_authority_says_when_it_ends():
    key = signing_key()
    assert datetime.fromtimestamp(key.authority.expires_at, UTC) == key.expires_at


@pytest.mark.parametrize("audience", [[], ["a", "a"], [""], ["a" * 2049], [str(n) for n in range(33)]])
def test_audiences_are_bounded(audience):
    with pytest.raises(InvalidInput):
        check_audience(audience)
