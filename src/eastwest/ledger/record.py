"""One decision as a row: who asked what of whom, the answer, and by which rule. And what of that record was lost.

A row is lossless for replay: what any policy could look at is in it, or is fixed by ``rules_version``. Rows travel and
are stored as JSON objects whose ``kind`` tells the two apart.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Literal

import msgspec

from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict

MAX_PATH = 256
"""Characters of a path that is kept."""
MAX_COUNT = 1 << 32
"""Calls that one row may stand for; more are several rows."""

Sensor = Literal["envoy", "sdk", "agent"]
"""Who decided: a sidecar, an application by our library, or the agent that a sidecar asked."""


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="decision"):
    """A decision, or ``count`` decisions with the same inputs and the same answer within the minute of ``time``.

    ``verdict`` is the policy's word; where ``enforced`` is false it was only reported and the call went on. A row with
    a ``reference`` is one call in full; one without stands for ``count`` calls.
    """

    time: datetime  # aware, UTC; the minute's start in counted rows
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
    path: str = ""  # normalised, without the query, where no operation matched: elsewhere the operation says enough
    policy: str = ""
    policy_version: str = ""
    rules_version: str = ""  # content hash of this service's rules
    node: str = ""
    sensor: Sensor = "envoy"
    count: int = 1
    reference: str = ""  # the request id that the caller was given too; "" in counted rows
    trace: str = ""  # W3C trace id (32 hex digits) of the call; "" in counted rows and where none came
    cause: str = ""  # for refusals without a policy: why, such as `expired`
    source: str = ""  # peer address of a refusal, without the port
    token: bool = False  # a verified token of the caller's own came, and the decision looked at it
    transaction: str = ""  # of that token
    origin: str = ""  # the workload (SPIFFE ID) that began that transaction
    approver: str = ""  # who approved, where the decision counted that
    first: bool = False  # the first call of this caller, service and operation that this agent remembers
    break_glass: bool = False  # allowed by an emergency grant
    report_code: str = ""  # a DecisionCode: what rules in report mode would have made of the call, where they differ
    report_policy: str = ""  # and by which of them
    peer: str = ""  # best name of a peer that proved nothing: `unit:reports.service uid:33 exe:/usr/bin/php`
    canary: bool = False  # asked by `verify run`, for no user: counted in no total


class LostReason(enum.StrEnum):
    """Why decisions are missing from the record."""

    SPOOL_FULL = "spool_full"  # the agent's buffer was full, and the oldest made room
    DISK = "disk"  # the agent's disk failed, was damaged, or the agent was killed before it had written
    PROXY_DROPPED = "proxy_dropped"  # a sidecar could not hand its log over
    SDK_DROPPED = "sdk_dropped"  # an application could not hand its decisions over
    REFUSED = "refused"  # the server, or the agent, did not take the rows


class Lost(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="lost"):
    """``count`` decisions of between ``time`` and ``until`` that were made, and of which no row exists."""

    time: datetime  # aware, UTC: the earliest that one of them can have been made
    until: datetime  # aware, UTC: the latest
    count: int  # 0 only where nobody can say how many: then at least one may be missing
    cause: LostReason
    node: str = ""  # the sidecar that lost them; "" for the agent itself
    service: str = ""  # "" where it is not known, or they are of several

    def with_more(self, other: Lost) -> Lost:
        """Both losses as one, with this one's cause and place."""
        time, until = min(self.time, other.time), max(self.until, other.until)
        return msgspec.structs.replace(self, time=time, until=until, count=self.count + other.count)


Row = Decision | Lost
"""What the ledger is made of."""
