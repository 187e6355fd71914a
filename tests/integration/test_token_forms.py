"""Transaction tokens in every form: a real Envoy and ``eastwest.issuance.presented.read`` take the same for good.

Who signs with the trust domain's keys is the trust domain; what is signed by them is tried all the same, as two readers
that differ on a token would let through in one place what they refuse in another. The answers are for the call that
demands a step-up token in ``tests/corpora/estate``.
"""

import datetime as dt
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from equality_world import World, _base64url
from raw_http import Http1

from eastwest.policy.transaction import HEADER, MAX_LIFE, SKEW, TYPE, Token, claims
from eastwest.sdk.decide import decide
from eastwest.sdk.peers import Peer
from eastwest.spiffe.id import SpiffeId
from eastwest.testing.estates import FOREIGN, TRUST_DOMAIN

ESTATE = Path(__file__).parents[1] / "corpora" / "estate"
CLIENT = f"spiffe://{TRUST_DOMAIN}/prod/d1/client"
ADMIN = f"spiffe://{TRUST_DOMAIN}/prod/d1/admin"
TD = f"spiffe://{TRUST_DOMAIN}"
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
GOOD, INVALID, EXPIRED = "ALLOWED", "TOKEN_INVALID", "TOKEN_EXPIRED"
DEPTH = 99
NESTED = '{"a": ' * (DEPTH - 1) + "%s" + "}" * (DEPTH - 1)
_ABSENT = object()
_RSA = {"alg": "RS256", "kid": "r1"}


class Keys:
    """Two P-256 keys of the trust domain and an RSA key, one of nobody each, and what signs with them."""

    def __init__(self) -> None:
        self._rsa, self._other_rsa = (rsa.generate_private_key(65537, 2048) for _ in range(2))
        self._own = {kid: ec.generate_private_key(ec.SECP256R1()) for kid in ("k1", "k2")}
        self._other = ec.generate_private_key(ec.SECP256R1())

    @property
    def keys(self) -> bytes:
        """The JWK set."""
        made = []
        for kid, key in self._own.items():
            point = key.public_key().public_numbers()
            x, y = (_base64url(number.to_bytes(32)) for number in (point.x, point.y))
            made.append({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "alg": "ES256", "use": "sig"})
        own = self._rsa.public_key().public_numbers()
        e, n = (_base64url(number.to_bytes(length)) for number, length in ((own.e, 3), (own.n, 256)))
        made.append({"kty": "RSA", "e": e, "n": n, "kid": "r1", "alg": "RS256", "use": "sig"})
        return json.dumps({"keys": made}).encode()

    def sign(self, message: bytes, by: str) -> bytes:
        match by:
            case "":
                return b""
            case "HS256":
                return hmac.digest(self.keys, message, "sha256")
            case "ES384":
                return _raw(self._own["k1"].sign(message, ec.ECDSA(hashes.SHA384())))
            case "r1" | "RSA of nobody":
                return (self._rsa if by == "r1" else self._other_rsa).sign(message, padding.PKCS1v15(), hashes.SHA256())
            case "RS512":
                return self._rsa.sign(message, padding.PKCS1v15(), hashes.SHA512())
            case "PS256":
                salted = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
                return self._rsa.sign(message, salted, hashes.SHA256())
            case "DER":
                return self._own["k1"].sign(message, ec.ECDSA(hashes.SHA256()))
        key = self._own.get(by, self._other)
        return _raw(key.sign(message, ec.ECDSA(hashes.SHA256())))


def _raw(der: bytes, half: int = 32) -> bytes:
    r, s = decode_dss_signature(der)
    return r.to_bytes(half) + s.to_bytes(half)


