"""JWT-SVIDs (SPIFFE JWT-SVID): minting with a key that cannot be seen, and validation against a bundle.

A token is a live credential: it is returned, and never logged, quoted in an error or shown in a ``repr``.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc import jws
from joserfc.errors import JoseError

from eastwest.errors import InvalidInput
from eastwest.pki.chain import Expired, InvalidSvid, MalformedSvid, NotYetValid
from eastwest.pki.jwks import import_jwk
from eastwest.pki.signer import KeyAlgorithm, Signer, SubjectKey, UnsupportedKey
from eastwest.spiffe.bundle import Bundle, JwtAuthority
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId

MAX_TOKEN_BYTES = 16 * 1024
MAX_DEPTH = 16
MAX_DIGITS = 19
MAX_AUDIENCES = 32
MAX_AUDIENCE_LENGTH = 2048
LEEWAY = timedelta(seconds=60)
"""How far in the future ``nbf`` and ``iat`` may lie; ``exp`` has no leeway."""


class UnknownJwtAuthority(InvalidSvid):
    """The token names a key that the bundle does not hold."""


class WrongAudience(InvalidSvid):
    """The token is meant for somebody else."""


@dataclass(frozen=True, slots=True)
class JwtSigningKey:
    """A key that signs JWT-SVIDs (P-256 or P-384) until ``expires_at``, which no token of it outlives."""

    signer: Signer
    expires_at: datetime

    def __post_init__(self) -> None:
        if self.signer.algorithm not in _MINTING:
            raise UnsupportedKey(f"{self.signer.algorithm} keys cannot sign JWT-SVIDs", fix="use ec-p256 or ec-p384")

    @property
    def key_id(self) -> str:
        """The ``kid``: the key's subject key identifier in hex."""
        return self.signer.key_id

    @property
    def authority(self) -> JwtAuthority:
        """The public half, as a bundle holds it."""
        spki = SubjectKey.of(self.signer.public_key).spki
        return JwtAuthority(spki, self.key_id, int(self.expires_at.timestamp()))


@dataclass(frozen=True, slots=True)
class MintedJwt:
    """A signed token with the parts of it that may be recorded."""

    token: str = field(repr=False)
    header: Mapping[str, str]
    claims: Mapping[str, Any]
    signature_sha256: str


@dataclass(frozen=True, slots=True)
class ValidatedJwt:
    """What a valid token proves. ``claims`` are all of its claims."""

    id: SpiffeId
    audience: tuple[str, ...]
    expires_at: datetime
    claims: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class UnsignedJwt:
    """A token but for its signature, which may be made elsewhere: ``message`` is what the key signs."""

    message: bytes = field(repr=False)
    header: Mapping[str, str]
    claims: Mapping[str, Any]
    half_length: int
    """Bytes of r and of s in the signature; 0 where it is one number (RSA)."""

    def finish(self, der_signature: bytes) -> MintedJwt:
        """The token, given the signature as a ``Signer`` makes it (JOSE has r and s side by side instead)."""
        signature = der_signature
        if self.half_length:
            r, s = decode_dss_signature(der_signature)
            signature = r.to_bytes(self.half_length, "big") + s.to_bytes(self.half_length, "big")
        token = (self.message + b"." + _segment(signature)).decode("ascii")
        return MintedJwt(token, self.header, self.claims, hashlib.sha256(signature).hexdigest())


def mint(
    key: JwtSigningKey,
    spiffe_id: SpiffeId,
    audience: Sequence[str],
    issued_at: datetime,
    expires_at: datetime,
    token_id: str,
    issuer: str | None = None,
) -> MintedJwt:
    """Make and sign a JWT-SVID at once; ``prepare`` says what the arguments are."""
    unsigned = prepare(key, spiffe_id, audience, issued_at, expires_at, token_id, issuer)
    return unsigned.finish(key.signer.sign(unsigned.message))


