"""Transaction tokens: what one says, and whether it was made for the call that brings it.

Shaped as OAuth Transaction Tokens (draft-ietf-oauth-transaction-tokens): a JWT of type ``txntoken+jwt`` in the header
``txn-token``, signed by the trust domain, minutes long. Ours is single-purpose: one caller with one certificate
(``cnf``, RFC 8705), one operation of one service, one tenant. Every enforcement point checks in the same order, so
that the same token is refused everywhere by the same code: form and time, action, resource, caller, key, tenant, and
only then what policies say.
"""

from __future__ import annotations

import enum
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

import msgspec

from eastwest.policy.enforcement import DecisionCode, Rule, TokenRules, Verdict

HEADER = "txn-token"
TYPE = "txntoken+jwt"
MAX_LIFE = 300
"""Seconds; a token with a longer life is no token."""
SKEW = 5
"""Seconds by which clocks may differ."""
MAX_TOKEN = 4096
"""Bytes of a token."""


class Token(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The claims of a token whose signature, issuer, audience and times have been found good.

    ``tenant`` "" for operations that are not per tenant; ``approver`` "" without an approval. ``begun`` and
    ``transaction_tenant`` are the transaction's and bind those who go on with it; calls are not judged by them.
    """

    id: str  # jti
    transaction: str  # txn: the same along a chain of calls
    caller: str  # sub: SPIFFE ID of who may bring it
    certificate: str  # SHA-256 of that caller's certificate (DER), lower-case hex
    action: str  # operation
    resource: str  # service
    origin: str  # SPIFFE ID of the workload that began the transaction
    expires: int  # Unix seconds
    tenant: str = ""
    approval: str = ""
    approver: str = ""
    chain: tuple[str, ...] = ()  # the callers of the transaction so far, the origin first, this one last
    begun: int = 0  # Unix seconds at which the transaction began; 0 where nothing says it
    transaction_tenant: str = ""  # the first tenant that the transaction was about


class NoToken(enum.Enum):
    """Why a call has no ``Token``."""

    MISSING = "missing"
    EXPIRED = "expired"
    INVALID = "invalid"


Presented = Token | NoToken
"""What a call brought."""


def claims(token: Token, issuer: str, issued: int) -> dict[str, Any]:
    """The JWT's claims; ``issuer`` is the trust domain (``spiffe://...``), which is also the audience."""
    context: dict[str, Any] = {
        "action": token.action,
        "resource": token.resource,
        "origin": token.origin,
        "chain": list(token.chain),
        "certificate": token.certificate,
    }
    for name in ("tenant", "approval", "approver", "begun", "transaction_tenant"):
        if value := getattr(token, name):
            context[name] = value
    return {
        "iss": issuer,
        "aud": issuer,
        "iat": issued,
        "exp": token.expires,
        "jti": token.id,
        "txn": token.transaction,
        "sub": token.caller,
        "req_wl": token.caller,
        "scope": token.action,
        "cnf": {"x5t#S256": _base64url(bytes.fromhex(token.certificate))},
        "tctx": context,
    }


def from_claims(said: Mapping[str, Any]) -> Token | None:
    """The token that verified claims make; None where they are not of this form."""
    try:
        read = msgspec.convert(said, _Claims)
    except msgspec.ValidationError:
        return None
    context = read.tctx
    return Token(
        id=read.jti,
        transaction=read.txn,
        caller=read.sub,
        expires=read.exp,
        certificate=context.certificate,
        action=context.action,
        resource=context.resource,
        origin=context.origin,
        tenant=context.tenant,
        approval=context.approval,
        approver=context.approver,
        chain=context.chain,
        begun=context.begun,
        transaction_tenant=context.transaction_tenant,
    )


def misuse(presented: Presented, *, operation: str, service: str, caller: str, certificate: str) -> DecisionCode | None:
    """Why what was brought does not count for this call, tenant aside; None: it does, or nothing was brought.

    ``certificate``: of the caller's connection, as in ``Token``.
    """
    match presented:
        case NoToken.MISSING:
            return None
        case NoToken.EXPIRED:
            return DecisionCode.TOKEN_EXPIRED
        case NoToken.INVALID:
            return DecisionCode.TOKEN_INVALID
    for said, meant, code in (
        (presented.action, operation, DecisionCode.TOKEN_WRONG_ACTION),
        (presented.resource, service, DecisionCode.TOKEN_WRONG_RESOURCE),
        (presented.caller, caller, DecisionCode.TOKEN_WRONG_CALLER),
        (presented.certificate, certificate, DecisionCode.TOKEN_WRONG_KEY),
    ):
        if said != meant:
            return code
    return None


def outcome(rules: TokenRules, token: Token) -> Rule:
    """What holds with a token that counts for the call."""
    origins = rules.approved_by.get(token.approver, rules.approved) if token.approver else rules.unapproved
    return origins.by_origin.get(token.origin, origins.otherwise)


def refused(code: DecisionCode) -> Rule:
    """The rule that a misused token gets."""
    return Rule(verdict=Verdict.DENY, code=code)


class _Context(msgspec.Struct, frozen=True):
    action: str
    resource: str
    origin: str
    certificate: str
    tenant: str = ""
    approval: str = ""
    approver: str = ""
    chain: tuple[str, ...] = ()
    begun: int = 0
    transaction_tenant: str = ""


class _Claims(msgspec.Struct, frozen=True):
    jti: str
    txn: str
    sub: str
    exp: int
    tctx: _Context


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
