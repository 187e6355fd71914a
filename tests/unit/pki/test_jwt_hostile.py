"""Tokens that somebody made to be believed: each is refused, and for its own reason."""

import base64
import hashlib
import hmac
import json
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwk, jws

from eastwest.pki.chain import Expired, InvalidSvid, MalformedSvid, NotYetValid
from eastwest.pki.jwt import JwtSigningKey, UnknownJwtAuthority, WrongAudience, unverified_subject, validate
from eastwest.pki.signer import KeyAlgorithm, SoftwareSigner, SubjectKey, generate_private_key
from eastwest.spiffe.bundle import Bundle, JwtAuthority
from eastwest.testing import TestCA

CA = TestCA()
NOW = CA.now
KEY = CA.jwt_key
P384 = JwtSigningKey(SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P384)), NOW + timedelta(days=1))
STRANGER = JwtSigningKey(SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P256)), NOW + timedelta(days=1))
BUNDLE = Bundle(CA.trust_domain, jwt_authorities=(KEY.authority, P384.authority))
HEADER = {"alg": "ES256", "kid": KEY.key_id, "typ": "JWT"}
CLAIMS = {
    "sub": "spiffe://saas.example/prod/billing",
    "aud": ["db"],
    "exp": int(NOW.timestamp()) + 300,
    "iat": int(NOW.timestamp()),
}


def segment(content):
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def forge(header=HEADER, claims=CLAIMS, key=KEY, algorithm=None):
    """A token whose bytes are as told, with a true signature of ``key``."""
    signing = jwk.ECKey.import_key(key.signer._key)
    name = algorithm or {"ec-p256": "ES256", "ec-p384": "ES384"}[key.signer.algorithm]
    message = f"{segment(header)}.{segment(claims)}".encode()
    return f"{message.decode()}.{segment(jws.JWSRegistry(algorithms=[name]).get_alg(name).sign(message, signing))}"


def hmac_with_public_key():
    pem = SubjectKey.of(KEY.signer.public_key)
    public = KEY.signer.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (public, pem.spki):
        message = f"{segment(HEADER | {'alg': 'HS256'})}.{segment(CLAIMS)}"
        yield f"{message}.{segment(hmac.digest(secret, message.encode(), hashlib.sha256))}"


def text(claims_json):
    """Claims with something that ``json.dumps`` would not write."""
    return json.dumps(CLAIMS)[:-1].encode() + b"," + claims_json + b"}"


GOOD = forge()
ALG = "algorithm is not one"
FIELD = "a field that JWT-SVIDs may not have"

