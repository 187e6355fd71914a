"""Token exchange (RFC 8693) as OAuth Transaction Tokens profile it: a form goes in, a token or a refusal comes out.

    POST /token
    grant_type=urn:ietf:params:oauth:grant-type:token-exchange
    requested_token_type=urn:ietf:params:oauth:token-type:txn_token
    audience=spiffe://saas.example          the trust domain, or its bare name; may be left out
    scope=billing:adjustments:create        one operation
    request_details={"tenant":"acme","reason":"..."}
    subject_token, subject_token_type       the token of the call that this one goes on from; else a new transaction

The caller is whom its certificate proves. Nothing of a token is logged; what is recorded has the transaction's id.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from eastwest.clock import Clock
from eastwest.entropy import Entropy
from eastwest.issuance.ports import SigningPool
from eastwest.issuance.presented import read
from eastwest.issuance.transaction import (
    Approval,
    ApprovalNeeded,
    Caller,
    Permit,
    Targets,
    TokenRefused,
    Wanted,
    mint,
    permit,
)
from eastwest.policy.enforcement import DecisionCode
from eastwest.policy.transaction import NoToken, Token
from eastwest.registry.approvals import Approval as Stored
from eastwest.registry.approvals import ApprovalState
from eastwest.registry.containment import NOBODY, REASON, Contained
from eastwest.server.finishing import to_the_end
from eastwest.server.journal import Journal
from eastwest.server.tokens.approvals import Approvals
from eastwest.server.tokens.keys import TokenKeys
from eastwest.spiffe.id import TrustDomain

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
TOKEN_TYPE = "urn:ietf:params:oauth:token-type:txn_token"  # noqa: S105 - a name of a type
MAX_FIELDS = 16
MAX_TENANT = 255


class Details(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``request_details``: what the call is to be about."""

    tenant: str = ""
    reason: str = ""
    approval: str = ""


@dataclass(frozen=True, slots=True)
class Form:
    """A request that is well formed."""

    operation: str
    details: Details
    subject_token: str

    @property
    def wanted(self) -> Wanted:
        """What the token is to be for."""
        return Wanted(self.operation, self.details.tenant)


class PendingApproval(ApprovalNeeded):
    """An approval is needed, and ``approval`` waits for a decision."""

    def __init__(self, approval: str, message: str) -> None:
        command = f"eastwest approval grant {approval} --reason 'why it may be done'"
        super().__init__(message, fix=f"have it granted: {command}; then ask again")
        self.approval = approval


