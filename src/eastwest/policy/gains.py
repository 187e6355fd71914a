"""What one operation's rules allow that another's did not: caller by caller, for each tenant and kind of token.

"Allowed" is what happens to a request, so everything that it may or may not carry is gone through: a tenant in a path,
in a header or in a token, or none; no token, one without an approval, one with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from eastwest.policy.enforcement import (
    DecisionCode,
    OperationRules,
    OriginRules,
    Rule,
    TenantRules,
    TenantSource,
    Verdict,
)
from eastwest.policy.operations import wire_form
from eastwest.policy.regions import Region

ANY_OTHER = "*"
"""Every tenant that no rule names."""
_ANYBODY = "\0anybody"  # who approved, or began: nobody whom a rule names
_DENIED = Rule(verdict=Verdict.DENY, code=DecisionCode.UNLISTED_OPERATION)


class Gain(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One caller may newly do something: for ``tenant`` ("" where it has none), if it ``brings`` what is said.

    ``brings``: "" nothing, ``token``, or ``approval``.
    """

    caller: str
    tenant: str = ""
    brings: str = ""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A token: who approved it ("": nobody), who began it."""

    approver: str
    origin: str


def gains(region: Region) -> tuple[Gain, ...]:
    """What is allowed after and was not before, for requests of the region; sorted."""
    before, after = region.before, region.after
    tenants = _Tenants(region)
    if before is not None and tenants.is_same and before.name == after.name and before.cells == after.cells:
        return ()
    was, now = by_caller(before), by_caller(after)
    told: dict[tuple[int, int], tuple[Gain, ...]] = {}  # equal rules are mostly one object
    found = []
    for caller in sorted(now):
        then, outcome = was.get(caller), now[caller]
        key = (id(then), id(outcome))
        if key not in told:
            told[key] = tuple(_gained(then, outcome, region, tenants))
        found += [msgspec.structs.replace(one, caller=caller) for one in told[key]]
    return tuple(found)


def holders(operation: OperationRules) -> Iterator[str]:
    """The callers that are allowed something there, whatever it takes."""
    for cell in operation.cells:
        outcome = cell.rule if cell.rule is not None else cell.tenants
        if outcome is not None and any(_can_allow(rule) for rule in _rules(outcome)):
            yield from cell.callers


def by_caller(operation: OperationRules | None) -> Mapping[str, Rule | TenantRules]:
    """The outcome of each caller that stands in a cell."""
    found: dict[str, Rule | TenantRules] = {}
    for cell in operation.cells if operation is not None else ():
        outcome = cell.rule if cell.rule is not None else cell.tenants
        if outcome is not None:
            found.update(dict.fromkeys(cell.callers, outcome))
    return found


class _Tenants:
    """How the tenant that a request of a region names before has to do with the one that it names after."""

    def __init__(self, region: Region) -> None:
        self._before = None if region.before is None else region.before.tenant
        self._after = region.after.tenant
        self._fixed = tuple(
            _fixed(source, operation, region.literals)
            for source, operation in ((self._before, region.before), (self._after, region.after))
        )
        self.is_same = region.before is not None and _place(self._before, region.before) == _place(
            self._after, region.after
        )

    def pairs(self, then: Rule | TenantRules | None, now: Rule | TenantRules) -> Iterator[tuple[str, list[Rule]]]:
        """Each tenant after, with what may have held for the same request before."""
        for tenant in self._named((now, then) if self.is_same else (now,), self._after, self._fixed[1]):
            if self.is_same:
                yield tenant, [_rule(then, tenant)]
                continue
            others = [_rule(then, one) for one in self._named((then,), self._before, self._fixed[0])]
            # Nothing but a path is sure to name a tenant.
            missing = self._before is not None and not self._before.path
            yield tenant, [*others, _DENIED] if missing else others

    @staticmethod
    def _named(outcomes: Iterable[Rule | TenantRules | None], source: TenantSource | None, fixed: str) -> list[str]:
        if source is None:
            return [""]
        if fixed:
            return [fixed]
        names = {name for one in outcomes if isinstance(one, TenantRules) for name in one.by_tenant}
        return [*sorted(names), ANY_OTHER]


def _place(source: TenantSource | None, operation: OperationRules | None) -> object:
    """Where in a request the tenant stands; parameters' names do not matter."""
    if source is None or operation is None or not source.path:
        return source
    return _index(source, operation)


