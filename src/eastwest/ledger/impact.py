"""What a candidate policy would have changed for calls that the ledger has: added up, newly allowed first.

Each distinct input is decided twice, by the policy in force and by the candidate (``eastwest.policy.replay``), and
what differs is added up by caller, service, operation and tenant. Memory is bounded: beyond ``MAX_GROUPS`` groups only
totals are kept, and the report says that it is not complete.
"""

from __future__ import annotations

import hashlib
from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from eastwest.ledger.query import moment
from eastwest.policy.enforcement import DecisionCode, Inbound, Verdict
from eastwest.policy.estate import Estate, Sensitivity
from eastwest.policy.replay import Answer, Input, Replayer, Unsure

MAX_GROUPS = 50_000
"""Rows of one report, of all kinds together."""
SAMPLES = 3
"""Rows of the ledger that a row of the report names."""
KINDS = ("newly_allowed", "newly_denied", "unsure", "reported_denied", "reported_allowed")
"""What can become of calls. Of the last two only what is reported differs: in permissive mode, or by rules in it."""
_STRICTNESS = {each: at for at, each in enumerate(Sensitivity)}
NOT_AT_HAND = "it was recorded under rules that are not at hand"


class Recorded(NamedTuple):
    """One distinct input of the window, and what the ledger says of it."""

    given: Input
    verdict: Verdict
    policy: str
    rules_version: str
    policy_version: str
    calls: int
    first: int  # microseconds since 1970
    last: int
    reference: str  # of one of the rows; "" where they are counted ones
    row: int  # number of the first of them


class _Key(NamedTuple):
    kind: str
    caller: str
    claimed: bool
    service: str
    operation: str
    tenant: str
    code: str
    policy: str
    was: str
    was_policy: str
    reason: str


class _Sum:
    __slots__ = ("calls", "first", "last", "samples")

    def __init__(self, row: Recorded) -> None:
        self.calls = 0
        self.first = row.first
        self.last = row.last
        self.samples: list[tuple[int, str]] = []  # by row number, so that the same data give the same report

    def add(self, row: Recorded) -> None:
        self.calls += row.calls
        self.first = min(self.first, row.first)
        self.last = max(self.last, row.last)
        if len(self.samples) < SAMPLES or row.row < self.samples[-1][0]:
            insort(self.samples, (row.row, row.reference or f"row:{row.row}"))
            del self.samples[SAMPLES:]


class Histories:
    """Finds the rules under which a row was recorded, among those of some versions."""

    def __init__(self, versions: Iterable[Replayer], version_of: Callable[[Inbound], str]) -> None:
        """``version_of``: the text by which rows name a service's rules."""
        self._versions = list(versions)
        self._version_of = version_of
        self._by_rules: dict[str, dict[str, Replayer]] = {}
        self._by_policy = {each.compiled.version: each for each in reversed(self._versions)}

    def find(self, service: str, rules_version: str, policy_version: str) -> Replayer | None:
        """The version by its rules; else by the policy's, whose callers may have been registered since; else None."""
        if service not in self._by_rules:
            found: dict[str, Replayer] = {}
            for each in self._versions:
                inbound = each.inbound(service)
                if inbound is not None:
                    found.setdefault(self._version_of(inbound), each)
            self._by_rules[service] = found
        return self._by_rules[service].get(rules_version) or self._by_policy.get(policy_version)

    def same(self, service: str, one: Replayer, other: Replayer) -> bool:
        """Whether a service has the same rules in two versions."""
        ours, theirs = one.inbound(service), other.inbound(service)
        return ours is theirs or (ours is not None and ours == theirs)