class Exchange:
    """Answers callers whose certificate has been verified."""

    def __init__(
        self,
        trust_domain: TrustDomain,
        targets: Callable[[], Targets],
        keys: TokenKeys,
        approvals: Approvals,
        journal: Journal,
        clock: Clock,
        entropy: Entropy,
        pool: SigningPool,
        life: int,
    ) -> None:
        self._issuer = trust_domain.uri
        self._targets = targets
        self._keys = keys
        self._approvals = approvals
        self._journal = journal
        self._clock = clock
        self._entropy = entropy
        self._pool = pool
        self._life = life
        self.contained: Callable[[], Contained] = lambda: NOBODY
        """Gives who is cut off: nothing is made for them, nor out of a token that names one of them."""

    async def answer(self, caller: Caller, body: bytes) -> dict[str, Any]:
        """The response to a form (RFC 8693, 2.2.1); raises ``TokenRefused`` and other errors.

        Recorded in the log before it is given.
        """
        self._refuse_contained(caller.spiffe_id)
        form = read_form(body, self._issuer)
        incoming = self._incoming(form.subject_token)
        granted = await self._permit(caller, form, incoming)
        signer = await self._keys.signer()
        now = self._clock.now()
        token, unsigned = mint(granted, caller, incoming, signer, self._issuer, now, self._entropy, self._life)
        if signer.is_remote:
            [signature] = await self._pool.sign(signer, [unsigned.message])
        else:
            signature = signer.sign(unsigned.message)
        await to_the_end(self._record(granted, token, signer.key_id))
        self._refuse_contained(caller.spiffe_id)
        return {
            "access_token": unsigned.finish(signature).token,
            "issued_token_type": TOKEN_TYPE,
            "token_type": "N_A",
            "expires_in": token.expires - int(now.timestamp()),
            "txn": token.transaction,
        }

    def _incoming(self, text: str) -> Token | None:
        if not text:
            return None
        found = read(text, self._keys.public, self._issuer, self._clock.now())
        if isinstance(found, Token):
            self._refuse_contained(found.caller, found.origin, found.approver)
            return found
        expired = found is NoToken.EXPIRED
        raise TokenRefused(
            "invalid_request",
            DecisionCode.TOKEN_EXPIRED if expired else DecisionCode.TOKEN_INVALID,
            f"subject_token {'has expired' if expired else 'is no transaction token of this trust domain'}",
            fix="give the token that came with the call, while it is valid",
        )

    def _refuse_contained(self, *names: str) -> None:
        contained = self.contained()
        for name in names:
            if name in contained:
                raise TokenRefused("access_denied", REASON, f"{name} is contained", fix="see eastwest containment list")

    async def _permit(self, caller: Caller, form: Form, incoming: Token | None) -> Permit:
        targets = self._targets()
        try:
            return await self._permitted(targets, caller, form, incoming)
        except PendingApproval:
            raise
        except TokenRefused as refused:
            # What rolls out refuses nothing at points that it has not reached.
            if targets.beside is None:
                raise
            try:
                return await self._permitted(targets.beside, caller, form, incoming)
            except TokenRefused:
                raise refused from None

    async def _permitted(self, targets: Targets, caller: Caller, form: Form, incoming: Token | None) -> Permit:
        wanted = form.wanted
        if form.details.approval:
            approval = await self._named(form.details.approval, caller.spiffe_id, wanted)
            return permit(targets, caller.spiffe_id, wanted, incoming, approval)
        try:
            return permit(targets, caller.spiffe_id, wanted, incoming)
        except ApprovalNeeded as needed:
            usable = await self._approvals.usable(caller.spiffe_id, wanted)
            if usable is not None:
                return permit(targets, caller.spiffe_id, wanted, incoming, _granted(usable))
            if not form.details.reason:
                raise ApprovalNeeded(
                    needed.message, fix="give a reason in request_details to have it requested"
                ) from None
            pending = await self._approvals.request(
                caller.spiffe_id, wanted, form.details.reason, requested_by=caller.spiffe_id
            )
            raise PendingApproval(pending.id, f"{needed.message}; {pending.id} waits for a decision") from None

    async def _named(self, approval_id: str, caller: str, wanted: Wanted) -> Approval:
        """The approval that the caller names, if it is granted and for just this."""
        found = await self._approvals.find(approval_id)
        if found is None or not found.covers(caller, wanted.operation, wanted.tenant):
            raise TokenRefused(
                "access_denied",
                DecisionCode.APPROVAL_REQUIRED,
                f"approval {approval_id[:64]!r} is not for this caller, operation and tenant",
                fix="name one that is, or none",
            )
        standing = found.state_at(self._clock.now())
        if standing is ApprovalState.PENDING:
            raise PendingApproval(found.id, f"approval {found.id} waits for a decision")
        if standing is not ApprovalState.GRANTED:
            raise TokenRefused(
                "access_denied",
                DecisionCode.APPROVAL_REQUIRED,
                f"approval {found.id} is {standing}",
                fix="ask for another: give a reason and no approval",
            )
        if not self._approvals.is_answered_for(found):
            raise TokenRefused(
                "access_denied",
                DecisionCode.APPROVAL_REQUIRED,
                f"{found.approver}, who granted approval {found.id}, may no longer approve {found.operation}",
                fix="ask for another: give a reason and no approval",
            )
        return _granted(found)

    async def _record(self, granted: Permit, token: Token, key_id: str) -> None:
        approval = granted.approval
        if approval is None or not granted.target.rules.single_use:
            await self._tell(token, key_id)
        elif not await self._approvals.spend(approval.id, lambda: self._tell(token, key_id)):
            raise TokenRefused(
                "access_denied",
                DecisionCode.APPROVAL_REQUIRED,
                f"approval {approval.id} no longer stands, or has been used for its one token",
                fix="ask for another: give a reason and no approval",
            )

    async def _tell(self, token: Token, key_id: str) -> None:
        await self._journal.record(
            "token.minted",
            actor=token.caller,
            subject=token.caller,
            operation=token.action,
            service=token.resource,
            tenant=token.tenant,
            transaction=token.transaction,
            origin=token.origin,
            hop=len(token.chain),
            certificate_sha256=token.certificate,
            approval=token.approval,
            approver=token.approver,
            key_id=key_id,
            not_after=datetime.fromtimestamp(token.expires, UTC),
        )


