"""What a demo found, as data (``--json``) and as it is shown to a person."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from eastwest.cli.demo.calls import Made
from eastwest.cli.demo.containment import RECORDED as CONTAINMENT_RECORDED
from eastwest.cli.demo.containment import Contained
from eastwest.cli.demo.evidence import Carried
from eastwest.cli.demo.ledger import Joined
from eastwest.cli.demo.place import WORKLOADS
from eastwest.cli.demo.records import LogReport
from eastwest.cli.demo.stepup import RECORDED, Asked, StepUp
from eastwest.cli.demo.weak import KEY_NAME, WeakOutcome

_IDS = {workload.name: workload.spiffe_id for workload in WORKLOADS}


@dataclass(frozen=True, slots=True)
class Expectation:
    """One thing that must be so, and what was so."""

    name: str
    expected: Any
    observed: Any

    @property
    def ok(self) -> bool:
        return bool(self.expected == self.observed)


@dataclass(slots=True)
class ModeSwitch:
    """Permissive, then strict, on one and the same plaintext connection, while load ran beside it."""

    permissive: Made
    strict: Made
    enforced_ms: float
    load_calls: int
    load_failures: int


@dataclass(slots=True)
class Rotation:
    """Certificates of billing while it was called: serial numbers as its port presented them, and the load."""

    before: str
    after: str
    calls: int
    failures: tuple[str, ...]
    connections: int
    broken_connections: int


@dataclass(slots=True)
class Report:
    """Everything one demo has to tell."""

    data: str
    selectors: str  # uid or path
    note: str  # why not by uid; "" where it is so
    weak: WeakOutcome
    strong: list[Made]
    step_up: StepUp
    contained: Contained
    switch: ModeSwitch
    rotation: Rotation
    ledger: Joined
    log: LogReport
    evidence: Carried
    policy_version: str
    expectations: list[Expectation] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    sockets: dict[str, str] = field(default_factory=dict)
    processes: list[dict[str, Any]] = field(default_factory=list)
    kept: bool = False
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return all(expectation.ok for expectation in self.expectations)

    def as_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints; it holds no key and no token."""
        return {
            "ok": self.ok,
            "seconds": self.seconds,
            "data": self.data,
            "kept": self.kept,
            "workloads_told_apart_by": self.selectors,
            "weaker": self.note,
            "expectations": [
                {"name": e.name, "expected": e.expected, "observed": e.observed, "ok": e.ok} for e in self.expectations
            ],
            "weak": {
                "trusted_network": self.weak.network,
                "shared_key": {"name": KEY_NAME, "fingerprint": self.weak.key},
                "calls": [_weak_call(made) for made in self.weak.calls],
            },
            "strong": {
                "policy_version": self.policy_version,
                "calls": [_strong_call(made) for made in (*self.strong, *self.step_up.calls, *self.contained.calls)],
            },
            "step_up": {
                "asked": [_asked(asked) for asked in self.step_up.asked],
                "approver": self.step_up.approver,
                "approval_state": self.step_up.approval_state,
                "log_entries": self.step_up.recorded,
                "calls": [made.call.name for made in self.step_up.calls],
            },
            "mode_switch": {
                "permissive": _strong_call(self.switch.permissive),
                "strict": _strong_call(self.switch.strict),
                "same_connection": self.switch.strict.reused,
                "enforced_ms": self.switch.enforced_ms,
                "load_calls": self.switch.load_calls,
                "load_failures": self.switch.load_failures,
            },
            "rotation": asdict(self.rotation),
            "containment": {
                "principal": self.contained.principal,
                "denied_ms": self.contained.denied_ms,
                "points": self.contained.report["points"],
                "enforced": self.contained.report["enforced"],
                "closed": self.contained.report["closed"],
                "cannot_close": self.contained.report["cannot_close"],
                "calls": [made.call.name for made in self.contained.calls],
                "load_calls": self.contained.load.calls,
                "load_failures": len(self.contained.load.failures),
                "log_entries": self.contained.recorded,
            },
            "ledger": asdict(self.ledger) | {"ok": self.ledger.ok},
            "log": asdict(self.log),
            "evidence": asdict(self.evidence),
            "ports": self.ports,
            "sockets": self.sockets,
            "processes": self.processes,
            "next": self.next,
        }


def _call(made: Made) -> dict[str, Any]:
    call = made.call
    return {
        "name": call.name,
        "story": call.story,
        "attack": call.attack,
        "workload": call.caller,
        "service": call.service,
        "via": call.via,
        "method": call.method,
        "path": call.path,
        "tenant": call.tenant,
        "status": made.status,
        "error": made.error,
        "expected": made.expected,
        "observed": made.observed,
        "ok": made.ok,
    }


def _weak_call(made: Made) -> dict[str, Any]:
    record = made.record or {}
    return _call(made) | {
        "caller": record.get("caller", ""),
        "tls": bool(record.get("tls")),
        "source": record.get("source", ""),
        "shared_key": record.get("accepted_key") or "",
    }


