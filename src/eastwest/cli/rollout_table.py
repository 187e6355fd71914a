"""How versions and rollouts read to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from eastwest.cli.options import counted
from eastwest.cli.table import print_table, printable
from eastwest.policy.diff import Difference
from eastwest.policy.render import access_lines, change_lines

SHORT = 12
"""Characters of a version that are shown."""
Said = Mapping[str, Any]


def print_status(status: Said) -> None:
    """The rollout, every point, every service and rule, and what is not as it should be."""
    print(f"policy version {status['version'][:SHORT] or '(none applied)'}")
    if status["rollout"] is not None:
        print_rollout(status["rollout"])
    agents: dict[str, list[Said]] = {}
    for point in status["points"]:
        agents.setdefault(point["agent"], []).append(point)
    for agent, points in agents.items():
        able = ", ".join(points[0]["capabilities"]) or "nothing beyond the first version"
        silent = agent and all(point["sidecar"] == "?" for point in points)
        said = "not heard of since the server started" if silent else f"which can: {printable(able)}"
        print(f"agent {agent}, {said}" if agent else "no agent is here that may run:")
        columns = ("sidecar", "SPIFFE ID", "services", "ring", "version", "intended", "acknowledged", "mode", "state")
        print_table(columns, [_point(point) for point in points])
    if not agents:
        print("no sidecar has reported since the server started")
    if status["services"]:
        rows = [(s["service"], s["mode"], s["until"] or "", s["rung"]) for s in status["services"]]
        print_table(("service", "mTLS", "until", "rung"), rows)
    if status["rules"]:
        rows = [(r["rule"], r["owner"], r["until"] or "", r["rung"]) for r in status["rules"]]
        print_table(("rule", "owner", "until", "rung"), rows)
    for sentence in status["mismatches"]:
        print(f"not as intended: {printable(sentence)}")
    if status["in_step"] and status["points"]:
        print("every connected enforcement point runs what is intended")


def print_rollout(rollout: Said) -> None:
    """Two lines about where it is."""
    state = f"{rollout['state']}{', paused' if rollout['paused'] else ''}"
    rings = ", ".join(f"[{ring}]" if ring == rollout["ring"] else ring for ring in rollout["rings"])
    print(f"rollout of {rollout['version'][:SHORT]} over {rollout['previous'][:SHORT]}: {state}; rings: {rings}")
    if rollout["state"] == "finished":
        print("  its rules are in force everywhere")
        return
    if rollout["due"] is not None:
        print(f"  goes on by itself at {_moment(rollout['due'])}")
    elif rollout["state"] == "soaking" and not rollout["paused"]:
        print("  waits for eastwest policy promote")
    watched = "denials that nobody meant bring the version before back" if rollout["brake"] else "there is no brake"
    print(f"  {watched}; {counted(rollout['breaks'], 'break')} accepted")


def print_versions(versions: Sequence[Said]) -> None:
    """A line for each, the newest first."""
    rows = [
        (
            one["version"][:SHORT],
            one["at"][:19] + "Z",
            one["by"],
            one["cause"] if one["cause"] != "apply" else "",
            ", ".join(one["approvers"]) or ("(approvals were missing)" if one["approvals_missing"] else ""),
            one["change"] or one["break_glass"],
            one["evidence"][:SHORT],
            one["state"],
        )
        for one in versions
    ]
    print_table(("version", "since", "by", "cause", "approved by", "change", "evidence", "state"), rows)


def print_rollback(preview: Said) -> None:
    """What going back would change, what is newly allowed first."""
    print(f"back from {preview['from'][:SHORT]} to {preview['to'][:SHORT]}, everywhere and at once")
    print(f"  applied {preview['applied_at'][:19]}Z by {preview['applied_by']}")
    if preview["unfinished"]:
        print("  it is the version before the rollout that is under way, so nobody has to approve of it")
    told = preview["plan"]["difference"]
    if told is None:
        return
    difference = msgspec.convert(told, Difference)
    if difference.is_empty:
        print("  what is enforced stays the same")
    for line in (*access_lines(difference), *change_lines(difference)):
        print(line)


def _point(point: Said) -> tuple[str, ...]:
    if point["refusal"]:
        state = "refused"
    elif point["cannot"]:
        state = f"cannot: {', '.join(point['cannot'])}"
    elif point["sidecar"] == "?":
        state = "unknown" if point["agent"] else "never"
    elif point["sidecar"] == "-":
        state = "no sidecar" if point["acknowledged"] == point["intended"] else "no sidecar, behind"
    elif not point["connected"]:
        state = "away"
    else:
        state = "in step" if not point["mismatch"] else "behind"
    modes = ", ".join(sorted(set(point["modes"].values())))
    return (
        point["sidecar"],
        point["spiffe_id"],
        ", ".join(point["services"]),
        point["ring"],
        point["version"][:SHORT],
        point["intended"][:SHORT],
        point["acknowledged"][:SHORT],
        modes,
        state,
    )


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
