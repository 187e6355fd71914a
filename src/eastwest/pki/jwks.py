"""Bundles as JSON: the SPIFFE bundle format (SPIFFE Trust Domain and Bundle) and plain key sets (RFC 7517)."""

from __future__ import annotations

from base64 import b64decode, b64encode, urlsafe_b64encode
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from joserfc import jwk
from joserfc.errors import JoseError

from eastwest.errors import InvalidInput
from eastwest.pki.parsing import PARSE_ERRORS
from eastwest.spiffe.bundle import Bundle, JwtAuthority, X509Authority
from eastwest.spiffe.id import TrustDomain

MAX_BUNDLE_BYTES = 4 * 1024 * 1024
X509_USE = "x509-svid"
JWT_USE = "jwt-svid"


class MalformedBundle(InvalidInput):
    """The bytes are not a SPIFFE bundle."""


def export_bundle(bundle: Bundle) -> bytes:
    """The bundle in SPIFFE bundle format: X.509 authorities with ``x5c``, JWT authorities with ``kid``."""
    keys = [
        {"use": X509_USE, **_public_jwk(_certificate_key(authority.der)), "x5c": [b64encode(authority.der).decode()]}
        for authority in bundle.x509_authorities
    ]
    keys += [
        {"use": JWT_USE, "kid": authority.key_id, **_public_jwk(authority.spki)} for authority in bundle.jwt_authorities
    ]
    document: dict[str, Any] = {"keys": keys, "spiffe_sequence": bundle.sequence}
    if bundle.refresh_hint:
        document["spiffe_refresh_hint"] = bundle.refresh_hint
    return msgspec.json.encode(document)


def export_jwks(bundle: Bundle) -> bytes:
    """The JWT authorities alone as a plain key set, as the Workload API's JWT bundles carry them."""
    keys = [{"kid": authority.key_id, **_public_jwk(authority.spki)} for authority in bundle.jwt_authorities]
    return msgspec.json.encode({"keys": keys})


def export_signing_keys(bundle: Bundle, now: datetime) -> bytes:
    """The JWT authorities as OpenID Connect wants them: with ``use`` and ``alg``, ended ones left out.

    A tainted key stays until it is revoked: tokens that it signed are still being replaced, and every verifier of the
    trust domain is to drop it at the same moment, which is its revocation. A key without an algorithm of JWS
    (RFC 7518) is left out. Keys are ordered by ``kid``, so that equal sets are equal bytes.
    """
    live = [key for key in bundle.jwt_authorities if not key.expires_at or key.expires_at > now.timestamp()]
    keys = []
    for authority in sorted(live, key=lambda key: key.key_id):
        members = _public_jwk(authority.spki)
        if algorithm := _SIGNING.get(members.get("crv", members["kty"])):
            keys.append({"use": "sig", "alg": algorithm, "kid": authority.key_id, **members})
    return msgspec.json.encode({"keys": keys})


def parse_bundle(trust_domain: TrustDomain, data: bytes) -> Bundle:
    """Read a SPIFFE bundle; keys of unknown use are ignored, as the standard asks. Raises ``MalformedBundle``.

    JWT authorities read from JSON have no known end: their ``expires_at`` is 0.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise MalformedBundle(f"the bundle is larger than {MAX_BUNDLE_BYTES} bytes")
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise MalformedBundle("the bundle is not a JSON object with keys") from None
    x509_authorities = tuple(_read_x509(key) for key in document.keys if key.get("use") == X509_USE)
    jwt_authorities = tuple(_read_jwt(key) for key in document.keys if key.get("use") == JWT_USE)
    key_ids = [authority.key_id for authority in jwt_authorities]
    if len(set(key_ids)) != len(key_ids):
        raise MalformedBundle("two JWT keys of the bundle have the same kid")
    return Bundle(
        trust_domain, x509_authorities, jwt_authorities, document.spiffe_sequence, document.spiffe_refresh_hint
    )


@lru_cache(maxsize=256)
def import_jwk(spki: bytes) -> jwk.Key:
    """A JOSE key from a SubjectPublicKeyInfo in DER (EC or RSA); raise ``MalformedBundle`` for other keys."""
    key = _load(spki)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return jwk.ECKey.import_key(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    if isinstance(key, rsa.RSAPublicKey):
        return jwk.RSAKey.import_key(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    try:
        # Other kinds of keys lack the method or are refused below.
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
        return jwk.OKPKey.import_key(pem)
    except _UNREADABLE:
        raise MalformedBundle("a key is neither EC, RSA nor Ed25519") from None


def _load(spki: bytes) -> object:
    try:
        return load_der_public_key(spki)
    except PARSE_ERRORS:
        raise MalformedBundle("a key is not a SubjectPublicKeyInfo in DER") from None


class _Document(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]
    spiffe_sequence: int = 0
    spiffe_refresh_hint: int = 0


def _certificate_key(der: bytes) -> bytes:
    certificate = x509.load_der_x509_certificate(der)
    if certificate.serial_number <= 0:
        # RFC 5280, 4.1.2.2; the library will refuse such certificates too.
        raise MalformedBundle("a certificate of the bundle has a serial number that is not positive")
    public_key = certificate.public_key()
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_jwk(spki: bytes) -> dict[str, Any]:
    key = _load(spki)
    if isinstance(key, mldsa.MLDSA65PublicKey):
        # The JOSE library has no such keys yet; these members are of the AKP key type (draft-ietf-cose-dilithium).
        return {
            "kty": "AKP",
            "alg": "ML-DSA-65",
            "pub": urlsafe_b64encode(key.public_bytes_raw()).rstrip(b"=").decode(),
        }
    members = import_jwk(spki).as_dict(private=False)
    return {name: members[name] for name in ("kty", "crv", "x", "y", "n", "e") if name in members}


def _read_x509(key: dict[str, Any]) -> X509Authority:
    chain = key.get("x5c")
    if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
        raise MalformedBundle("an X.509 key of the bundle must have exactly one certificate in x5c")
    try:
        der = b64decode(chain[0], validate=True)
        _public_jwk(_certificate_key(der))
    except PARSE_ERRORS:
        raise MalformedBundle("a certificate of the bundle is damaged") from None
    return X509Authority(der)


def _read_jwt(key: dict[str, Any]) -> JwtAuthority:
    key_id = key.get("kid")
    if not isinstance(key_id, str) or not key_id:
        raise MalformedBundle("a JWT key of the bundle has no kid")
    members = {name: key[name] for name in ("kty", "crv", "x", "y", "n", "e") if name in key}
    try:
        public_key = _KEY_TYPES[members["kty"]].import_key(members).public_key
        spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except _UNREADABLE:
        raise MalformedBundle("a JWT key of the bundle is damaged or of an unknown type") from None
    return JwtAuthority(spki, key_id, 0)


_UNREADABLE: tuple[type[Exception], ...] = (*PARSE_ERRORS, JoseError, KeyError, AttributeError)
_SIGNING = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "RSA": "RS256"}
_KEY_TYPES: dict[str, Any] = {"EC": jwk.ECKey, "RSA": jwk.RSAKey}