def _strong_call(made: Made) -> dict[str, Any]:
    record = made.record or {}
    return _call(made) | {
        "caller": record.get("caller", ""),
        "operation": record.get("operation", ""),
        "verdict": made.verdict,
        "code": record.get("code", ""),
        "policy": record.get("policy", ""),
        "policy_version": record.get("policy_version", ""),
        "mode": record.get("mode", ""),
        "enforced": record.get("enforced"),
        "row": record.get("row"),
    }


def _asked(asked: Asked) -> dict[str, Any]:
    ask = asked.ask
    return {
        "name": ask.name,
        "story": ask.story,
        "attack": ask.attack,
        "workload": ask.caller,
        "operation": ask.operation,
        "tenant": ask.tenant,
        "status": asked.status,
        "approval": asked.approval,
        "expires_in": asked.expires_in,
        "expected": asked.expected,
        "observed": asked.observed,
        "ok": asked.ok,
    }


def expect_all(report: Report) -> list[Expectation]:
    """What must be so, in the order of the story."""
    weak, switch, rotation, log = report.weak, report.switch, report.rotation, report.log
    found = [Expectation(f"weak.{made.call.name}", made.expected, made.observed) for made in weak.calls]
    found += [
        Expectation("weak.calls-without-identity", len(weak.calls), weak.without_identity),
        Expectation(
            "weak.calls-with-the-shared-key",
            len(weak.calls),
            sum(1 for made in weak.calls if (made.record or {}).get("accepted_key") == weak.key),
        ),
        Expectation("mode.permissive-plaintext", "200, reported MTLS_REQUIRED", _reported(switch.permissive)),
        Expectation("mode.strict-plaintext", switch.strict.expected, switch.strict.observed),
        Expectation("mode.connection-survived-the-switch", True, switch.strict.reused),
        Expectation("mode.failed-calls-during-the-switch", 0, switch.load_failures),
    ]
    contained = report.contained
    strong = [*report.strong, *report.step_up.calls, *contained.calls]
    found += [Expectation(f"strong.{made.call.name}", made.expected, made.observed) for made in strong]
    found += [Expectation(f"step-up.{each.ask.name}", each.expected, each.observed) for each in report.step_up.asked]
    tokens = sum(1 for each in report.step_up.asked if each.token)
    found += [
        Expectation("step-up.approval-granted-by-another", True, _granted_by_another(report.step_up)),
        Expectation(
            "step-up.every-step-is-in-the-log",
            dict(zip(RECORDED, (1, 1, tokens), strict=True)),
            report.step_up.recorded,
        ),
    ]
    served = [made for made in strong if made.call.via == "sidecar" and made.status == 200 and "caller" in made.body]
    found += [
        Expectation(
            "strong.services-know-the-caller",
            [_IDS[made.call.caller] for made in served],
            [made.body["caller"] for made in served],
        ),
        Expectation(
            "rotation.new-certificate-presented", True, bool(rotation.before) and rotation.after != rotation.before
        ),
        Expectation("rotation.failed-calls", 0, len(rotation.failures)),
        Expectation("rotation.broken-connections", 0, rotation.broken_connections),
        Expectation("rotation.calls-were-made", True, rotation.calls > 0),
        Expectation("contained.everywhere", contained.report["points"], contained.report["enforced"]),
        Expectation("contained.neighbours-failed-calls", 0, len(contained.load.failures)),
        Expectation("contained.neighbours-called", True, contained.load.calls > 0),
        Expectation("contained.is-in-the-log", dict.fromkeys(CONTAINMENT_RECORDED, 1), contained.recorded),
        Expectation("ledger.agrees-with-callers", report.ledger.total, report.ledger.agreed),
        Expectation("ledger.differences", [], report.ledger.missing),
        Expectation("ledger.rows-lost", 0, report.ledger.lost),
        Expectation("log.verifies", True, log.verified),
        Expectation("log.issuances-proved", 2, sum(1 for record in log.records if record.verified)),
        Expectation(
            "log.records-are-of-the-certificates-presented",
            [rotation.before, rotation.after],
            [record.serial for record in log.records],
        ),
        Expectation("log.receipt-holds-offline", True, report.evidence.receipt_holds),
        Expectation("evidence.sealed-in-the-log", True, report.evidence.sealed),
        Expectation("evidence.holds-offline", True, report.evidence.holds),
        Expectation("evidence.a-changed-decision-is-found", True, report.evidence.tampering_found),
    ]
    return found


def _granted_by_another(step_up: StepUp) -> bool:
    """Whether an administrator granted it, and not one of the workloads."""
    return step_up.approval_state == "granted" and step_up.approver.startswith("unix:uid:")


def _reported(made: Made) -> str:
    record = made.record or {}
    if made.verdict != "report":
        return f"{made.observed}, {made.verdict or 'not recorded'}"
    return f"{made.observed}, reported {record.get('code', '')}"
