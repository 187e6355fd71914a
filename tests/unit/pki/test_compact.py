"""Tokens of our own making: what others' libraries make of them, and what is none."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OctKey

from eastwest.pki.compact import draft, parse, read_keys, signature_length
from eastwest.pki.signer import KeyAlgorithm, SoftwareSigner, UnsupportedKey, generate_private_key
from eastwest.pki.token_signer import SoftwareTokenSigner, generate_token_key
from eastwest.testing.tokens import TokenMint

SMALL = {"kty": "RSA", "kid": "small", "e": "AQAB", "n": urlsafe_b64encode(bytes([0x81] * 128)).rstrip(b"=").decode()}
KIND, LIMIT = "txntoken+jwt", 4096
SIGNER = SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P256))
KEYS = {SIGNER.key_id: SIGNER.public_key}


def made(claims: dict, kind: str = KIND) -> str:
    unsigned = draft(SIGNER, kind, claims)
    return unsigned.finish(SIGNER.sign(unsigned.message)).token


def read(token: str, keys=KEYS):
    """The claims of a token that one of our keys signed; None for anything else."""
    parsed = parse(token, LIMIT)
    return parsed.claims if parsed is not None and parsed.is_signed_by(keys) else None


GOOD = made({"sub": "spiffe://td.test/a", "n": 1})


def test_both_ways_and_by_others() -> None:
    assert read(GOOD) == {"sub": "spiffe://td.test/a", "n": 1}
    assert jwt.decode(GOOD, SIGNER.public_key, algorithms=["ES256"], options={"verify_aud": False})["n"] == 1
    for algorithm in ("RS256", "ES256"):
        mint = TokenMint("spiffe://td.test", algorithm)
        keys = read_keys(mint.key_set)
        assert read(mint.sign({"a": 1}), keys) == {"a": 1}
        mint.rotate()
        assert read(mint.sign({"a": 1}), keys) is None


def test_a_key_of_rsa_signs_and_its_length_is_known_before() -> None:
    signer = SoftwareTokenSigner(generate_token_key())
    for each in (signer, SIGNER):
        unsigned = draft(each, KIND, {"n": 1})
        token = unsigned.finish(each.sign(unsigned.message)).token
        assert len(token.rpartition(".")[2]) == signature_length(each)
    unsigned = draft(signer, KIND, {"n": 1})
    token = unsigned.finish(signer.sign(unsigned.message)).token
    assert read(token, {signer.key_id: signer.public_key}) == {"n": 1}
    assert read(token, {SIGNER.key_id: SIGNER.public_key, "other": signer.public_key}) is None
    assert read(token, {signer.key_id: SIGNER.public_key}) is None
    assert jwt.decode(token, signer.public_key, algorithms=["RS256"], options={"verify_aud": False})["n"] == 1


@given(st.integers(0, len(GOOD) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_not_one_character_may_change(at: int, other: str) -> None:
    changed = GOOD[:at] + other + GOOD[at + 1 :]
    # The last character has four bits that belong to no byte; the signature stays the same by them.
    same = at == len(GOOD) - 1 and (other.isalnum() or other in "-_") and _last(changed) == _last(GOOD)
    assert (read(changed) is None) == (changed != GOOD and not same)


def _last(token: str) -> bytes:
    return urlsafe_b64decode(token[-2:] + "==")


@given(st.text(max_size=200))
def test_no_text_makes_it_fail(text: str) -> None:
    assert read(text) is None
    assert read(f"{text}.{text}.{text}") is None


def _signed(claims: str) -> str:
    """Our signature on any text."""
    unsigned = draft(SIGNER, KIND, {})
    message = unsigned.message.rpartition(b".")[0] + b"." + urlsafe_b64encode(claims.encode()).rstrip(b"=")
    return replace(unsigned, message=message).finish(SIGNER.sign(message)).token


@pytest.mark.parametrize(
    "claims", ['{"n":1,"n":1}', '{"n":{"a":1,"a":2}}', '{"n":1e999}', "{'n':1}", "[]", "null", "", '{"n":1}x']
)
def test_claims_that_could_be_read_in_two_ways_are_none(claims: str) -> None:
    assert read(_signed('{"n":1}')) == {"n": 1}
    assert read(_signed(claims)) is None


def _spoilt() -> dict[str, str]:
    head, body, signature = GOOD.split(".")
    none = (
        urlsafe_b64encode(json.dumps({"alg": "none", "kid": SIGNER.key_id, "typ": KIND}).encode()).rstrip(b"=").decode()
    )
    other = ECKey.generate_key("P-256", {"kid": SIGNER.key_id})
    header = {"alg": "ES256", "kid": SIGNER.key_id, "typ": KIND}
    raw, der = urlsafe_b64decode(signature + "=="), SIGNER.sign(f"{head}.{body}".encode())
    return {
        "unsigned": f"{none}.{body}.",
        "no signature": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "four parts": f"{GOOD}.x",
        "padded": f"{head}.{body}.{signature}==",
        "space": f" {GOOD}",
        "another's key under our id": jws.serialize_compact(header, b"{}", other),
        "key inside": jws.serialize_compact({**header, "jwk": other.as_dict(private=False)}, b"{}", other),
        "shared secret": jws.serialize_compact(
            {**header, "alg": "HS256"}, b"{}", OctKey.import_key(b"0" * 32), algorithms=["HS256"]
        ),
        "signature of zeros": f"{head}.{body}.{urlsafe_b64encode(bytes(64)).rstrip(b'=').decode()}",
        "signature as DER": f"{head}.{body}.{urlsafe_b64encode(der).rstrip(b'=').decode()}",
        "signature too short": f"{head}.{body}.{urlsafe_b64encode(raw[:63]).rstrip(b'=').decode()}",
        "an id that is none of ours": jws.serialize_compact({**header, "kid": "x"}, b"{}", other),
        "no id, another's key": jws.serialize_compact({"alg": "ES256"}, b"{}", other),
        "too long": made({"n": "x" * LIMIT}),
        "no object": made([1]),  # type: ignore[arg-type]  # what no caller does
    }


@pytest.mark.parametrize("case", _spoilt())
def test_what_is_none(case: str) -> None:
    assert read(_spoilt()[case]) is None


def test_of_elliptic_curves_only_p_256_signs() -> None:
    with pytest.raises(UnsupportedKey):
        draft(SoftwareSigner(generate_private_key(KeyAlgorithm.EC_P384)), KIND, {})


def test_keys_of_other_kinds_are_left_out() -> None:
    mint = TokenMint("spiffe://td.test")
    document = json.loads(mint.key_set)
    document["keys"] += [{"kty": "OKP", "kid": "x", "x": "AA"}, {"kty": "EC", "crv": "P-384", "kid": "y"}, SMALL]
    assert list(read_keys(json.dumps(document).encode())) == ["token-1"]
    for bad in (b"", b"[]", b'{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":"AA","y":"AA"}]}'):
        with pytest.raises(ValueError):
            read_keys(bad)