def prepare(
    key: JwtSigningKey,
    spiffe_id: SpiffeId,
    audience: Sequence[str],
    issued_at: datetime,
    expires_at: datetime,
    token_id: str,
    issuer: str | None = None,
) -> UnsignedJwt:
    """A JWT-SVID to be signed. Times are truncated to whole seconds; the caller bounds them by ``key.expires_at``."""
    algorithm, half_length = _MINTING[key.signer.algorithm]
    header = {"alg": algorithm, "kid": key.key_id, "typ": "JWT"}
    claims: dict[str, Any] = {
        "aud": list(audience),
        "exp": int(expires_at.timestamp()),
        "iat": int(issued_at.timestamp()),
        "jti": token_id,
        "sub": str(spiffe_id),
    }
    if issuer:
        claims["iss"] = issuer
    message = _segment(msgspec.json.encode(header)) + b"." + _segment(msgspec.json.encode(claims))
    return UnsignedJwt(message, header, claims, half_length)


def check_audience(audience: Sequence[str]) -> None:
    """Raise ``InvalidInput`` unless there are 1 to 32 distinct, non-empty audiences of at most 2,048 characters."""
    if not 1 <= len(audience) <= MAX_AUDIENCES:
        raise InvalidInput(f"a JWT-SVID is for 1 to {MAX_AUDIENCES} audiences, not {len(audience)}")
    if len(set(audience)) != len(audience):
        raise InvalidInput("an audience is named twice")
    if not all(0 < len(name) <= MAX_AUDIENCE_LENGTH for name in audience):
        raise InvalidInput(f"an audience has 1 to {MAX_AUDIENCE_LENGTH} characters")


def unverified_subject(token: str) -> SpiffeId:
    """The SPIFFE ID that a token claims, to choose the bundle that may prove it. Proves nothing by itself."""
    _, claims, _ = _parts(token)
    return _subject(claims)


def validate(token: str, audience: str, bundle: Bundle, now: datetime) -> ValidatedJwt:
    """Check signature, audience, times and subject (JWT-SVID, sections 2, 3 and 5) at ``now``.

    ``bundle`` is that of the subject's trust domain. Raises ``MalformedSvid``, ``UnknownJwtAuthority``,
    ``WrongAudience``, ``NotYetValid``, ``Expired``, or ``InvalidSvid`` for a bad signature.
    """
    header, claims, signed = _parts(token)
    spiffe_id = _subject(claims)
    if spiffe_id.trust_domain != bundle.trust_domain:
        raise UnknownJwtAuthority(f"{spiffe_id} is not in trust domain {bundle.trust_domain}")
    authority = next((known for known in bundle.jwt_authorities if known.key_id == header["kid"]), None)
    if authority is None:
        raise UnknownJwtAuthority(
            f"no key of trust domain {bundle.trust_domain} has the token's kid", fix="fetch the current bundle"
        )
    try:
        genuine = jws.validate_compact(signed, import_jwk(authority.spki), [header["alg"]])
    except (JoseError, ValueError, TypeError):
        # For instance a key of another type than the header's algorithm.
        genuine = False
    if not genuine:
        raise InvalidSvid("the token's signature is not by the key it names")
    audiences = _audience(claims)
    if audience not in audiences:
        raise WrongAudience(f"the token is not meant for {audience[:200]!r}")
    expires_at = _check_times(claims, now)
    if authority.expires_at and expires_at.timestamp() > authority.expires_at:
        raise InvalidSvid("the token outlives the key that signed it, which no issuer allows")
    return ValidatedJwt(spiffe_id, audiences, expires_at, claims)


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any], jws.CompactSignature]:
    if len(token) > MAX_TOKEN_BYTES:
        raise MalformedSvid(f"the token is larger than {MAX_TOKEN_BYTES} bytes")
    segments = token.split(".")
    if len(segments) == 5:
        raise MalformedSvid("the token is encrypted (JWE); a JWT-SVID is signed")
    if len(segments) != 3:
        raise MalformedSvid("the token is not a JWT in compact form")
    header, claims = _json_object(segments[0], "header"), _json_object(segments[1], "claims")
    _decoded(segments[2], "signature")
    if not isinstance(header.get("alg"), str) or header["alg"] not in _ACCEPTED:
        raise MalformedSvid("the token's algorithm is not one that JWT-SVIDs may use")
    if not isinstance(header.get("kid"), str) or not header["kid"]:
        raise MalformedSvid("the token names no key (kid)")
    if header.get("typ", "JWT") not in ("JWT", "JOSE") or not header.keys() <= {"alg", "kid", "typ"}:
        raise MalformedSvid("the token's header has a field that JWT-SVIDs may not have")
    try:
        return header, claims, jws.extract_compact(token.encode("ascii"))
    except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise MalformedSvid("the token is not a JWT in compact form") from None


