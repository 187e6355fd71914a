"""What should run where, what does, and how far each rule and service has come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from eastwest.policy.enforcement import MtlsMode
from eastwest.policy.estate import Estate
from eastwest.server.activation import rollout_facts
from eastwest.server.control import ControlHub
from eastwest.server.rollout.points import Point, points, unheard
from eastwest.server.tables import Tables
from eastwest.server.view import AgentView
from eastwest.store.estate import Activation

ENFORCED, REPORT = "enforced", "report"
"""The ends of the ladder; between them a rule or service is at a ring."""

Verified = Callable[[str, str], dict[str, Any] | None]


def status(hub: ControlHub, tables: Tables, view: AgentView, verified: Verified) -> dict[str, Any]:
    """The report of ``eastwest policy status``; ``verified`` gives a point's last check by probe calls."""
    found = list(points(hub, tables, view, libraries=True))
    found += unheard(hub, tables, view, found)
    progress, newest = tables.progress, tables.newest
    mismatches = [point.mismatch for point in found if point.mismatch]
    late = (
        f"agent {agent} has acknowledged update {stream.acknowledged} of {stream.number}"
        for agent, stream in sorted(hub.streams.items())
        if stream.session is not None and stream.acknowledged != stream.number
    )
    mismatches += late
    names = progress.names if progress is not None else ()
    return {
        "version": newest.version if newest is not None else "",
        "previous": tables.earlier.version if tables.earlier is not None else "",
        "rollout": rollout_facts(progress) if progress is not None and progress.is_open else None,
        "points": [_point(point, names, verified) for point in found],
        "services": _services(tables),
        "rules": _rules(tables),
        "in_step": not mismatches,
        "mismatches": mismatches,
    }


def versions(activations: Sequence[Activation], rollouts: Iterable[Any]) -> list[dict[str, Any]]:
    """The report of ``eastwest policy versions``: the newest first, which is the one in force."""
    by_version: dict[str, list[Any]] = {}
    for rollout in rollouts:
        by_version.setdefault(rollout.version, []).append(rollout)
    told = []
    for place, one in enumerate(activations):
        # The rollout that this activation began, if it did: it started in the same moment. Or took up again.
        mine = by_version.get(one.version, ())
        began = [r for r in mine if abs(r.started - one.applied_at.timestamp()) < 1 or (place == 0 and r.is_open)]
        standing = one.standing
        told.append(
            {
                "version": one.version,
                "in_force": place == 0,
                "at": one.applied_at.isoformat().replace("+00:00", "Z"),
                "by": one.applied_by,
                "previous": one.previous,
                "cause": one.cause or "apply",
                "author": standing.author if standing is not None else "",
                "approvers": list(standing.approvers) if standing is not None else [],
                "evidence": standing.evidence if standing is not None else "",
                "change": standing.change if standing is not None else "",
                "break_glass": standing.break_glass if standing is not None else "",
                "approvals_missing": standing.approvals_missing if standing is not None else False,
                "rollout": rollout_facts(began[0]) if began else None,
                "state": _state(place == 0, began[0] if began else None),
            }
        )
    return told


def _state(newest: bool, rollout: Any) -> str:
    if rollout is not None and rollout.is_open:
        return f"{rollout.state.value} at {rollout.name}{', paused' if rollout.paused else ''}"
    if newest:
        return "in force"
    return rollout.state.value if rollout is not None else "replaced"


def _point(point: Point, names: Sequence[str], verified: Verified) -> dict[str, Any]:
    return {
        "agent": str(point.agent) if point.agent is not None else "",
        "sidecar": point.node_id,
        "spiffe_id": str(point.spiffe_id),
        "services": list(point.services),
        "modes": {name: mode.value for name, mode in point.modes},
        "ring": names[point.ring] if 0 <= point.ring < len(names) else "",
        "reached": point.reached,
        "version": point.version,
        "intended": point.intended,
        "acknowledged": point.acknowledged,
        "connected": point.connected,
        "capabilities": list(point.capabilities),
        "cannot": list(point.cannot),
        "refusal": point.refusal,
        "mismatch": point.mismatch,
        "verified": verified(str(point.agent), point.node_id),
    }


def _services(tables: Tables) -> list[dict[str, Any]]:
    """Each service's rung: ``report`` while its port is permissive, the ring that its change has come to, enforced."""
    newest, earlier, progress = tables.newest, tables.earlier, tables.progress
    if newest is None:
        return []
    told = []
    for service in newest.estate.services:
        after = newest.compiled.sidecars.get(service.workload)
        before = earlier.compiled.sidecars.get(service.workload) if earlier is not None else after
        rung = ENFORCED
        if service.listen.mtls is MtlsMode.PERMISSIVE:
            rung = REPORT
        elif before is not None and after is not None and before.version != after.version and progress is not None:
            rung = f"ring {progress.name}"
        until = service.listen.until
        told.append(
            {
                "service": service.service,
                "mode": service.listen.mtls.value,
                "until": until.isoformat() if until is not None else None,
                "rung": rung,
            }
        )
    return told


def _rules(tables: Tables) -> list[dict[str, Any]]:
    newest, earlier, progress = tables.newest, tables.earlier, tables.progress
    if newest is None:
        return []
    said = _said(earlier.estate) if earlier is not None else _said(newest.estate)
    told = []
    for policy in newest.estate.policies:
        rung = ENFORCED
        if policy.report:
            rung = REPORT
        elif progress is not None and earlier is not None and said.get(policy.id) != (policy.canonical, False):
            rung = f"ring {progress.name}"
        until = policy.until.isoformat() if policy.until is not None else None
        told.append({"rule": policy.id, "owner": policy.owner, "until": until, "rung": rung})
    return told


def _said(estate: Estate) -> dict[str, tuple[str, bool]]:
    return {policy.id: (policy.canonical, policy.report) for policy in estate.policies}
