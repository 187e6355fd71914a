"""What a refused caller is told, and the reference by which its decision is found again."""

from __future__ import annotations

import re

from eastwest.entropy import SystemEntropy, random_uuid
from eastwest.mesh.replies import REQUEST_REFUSED, sentence
from eastwest.policy.enforcement import DecisionCode
from eastwest.sdk.decide import Decision

NO_RULES = "this service has no rules to decide calls by"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_entropy = SystemEntropy()


def said(decision: Decision) -> str:
    """The sentence for the caller."""
    # The same code stands for a token that cannot be asked about; then there was an operation.
    return NO_RULES if _undecidable(decision) else sentence(decision.code)


def is_recorded(decision: Decision, *, known: bool) -> bool:
    """Whether the ledger takes the decision; ``known``: whether rules came that do not name the service at all."""
    known_code = decision.code in DecisionCode.__members__ or decision.code == REQUEST_REFUSED
    return known_code and not (known and _undecidable(decision))


def reference(decision: Decision, request_id: str) -> str:
    """The caller's own request id, where it is a UUID and whoever calls proved who it is; else a new one.

    Sidecars give every call one. What nobody answers for could be made to look like another's.
    """
    return request_id if decision.principal and _UUID.fullmatch(request_id) else random_uuid(_entropy)


def _undecidable(decision: Decision) -> bool:
    return decision.code == DecisionCode.CHECK_UNAVAILABLE and not decision.operation