@dataclass
class Form:
    """A token: changes to the good one's header and claims (``exp`` and the like are seconds from now), or the JSON of
    either; who signs; and what is done with the parts then.
    """

    answer: str = GOOD
    head: dict = field(default_factory=dict)
    said: dict = field(default_factory=dict)
    context: dict = field(default_factory=dict)
    head_text: Callable[[str], str | bytes] | None = None
    text: Callable[[str], str | bytes] | None = None
    by: str = "k1"
    signature: Callable[[bytes], bytes] | None = None
    parts: Callable[[str, str, str], str] = "{}.{}.{}".format

    def made(self, keys: Keys, good: dict, now: int) -> str:
        head = _changed({"alg": "ES256", "kid": "k1", "typ": TYPE}, self.head)
        said = _changed(good, {name: _moment(name, value, now) for name, value in self.said.items()})
        if self.context:
            said["tctx"] = _changed(good["tctx"], self.context)
        first, second = json.dumps(head), json.dumps(said)
        header = self.head_text(first) if self.head_text else first
        payload = self.text(second) if self.text else second
        message = f"{_base64url(_bytes(header))}.{_base64url(_bytes(payload))}"
        signature = keys.sign(message.encode(), self.by)
        signature = self.signature(signature) if self.signature else signature
        return self.parts(*message.split("."), _base64url(signature))


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _changed(good: dict, changes: dict) -> dict:
    return {name: value for name, value in {**good, **changes}.items() if value is not _ABSENT}


def _moment(name: str, value: object, now: int) -> object:
    if name in {"exp", "nbf", "iat"} and isinstance(value, int | float) and not isinstance(value, bool):
        return now + value if abs(value) < 10_000 else value
    return value


def _at(number: object) -> Callable[[str], str]:
    """The claims with a literal in place of ``exp``'s value."""
    return lambda text: text[: text.index('"exp": ') + 7] + str(number) + text[text.index(', "jti"') :]


def _swap(old: str, new: str) -> Callable[[str], str]:
    def swapped(text: str) -> str:
        assert old in text, (old, text)
        return text.replace(old, new)

    return swapped


def _stray(head: str, said: str, signature: str) -> str:
    """Bits of the last character that belong to no byte."""
    return f"{head}.{said}.{signature[:-1]}{chr(ord(signature[-1]) + 1)}"


def _other_half(raw: bytes) -> bytes:
    """The same signature with its other s."""
    return raw[:32] + (ORDER - int.from_bytes(raw[32:])).to_bytes(32)


def _wider(raw: bytes) -> bytes:
    return b"\0" + raw[:32] + b"\0" + raw[32:]


