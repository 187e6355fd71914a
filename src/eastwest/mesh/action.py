"""The name of a matcher's action: how a decision travels from the tree through Envoy into the access log.

``CODE|policy|operation|version``: four fields, empty ones allowed, ``%`` and ``|`` percent-encoded; a fifth, ``once``,
where the call goes on only if its token was not used before; or three more, ``report|CODE|policy``, with what rules in
report mode would say, where there is one tree for both answers. The version is that of one service's rules, so a change
elsewhere does not touch this service's config.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec
from envoy.config.rbac.v3 import rbac_pb2

from eastwest.mesh import matching
from eastwest.policy.enforcement import DecisionCode, Inbound, MtlsMode, Rule, Verdict

VERSION_LENGTH = 12
_ONCE = "once"
_REPORT = "report"
ONCE_SUFFIX = f"|{_ONCE}"
"""Ends the names of those actions, and of no others."""


@dataclass(frozen=True, slots=True)
class ActionName:
    """What an action says about the decision it stands for."""

    code: DecisionCode
    policy: str = ""
    operation: str = ""
    version: str = ""
    once: bool = False
    report: tuple[DecisionCode, str] | None = None

    def encode(self) -> str:
        """The text form; at most one line, no control characters of its own making."""
        fields = (self.code, _escape(self.policy), _escape(self.operation), self.version)
        if self.report is not None:
            return "|".join((*fields, _REPORT, self.report[0], _escape(self.report[1])))
        return "|".join((*fields, _ONCE) if self.once else fields)

    @classmethod
    def parse(cls, text: str) -> ActionName | None:
        """The inverse of ``encode``; None for a name that is not ours."""
        fields = text.split("|")
        known = DecisionCode.__members__
        if len(fields) < 4 or fields[0] not in known:
            return None
        code, policy, operation, version, *more = fields
        report = None
        match more:
            case [] | ["once"]:
                pass
            case ["report", reported, by] if reported in known:
                report = DecisionCode(reported), _unescape(by)
            case _:
                return None
        once = more == [_ONCE]
        return cls(DecisionCode(code), _unescape(policy), _unescape(operation), version, once, report)


def outcome(
    rule: Rule,
    operation: str,
    version: str,
    *,
    once: bool = False,
    report: Rule | None = None,
    passing: bool = False,
) -> matching.OnMatch:
    """The end of a tree's branch: Envoy's allow or deny, under a name that carries the decision.

    ``report``: what holds with rules in report mode, told in the same name where it differs. ``passing``: Envoy lets
    the call through whatever the name says.
    """
    told = None if report is None or report.code == rule.code else (report.code, report.policy)
    name = ActionName(rule.code, rule.policy, operation, version, once, told).encode()
    verdict = rbac_pb2.RBAC.ALLOW if passing or rule.verdict == Verdict.ALLOW else rbac_pb2.RBAC.DENY
    action = matching.typed("envoy.filters.rbac.action", rbac_pb2.Action(name=name, action=verdict))
    return matching.ending(action)


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