class Impact:
    """Adds up what differs between ``before`` (None: what was recorded) and ``after``."""

    def __init__(self, before: Replayer | None, after: Replayer, histories: Histories) -> None:
        self._before = before
        self._after = after
        self._reporting = Replayer(after.compiled, report=True)
        self._histories = histories
        self._groups: dict[_Key, _Sum] = {}
        self._same: dict[str, bool] = {}
        self.calls = self.decided = self.inputs = 0
        self.left_out = 0
        """Calls that differ and are in no group."""
        self.totals = dict.fromkeys(KINDS, 0)
        self.reproduced = 0
        """Calls recorded under the very rules in force, whose replay gave what was recorded."""
        self.deviating = 0
        """Such calls whose replay gave something else."""

    def add(self, row: Recorded) -> None:
        """Take one input."""
        self.inputs += 1
        self.calls += row.calls
        given = row.given
        if self._is_same(given):
            self.decided += row.calls
            return
        known = self._histories.find(given.service, row.rules_version, row.policy_version)
        if known is None:
            self._note("unsure", row, self._recorded(row), Unsure(NOT_AT_HAND))
            return
        before = self._recorded(row) if self._before is None else self._before.decide(given, known)
        after = self._after.decide(given, known)
        if known is self._before and known is not None and isinstance(before, Answer):
            if (before.code, before.policy) == (given.code, row.policy):
                self.reproduced += row.calls
            else:
                self.deviating += row.calls
        if isinstance(after, Unsure) or isinstance(before, Unsure):
            if before != after:
                self._note("unsure", row, before, after)
                return
        else:
            kind = _kind(before, after)
            if kind:
                self._note(kind, row, before, after)
            else:
                self._add_reported(row, after, known)
        self.decided += row.calls

    def _add_reported(self, row: Recorded, after: Answer, known: Replayer) -> None:
        """What the candidate's rules in report mode would make of a call that goes on as before."""
        inbound = self._after.inbound(row.given.service)
        if inbound is None or not inbound.report:
            return
        told = self._reporting.decide(row.given, known)
        if isinstance(told, Answer) and told.verdict is not after.verdict:
            self._note("reported_denied" if after.verdict is Verdict.ALLOW else "reported_allowed", row, after, told)

    def _is_same(self, given: Input) -> bool:
        """Whether nothing that this call could meet differs."""
        if self._before is None:
            self._same.setdefault(given.service, False)
            return False
        same = self._same.get(given.service)
        if same is None:
            same = self._histories.same(given.service, self._before, self._after)
            self._same[given.service] = same
        if not same:
            return False
        one, other = self._before.service(given.service), self._after.service(given.service)
        if one is None or other is None:
            return True
        trusted = one.sidecar.federated_callers == other.sidecar.federated_callers
        return trusted and (given.claimed or (given.caller in one.known) == (given.caller in other.known))

    @staticmethod
    def _recorded(row: Recorded) -> Answer:
        given = row.given
        return Answer(row.verdict, given.code, row.policy, given.operation, given.enforced)

    def _note(self, kind: str, row: Recorded, before: Answer | Unsure, after: Answer | Unsure) -> None:
        self.totals[kind] += row.calls
        given = row.given
        told = after if isinstance(after, Answer) else after.likely
        was = before if isinstance(before, Answer) else before.likely
        unsure = next((each.reason for each in (after, before) if isinstance(each, Unsure)), "")
        key = _Key(
            kind,
            given.caller,
            given.claimed,
            given.service,
            given.operation or (told.operation if told is not None else ""),
            given.tenant,
            told.code if told is not None else "",
            told.policy if told is not None else "",
            was.code if was is not None else "",
            was.policy if was is not None else "",
            unsure,
        )
        found = self._groups.get(key)
        if found is None:
            if len(self._groups) >= MAX_GROUPS:
                self.left_out += row.calls
                return
            found = self._groups[key] = _Sum(row)
        found.add(row)

    def report(self, names: Names, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The report: ``facts`` (what was read), totals, and rows of each kind, the most sensitive and frequent first.

        ``hash`` is the SHA-256 (hex) of all the rest as canonical JSON.
        """
        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for key, total in self._groups.items():
            rows[key.kind].append(_row(key, total, names))
        for each in rows.values():
            each.sort(key=_order)
        told = dict(facts) | {
            "calls": self.calls,
            "inputs": self.inputs,
            "decided": self.decided,
            "covered": round(self.decided / self.calls, 6) if self.calls else 1.0,
            "reproduced": self.reproduced,
            "deviating": self.deviating,
            "complete": not self.left_out,
            "left_out": self.left_out,
            "totals": self.totals,
            **rows,
        }
        return sealed(told)


def sealed(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with its ``hash``."""
    said = {name: value for name, value in report.items() if name != "hash"}
    return said | {"hash": hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()}


def breaks(report: Mapping[str, Any]) -> frozenset[tuple[str, str, str]]:
    """Callers, services and operations that the report says would be refused, or may be."""
    return frozenset(
        (row["caller"], row["service"], row["operation"])
        for row in (*report["newly_denied"], *report["unsure"])
        if row["code"] != DecisionCode.ALLOWED
    )


class Names:
    """Who answers for what, and how sensitive it is, before and after."""

    def __init__(self, estates: Sequence[Estate]) -> None:
        """``estates``: the ones before come last, whose owners count first."""
        self.owners: dict[str, str] = {}
        self.callers: dict[str, str] = {}
        self.sensitivities: dict[tuple[str, str], Sensitivity] = {}
        for estate in estates:
            self.callers |= {one.spiffe_id: one.owner for one in estate.callers}
            for service in estate.services:
                self.owners[service.service] = service.owner
                for operation in service.operations:
                    key, found = (service.service, operation.name), operation.sensitivity
                    if found is not None:
                        known = self.sensitivities.get(key, found)
                        self.sensitivities[key] = max(found, known, key=_STRICTNESS.__getitem__)


def _kind(before: Answer, after: Answer) -> str:
    if before.passes != after.passes:
        return "newly_allowed" if after.passes else "newly_denied"
    if before.verdict is after.verdict or not after.passes:
        return ""
    return "reported_denied" if after.verdict is Verdict.DENY else "reported_allowed"


def _row(key: _Key, total: _Sum, names: Names) -> dict[str, Any]:
    sensitivity = names.sensitivities.get((key.service, key.operation))
    row: dict[str, Any] = {
        "caller": key.caller,
        "service": key.service,
        "operation": key.operation,
        "tenant": key.tenant,
        "count": total.calls,
        "first": moment(total.first),
        "last": moment(total.last),
        "owner": names.owners.get(key.service, ""),
        "caller_owner": names.callers.get(key.caller, ""),
        "sensitivity": sensitivity.value if sensitivity is not None else "",
        "code": key.code,
        "policy": key.policy,
        "was": key.was,
        "was_policy": key.was_policy,
        "samples": [name for _, name in total.samples],
    }
    if key.claimed:
        row["claimed"] = True
    if key.reason:
        row["reason"] = key.reason
    return row


def _order(row: Mapping[str, Any]) -> tuple[object, ...]:
    strictness = _STRICTNESS.get(Sensitivity(row["sensitivity"]), 0) if row["sensitivity"] else 0
    names = (row["service"], row["operation"], row["caller"], row["tenant"], row["code"], row["was"])
    return (-strictness, -row["count"], *names, row["policy"], row["was_policy"], row.get("reason", ""))