FORMS: dict[str, Form] = {
    "good": Form(),
    # The header
    "another of our keys": Form(by="k2", head={"kid": "k2"}),
    "another of our keys under a wrong id": Form(INVALID, by="k2"),
    "a key of nobody": Form(INVALID, by="x"),
    "an unknown key id": Form(INVALID, head={"kid": "k3"}),
    "no key id": Form(head={"kid": _ABSENT}),
    "no key id, second key": Form(by="k2", head={"kid": _ABSENT}),
    "no key id, key of nobody": Form(INVALID, by="x", head={"kid": _ABSENT}),
    "an empty key id": Form(head={"kid": ""}),
    "a key id that is a number": Form(INVALID, head={"kid": 1}),
    "a key id that is null": Form(INVALID, head={"kid": None}),
    "no type": Form(head={"typ": _ABSENT}),
    "another type": Form(head={"typ": "JWT"}),
    "a type that is no text": Form(head={"typ": 7}),
    "no algorithm": Form(INVALID, head={"alg": _ABSENT}),
    "algorithm none, unsigned": Form(INVALID, head={"alg": "none"}, by="", parts="{}.{}.".format),
    "algorithm none, signed": Form(INVALID, head={"alg": "none"}),
    "HS256 by the public keys": Form(INVALID, head={"alg": "HS256"}, by="HS256"),
    "ES384 by a P-256 key": Form(INVALID, head={"alg": "ES384"}, by="ES384"),
    "RS256": Form(by="r1", head=_RSA),
    "RS256 without a key id": Form(by="r1", head={"alg": "RS256", "kid": _ABSENT}),
    "RS256 by a key of nobody": Form(INVALID, by="RSA of nobody", head=_RSA),
    "RS256 by a key of nobody, without a key id": Form(
        INVALID, by="RSA of nobody", head={"alg": "RS256", "kid": _ABSENT}
    ),
    "RS256 over a P-256 signature": Form(INVALID, head={"alg": "RS256"}),
    "RS256 under a P-256 key's id": Form(INVALID, by="r1", head={"alg": "RS256"}),
    "ES256 under an RSA key's id": Form(INVALID, head={"kid": "r1"}),
    "ES256 over an RSA signature": Form(INVALID, by="r1", head={"kid": "r1"}),
    "RS512 by an RS256 key": Form(INVALID, by="RS512", head=_RSA | {"alg": "RS512"}),
    "PS256 by an RS256 key": Form(INVALID, by="PS256", head=_RSA | {"alg": "PS256"}),
    "RS256 over a PS256 signature": Form(INVALID, by="PS256", head=_RSA),
    "RS256 over an RS512 signature": Form(INVALID, by="RS512", head=_RSA),
    "RS256, a byte too short": Form(INVALID, by="r1", head=_RSA, signature=lambda raw: raw[:-1]),
    "RS256, a zero before": Form(INVALID, by="r1", head=_RSA, signature=lambda raw: b"\0" + raw),
    "RS256, a byte behind": Form(INVALID, by="r1", head=_RSA, signature=lambda raw: raw + b"\0"),
    "RS256 of zeros": Form(INVALID, by="r1", head=_RSA, signature=lambda raw: bytes(len(raw))),
    "es256": Form(INVALID, head={"alg": "es256"}),
    "an algorithm that is no text": Form(INVALID, head={"alg": 256}),
    "a list of algorithms": Form(INVALID, head={"alg": ["ES256"]}),
    "critical extensions": Form(head={"crit": ["b64"], "b64": False}),
    "a key inside": Form(INVALID, by="x", head={"jwk": {"kty": "EC"}}),
    "a header that is a list": Form(INVALID, head_text=lambda text: f"[{text}]"),
    "a header that is null": Form(INVALID, head_text=lambda text: "null"),
    "a header that is no JSON": Form(INVALID, head_text=lambda text: text[1:]),
    "an empty header": Form(INVALID, head_text=lambda text: ""),
    "a header with blanks": Form(head_text=lambda text: f" {text}\n"),
    "two algorithms": Form(INVALID, head_text=_swap('"alg": "ES256"', '"alg": "none", "alg": "ES256"')),
    # Issuer and audience
    "another issuer": Form(INVALID, said={"iss": f"spiffe://{FOREIGN}"}),
    "no issuer": Form(INVALID, said={"iss": _ABSENT}),
    "an empty issuer": Form(INVALID, said={"iss": ""}),
    "an issuer with a slash": Form(INVALID, said={"iss": TD + "/"}),
    "a list of issuers": Form(INVALID, said={"iss": [TD]}),
    "an issuer that is a number": Form(INVALID, said={"iss": 7}),
    "another audience": Form(INVALID, said={"aud": f"spiffe://{FOREIGN}"}),
    "no audience": Form(INVALID, said={"aud": _ABSENT}),
    "an empty audience": Form(INVALID, said={"aud": ""}),
    "an audience with a slash": Form(said={"aud": TD + "/"}),
    "an audience with two slashes": Form(INVALID, said={"aud": TD + "//"}),
    "an audience by https": Form(INVALID, said={"aud": f"https://{TRUST_DOMAIN}"}),
    "an audience with another scheme before": Form(said={"aud": f"https://{TD}"}),
    "an audience with two schemes before": Form(INVALID, said={"aud": f"https://http://{TD}"}),
    "an audience with a scheme in capitals before": Form(INVALID, said={"aud": f"HTTP://{TD}"}),
    "an audience without a scheme": Form(INVALID, said={"aud": TRUST_DOMAIN}),
    "an audience in capitals": Form(INVALID, said={"aud": TD.upper()}),
    "a list of one audience": Form(said={"aud": [TD]}),
    "a list of audiences": Form(said={"aud": [f"spiffe://{FOREIGN}", TD]}),
    "a list of other audiences": Form(INVALID, said={"aud": [f"spiffe://{FOREIGN}", "x"]}),
    "an empty list of audiences": Form(INVALID, said={"aud": []}),
    "a list with a number": Form(INVALID, said={"aud": [TD, 7]}),
    "an audience that is a number": Form(INVALID, said={"aud": 7}),
    "an audience that is null": Form(INVALID, said={"aud": None}),
    "an audience that is an object": Form(INVALID, said={"aud": {"a": TD}}),
    # Times, which are looked at before the signature, after the issuer
    "expired": Form(EXPIRED, said={"exp": -SKEW - 10}),
    "expired long ago": Form(EXPIRED, said={"exp": 1}, text=_at(1)),
    "within the skew": Form(said={"exp": -1}),
    "expired, by a key of nobody": Form(EXPIRED, by="x", said={"exp": -60}),
    "expired, under an unknown key id": Form(EXPIRED, head={"kid": "k3"}, said={"exp": -60}),
    "expired, unsigned": Form(INVALID, by="", head={"alg": "none"}, said={"exp": -60}, parts="{}.{}.".format),
    "expired, HS256": Form(EXPIRED, by="HS256", head={"alg": "HS256"}, said={"exp": -60}),
    "expired, of another issuer": Form(INVALID, said={"exp": -60, "iss": f"spiffe://{FOREIGN}"}),
    "expired, for another audience": Form(EXPIRED, said={"exp": -60, "aud": f"spiffe://{FOREIGN}"}),
    "expired, for an audience that is a number": Form(INVALID, said={"exp": -60, "aud": 7}),
    "expired, for an audience that is null": Form(INVALID, said={"exp": -60, "aud": None}),
    "expired, with an issuer that is a number": Form(INVALID, said={"exp": -60, "iss": 7}),
    "expired, at a fraction": Form(EXPIRED, said={"exp": -60.5}),
    "expired, not valid yet": Form(INVALID, said={"exp": -60, "nbf": 60}),
    "expired, for another action": Form(EXPIRED, said={"exp": -60}, context={"action": "pay:payout:do"}),
    "expired, without a context": Form(EXPIRED, said={"exp": -60, "tctx": _ABSENT}),
    "expired, with a subject that is a number": Form(INVALID, said={"exp": -60, "sub": 7}),
    "expired, with a short signature": Form(EXPIRED, said={"exp": -60}, signature=lambda raw: raw[:63]),
    "no expiry": Form(INVALID, said={"exp": _ABSENT}),
    "no expiry, by a key of nobody": Form(INVALID, by="x", said={"exp": _ABSENT}),
    "an expiry of 0": Form(INVALID, text=_at(0)),
    "an expiry before 1970": Form(INVALID, text=_at(-1)),
    "an expiry of half a second": Form(INVALID, text=_at(0.5)),
    "an expiry that is a text": Form(INVALID, said={"exp": "9999999999"}),
    "an expiry that is true": Form(INVALID, said={"exp": True}),
    "an expiry that is null": Form(INVALID, said={"exp": None}),
    "an expiry with a fraction": Form(INVALID, said={"exp": 100.5}),
    "an expiry with an exponent": Form(INVALID, text=_at("1e300")),
    "an expiry beyond numbers": Form(INVALID, text=_at("1e400")),
    "an expiry of 64 bits": Form(INVALID, text=_at(2**64)),
    "an expiry of 63 bits": Form(INVALID, text=_at(2**63)),
    "an expiry of a thousand digits": Form(INVALID, text=_at("9" * 1000)),
    "an expiry that is no number": Form(INVALID, text=_at("NaN")),
    "an infinite expiry": Form(INVALID, text=_at("Infinity")),
    "as long as may be": Form(said={"exp": MAX_LIFE}),
    "within the skew of that": Form(said={"exp": MAX_LIFE + SKEW - 2}),
    "too long": Form(INVALID, said={"exp": MAX_LIFE + SKEW + 10}),
    "too long in all, not in what is left": Form(said={"iat": -1000, "exp": 100}),
    "not valid yet": Form(INVALID, said={"nbf": SKEW + 20}),
    "not valid yet, within the skew": Form(said={"nbf": SKEW - 1}),
    "valid for long": Form(said={"nbf": -1000}),
    "valid from a fraction": Form(said={"nbf": -0.5}),
    "valid from before 1970": Form(INVALID, text=_swap('"iat": ', '"nbf": -1, "iat": ')),
    "valid from a text": Form(INVALID, said={"nbf": "0"}),
    "valid from null": Form(INVALID, said={"nbf": None}),
    "valid from true": Form(INVALID, said={"nbf": True}),
    "valid from beyond numbers": Form(INVALID, said={"nbf": 2**64}),
    "issued in the future": Form(said={"iat": 1000}),
    "issued nowhere": Form(said={"iat": _ABSENT}),
    "issued at a fraction": Form(said={"iat": -1.5}),
    "issued at a text": Form(INVALID, said={"iat": "0"}),
    "issued at null": Form(INVALID, said={"iat": None}),
    "issued before 1970": Form(INVALID, text=_swap('"iat": ', '"iat": -1, "was": ')),
    "issued beyond numbers": Form(INVALID, said={"iat": 2**64}),
    # Claims of other types, absent ones and empty ones
    **{
        f"{name} {what}": Form(INVALID, said={name: value})
        for name in ("jti", "sub")
        for what, value in (("absent", _ABSENT), ("empty", ""), ("null", None), ("a list", ["x"]), ("an object", {}))
    },
    "txn absent": Form(INVALID, said={"txn": _ABSENT}),
    "txn empty": Form(INVALID, said={"txn": ""}),
    "txn null": Form(INVALID, said={"txn": None}),
    "txn a list": Form(said={"txn": []}),
    "txn an object": Form(said={"txn": {}}),
    "jti a number": Form(INVALID, said={"jti": 7}),
    "sub a number": Form(INVALID, said={"sub": 7}),
    "sub true": Form(INVALID, said={"sub": True}),
    "txn a number": Form(said={"txn": 7}),
    "txn a fraction": Form(said={"txn": -1.25}),
    "txn true": Form(said={"txn": True}),
    **{
        f"{name} {what}": Form(INVALID, context={name: value})
        for name in ("action", "resource", "origin", "certificate")
        for what, value in (("absent", _ABSENT), ("empty", ""), ("null", None))
    },
    # What is no text is taken for one, which is nobody's name.
    **{
        f"{name} {what}": Form(code, context={name: value})
        for name, code in (
            *[
                ("action", "TOKEN_WRONG_ACTION"),
                ("resource", "TOKEN_WRONG_RESOURCE"),
                ("certificate", "TOKEN_WRONG_KEY"),
            ],
            *[("origin", GOOD), ("tenant", "TOKEN_WRONG_TENANT"), ("approval", GOOD), ("approver", GOOD)],
        )
        for what, value in (
            ("a list", ["x"]),
            ("an empty list", []),
            ("an object", {"a": "x"}),
            ("an empty object", {}),
        )
    },
    "origin of a thousand digits": Form(INVALID, text=_swap(f'"origin": "{CLIENT}"', f'"origin": {"9" * 1000}')),
    "origin a number": Form(context={"origin": 7}),
    "origin true": Form(context={"origin": True}),
    "action a number": Form("TOKEN_WRONG_ACTION", context={"action": 7}),
    "resource a number": Form("TOKEN_WRONG_RESOURCE", context={"resource": 7.5}),
    "certificate a number": Form("TOKEN_WRONG_KEY", context={"certificate": 7}),
    "certificate in capitals": Form("TOKEN_WRONG_KEY", context={"certificate": "ABCDEF" + "0" * 58}),
    **{
        f"the context {what}": Form(INVALID, said={"tctx": value})
        for what, value in (
            ("absent", _ABSENT),
            ("null", None),
            ("a text", "x"),
            ("a list", []),
            ("a number", 7),
            ("empty", {}),
        )
    },
    **{
        f"{name} {what}": Form(context={name: value})
        for name in ("tenant", "approval", "approver")
        for what, value in (("empty", ""), ("null", None))
    },
    "tenant a number": Form("TOKEN_WRONG_TENANT", context={"tenant": 7}),
    "tenant false": Form("TOKEN_WRONG_TENANT", context={"tenant": False}),
    "approver a number": Form(context={"approver": 7}),
    "approval a number": Form(context={"approval": 7}),
    **{
        f"chain {what}": Form(context={"chain": value})
        for what, value in (
            ("absent", _ABSENT),
            ("empty", []),
            ("null", None),
            ("a text", "x"),
            ("of numbers", [7]),
            ("an object", {}),
        )
    },
    "no confirmation": Form(said={"cnf": _ABSENT}),
    "another confirmation": Form(said={"cnf": {"x5t#S256": "AAAA"}}),
    "claims with dots in their names": Form(said={"tctx.action": "pay:payout:do", "tctx.origin": ADMIN}),
    "more claims": Form(said={"more": [1, {"a": None}, True, "\u00fc"]}),
    "an origin in other letters": Form(context={"origin": "m\u00fcnchen"}),
    "an origin with a blank": Form(context={"origin": " "}),
    "an origin with a comma": Form(context={"origin": "a,b"}),
    # JSON that readers read differently
    "two subjects, ours last": Form(INVALID, text=_swap('"sub"', f'"sub": "{ADMIN}", "sub"')),
    "two subjects, ours first": Form(INVALID, text=_swap('"req_wl"', f'"sub": "{ADMIN}", "req_wl"')),
    "two subjects, the same": Form(INVALID, text=_swap('"req_wl"', f'"sub": "{CLIENT}", "req_wl"')),
    "two expiries": Form(INVALID, text=_swap('"jti"', '"exp": 1, "jti"')),
    "two actions": Form(INVALID, text=_swap('"action"', '"action": "pay:payout:do", "action"')),
    "two contexts": Form(INVALID, text=_swap('"tctx"', '"tctx": {}, "tctx"')),
    "one name in two spellings": Form(INVALID, text=_swap('"sub"', f'"\\u0073ub": "{ADMIN}", "sub"')),
    "a name with escapes": Form(text=_swap('"sub"', '"\\u0073ub"')),
    "two of a name that nobody reads": Form(INVALID, text=_swap('"sub"', '"a": 1, "a": 1, "sub"')),
    "blanks around": Form(text=lambda text: f"\r\n\t {text} \n"),
    "no claims": Form(INVALID, text=lambda text: ""),
    "claims that are null": Form(INVALID, text=lambda text: "null"),
    "claims that are a list": Form(INVALID, text=lambda text: f"[{text}]"),
    "something after the claims": Form(INVALID, text=lambda text: text + "{}"),
    "a comment": Form(INVALID, text=lambda text: "/**/" + text),
    "a byte order mark": Form(INVALID, text=lambda text: "\ufeff" + text),
    "UTF-16": Form(INVALID, text=lambda text: text.encode("utf-16")),
    "bytes that are no text": Form(INVALID, text=lambda text: text.encode().replace(b'"scope": "', b'"scope": "\xff')),
    "half of a surrogate pair": Form(INVALID, text=_swap('"scope": "', '"scope": "\\ud800')),
    "NUL in a text": Form(text=_swap('"scope": "', '"scope": "\\u0000')),
    "NUL in the origin": Form(context={"origin": "a\0b"}),
    "a line end in the origin": Form(context={"origin": "a\r\nx-eastwest-caller: b"}),
    "a number with a leading zero": Form(INVALID, text=_swap('"sub"', '"a": 01, "sub"')),
    "a number with a plus": Form(INVALID, text=_swap('"sub"', '"a": +1, "sub"')),
    "NaN": Form(INVALID, text=_swap('"sub"', '"a": NaN, "sub"')),
    "a number beyond numbers": Form(INVALID, text=_swap('"sub"', '"a": 1e999, "sub"')),
    "True": Form(INVALID, text=_swap('"sub"', '"a": True, "sub"')),
    "deep": Form(text=_swap('"sub"', f'"a": {"[" * 30}{"]" * 30}, "sub"')),
    "as deep as may be": Form(text=_swap('"sub"', f'"a": {"[" * DEPTH}{"]" * DEPTH}, "sub"')),
    "deeper than may be": Form(INVALID, text=_swap('"sub"', f'"a": {"[" * DEPTH}[]{"]" * DEPTH}, "sub"')),
    "objects as deep as may be": Form(text=_swap('"sub"', f'"a": {NESTED % "{}"}, "sub"')),
    "objects deeper than may be": Form(INVALID, text=_swap('"sub"', f'"a": {NESTED % "[{}]"}, "sub"')),
    "too deep": Form(INVALID, text=_swap('"sub"', f'"a": {"[" * 1000}{"]" * 1000}, "sub"')),
    # The compact form
    "a signature with its other s": Form(signature=_other_half),
    "a signature with a wider r and s": Form(signature=_wider),
    "a signature with a byte more": Form(signature=lambda raw: raw + b"\0"),
    "a signature with a byte less": Form(INVALID, signature=lambda raw: raw[:63]),
    "a signature in DER": Form(INVALID, by="DER"),
    "a signature of zeros": Form(INVALID, signature=lambda raw: bytes(64)),
    "a signature of one byte": Form(INVALID, signature=lambda raw: b"\0"),
    "no signature": Form(INVALID, parts="{}.{}.".format),
    "no signature, no dot": Form(INVALID, parts=lambda head, said, _: f"{head}.{said}"),
    "a signature with stray bits": Form(parts=_stray),
    "a signature with a character more": Form(INVALID, parts="{}.{}.{}AAA".format),
    "four parts": Form(INVALID, parts="{}.{}.{}.x".format),
    "five parts": Form(INVALID, parts="{}.{}.x.x.{}".format),
    "a dot before": Form(INVALID, parts=".{}.{}.{}".format),
    "a dot after": Form(INVALID, parts="{}.{}.{}.".format),
    "two dots": Form(INVALID, parts="{}..{}.{}".format),
    "a padded header": Form(INVALID, parts="{}=.{}.{}".format),
    "padded claims": Form(INVALID, parts="{}.{}=.{}".format),
    "a padded signature": Form(INVALID, parts="{}.{}.{}==".format),
    "a blank inside": Form(INVALID, parts="{}.{} .{}".format),
    "a tab inside": Form(INVALID, parts="{}.{}\t.{}".format),
    "a blank in the signature": Form(INVALID, parts=lambda h, c, s: f"{h}.{c}.{s[:9]} {s[9:]}"),
    "a tab in the signature": Form(INVALID, parts=lambda h, c, s: f"{h}.{c}.{s[:9]}\t{s[9:]}"),
    "the other alphabet": Form(INVALID, parts="{}.{}.{}+/".format),
    "in JSON": Form(INVALID, parts=lambda h, c, s: json.dumps({"protected": h, "payload": c, "signature": s})),
    "of 5,000 bytes": Form(said={"more": "x" * 3200}),
    "of 40,000 bytes": Form(said={"more": "x" * 29000}),
}


