"""One decision as a row: who asked what of whom, the answer, and by which rule."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A decision, or ``count`` equal ones within the minute of ``time``.

    ``verdict`` is the policy's word; where ``enforced`` is false it was only reported and the call went on.
    """

    time: datetime  # aware, UTC; the minute's start where count > 1
    service: str
    verdict: Verdict
    code: DecisionCode
    mode: MtlsMode
    enforced: bool
    caller: str = ""  # SPIFFE ID; "" when the peer proved nothing
    claimed: bool = False  # the caller's name comes from a certificate that did not verify, or is no single ID
    operation: str = ""  # "" when none matched
    tenant: str = ""
    method: str = ""
    policy: str = ""
    policy_version: str = ""
    rules_version: str = ""  # content hash of this service's rules
    node: str = ""
    count: int = 1
    reference: str = ""  # the request id that the caller was given too; "" in counted rows
    cause: str = ""  # for refusals without a policy: why, such as `expired`
    source: str = ""  # peer address of a refusal, without the port
    transaction: str = ""  # of the caller's token, where the decision looked at one
    approver: str = ""  # who approved, where the decision counted that

    @property
    def kind(self) -> Literal["request", "connection"]:
        """Whether a request was decided or a connection refused."""
        return "connection" if self.code is DecisionCode.CERTIFICATE_REFUSED or not self.method else "request"