TABLE = {
    "alg none, unsigned": (f"{segment(HEADER | {'alg': 'none'})}.{segment(CLAIMS)}.", MalformedSvid, "signature"),
    "alg none, signed": (forge(HEADER | {"alg": "none"}), MalformedSvid, ALG),
    "alg None": (forge(HEADER | {"alg": "None"}), MalformedSvid, ALG),
    "alg missing": (forge({"kid": KEY.key_id}), MalformedSvid, ALG),
    "alg a list": (forge(HEADER | {"alg": ["ES256"]}), MalformedSvid, ALG),
    "HS256 with the public key": (next(hmac_with_public_key()), MalformedSvid, ALG),
    "another curve's algorithm": (forge(HEADER | {"alg": "ES384"}), InvalidSvid, "signature is not by the key"),
    "another key's kid": (forge(HEADER | {"kid": P384.key_id}), InvalidSvid, "signature is not by the key"),
    "a P-384 key as ES256": (forge(HEADER | {"kid": P384.key_id}, key=P384), InvalidSvid, "signature is not by"),
    "a stranger's signature": (forge(key=STRANGER), InvalidSvid, "signature is not by the key"),
    "kid unknown": (forge(HEADER | {"kid": STRANGER.key_id}, key=STRANGER), UnknownJwtAuthority, "no key of"),
    "kid missing": (forge({"alg": "ES256"}), MalformedSvid, "names no key"),
    "kid a path": (forge(HEADER | {"kid": "../../etc/passwd"}), UnknownJwtAuthority, "no key of"),
    "kid a number": (forge(HEADER | {"kid": 7}), MalformedSvid, "names no key"),
    "crit": (forge(HEADER | {"crit": ["exp"]}), MalformedSvid, FIELD),
    "unencoded payload": (forge(HEADER | {"b64": False, "crit": ["b64"]}), MalformedSvid, FIELD),
    "its own key in the header": (forge(HEADER | {"jwk": {"kty": "EC"}}), MalformedSvid, FIELD),
    "a key to fetch": (forge(HEADER | {"jku": "https://evil.example/keys"}), MalformedSvid, FIELD),
    "a certificate to fetch": (forge(HEADER | {"x5u": "https://evil.example/c"}), MalformedSvid, FIELD),
    "compressed": (forge(HEADER | {"zip": "DEF"}), MalformedSvid, FIELD),
    "a token within": (forge(HEADER | {"cty": "JWT"}, GOOD.encode()), MalformedSvid, "claims is not JSON"),
    "typ of an access token": (forge(HEADER | {"typ": "at+jwt"}), MalformedSvid, FIELD),
    "typ a list": (forge(HEADER | {"typ": ["JWT"]}), MalformedSvid, FIELD),
    "five parts": (f"{segment({'alg': 'dir', 'enc': 'A128GCM'})}..AA.AA.AA", MalformedSvid, "encrypted"),
    "two parts": (GOOD.rpartition(".")[0], MalformedSvid, "compact form"),
    "JSON serialisation": (json.dumps({"payload": segment(CLAIMS)}), MalformedSvid, "compact form"),
    "padding": (f"{GOOD}==", MalformedSvid, "base64url without padding"),
    "stray characters": (f"{GOOD[:-3]}!{GOOD[-3:]}", MalformedSvid, "base64url"),
    "a line end": (f"{GOOD}\n", MalformedSvid, "base64url"),
    "plain base64": (forge().replace("-", "+").replace("_", "/") + "+", MalformedSvid, "base64url"),
    "not ASCII": (f"{GOOD}é", MalformedSvid, "base64url"),
    "too large": (forge(claims=CLAIMS | {"x": "y" * 17_000}), MalformedSvid, "larger than"),
    "a name twice": (forge(claims=text(b'"sub":"spiffe://saas.example/admin"')), MalformedSvid, "twice"),
    "a header name twice": (
        forge(b'{"alg":"none","alg":"ES256","kid":"%s"}' % KEY.key_id.encode()),
        MalformedSvid,
        "twice",
    ),
    "claims a list": (forge(claims=[CLAIMS]), MalformedSvid, "not a JSON object"),
    "header null": (forge(None), MalformedSvid, "not a JSON object"),
    "deep": (forge(claims=text(b'"a":' + b"[" * 40 + b"]" * 40)), MalformedSvid, "nested deeper"),
    "very deep": (forge(claims=text(b'"a":' + b"[" * 5000 + b"]" * 5000)), MalformedSvid, "claims is"),
    "NaN": (forge(claims=text(b'"a":NaN')), MalformedSvid, "numbers too large"),
    "infinite": (forge(claims=text(b'"a":1e400')), MalformedSvid, "numbers too large"),
    "a long number": (forge(claims=text(b'"a":' + b"9" * 5000)), MalformedSvid, "numbers too large"),
    "UTF-16": (forge(claims=json.dumps(CLAIMS).encode("utf-16")[:51]), MalformedSvid, "claims is not JSON"),
    "exp missing": (forge(claims={k: v for k, v in CLAIMS.items() if k != "exp"}), MalformedSvid, "exp is missing"),
    "exp a text": (forge(claims=CLAIMS | {"exp": "4102444800"}), MalformedSvid, "exp is missing or not"),
    "exp beyond the calendar": (forge(claims=CLAIMS | {"exp": 10**17}), MalformedSvid, "exp is out of range"),
    "exp beyond the key": (forge(claims=CLAIMS | {"exp": 4102444800}), InvalidSvid, "outlives the key"),
    "exp past": (forge(claims=CLAIMS | {"exp": int(NOW.timestamp())}), Expired, "the token ended"),
    "nbf to come": (forge(claims=CLAIMS | {"nbf": CLAIMS["exp"] - 100}), NotYetValid, "valid only later"),
    "aud of another": (forge(claims=CLAIMS | {"aud": ["cache", "mail"]}), WrongAudience, "not meant for 'db'"),
    "aud a longer name": (forge(claims=CLAIMS | {"aud": "db.evil"}), WrongAudience, "not meant for 'db'"),
    "aud an object": (forge(claims=CLAIMS | {"aud": {"db": 1}}), MalformedSvid, "names no audience"),
    "sub of another domain": (
        forge(claims=CLAIMS | {"sub": "spiffe://other.example/x"}),
        UnknownJwtAuthority,
        "not in trust domain",
    ),
    "sub no SPIFFE ID": (forge(claims=CLAIMS | {"sub": "admin"}), MalformedSvid, "not a SPIFFE ID"),
    "sub a list": (forge(claims=CLAIMS | {"sub": [CLAIMS["sub"]]}), MalformedSvid, "not a SPIFFE ID"),
}


