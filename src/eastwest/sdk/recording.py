"""Decisions on their way to the ledger, and the one that is made before any rule: that a certificate does not count."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime

from eastwest.api.eastwest.enforcement.v1 import enforcement_pb2 as api
from eastwest.errors import Unauthenticated
from eastwest.mesh.replies import REQUEST_REFUSED
from eastwest.pki.chain import Expired, MalformedSvid, NotYetValid, UntrustedChain
from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.sdk.decide import Decision
from eastwest.sdk.peers import UnknownTrustDomain

_CAUSES: tuple[tuple[type[Unauthenticated], str], ...] = (
    (Expired, "expired"),
    (NotYetValid, "not_yet_valid"),
    (MalformedSvid, "malformed_san"),
    (UnknownTrustDomain, "unknown_trust_domain"),
    (UntrustedChain, "unknown_authority"),
)
"""Causes as sidecars name them."""


def refused_certificate(decision: Decision, error: Unauthenticated) -> Decision:
    """The decision when the caller's certificate did not verify.

    Enforced in report mode too: with our Envoys the connection would not have come about.
    """
    return replace(
        decision,
        verdict=Verdict.DENY,
        code=DecisionCode.CERTIFICATE_REFUSED,
        reason=error.message,
        cause=next((name for kind, name in _CAUSES if isinstance(error, kind)), "not_verified"),
        principal="",
        enforced=True,
        once=False,
    )


_TRACEPARENT = re.compile("[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
MAX_PATH = 256
MAX_TEXT = 256
"""Characters of each text, as the agent keeps them: callers choose tenants and paths, as long as a header may be."""


def told(
    decision: Decision, now: datetime, *, reference: str = "", source_address: str = "", traceparent: str = ""
) -> api.Decision:
    """The decision as the agent is told of it: a record of a bounded size, whatever the request was.

    A request that could be read two ways is recorded as a sidecar of ours records it: as a call of no operation.
    """
    code, cause = decision.code, decision.cause
    if code == REQUEST_REFUSED:
        code = DecisionCode.UNLISTED_OPERATION if decision.principal else DecisionCode.MTLS_REQUIRED
        cause = f"request_refused:{decision.reason}"
    trace = found[1] if (found := _TRACEPARENT.match(traceparent)) else ""
    return api.Decision(
        time_unix_ms=int(now.timestamp() * 1000),
        service=decision.service,
        code=code,
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
        cause=cause[:MAX_TEXT],
        path=decision.request.path[:MAX_PATH] if decision.request is not None and not decision.operation else "",
        token=decision.token is not None,
        origin=decision.token.origin[:MAX_TEXT] if decision.token is not None else "",
        trace=trace,
        report_code=decision.report_code,
        report_policy=decision.report_policy[:MAX_TEXT],
    )
