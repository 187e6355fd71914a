"""What observations mean: which drift, where, what it likely comes from, and what mends it. Pure.

Evidence of different kinds meets here: what canaries were answered, what agents were told and acknowledged, and what
agents found at their sidecars. One cause makes many checks fail; it is told once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from eastwest.mesh import names
from eastwest.policy.canary import OWN_FILE, REFUSED_HANDSHAKE, Check, Examination, Observation, Point
from eastwest.policy.enforcement import DecisionCode

STALE = "stale-point"
EDITED = "edited-config"
BYPASS = "bypass-port"
PERMISSIVE = "permissive-left-on"
WRONG_ROOT = "wrong-root"
DISABLED = "disabled-filter"
REPLAYED = "old-policy-replayed"
MISSING_READ = "missing-read-rule"
UNREACHABLE = "unreachable"
DRIFTS = (STALE, EDITED, BYPASS, PERMISSIVE, WRONG_ROOT, DISABLED, REPLAYED, MISSING_READ, UNREACHABLE)
"""Every name that a finding may have."""
MAX_SAMPLES = 5
_FIXES = {
    STALE: "see that its agent runs, reaches the server, and that its Envoy has a stream to the agent",
    EDITED: "restart the sidecar with `eastwest sidecar run`, and find out who changed it",
    BYPASS: "let the process listen on its upstream only, or allow the port with --allow-port",
    PERMISSIVE: "restart the sidecar if it does not take the strict rules within a minute",
    WRONG_ROOT: "restart the sidecar and its agent; compare `eastwest bundle show` with what the node has",
    DISABLED: "restart the sidecar with `eastwest sidecar run`: its filters come from the agent alone",
    REPLAYED: "restart agent and sidecar, and find out who restored an old state or image there",
    MISSING_READ: "see the operations of the service in the estate; restart the sidecar if the estate is right",
    UNREACHABLE: "see that the sidecar runs and listens at the address that the estate says",
}


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One drift at one point. ``checks`` of them show it; ``samples`` are some, in words."""

    drift: str
    service: str
    point: str
    expected: str
    happened: str
    cause: str
    fix: str
    spiffe_id: str = ""
    agent: str = ""
    node_id: str = ""
    checks: int = 0
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One sidecar as its agent tells of it, and how its agent stands with the server."""

    agent: str
    node_id: str
    spiffe_id: str
    connected: bool  # the Envoy to its agent
    agent_connected: bool  # the agent to the server
    agent_behind: bool  # it has not acknowledged what was sent to it
    acknowledged: str
    intended: str
    error: str = ""
    examination: Examination | None = None

    @property
    def stale(self) -> str:
        """Why it does not have what is intended, or might not get the next; "" where nothing says so."""
        if not self.agent_connected:
            return f"agent {self.agent} is not connected to the server"
        if self.agent_behind:
            return f"agent {self.agent} has not taken the last update"
        if not self.connected:
            return f"sidecar {self.node_id} has no stream to its agent"
        if self.acknowledged != self.intended:
            return f"sidecar {self.node_id} has not acknowledged its rules" + (f": {self.error}" if self.error else "")
        return ""


@dataclass(frozen=True, slots=True)
class _Seen:
    check: Check
    observation: Observation

    @property
    def is_right(self) -> bool:
        return self.observation.happened == self.check.expected

    @property
    def is_answer_to_canary(self) -> bool:
        return bool(self.check.caller) and not self.observation.problem

    def __str__(self) -> str:
        who = self.check.stands_for or (self.check.caller and "an unknown caller") or self.check.kind
        asked = f"{self.check.method} {self.check.path}"
        return f"{asked} as {who}: expected {self.check.expected}, got {self.observation.happened}"


def diagnose(
    point: Point,
    observations: Sequence[Observation],
    instances: Sequence[Instance],
    earlier: Mapping[tuple[str, str], str],
) -> list[Finding]:
    """What is wrong at ``point``. ``earlier``: policy versions by service and version of its rules, of the past.

    ``instances`` are the sidecars that may stand behind it. What agents saw at them is ``examined``'s to say.
    """
    stale = "; ".join(sorted({one.stale for one in instances} - {""}))
    gone = next((o for o in observations if o.check < 0), None)
    if gone is not None:
        if not any(one.connected for one in instances):
            return []  # nothing is meant to run there now; what should have acknowledged is told by ``examined``
        cause = "the Envoy has a stream to its agent, but nobody answers at its address"
        return [_finding(UNREACHABLE, point, "a listener", gone.happened, cause, instances)]
    seen = [_Seen(point.checks[o.check], o) for o in observations]
    found = [*_trust(point, seen, instances)]
    if found:
        return found
    answers = [each for each in seen if each.is_answer_to_canary]
    if is_by_application(point, observations, instances):
        return []  # canaries are unknown to it, as everybody is whom nobody registered
    found += _mode(point, seen, answers, stale, instances)
    undecided = [each for each in answers if not each.observation.decided and not _refused_before(each)]
    if undecided and not all(each.observation.happened in DecisionCode.__members__ for each in undecided):
        cause = "the filter that decides is off, or gone, in this Envoy"
        found.append(_finding(DISABLED, point, "a decision", "none was made", cause, instances, undecided))
        return found
    found += _rules(point, answers, stale, instances, earlier, permissive=bool(found))
    silent = [e for e in seen if e.check.kind != "plaintext" and e.observation.problem and not e.is_right]
    if silent and not found:
        cause = "it takes connections and gives no answers: what it would do is not proved"
        found.append(_finding(UNREACHABLE, point, "answers", silent[0].observation.happened, cause, instances, silent))
    return found


def is_by_application(point: Point, observations: Sequence[Observation], instances: Sequence[Instance]) -> bool:
    """Whether the application itself enforces there (``eastwest.sdk``): no sidecar is known, and no Envoy's words come.

    It tells canaries nothing of what decided, and knows none.
    """
    told = [o for o in observations if o.check >= 0 and point.checks[o.check].caller]
    unknown = all(o.happened == DecisionCode.UNKNOWN_CALLER and not o.decided for o in told)
    return bool(told) and unknown and not instances


def meant_by_others(instance: Instance, running: Iterable[Instance]) -> frozenset[str]:
    """The sockets that sidecars of other agents are meant to listen on, by the names that agents have for them."""
    others = (one for one in running if one.agent != instance.agent and one.connected and one.agent_connected)
    return frozenset(name for one in others if one.examination is not None for name in one.examination.meant)


def examined(
    instance: Instance,
    services: str,
    found: Collection[str],
    allow_ports: Collection[int],
    meant: Collection[str] = (),
) -> list[Finding]:
    """What an agent saw at one of its sidecars. ``found`` are drifts that calls have shown there already.

    ``meant`` are sockets of other agents' sidecars on the same machine, which are no way around this one.
    """
    told: list[Finding] = []
    if instance.stale and STALE not in found:
        expected = f"version {instance.intended[:12]} acknowledged"
        happened = f"version {instance.acknowledged[:12] or 'none'}"
        told.append(_at(STALE, instance, services, expected, happened, instance.stale))
    seen = instance.examination
    if seen is None:
        return told
    for port in seen.listening:
        if _number(port) not in allow_ports and seen.strangers.get(port) not in meant:
            cause = "calls to it pass no enforcement point"
            told.append(_at(BYPASS, instance, services, "no listener beside the guarded one", port, cause))
    if names.CALLERS_SECRET in seen.differs and WRONG_ROOT not in found:
        cause = "the Envoy trusts other roots than it was given"
        told.append(_at(WRONG_ROOT, instance, services, "the roots of the bundle", "others", cause))
    others = [*(n for n in seen.differs if n != names.CALLERS_SECRET), *seen.missing]
    changed = others + [f"{name} (nobody gave it)" for name in seen.foreign]
    # A rule that calls have shown to be wrong is told by the name of what is wrong about it.
    explained = set(found) & {DISABLED, PERMISSIVE, REPLAYED, MISSING_READ, EDITED, STALE}
    own = any(name.endswith(OWN_FILE) for name in seen.foreign)  # which no update brings, nor takes away
    if own or (changed and not instance.stale and not (explained and not seen.foreign)):
        cause = "the Envoy holds other config than its agent gave it"
        told.append(_at(EDITED, instance, services, "what the agent gave", ", ".join(changed[:MAX_SAMPLES]), cause))
    return told


def _trust(point: Point, seen: Sequence[_Seen], instances: Sequence[Instance]) -> list[Finding]:
    """Who is let in by certificate, and with which one the point shows itself."""
    shown = [each for each in seen if each.observation.problem == "server-certificate"]
    if shown:
        cause = "the certificate that it shows is not its workload's below the trust domain's roots"
        return [_finding(WRONG_ROOT, point, point.spiffe_id, shown[0].observation.happened, cause, instances, shown)]
    intruders = [
        each
        for each in seen
        if each.check.expected == REFUSED_HANDSHAKE
        and not each.is_right
        and not (each.observation.happened == DecisionCode.MTLS_REQUIRED and not instances)  # the SDK's way to refuse
    ]
    answered = [each for each in intruders if not each.observation.problem]
    if answered:
        kinds = ", ".join(sorted({each.check.kind for each in answered}))
        forged = any(each.check.kind in {"foreign-root", "wrong-trust-domain"} for each in answered)
        cause = "it trusts roots that are not the trust domain's" if forged else "it does not verify certificates"
        drift = WRONG_ROOT if forged else EDITED
        return [_finding(drift, point, "a refused handshake", f"let in: {kinds}", cause, instances, answered)]
    canaries = [each for each in seen if each.check.caller]
    refused = [each for each in canaries if each.observation.problem in {"tls", "closed"}]
    if canaries and len(refused) == len(canaries):
        cause = "it does not trust the roots of the trust domain"
        happened = refused[0].observation.happened
        return [_finding(WRONG_ROOT, point, "canaries let in", happened, cause, instances, refused)]
    return []


def _mode(
    point: Point, seen: Sequence[_Seen], answers: Sequence[_Seen], stale: str, instances: Sequence[Instance]
) -> list[Finding]:
    if not point.strict:
        return []
    reported = [each for each in answers if each.observation.decided and not each.observation.enforced]
    plain = [e for e in seen if e.check.kind == "plaintext" and e.observation.status and not e.is_right]
    shown = [*reported, *plain]
    if not shown:
        return []
    cause = f"the change to strict did not reach it: {stale}" if stale else "its filters report instead of refusing"
    happened = "plaintext is let in" if plain else "refusals are only reported"
    return [_finding(PERMISSIVE, point, "strict", happened, cause, instances, shown)]


def _rules(
    point: Point,
    answers: Sequence[_Seen],
    stale: str,
    instances: Sequence[Instance],
    earlier: Mapping[tuple[str, str], str],
    *,
    permissive: bool,
) -> list[Finding]:
    wrong = [each for each in answers if not each.is_right]
    versions = sorted({each.observation.version for each in answers if each.observation.decided} - {point.version})
    if not wrong and not versions:
        return []
    if permissive and not wrong and not stale:
        return []  # the mode is part of the version
    expected = f"rules {point.version}"
    happened = f"rules {', '.join(versions)}" if versions else f"{len(wrong)} wrong answers under {point.version}"
    unaware = wrong and all(each.observation.happened == DecisionCode.UNKNOWN_CALLER for each in wrong)
    if stale or (unaware and not versions):
        cause = stale or "it takes no updates: it never heard of this run"
        return [_finding(STALE, point, expected, happened, cause, instances, wrong)]
    old = [earlier[point.service, version] for version in versions if (point.service, version) in earlier]
    if old:
        cause = f"it enforces policy version {old[0][:12]}, no longer in force, though it acknowledged the newer one"
        return [_finding(REPLAYED, point, expected, happened, cause, instances, wrong)]
    right = [each for each in answers if each.is_right and each.check.kind == "operation"]
    if wrong and right and all(each.check.reads for each in wrong):
        operations = ", ".join(sorted({each.check.operation for each in wrong}))
        cause = f"it lacks or changed the rule of {operations}, which only reads"
        wrong.sort(key=lambda each: each.check.expected != DecisionCode.ALLOWED)  # who may not read now, first
        return [_finding(MISSING_READ, point, expected, str(wrong[0]), cause, instances, wrong)]
    cause = "its rules are none that the server ever gave" if versions else "its rules were changed at the point itself"
    return [] if permissive else [_finding(EDITED, point, expected, happened, cause, instances, wrong)]


def _refused_before(seen: _Seen) -> bool:
    """Whether Envoy itself refused the request, before any filter: a form that it does not take."""
    return seen.observation.status in {400, 404, 413, 431, 501} and not seen.observation.decided


def _finding(
    drift: str,
    point: Point,
    expected: str,
    happened: str,
    cause: str,
    instances: Sequence[Instance],
    seen: Iterable[_Seen] = (),
) -> Finding:
    shown = list(seen)
    return Finding(
        drift=drift,
        service=point.service,
        point=f"{point.host}:{point.port}",
        expected=expected,
        happened=happened,
        cause=cause,
        fix=_FIXES[drift],
        spiffe_id=point.spiffe_id,
        agent=point.agent,
        node_id=instances[0].node_id if len(instances) == 1 else "",
        checks=len(shown),
        samples=tuple(map(str, shown[:MAX_SAMPLES])),
    )


def _at(drift: str, instance: Instance, services: str, expected: str, happened: str, cause: str) -> Finding:
    return Finding(
        drift=drift,
        service=services,
        point=instance.node_id,
        expected=expected,
        happened=happened,
        cause=cause,
        fix=_FIXES[drift],
        spiffe_id=instance.spiffe_id,
        agent=instance.agent,
        node_id=instance.node_id,
    )


def _number(port: str) -> int:
    """The number in ``address:port of ...``."""
    digits = port.partition(" ")[0].rpartition(":")[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 5 else 0
