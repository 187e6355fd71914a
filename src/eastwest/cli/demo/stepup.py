"""What hurts demands a token for one call and somebody who answers for it: how the console gets one, what thieves get.

Tokens are asked for by the workloads' own processes, through their own sidecars. They are live credentials: no report,
log or error of the demo has one.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from eastwest.cli.demo.calls import Call, Made
from eastwest.policy.transaction import HEADER

_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:txn_token"  # noqa: S105 - a name of a type
_DISABLE, _MUTE, _ASK_TO_MUTE = "admin:users:disable", "admin:users:mute", "notification:users:mute"
REASON = "u-17 left the company"
RECORDED = ("approval.requested", "approval.granted", "token.minted")
"""Kinds of log entries that the story must leave."""

Maker = Callable[[Call], Awaitable[Made]]
Granter = Callable[[str, str], Awaitable[tuple[str, str]]]
"""Given an approval's id and a reason, who granted it, and its state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request for a token: who asks, for which operation, and what must come of it ("" for a token)."""

    name: str
    story: str
    caller: str
    operation: str
    tenant: str = ""
    reason: str = ""
    code: str = ""
    attack: bool = False
    incoming: str = field(default="", repr=False)

    def call(self) -> Call:
        """The same as a call to the token endpoint, by the name under which every sidecar knows it (RFC 8693)."""
        details = {name: value for name, value in (("tenant", self.tenant), ("reason", self.reason)) if value}
        form = {
            "grant_type": _GRANT,
            "requested_token_type": _TOKEN_TYPE,
            "scope": self.operation,
            "request_details": json.dumps(details),
        }
        if self.incoming:
            form |= {"subject_token": self.incoming, "subject_token_type": _TOKEN_TYPE}
        return Call(
            name=self.name,
            story=self.story,
            caller=self.caller,
            service="eastwest",
            method="POST",
            path="/token",
            status=403 if self.code == "APPROVAL_REQUIRED" else 400 if self.code else 200,
            attack=self.attack,
            headers={"content-type": "application/x-www-form-urlencoded"},
            body=urlencode(form),
        )


@dataclass(slots=True)
class Asked:
    """What came of an ``Ask``. ``approval`` is the id of one that waits."""

    ask: Ask
    status: int
    code: str
    approval: str = ""
    expires_in: int = 0
    token: str = field(default="", repr=False)

    @property
    def expected(self) -> str:
        return self.ask.code or "a token"

    @property
    def observed(self) -> str:
        return "a token" if self.token else self.code or f"status {self.status}"

    @property
    def ok(self) -> bool:
        return self.expected == self.observed


@dataclass(slots=True)
class StepUp:
    """All that was asked, decided and called."""

    asked: list[Asked] = field(default_factory=list)
    calls: list[Made] = field(default_factory=list)
    approver: str = ""
    approval_state: str = ""
    recorded: dict[str, int] = field(default_factory=dict)  # entries in the log by kind


async def run(make: Maker, grant: Granter, forge: Callable[[str], str]) -> StepUp:
    """The story, in its order; ``forge`` makes a token like the one given, signed by a key of the thief's."""
    told = StepUp()

    async def ask(wanted: Ask) -> Asked:
        told.asked.append(read(wanted, await make(wanted.call())))
        return told.asked[-1]

    async def call(wanted: Call, token: str = "") -> None:
        told.calls.append(await make(replace(wanted, headers={HEADER: token}) if token else wanted))

    await call(disable("console-without-token", "without a token even the console may not", 403, "STEP_UP_REQUIRED"))
    waiting = await ask(
        Ask(
            name="console-asks-to-disable",
            story="the console asks for a token to disable u-17",
            caller="console",
            operation=_DISABLE,
            reason=REASON,
            code="APPROVAL_REQUIRED",
        )
    )
    told.approver, told.approval_state = await grant(waiting.approval, REASON)
    disabling = await ask(
        Ask(
            name="console-asks-again",
            story="it asks again, now that somebody answers for it",
            caller="console",
            operation=_DISABLE,
        )
    )
    muting = await ask(
        Ask(
            name="console-asks-to-mute",
            story="it asks for one to mute a user, which needs no approval",
            caller="console",
            operation=_MUTE,
        )
    )
    for theft in thefts():
        await ask(theft)
    for attack, token in attacks(disabling.token, muting.token, forge):
        await call(attack, token)
    await call(
        disable("console-disables-user", "the console, and only the console, disables a user", 200), disabling.token
    )
    await call(
        disable("console-repeats-itself", "the same token a second time: it counted once", 403, "TOKEN_USED"),
        disabling.token,
    )
    begun = await ask(
        Ask(
            name="console-begins-a-transaction",
            story="the console begins a transaction: notification is to mute u-17",
            caller="console",
            operation=_ASK_TO_MUTE,
            tenant="globex",
        )
    )
    await call(ASK_TO_MUTE, begun.token)
    passed_on = await ask(
        Ask(
            name="notification-goes-on-with-it",
            story="notification exchanges the token that it was called with",
            caller="notification",
            operation=_MUTE,
            incoming=begun.token,
        )
    )
    await call(
        mute("notification-mutes-for-the-console", "and mutes the user, as the console began it", 200), passed_on.token
    )
    return told