def _index(source: TenantSource, operation: OperationRules) -> int:
    form = wire_form(operation.match)
    assert form is not None
    return [parameter for _, parameter in form[1].segments].index(source.path)


def _fixed(source: TenantSource | None, operation: OperationRules | None, literals: tuple[str | None, ...]) -> str:
    """The one tenant that requests of the region can name; "": any."""
    if source is None or operation is None or not source.path or not literals:
        return ""
    return literals[_index(source, operation)] or ""


def _gained(
    then: Rule | TenantRules | None, now: Rule | TenantRules, region: Region, tenants: _Tenants
) -> Iterator[Gain]:
    before, after = region.before, region.after
    claimed = before is not None and before.tenant is not None and before.tenant.claim
    # Then a token for this operation, or for this tenant, was none for that one.
    foreign = before is not None and (
        before.name != after.name or (before.tenant is None) is not (after.tenant is None)
    )
    claims = after.tenant is not None and after.tenant.claim
    for tenant, others in tenants.pairs(then, now):
        rule = _rule(now, tenant)
        ways = set()
        for kind in _kinds((rule, *others), claimed or claims):
            if not _allows(rule, kind, claims) or all(_allowed(was, kind, claimed, foreign) for was in others):
                continue
            ways.add("" if kind is None else "approval" if kind.approver else "token")
        if "" in ways:
            ways = {""}
        yield from (Gain(caller="", tenant=tenant, brings=way) for way in sorted(ways))


def _allows(rule: Rule, kind: _Kind | None, claims: bool) -> bool:
    if kind is None or rule.token is None:
        return rule.verdict is Verdict.ALLOW and not (claims and kind is None)
    by_approver = rule.token.approved_by.get(kind.approver, rule.token.approved)
    origins: OriginRules = by_approver if kind.approver else rule.token.unapproved
    return origins.by_origin.get(kind.origin, origins.otherwise).verdict is Verdict.ALLOW


def _allowed(rule: Rule, kind: _Kind | None, claimed: bool, foreign: bool) -> bool:
    if foreign and kind is not None and (claimed or rule.token is not None):
        return False
    return _allows(rule, kind, claimed)


def _kinds(rules: Iterable[Rule], claims: bool) -> Iterator[_Kind | None]:
    """No token, and every kind of one that some rule tells apart."""
    yield None
    approvers, origins, any_token = {"", _ANYBODY}, {_ANYBODY}, claims
    for token in (rule.token for rule in rules if rule.token is not None):
        any_token = True
        approvers.update(token.approved_by)
        for one in (token.unapproved, token.approved, *token.approved_by.values()):
            origins.update(one.by_origin)
    if any_token:
        yield from (_Kind(approver, origin) for approver in sorted(approvers) for origin in sorted(origins))


def _can_allow(rule: Rule) -> bool:
    return any(_allows(rule, kind, claims=False) for kind in _kinds((rule,), claims=False))


def _rules(outcome: Rule | TenantRules) -> tuple[Rule, ...]:
    return (outcome,) if isinstance(outcome, Rule) else (outcome.otherwise, *outcome.by_tenant.values())


def _rule(outcome: Rule | TenantRules | None, tenant: str) -> Rule:
    if outcome is None:
        return _DENIED
    return outcome if isinstance(outcome, Rule) else outcome.by_tenant.get(tenant, outcome.otherwise)
