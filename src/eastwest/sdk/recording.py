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


def told(decision: Decision, now: datetime, *, reference: str = "", source_address: str = "") -> api.Decision:
    """The decision as the agent is told of it."""
    return api.Decision(
        time_unix_ms=int(now.timestamp() * 1000),
        service=decision.service,
        code=decision.code,
        allowed=decision.verdict is Verdict.ALLOW,
        enforced=decision.enforced,
        caller=decision.principal,
        operation=decision.operation,
        tenant=decision.tenant,
        method=decision.method,
        policy=decision.policy,
        transaction=decision.transaction,
        approver=decision.token.approver if decision.token is not None else "",
        reference=reference,
        source=source_address,
    )