def thefts() -> list[Ask]:
    """What the compromised service asks for itself."""
    return [
        Ask(
            name="notification-asks-to-disable",
            story="notification asks for a token to disable a user",
            caller="notification",
            operation=_DISABLE,
            reason="please",
            code="OPERATION_NOT_PERMITTED",
            attack=True,
        ),
        Ask(
            name="notification-asks-to-mute",
            story="it asks for one to mute a user, in a transaction of its own",
            caller="notification",
            operation=_MUTE,
            code="OPERATION_NOT_PERMITTED",
            attack=True,
        ),
    ]


def attacks(disabling: str, muting: str, forge: Callable[[str], str]) -> list[tuple[Call, str]]:
    """What it does with tokens of the console that it found in a log, before the console has used them."""
    calls = [
        (mute("mute-without-token", "it mutes a user by itself", 403, "STEP_UP_REQUIRED"), ""),
        (mute("mute-with-forged-token", "with a token that it signed itself", 403, "TOKEN_INVALID"), forge(muting)),
        (mute("mute-with-stolen-token", "with the console's token for just this", 403, "TOKEN_WRONG_CALLER"), muting),
        (mute("mute-with-other-token", "with the console's, for disabling", 403, "TOKEN_WRONG_ACTION"), disabling),
        (
            replace(
                disable("disable-with-stolen-token", "it disables one with that", 403, "OPERATION_NOT_PERMITTED"),
                caller="notification",
            ),
            disabling,
        ),
    ]
    return [(replace(call, attack=True), token) for call, token in calls]


def disable(name: str, story: str, status: int, code: str = "") -> Call:
    """The console's call."""
    return Call(
        name=name,
        story=story,
        caller="console",
        service="admin",
        method="POST",
        path="/admin/users/u-17/disable",
        status=status,
        code=code,
    )


def mute(name: str, story: str, status: int, code: str = "") -> Call:
    """Notification's call."""
    return Call(
        name=name,
        story=story,
        caller="notification",
        service="admin",
        method="POST",
        path="/admin/users/u-17/mute",
        status=status,
        code=code,
    )


ASK_TO_MUTE = Call(
    name="console-asks-notification",
    story="the console calls notification with it",
    caller="console",
    service="notification",
    method="POST",
    path="/users/u-17/mute",
    tenant="globex",
    status=200,
)


def read(ask: Ask, made: Made) -> Asked:
    """What the token endpoint, or the sidecar before it, answered."""
    said: Mapping[str, Any] = made.body
    token = said.get("access_token", "") if made.status == 200 else ""
    return Asked(
        ask,
        made.status,
        code=str(said.get("code") or made.code or made.error),
        approval=str(said.get("approval", "")),
        expires_in=int(said.get("expires_in", 0)),
        token=str(token),
    )


def forged(token: str) -> str:
    """``token`` word for word, its header too, signed by a new key that nobody has published."""
    from base64 import urlsafe_b64encode

    from eastwest.pki.token_signer import SoftwareTokenSigner, generate_token_key

    signed = token.rpartition(".")[0]
    signature = SoftwareTokenSigner(generate_token_key()).sign(signed.encode())
    return f"{signed}.{urlsafe_b64encode(signature).rstrip(b'=').decode()}"
