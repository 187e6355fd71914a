"""Whether the rings of an estate can be told apart, and are of what exists."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

from eastwest.policy.decode import Path
from eastwest.policy.estate import Ring, Settings
from eastwest.policy.forms import duration
from eastwest.policy.problems import Findings, Position, suggest
from eastwest.policy.rollout import EVERYWHERE

MAX_RINGS = 20
LONGEST_SOAK = timedelta(days=30)


def check_rollout(settings: Settings, places: dict[Path, Position], findings: Findings) -> None:
    """Write a finding for everything that does not fit."""
    rollout = settings.rollout
    if rollout is None:
        return
    if len(rollout.rings) > MAX_RINGS:
        findings.error(places["rollout", "rings"], f"a rollout has at most {MAX_RINGS} rings", "join some of them")
    if duration(rollout.soak) > LONGEST_SOAK:
        findings.error(places["rollout", "soak"], f"a ring is watched for at most {LONGEST_SOAK.days} days", "say less")
    names: set[str] = set()
    for index, ring in enumerate(rollout.rings):
        at = places["rollout", "rings", index]
        if ring.name in names:
            findings.error(at, f"ring {ring.name!r} is declared twice", "rename one")
        if ring.name == EVERYWHERE:
            findings.error(at, f"ring {ring.name!r} is what no other ring names, and is not declared", "rename it")
        names.add(ring.name)
        _check_ring(settings, ring, at, findings)
    shares = [(index, ring.share) for index, ring in enumerate(rollout.rings) if ring.share is not None]
    for (_, before), (index, share) in pairwise(shares):
        if share <= before:
            where = places["rollout", "rings", index]
            message = f"ring {rollout.rings[index].name!r} has nobody: an earlier one has {before} percent"
            findings.error(where, message, f"shares count from 0: say more than {before}")


def _check_ring(settings: Settings, ring: Ring, at: Position, findings: Findings) -> None:
    if bool(ring.domains) == (ring.share is not None):
        findings.error(at, f"ring {ring.name!r} needs exactly one of domains and share", "keep one")
    known = [domain.name for domain in settings.domains]
    for domain in ring.domains:
        if domain not in known:
            fix = suggest(domain, known, otherwise="declare it under domains")
            findings.error(at, f"ring {ring.name!r}: unknown domain {domain!r}", fix)