NO_JSON: dict[str, Form] = {
    "a comma at the end": Form(text=lambda text: text[:-1] + ",}"),
    "single quotes": Form(text=lambda text: text.replace('"', "'")),
    "names without quotes": Form(text=_swap('"sub":', "sub:")),
    "a control character": Form(text=_swap('"scope": "', '"scope": "\x01')),
}
"""What Envoy reads though it is no JSON, and ``read`` does not. No mint of ours writes it."""


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    world.mint = Keys()
    world.mesh.token_keys = world.mint.keys
    files = {str(path.relative_to(ESTATE)): path.read_bytes() for path in ESTATE.rglob("*") if path.is_file()}
    try:
        world.evaded = await world.enforce(files)
        yield world
    finally:
        await world.close()


async def test_every_form_gets_one_answer(world):
    wrong = [
        f"{name}: {form.answer} is written, Envoy says {envoy}, the SDK {sdk}"
        for name, form, envoy, sdk in await _asked(world, FORMS)
        if envoy != {form.answer} or sdk != form.answer
    ]
    assert not wrong, "\n".join(wrong)


async def test_what_is_no_json_is_never_taken_by_us_alone(world):
    for name, form, envoy, sdk in await _asked(world, NO_JSON):
        assert (envoy, sdk) == ({form.answer}, INVALID), name


