"""The name of a matcher's action: how a decision travels from the tree through Envoy into the access log.

``CODE|policy|operation|version``: always four fields, empty ones allowed, ``%`` and ``|`` percent-encoded.
The version is that of one service's rules, so a change elsewhere does not touch this service's config.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from eastwest.policy.enforcement import DecisionCode, Inbound, MtlsMode

VERSION_LENGTH = 12


@dataclass(frozen=True, slots=True)
class ActionName:
    """What an action says about the decision it stands for."""

    code: DecisionCode
    policy: str = ""
    operation: str = ""
    version: str = ""

    def encode(self) -> str:
        """The text form; at most one line, no control characters of its own making."""
        return "|".join((self.code, _escape(self.policy), _escape(self.operation), self.version))

    @classmethod
    def parse(cls, text: str) -> ActionName | None:
        """The inverse of ``encode``; None for a name that is not ours."""
        fields = text.split("|")
        if len(fields) != 4:
            return None
        code, policy, operation, version = fields
        if code not in DecisionCode.__members__:
            return None
        return cls(DecisionCode(code), _unescape(policy), _unescape(operation), version)


def inbound_version(inbound: Inbound) -> str:
    """The content hash (12 hex digits) of what one service enforces, its mode included."""
    return hashlib.sha256(msgspec.json.encode(inbound, order="deterministic")).hexdigest()[:VERSION_LENGTH]


@dataclass(frozen=True, slots=True)
class InForce:
    """What a service's version stands for; the agent keeps one for each version it has handed out."""

    service: str
    version: str
    policy_version: str
    mode: MtlsMode
    inbound: Inbound


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("|", "%7C")


def _unescape(text: str) -> str:
    return text.replace("%7C", "|").replace("%25", "%")
