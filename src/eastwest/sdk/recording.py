"""Decisions on their way to the ledger, and the one that is made before any rule: that a certificate does not count."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from eastwest.api.eastwest.enforcement.v1 import enforcement_pb2 as api
from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.sdk.decide import Decision


def refused_certificate(decision: Decision, reason: str) -> Decision:
    """The decision when the caller's certificate did not verify.

    Enforced in report mode too: with our Envoys the connection would not have come about.
    """
    return replace(
        decision,
        verdict=Verdict.DENY,
        code=DecisionCode.CERTIFICATE_REFUSED,
        reason=reason,
        principal="",
        enforced=True,
        once=False,
    )


MAX_TEXT = 256
"""Characters of each text, as the agent keeps them: callers choose tenants and paths, as long as a header may be."""


def told(decision: Decision, now: datetime, *, reference: str = "", source_address: str = "") -> api.Decision:
    """The decision as the agent is told of it: a record of a bounded size, whatever the request was."""
    return api.Decision(
        time_unix_ms=int(now.timestamp() * 1000),
        service=decision.service,
        code=decision.code,
        allowed=decision.verdict is Verdict.ALLOW,
        enforced=decision.enforced,
        caller=decision.principal[:MAX_TEXT],
        operation=decision.operation[:MAX_TEXT],
        tenant=decision.tenant[:MAX_TEXT],
        method=decision.method[:MAX_TEXT],
        policy=decision.policy[:MAX_TEXT],
        transaction=decision.transaction[:MAX_TEXT],
        approver=decision.token.approver[:MAX_TEXT] if decision.token is not None else "",
        reference=reference[:MAX_TEXT],
        source=source_address[:MAX_TEXT],
    )