def test_the_pattern_itself_is_good():
    assert validate(GOOD, "db", BUNDLE, NOW).id == CA.trust_domain.id("/prod/billing")
    of_p384 = forge({"alg": "ES384", "kid": P384.key_id}, key=P384)
    assert validate(of_p384, "db", BUNDLE, NOW).audience == ("db",)
    two = forge(claims=CLAIMS | {"aud": ["cache", "db"]})
    assert validate(two, "db", BUNDLE, NOW).audience == ("cache", "db")


@pytest.mark.parametrize("name", TABLE)
def test_refused_with_its_reason(name):
    token, error, reason = TABLE[name]
    with pytest.raises(InvalidSvid, match=reason) as caught:
        validate(token, "db", BUNDLE, NOW)
    assert type(caught.value) is error
    assert token not in str(caught.value)


def test_both_forms_of_the_public_key_as_a_secret():
    for token in hmac_with_public_key():
        with pytest.raises(MalformedSvid, match=ALG):
            validate(token, "db", BUNDLE, NOW)


def test_a_signature_has_one_spelling():
    # The last character of a segment has bits that no byte uses; a second spelling would slip past a list of tokens.
    head, _, last = GOOD[:-1], None, GOOD[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    others = [head + character for character in alphabet if character != last]
    for token in others:
        with pytest.raises(InvalidSvid):
            validate(token, "db", BUNDLE, NOW)


def test_a_key_without_a_known_end_bounds_nothing():
    # Bundles read from JSON do not say when a key ends.
    endless = Bundle(CA.trust_domain, jwt_authorities=(JwtAuthority(KEY.authority.spki, KEY.key_id, 0),))
    assert validate(forge(claims=CLAIMS | {"exp": 4102444800}), "db", endless, NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def members(base):
    """Objects that are nearly right: some members replaced, some more."""
    return st.builds(
        lambda change, more: base | change | more,
        st.dictionaries(st.sampled_from(sorted(base)), JSON, max_size=2),
        st.dictionaries(st.sampled_from(["crit", "nbf", "iss", "x5c", "aud", "zip"]), JSON, max_size=1),
    )


@given(st.one_of(st.text(max_size=200), st.lists(st.binary(max_size=60).map(segment), max_size=6).map(".".join)))
def test_noise_is_refused_and_never_crashes(token):
    for read in (unverified_subject, lambda token: validate(token, "db", BUNDLE, NOW)):
        with pytest.raises(InvalidSvid):
            read(token)


@given(members(HEADER), members(CLAIMS))
def test_a_true_signature_does_not_help_wrong_content(header, claims):
    try:
        valid = validate(forge(header, claims), "db", BUNDLE, NOW)
    except InvalidSvid:
        return
    assert header["alg"] == "ES256"
    assert header["kid"] == KEY.key_id
    assert claims["sub"] == str(valid.id)
    assert valid.id.trust_domain == CA.trust_domain
    assert "db" in claims["aud"]
    assert NOW < valid.expires_at <= KEY.expires_at
