"""What the table allows, as rules for enforcement points that look at no tokens.

A transaction token can allow and can refuse. Without looking at one, only this is sound: what is allowed without a
token, and where a token could refuse, only while none is brought.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from eastwest.policy.enforcement import Cell, OperationRules, OriginRules, Rule, TokenRules, Verdict

TOKEN_NEEDED = "it is allowed with a transaction token only"  # noqa: S105 - a sentence
CLAIM = "its tenant is in the transaction token"


@dataclass(frozen=True, slots=True)
class Grant:
    """Callers, and the tenants for which they are allowed: ``only`` these, or all ``but`` some; None: not per tenant.

    ``tokenless``: allowed while the call brings no transaction token.
    """

    callers: tuple[str, ...]
    only: tuple[str, ...] | None = None
    but: tuple[str, ...] | None = None
    tokenless: bool = False

    def allows(self, tenant: str | None) -> bool:
        """Whether it covers the tenant (None where the operation is not per tenant)."""
        if self.only is not None:
            return tenant in self.only
        return self.but is None or tenant not in self.but


@dataclass(frozen=True, slots=True)
class Refused:
    """Callers that would be allowed, by what no such enforcement point can check."""

    callers: tuple[str, ...]
    reason: str


def grants(operation: OperationRules) -> tuple[list[Grant], list[Refused]]:
    """What is allowed at the operation, and what is allowed and cannot be said."""
    granted: list[Grant] = []
    refused: list[Refused] = []
    for cell in operation.cells:
        if cell.tenants is not None and operation.tenant is not None and operation.tenant.claim:
            if any(_may_allow(rule) for rule in rules_of(cell)):
                refused.append(Refused(cell.callers, CLAIM))
            continue
        granted += _granted(cell)
        if any(rule.verdict is Verdict.DENY and _may_allow(rule) for rule in rules_of(cell)):
            refused.append(Refused(cell.callers, TOKEN_NEEDED))
    return granted, refused


def may_ever_call(operation: OperationRules) -> frozenset[str]:
    """Callers that are allowed something at the operation, with a token or without."""
    return frozenset(
        caller for cell in operation.cells if any(map(_may_allow, rules_of(cell))) for caller in cell.callers
    )


def rules_of(cell: Cell) -> Iterable[Rule]:
    """All outcomes of a cell."""
    if cell.rule is not None:
        return (cell.rule,)
    return () if cell.tenants is None else (cell.tenants.otherwise, *cell.tenants.by_tenant.values())


def _granted(cell: Cell) -> Iterator[Grant]:
    if cell.rule is not None:
        if cell.rule.verdict is Verdict.ALLOW:
            yield Grant(cell.callers, tokenless=cell.rule.token is not None)
        return
    if cell.tenants is None:
        return
    for tokenless in (False, True):
        only = tuple(
            tenant
            for tenant, rule in sorted(cell.tenants.by_tenant.items())
            if rule.verdict is Verdict.ALLOW and (rule.token is not None) == tokenless
        )
        if only:
            yield Grant(cell.callers, only=only, tokenless=tokenless)
    otherwise = cell.tenants.otherwise
    if otherwise.verdict is Verdict.ALLOW:
        yield Grant(cell.callers, but=tuple(sorted(cell.tenants.by_tenant)), tokenless=otherwise.token is not None)


def _may_allow(rule: Rule) -> bool:
    return rule.verdict is Verdict.ALLOW or (rule.token is not None and any(_outcomes_allow(rule.token)))


def _outcomes_allow(rules: TokenRules) -> Iterator[bool]:
    origins: tuple[OriginRules, ...] = (rules.unapproved, rules.approved, *rules.approved_by.values())
    for origin in origins:
        yield origin.otherwise.verdict is Verdict.ALLOW
        for rule in origin.by_origin.values():
            yield rule.verdict is Verdict.ALLOW