def read_form(body: bytes, issuer: str) -> Form:
    """A request (RFC 8693, 2.1) as it must be here; raises ``TokenRefused`` in OAuth's words."""
    said = _fields(body)
    if said.get("grant_type") != GRANT:
        raise TokenRefused("unsupported_grant_type", "INVALID_INPUT", f"grant_type is {GRANT}")
    if said.get("requested_token_type") != TOKEN_TYPE:
        raise TokenRefused("invalid_request", "INVALID_INPUT", f"requested_token_type is {TOKEN_TYPE}")
    if said.get("audience", issuer) not in {issuer, issuer.removeprefix("spiffe://")}:
        raise TokenRefused("invalid_target", "INVALID_INPUT", f"audience is the trust domain: {issuer}")
    scopes = said.get("scope", "").split(" ")
    if len(scopes) != 1 or not scopes[0]:
        raise TokenRefused("invalid_scope", "INVALID_INPUT", "scope is the name of exactly one operation")
    subject, kind = said.get("subject_token", ""), said.get("subject_token_type", "")
    if subject and kind != TOKEN_TYPE:
        raise TokenRefused("invalid_request", "INVALID_INPUT", f"subject_token_type is {TOKEN_TYPE}")
    if unknown := sorted(said.keys() - _KNOWN):
        raise TokenRefused("invalid_request", "INVALID_INPUT", f"there is no parameter {unknown[0][:64]!r}")
    return Form(scopes[0], _details(said.get("request_details", "")), subject)


def _fields(body: bytes) -> Mapping[str, str]:
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise TokenRefused("invalid_request", "INVALID_INPUT", "the request is no form of a few parameters") from None
    said = {name: value for name, value in pairs if value}  # an empty one counts as left out (RFC 6749, 3.2)
    if len(dict(pairs)) != len(pairs):
        raise TokenRefused("invalid_request", "INVALID_INPUT", "a parameter comes twice")
    return said


def _details(text: str) -> Details:
    if not text:
        return Details()
    try:
        details = msgspec.json.decode(text.encode(), type=Details)
        json.loads(text, object_pairs_hook=_once_each)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TokenRefused(
            "invalid_request",
            "INVALID_INPUT",
            f"request_details: {error}",
            fix="a JSON object with tenant, reason or approval",
        ) from None
    if len(details.tenant) > MAX_TENANT:
        raise TokenRefused("invalid_request", "INVALID_INPUT", f"a tenant has at most {MAX_TENANT} characters")
    return details


def _once_each(pairs: list[tuple[str, Any]]) -> None:
    # Readers differ in which of two they take.
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name is there twice")


def _granted(approval: Stored) -> Approval:
    return Approval(approval.id, approval.approver, datetime.fromtimestamp(approval.ends, UTC))


_KNOWN = frozenset(
    {
        "grant_type",
        "requested_token_type",
        "audience",
        "scope",
        "request_details",
        "request_context",
        "subject_token",
        "subject_token_type",
    }
)