def _json_object(segment: str, name: str) -> dict[str, Any]:
    """A part of the token as every reader must understand it: no name twice, no number that JSON does not know."""
    text = _decoded(segment, name)
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_finite
        )
    except (ValueError, RecursionError):
        raise MalformedSvid(f"the token's {name} is not JSON, says something twice, or has numbers too large") from None
    if not isinstance(value, dict):
        raise MalformedSvid(f"the token's {name} is not a JSON object")
    if _depth(value) > MAX_DEPTH:
        raise MalformedSvid(f"the token's {name} is nested deeper than {MAX_DEPTH} levels")
    return value


def _decoded(segment: str, name: str) -> bytes:
    """The bytes of a segment. There is one spelling of each (RFC 7515, 2): no padding, no stray bits or characters."""
    try:
        content = urlsafe_b64decode(segment.encode("ascii") + b"=" * (-len(segment) % 4))
    except ValueError:
        content = b""
    if not segment or _segment(content) != segment.encode("ascii", "replace"):
        raise MalformedSvid(f"the token's {name} is not base64url without padding")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError
    return int(text)


def _finite(text: str) -> float:
    """A number, or ``NaN`` and ``Infinity``, which Python reads and JSON does not know."""
    value = float(text)
    if not isfinite(value):
        raise ValueError
    return value


def _depth(value: Any) -> int:
    level, deepest = [value], 0
    while level := [inner for outer in level if isinstance(outer, dict | list) for inner in _members(outer)]:
        deepest += 1
    return deepest


def _members(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _subject(claims: Mapping[str, Any]) -> SpiffeId:
    subject = claims.get("sub")
    try:
        return SpiffeId.parse(subject if isinstance(subject, str) else "")
    except MalformedSpiffeId:
        raise MalformedSvid("the token's subject is not a SPIFFE ID") from None


def _audience(claims: Mapping[str, Any]) -> tuple[str, ...]:
    audience = claims.get("aud")
    if isinstance(audience, str):
        audience = [audience]
    if not isinstance(audience, list) or not audience or not all(isinstance(name, str) for name in audience):
        raise MalformedSvid("the token names no audience")
    return tuple(audience)


def _check_times(claims: Mapping[str, Any], now: datetime) -> datetime:
    for claim in ("nbf", "iat"):
        if claim in claims and _time(claims, claim) > now + LEEWAY:
            raise NotYetValid("the token is valid only later", fix="compare the clocks of the two machines")
    expires_at = _time(claims, "exp")
    if now >= expires_at:
        raise Expired(f"the token ended at {expires_at:%Y-%m-%dT%H:%M:%SZ}", fix="fetch a new one")
    return expires_at


def _time(claims: Mapping[str, Any], claim: str) -> datetime:
    value = claims.get(claim)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedSvid(f"the token's {claim} is missing or not a number")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        raise MalformedSvid(f"the token's {claim} is out of range") from None


def _segment(content: bytes) -> bytes:
    return urlsafe_b64encode(content).rstrip(b"=")


# JOSE name, and the length of each half of the signature in bytes (RFC 7518, 3.4).
_MINTING = {KeyAlgorithm.EC_P256: ("ES256", 32), KeyAlgorithm.EC_P384: ("ES384", 48)}
_ACCEPTED = frozenset({"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"})
