"""Policies without which the table would say the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from eastwest.policy.analysis import analyse
from eastwest.policy.estate import AttributeValue, Estate, ForeignWorkload, Policy
from eastwest.policy.lint.finding import Finding, Ground, some
from eastwest.policy.lint.held import what_holds
from eastwest.policy.schema import attribute_types

MAX_TEXTS = 20
MAX_STRANGERS = 2_000

Combination = tuple[frozenset[str], frozenset[str]]


def dead(ground: Ground) -> Iterator[Finding]:
    """Policies that hold nowhere, and those that could be removed, one after the other, with no call decided otherwise.

    A forbid that nothing is permitted against now is a guard and no finding, as long as it could ever hold.
    """
    held = ground.held
    combinations: dict[Combination, int] = defaultdict(int)
    for holding in held.holdings:
        combinations[holding.permits, holding.forbids] += len(holding.kind.callers)
    permits = [p.policy for p in ground.analyses if p.policy.effect == "permit"]
    holding_somewhere = frozenset(name for held_together, _ in combinations for name in held_together)
    removed: set[str] = set()
    effect = _weights(combinations)
    # Of two that cover each other the narrower goes; of equals the one that is named last.
    for policy in sorted(permits, key=lambda p: (effect.get(p.id, 0), tuple(-ord(c) for c in p.id))):
        if policy.id in held.unasked:
            continue
        where = ground.at_policy(policy)
        if policy.id not in holding_somewhere:
            yield ground.finding(
                "dead-policy",
                where,
                f"policy {policy.id!r} permits nothing: no caller, operation and tenant of the estate fit it",
                policy=policy.id,
            )
        elif not _needed(policy.id, combinations, removed):
            removed.add(policy.id)
            yield ground.finding("shadowed-policy", where, _why(policy.id, combinations, removed), policy=policy.id)
    yield from _forbids(ground)


def _forbids(ground: Ground) -> Iterator[Finding]:
    held = ground.held
    forbids = [p.policy for p in ground.analyses if p.policy.effect == "forbid" and p.policy.id not in held.unasked]
    somewhere = frozenset(name for together in held.forbidding for name in together)
    idle = [policy for policy in forbids if policy.id not in somewhere]
    possible = _could_hold(ground.estate, idle)
    removed: set[str] = set()
    for policy in sorted(forbids, key=lambda p: p.id, reverse=True):
        where = ground.at_policy(policy)
        sets = [together for together in held.forbidding if policy.id in together]
        if not sets and policy.id not in possible:
            message = f"policy {policy.id!r} forbids nothing: no call could ever fit it, whoever came to the estate"
            yield ground.finding("dead-policy", where, message, policy=policy.id)
        elif sets and not any(together - removed == {policy.id} for together in sets):
            others = {name for together in sets for name in together} - {policy.id} - removed
            removed.add(policy.id)
            message = f"policy {policy.id!r} forbids only what is forbidden anyway, by {some(others)}"
            yield ground.finding("shadowed-policy", where, message, policy=policy.id)


def _could_hold(estate: Estate, idle: Sequence[Policy]) -> frozenset[str]:
    """Of forbids that hold nowhere, those that would for some caller that the estate might yet have."""
    if not idle:
        return frozenset()
    kinds = attribute_types(estate.callers)
    texts = sorted({text for policy in idle for text in analyse(policy).texts})[:MAX_TEXTS]
    variants: list[dict[str, AttributeValue]] = [{}]
    variants += [
        {name: text if kind == "String" else (text,) for name, kind in kinds.items()} for text in ("any", *texts)
    ]
    strangers = tuple(
        ForeignWorkload(
            spiffe_id=f"spiffe://stranger.invalid/{environment.name}/{domain.name}/{number}",
            environment=environment.name,
            domain=domain.name,
            owner="group:strangers",
            attributes=attributes,
        )
        for environment in estate.settings.environments
        for domain in estate.settings.domains
        for number, attributes in enumerate(variants)
    )
    imagined = msgspec.structs.replace(
        estate, registered=(*estate.registered, *strangers[:MAX_STRANGERS]), policies=tuple(idle)
    )
    found = what_holds(imagined)
    return frozenset(name for together in found.forbidding for name in together) | found.unasked


def _weights(combinations: Mapping[Combination, int]) -> Mapping[str, int]:
    """How much each permit allows, alone or not."""
    found: dict[str, int] = defaultdict(int)
    for (permits, forbids), count in combinations.items():
        for name in permits if not forbids else ():
            found[name] += count
    return found


def _needed(name: str, combinations: Mapping[Combination, int], removed: set[str]) -> bool:
    return any(permits - removed == {name} and not forbids for permits, forbids in combinations)


def _why(name: str, combinations: Mapping[Combination, int], removed: set[str]) -> str:
    overruling = {n for permits, forbids in combinations if name in permits for n in forbids}
    covering = {n for permits, forbids in combinations if name in permits and not forbids for n in permits} - removed
    if not covering:
        return f"policy {name!r} permits nothing: wherever it holds, {some(overruling)} forbids it"
    return f"policy {name!r} permits only what is permitted anyway, by {some(covering)}"
