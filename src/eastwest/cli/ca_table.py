"""How ``eastwest ca`` reads to a person, and to machines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from eastwest.api.eastwest.authority.v1 import authority_pb2 as pb
from eastwest.cli.options import utc
from eastwest.cli.table import print_table
from eastwest.clock import SystemClock

SHORT_ID = 16
"""Characters of an id in the table, where that is enough to tell it from all others; every command takes as many."""
KINDS = {"x509": "root", "issuing": "issuing CA", "jwt": "JWT key"}


def print_state(state: pb.State) -> None:
    """The authorities, then what is missing."""
    print(f"trust domain {state.trust_domain}, bundle {state.bundle_sequence}, rotation {state.rotation}")
    length = _telling([item.id for item in state.items])
    rows = [
        (
            f"{KINDS[item.kind]} (ML-DSA-65)" if item.hierarchy == "post-quantum" else KINDS[item.kind],
            item.id[:length],
            "tainted" if item.tainted else item.stage,
            item.environment or ("(default)" if item.kind == "issuing" else item.source),
            _day(item.not_after),
            str(item.sequence) if item.sequence else "",
            _day(item.prepare_at) if item.prepare_at and state.rotation == "auto" else "",
        )
        for item in state.items
    ]
    print_table(("KIND", "ID", "STAGE", "FOR", "ENDS", "BUNDLE", "SUCCESSOR DUE"), rows)
    for environment in state.missing_environments:
        print(f"environment {environment} has no issuing CA yet: eastwest ca export-csr --environment {environment}")
    if state.pending_environments:
        names = ", ".join(name or "the default CA" for name in state.pending_environments)
        print(f"requests wait for their certificates: {names} (eastwest ca import)")


def print_status(state: pb.State) -> None:
    """Who has confirmed which bundle."""
    behind = [holder for holder in state.holders if holder.bundle_sequence < state.bundle_sequence]
    told = f"bundle {state.bundle_sequence}: {len(state.holders) - len(behind)} of {len(state.holders)} nodes have it"
    print(told)
    rows = [
        (
            holder.agent_id,
            str(holder.bundle_sequence) if holder.bundle_sequence else "",
            "yes" if holder.bundle_sequence >= state.bundle_sequence else "no",
            str(holder.tainted_svids) if holder.tainted_svids else "",
            "yes" if holder.connected else "no",
            _minute(holder.not_after),
            ", ".join(holder.waiting),
        )
        for holder in state.holders
    ]
    for item in _awaited(state):
        print(f"{KINDS[item.kind]} {item.id}: those outside the trust domain have it by {_minute(item.usable_at)}")
    if rows:
        print_table(("NODE", "BUNDLE", "CONFIRMED", "TAINTED", "CONNECTED", "UNTIL", "SIDECARS WAITING"), rows)


def print_change(change: pb.Change, gone: str = "") -> None:
    """One authority after a change; ``gone`` says how it ended, where it did."""
    item = change.item
    state = gone or ("tainted" if item.tainted else item.stage)
    print(f"{KINDS[item.kind]} {item.id}: {state}, bundle {change.bundle_sequence}")


def is_confirmed(state: pb.State) -> bool:
    """Whether nobody is behind: no node, no sidecar, nobody outside the trust domain, nothing tainted still held."""
    told = status_json(state)
    return bool(told["confirmed"] and not told["tainted_svids"] and not told["waiting"])


def state_json(state: pb.State) -> dict[str, Any]:
    """The whole state, for machines."""
    return {
        "trust_domain": state.trust_domain,
        "bundle_sequence": state.bundle_sequence,
        "rotation": state.rotation,
        "authorities": [item_json(item) for item in state.items],
        "missing_environments": list(state.missing_environments),
        "pending_environments": list(state.pending_environments),
        "revoked": [{"kind": one.kind, "id": one.id, "not_after": one.not_after} for one in state.revoked],
    }


def status_json(state: pb.State) -> dict[str, Any]:
    """The confirmations, for machines."""
    return {
        "bundle_sequence": state.bundle_sequence,
        "confirmed": all(holder.bundle_sequence >= state.bundle_sequence for holder in state.holders),
        "tainted_svids": sum(holder.tainted_svids for holder in state.holders),
        "waiting": [{"kind": item.kind, "id": item.id, "usable_at": utc(item.usable_at)} for item in _awaited(state)],
        "nodes": [
            {
                "agent_id": holder.agent_id,
                "bundle_sequence": holder.bundle_sequence,
                "not_after": utc(holder.not_after),
                "tainted_svids": holder.tainted_svids,
                "connected": holder.connected,
                "stock": holder.stock,
                "sidecars_waiting": list(holder.waiting),
            }
            for holder in state.holders
        ],
    }


def item_json(item: pb.Item) -> dict[str, Any]:
    """One authority, for machines."""
    return {
        "kind": item.kind,
        "id": item.id,
        "stage": item.stage,
        "tainted": item.tainted,
        "source": item.source,
        "environment": item.environment,
        "hierarchy": item.hierarchy,
        "parent": item.parent,
        "not_before": utc(item.not_before),
        "not_after": utc(item.not_after),
        "bundle_sequence": item.sequence,
        "prepare_at": utc(item.prepare_at),
        "activate_at": utc(item.activate_at),
        "usable_at": utc(item.usable_at),
    }


def _telling(ids: Sequence[str]) -> int:
    """How many characters, ``SHORT_ID`` at least, tell each of these ids from the others."""
    longest = max(map(len, ids), default=SHORT_ID)
    return next((n for n in range(SHORT_ID, longest) if len({each[:n] for each in ids}) == len(set(ids))), longest)


def _awaited(state: pb.State) -> list[pb.Item]:
    """What is prepared and published too lately for those who cannot confirm."""
    now = SystemClock().now().timestamp()
    return [item for item in state.items if item.usable_at > now]


def _day(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def _minute(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%MZ}"
