"""What a transaction token is that was brought, for those who judge it without an Envoy.

The same texts pass here and there, form by form (``tests/integration/test_token_forms.py``), but for texts that Envoy
takes for JSON though they are none, which only a key of ours could sign.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from eastwest.pki.compact import Keys, parse
from eastwest.policy.transaction import MAX_LIFE, SKEW, NoToken, Presented, Token

_MAX_BROUGHT = 60 * 1024  # bytes of all headers of a request
_CONTEXT = ("action", "resource", "origin", "certificate", "tenant", "approval", "approver")


def read(token: str, keys: Keys, issuer: str, now: datetime) -> Presented:
    """What a token is that was brought, as all enforcement points judge it, and in their order.

    That is Envoy's (``eastwest.mesh.tokens``): form, issuer, times, audience, and only then the signature, so that a
    token that has expired says so whoever signed it. Of its life what is left is bounded. Not looked at are ``typ`` and
    ``iat``, of any value: the keys sign nothing but transaction tokens, and only ours sign with them.
    """
    parsed = parse(token, _MAX_BROUGHT)
    if parsed is None:
        return NoToken.INVALID
    said = parsed.claims
    times = _times(said)
    if times is None or not all(isinstance(said.get(name, ""), str) for name in ("iss", "sub", "jti")):
        return NoToken.INVALID
    begins, ends = times
    audiences = _audiences(said.get("aud", []))
    if said.get("iss") != issuer or audiences is None or not ends or begins > int(now.timestamp()) + SKEW:
        return NoToken.INVALID
    if int(now.timestamp()) > ends + SKEW:
        return NoToken.EXPIRED
    if ends - now.timestamp() > MAX_LIFE + SKEW or issuer not in audiences or not parsed.is_signed_by(keys):
        return NoToken.INVALID
    found = _as_token(said, ends)
    needed = (found.id, found.transaction, found.caller, found.certificate, found.action, found.resource, found.origin)
    return found if all(needed) and said["exp"] == ends else NoToken.INVALID


def _times(said: Mapping[str, Any]) -> tuple[int, int] | None:
    """When the token begins and ends, 0 where it does not say it; None where a time is no number of 64 bits."""
    moments = [said.get(name, 0) for name in ("iat", "nbf", "exp")]
    for moment in moments:
        if isinstance(moment, bool) or not isinstance(moment, int | float) or not 0 <= moment < 1 << 64:
            return None
    return int(moments[1]), int(moments[2])


def _audiences(said: object) -> set[str] | None:
    """Whom a token is for, less the schemes of the web and a slash at the end; None where these are no texts."""
    listed = said if isinstance(said, list) else [said]
    texts = [audience for audience in listed if isinstance(audience, str)]
    if len(texts) < len(listed):
        return None
    return {re.sub("^https?://", "", audience).removesuffix("/") for audience in texts}


def _as_token(said: Mapping[str, Any], ends: int) -> Token:
    """The token that verified claims make, those that should be texts taken for what they are as texts."""
    context = said["tctx"] if isinstance(said.get("tctx"), dict) else {}
    chain, begun, tenant = (context.get(name) for name in ("chain", "begun", "transaction_tenant"))
    texts = {name: _text(context.get(name)) for name in _CONTEXT}
    return Token(
        id=said.get("jti", ""),
        transaction=_text(said.get("txn")),
        caller=said.get("sub", ""),
        expires=ends,
        action=texts["action"],
        resource=texts["resource"],
        origin=texts["origin"],
        certificate=texts["certificate"],
        tenant=texts["tenant"],
        approval=texts["approval"],
        approver=texts["approver"],
        begun=begun if isinstance(begun, int) and not isinstance(begun, bool) else 0,
        transaction_tenant=tenant if isinstance(tenant, str) else "",
        chain=tuple(chain) if isinstance(chain, list) and all(isinstance(one, str) for one in chain) else (),
    )


def _text(claim: object) -> str:
    """A claim as Envoy's ``claim_to_headers`` writes it; nobody compares what it makes of lists and objects."""
    if isinstance(claim, bool):
        return str(claim).lower()
    if isinstance(claim, int | float):
        return str(int(claim)) if 0 <= claim < 1 << 64 and claim == int(claim) else f"{claim:f}"
    if isinstance(claim, list | dict):
        return urlsafe_b64encode(msgspec.json.encode(claim)).decode()
    return claim if isinstance(claim, str) else ""