async def _asked(world: World, forms: dict[str, Form]) -> list[tuple[str, Form, set[str], str]]:
    """Of each form: what Envoy answers, and what the SDK."""
    certificate = world.certificate(CLIENT)
    peer = Peer(SpiffeId.parse(CLIENT), certificate, dt.datetime.max.replace(tzinfo=dt.UTC))
    connection = await Http1.tls(world.port("pay"), world.context(CLIENT, "http/1.1"))
    found = []
    try:
        for number, (name, form) in enumerate(forms.items()):
            now = dt.datetime.now(dt.UTC)
            good = claims(_token(number, certificate, int(now.timestamp())), TD, int(now.timestamp()))
            text = form.made(world.mint, good, int(now.timestamp()))
            # Twice, as Envoy remembers what it found good.
            answers = [await connection.ask(b"POST", b"/refund", [(HEADER.encode(), text.encode())]) for _ in range(2)]
            codes = {world.told(answer)[0] for answer in answers}
            headers = [("host", "svc"), (HEADER, text)]
            sdk = decide(world.evaded.rules, "pay", peer, "POST", "/refund", headers, now)
            found.append((name, form, codes, str(sdk.code)))
    finally:
        await connection.close()
    return found


def _token(number: int, certificate: str, now: int) -> Token:
    return Token(
        id=f"f-{number}",
        transaction="x-1",
        caller=CLIENT,
        certificate=certificate,
        action="pay:refund:do",
        resource="pay",
        origin=CLIENT,
        expires=now + 120,
        chain=(CLIENT,),
    )
