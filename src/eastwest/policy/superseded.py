"""Permits in force that a suggestion takes the place of: taken out of their files, narrowed, or kept."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from eastwest.policy.analysis import Analysis, analyse
from eastwest.policy.estate import Estate
from eastwest.policy.schema import SERVICE


@dataclass(frozen=True, slots=True)
class Superseded:
    """What becomes of permits, by id, and the files then.

    ``narrowed`` ones reach other services too, and hold there alone from now on; ``kept`` ones allow what they allowed.
    """

    files: dict[str, bytes]
    replaced: tuple[str, ...]
    narrowed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def without_permits(
    estate: Estate, files: Mapping[str, bytes], only: Collection[str] | None, *, narrow: bool = True
) -> Superseded:
    """``files`` without the permits for services of ``only`` (None: all); without ``narrow`` those of others stay."""
    replaced, narrowed, kept = [], [], []
    edited = dict(files)
    for policy in estate.policies:
        if policy.effect != "permit" or policy.report:
            continue
        reached = _services_of(analyse(policy), estate)
        here = reached if only is None else reached & set(only)
        if only is not None and not here:
            continue
        path = estate.position("policy", policy.id).file
        text = edited.get(path, b"").decode()
        if policy.text not in text or (here != reached and not narrow):
            kept.append(policy.id)
        elif here != reached:
            narrowed.append(policy.id)
            edited[path] = text.replace(policy.text, _elsewhere(policy.text, here), 1).encode()
        else:
            replaced.append(policy.id)
            left = text.replace(policy.text, "", 1)
            if _says_something(left):
                edited[path] = re.sub(r"\n{3,}", "\n\n", left).encode()
            else:
                del edited[path]
    return Superseded(edited, tuple(replaced), tuple(narrowed), tuple(kept))


def unused(estate: Estate, decided: Mapping[str, int], *, only: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Permits in force that decided no allowed call. ``decided``: calls by the policy that allowed them."""
    found = []
    for policy in estate.policies:
        if policy.effect != "permit" or policy.report or decided.get(policy.id):
            continue
        if only is not None and not _services_of(analyse(policy), estate) <= set(only):
            continue
        found.append({"policy": policy.id, "owner": policy.owner, "where": str(estate.position("policy", policy.id))})
    return found


def _elsewhere(text: str, services: Collection[str]) -> str:
    """The permit with one condition more: not at these services. A policy's text ends with its ``;``."""
    here = " || ".join(f"resource == Service::{json.dumps(name)}" for name in sorted(services))
    return f"{text[:-1]}\nunless {{ {here} }};"


def _services_of(policy: Analysis, estate: Estate) -> set[str]:
    """The services about which a policy can say anything."""
    among = policy.resource.among
    names = {name for kind, name in among if kind == SERVICE} if among is not None else None
    if among is not None and any(kind != SERVICE for kind, _ in among):
        names = None
    found = {s.service for s in estate.services} if names is None else set(names)
    actions = policy.action.among
    if actions is None:
        return found
    wanted = {name for _, name in actions}
    return {
        s.service
        for s in estate.services
        if s.service in found and any(o.name in wanted or (o.sensitivity or "") in wanted for o in s.operations)
    }


def _says_something(text: str) -> bool:
    return any(line.strip() and not line.strip().startswith("//") for line in text.splitlines())
