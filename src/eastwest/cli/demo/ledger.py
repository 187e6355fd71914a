"""Joining what callers observed with what the decision ledger recorded: the two must tell the same story.

A refusal is found by its reference, which its caller was given too; a refused handshake by its service and time
order, since nobody could give its caller anything; allowed calls are rolled up in the ledger, so they are
counted by caller, service, method and tenant.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eastwest.cli.admin import AdminClient
from eastwest.cli.demo.calls import Call, Made
from eastwest.cli.demo.place import WORKLOADS

_PAGE = 5000
_LOOK_AGAIN = 0.05  # seconds
_IDS = {workload.name: workload.spiffe_id for workload in WORKLOADS}
Key = tuple[str, str, str, str]


@dataclass(slots=True)
class Joined:
    """How far the two agree. ``missing`` and ``unexpected`` are sentences; ``lost`` rows never reached the server."""

    rows: int = 0
    agreed: int = 0
    total: int = 0
    lost: int = 0
    missing: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.missing and not self.lost and self.agreed == self.total


async def join(admin: AdminClient, made: Sequence[Made], load: int, patience: float) -> Joined:
    """Set the ``record`` of each call; waits up to ``patience`` seconds for rows still under way.

    ``load``: how many calls of ``strong.LOAD`` were made besides.
    """
    from eastwest.cli.demo.strong import LOAD

    recorded = [each for each in made if each.call.recorded != "-"]
    expected = Counter(_key(each.call) for each in recorded if each.call.recorded == "ALLOWED")
    expected[_key(LOAD)] += load
    deadline = asyncio.get_running_loop().time() + patience
    rows: list[dict[str, Any]] = []
    while True:
        while True:
            page, lost = await admin.decisions(after=rows[-1]["row"] if rows else 0, limit=_PAGE)
            rows += page
            if not page:
                break
        joined = _compare(rows, recorded, expected)
        joined.lost = lost
        if joined.ok or asyncio.get_running_loop().time() > deadline:
            return joined
        await asyncio.sleep(_LOOK_AGAIN)


def _compare(rows: Sequence[Mapping[str, Any]], made: Sequence[Made], expected: Counter[Key]) -> Joined:
    joined = Joined(rows=sum(row.get("count", 1) for row in rows))
    by_reference = {row["reference"]: row for row in rows if row.get("reference")}
    handshakes = [row for row in rows if row.get("cause") == "no_certificate"]
    allowed: Counter[Key] = Counter()
    allowed_rows: dict[Key, Mapping[str, Any]] = {}
    for row in rows:
        if row["verdict"] == "allow":
            key = (row.get("caller", ""), row["service"], row.get("method", ""), row.get("tenant", ""))
            allowed[key] += row.get("count", 1)
            allowed_rows[key] = row
    for each in made:
        joined.total += 1
        if each.call.recorded == "ALLOWED":
            each.record = allowed_rows.get(_key(each.call))
        elif each.call.via == "tls":
            each.record = handshakes.pop(0) if handshakes else None
        else:
            each.record = by_reference.get(each.reference)
        if each.record is None:
            joined.missing.append(f"{each.call.name}: the ledger has no such decision")
        elif each.record["code"] != each.call.recorded:
            joined.missing.append(f"{each.call.name}: the ledger says {each.record['code']}")
        elif each.call.via == "sidecar" and each.record["caller"] != _IDS[each.call.caller]:
            joined.missing.append(f"{each.call.name}: the ledger says {each.record['caller']} called")
        else:
            joined.agreed += 1
    for key, count in expected.items():
        if allowed[key] != count:
            joined.missing.append(f"{' '.join(key)}: {count} calls were answered, the ledger counts {allowed[key]}")
    return joined


def _key(call: Call) -> Key:
    return (_IDS[call.caller], call.service, call.method, call.tenant)
