"""JWT-SVIDs (SPIFFE JWT-SVID): minting with a key that cannot be seen, and validation against a bundle.

A token is a live credential: it is returned, and never logged, quoted in an error or shown in a ``repr``.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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


def mint(
    key: JwtSigningKey,
    spiffe_id: SpiffeId,
    audience: Sequence[str],
    issued_at: datetime,
    expires_at: datetime,
    token_id: str,
    issuer: str | None = None,
) -> MintedJwt:
    """Sign a JWT-SVID. Times are truncated to whole seconds; the caller has bounded them by ``key.expires_at``."""
    algorithm, hash_bytes = _MINTING[key.signer.algorithm]
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
    r, s = decode_dss_signature(key.signer.sign(message))
    signature = r.to_bytes(hash_bytes, "big") + s.to_bytes(hash_bytes, "big")
    token = (message + b"." + _segment(signature)).decode("ascii")
    return MintedJwt(token, header, claims, hashlib.sha256(signature).hexdigest())


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
    return ValidatedJwt(spiffe_id, audiences, _check_times(claims, now), claims)


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any], jws.CompactSignature]:
    if len(token) > MAX_TOKEN_BYTES:
        raise MalformedSvid(f"the token is larger than {MAX_TOKEN_BYTES} bytes")
    try:
        signed = jws.extract_compact(token.encode("ascii"))
        claims = msgspec.json.decode(signed.payload, type=dict[str, Any])
    except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError, msgspec.MsgspecError):
        raise MalformedSvid("the token is not a JWT in compact form") from None
    header = dict(signed.headers())
    if header.get("alg") not in _ACCEPTED:
        raise MalformedSvid("the token's algorithm is not one that JWT-SVIDs may use")
    if not isinstance(header.get("kid"), str) or not header["kid"]:
        raise MalformedSvid("the token names no key (kid)")
    if header.get("typ", "JWT") not in {"JWT", "JOSE"} or not header.keys() <= {"alg", "kid", "typ"}:
        raise MalformedSvid("the token's header has a field that JWT-SVIDs may not have")
    return header, claims, signed


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
