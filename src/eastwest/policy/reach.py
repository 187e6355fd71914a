"""What a table lets one caller do, read for people who weigh it: for which tenants, and what is still asked of it.

Enforcement points do not use this; it is the ground of ``blast``, ``lint`` and the coverage of ``policy test``.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from eastwest.policy.enforcement import Cell, OperationRules, OriginRules, Rule, TokenRules, Verdict
from eastwest.policy.estate import Demand, Sensitivity

WEIGHTS: Mapping[Sensitivity | None, int] = {
    Sensitivity.CONTROL: 8,
    Sensitivity.MUTATE: 5,
    Sensitivity.RESTRICTED_READ: 4,
    Sensitivity.READ: 2,
    Sensitivity.OPEN: 1,
    None: 2,
}
"""How bad it is when the wrong one does it; what nobody has classified counts as a read."""
ACROSS_TENANTS = 2
"""By how much more it counts when tenants are reached that are not the caller's own."""


class Held(enum.StrEnum):
    """What a call has to bring before it is allowed; ``NOTHING``: it is allowed as it is."""

    NOTHING = ""
    STEP_UP = "step-up"
    APPROVAL = "approval"

    @property
    def rank(self) -> int:
        """Greater is harder to get."""
        return ("", "step-up", "approval").index(self.value)


@dataclass(frozen=True, slots=True)
class Tenants:
    """For which tenants something is allowed: these, or with ``any_other`` all but ``excepted``.

    Operations that are not per tenant have None in its place.
    """

    named: frozenset[str] = frozenset()
    any_other: bool = False
    excepted: frozenset[str] = frozenset()

    def beyond(self, own: Iterable[str]) -> bool:
        """Whether tenants are among them that are not ``own``; without any of one's own, more than one is."""
        mine = frozenset(own)
        if self.any_other:
            return True
        return bool(self.named - mine) if mine else len(self.named) > 1

    def __str__(self) -> str:
        if self.any_other:
            return "any" + (f" but {', '.join(sorted(self.excepted))}" if self.excepted else "")
        return ", ".join(sorted(self.named))


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which callers are allowed an operation."""

    held: Held
    tenants: Tenants | None
    policies: tuple[str, ...]  # those that the table names as deciding


def ways(operation: OperationRules, cell: Cell, void: Collection[str] = ()) -> tuple[Way, ...]:
    """How the callers of ``cell`` are allowed ``operation``: the freest way first, none where they are refused.

    ``void``: who may neither begin nor approve a transaction.
    """
    if cell.rule is not None:
        held = _held(cell.rule, void)
        return () if held is None else (Way(held, None, _policies([cell.rule], void)),)
    if cell.tenants is None:
        return ()
    claim = operation.tenant is not None and operation.tenant.claim
    rules = cell.tenants.by_tenant
    found = []
    for held in Held:
        named = frozenset(t for t, rule in rules.items() if _needs(rule, void, claim=claim) is held)
        any_other = _needs(cell.tenants.otherwise, void, claim=claim) is held
        if named or any_other:
            excepted = frozenset(rules) - named if any_other else frozenset[str]()
            deciding = [rules[t] for t in named] + ([cell.tenants.otherwise] if any_other else [])
            found.append(Way(held, Tenants(named, any_other, excepted), _policies(deciding, void)))
    return tuple(found)


def demanded(demands: Iterable[Demand]) -> Held:
    """What an operation itself asks for."""
    wanted = set(demands)
    if Demand.APPROVAL in wanted:
        return Held.APPROVAL
    return Held.STEP_UP if wanted else Held.NOTHING


def _needs(rule: Rule, void: Collection[str], *, claim: bool) -> Held | None:
    held = _held(rule, void)
    # No call without a token has a tenant where the tenant is in the token.
    return Held.STEP_UP if claim and held is Held.NOTHING else held


def _held(rule: Rule, void: Collection[str]) -> Held | None:
    if rule.verdict is Verdict.ALLOW:
        return Held.NOTHING
    if rule.token is None:
        return None
    for held, origins in ((Held.STEP_UP, [rule.token.unapproved]), (Held.APPROVAL, _approved(rule.token, void))):
        if any(_allowed(one, void) for one in origins):
            return held
    return None


def _approved(token: TokenRules, void: Collection[str]) -> list[OriginRules]:
    return [token.approved, *(origins for name, origins in token.approved_by.items() if name not in void)]


def _allowed(origins: OriginRules, void: Collection[str]) -> list[Rule]:
    rules = [origins.otherwise, *(rule for name, rule in origins.by_origin.items() if name not in void)]
    return [rule for rule in rules if rule.verdict is Verdict.ALLOW]


def _policies(rules: Iterable[Rule], void: Collection[str]) -> tuple[str, ...]:
    found = set()
    for rule in rules:
        if rule.verdict is Verdict.ALLOW:
            found.add(rule.policy)
        elif rule.token is not None:
            for origins in (rule.token.unapproved, *_approved(rule.token, void)):
                found |= {told.policy for told in _allowed(origins, void)}
    return tuple(sorted(found - {""}))
