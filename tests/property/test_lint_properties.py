"""What lints say of random estates is true: what is dead can go, and what is wide is allowed."""

from __future__ import annotations

import datetime as dt
import os
from functools import cache
from random import Random

import msgspec
import pytest

from eastwest.policy.enforcement import Rule, TenantRules, Verdict
from eastwest.policy.lint.run import lint
from eastwest.policy.load import load_estate
from eastwest.policy.problems import EstateInvalid
from eastwest.policy.table import compile_estate, every_rule
from eastwest.testing.estates import random_estate

TODAY = dt.date(2026, 11, 22)
SEEDS = range(int(os.environ.get("LINT_ESTATES", "10")))
MAX_ASKED = 3_000 if len(SEEDS) < 50 else 1_000_000
IDLE = {"dead-policy", "shadowed-policy"}


@cache
def made(seed):
    try:
        estate = load_estate(random_estate(Random(seed), policies=9).files)
        compiled = compile_estate(estate)
    except EstateInvalid:  # too many kinds of tokens to list: told when it is planned
        return None
    # It is compiled once for each finding: few of many kinds of tokens would take all the time.
    return (estate, compiled) if compiled.summary.asked < MAX_ASKED else None


def without(estate, names):
    kept = tuple(policy for policy in estate.policies if policy.id not in names)
    return compile_estate(msgspec.structs.replace(estate, policies=kept))


def verdicts(compiled):
    """The table by operation, caller and tenant, without the names of policies."""
    found = {}
    for operation in (o for s in compiled.sidecars.values() for i in s.inbound for o in i.operations):
        for cell in operation.cells:
            outcome = cell.rule if cell.rule is not None else cell.tenants
            for caller in cell.callers:
                found[operation.name, caller] = plain(outcome)
    return {key: said for key, said in found.items() if said != "deny"}


def plain(outcome):
    if isinstance(outcome, TenantRules):
        otherwise = plain(outcome.otherwise)
        named = {t: plain(rule) for t, rule in outcome.by_tenant.items()}
        named = {t: said for t, said in named.items() if said != otherwise}
        return otherwise if not named and otherwise == "deny" else (otherwise, tuple(sorted(named.items(), key=str)))
    assert isinstance(outcome, Rule)
    if outcome.token is None:
        return str(outcome.verdict)
    parts = (outcome.token.unapproved, outcome.token.approved, *outcome.token.approved_by.values())
    names = ("", "*", *outcome.token.approved_by)
    told = {
        (approver, origin): rule.verdict
        for approver, origins in zip(names, parts, strict=True)
        for origin, rule in {"*": origins.otherwise, **origins.by_origin}.items()
    }
    # An approver or origin that fares as any other need not be named.
    kept = {k: v for k, v in told.items() if k in {("", "*"), ("*", "*")} or v != told[fallback(k, told)]}
    if all(verdict is outcome.verdict for verdict in kept.values()):
        return str(outcome.verdict)
    return str(outcome.verdict), tuple(sorted((k, str(v)) for k, v in kept.items()))


def fallback(key, told):
    approver, origin = key
    if origin != "*" and (approver, "*") in told:
        return approver, "*"
    return ("*", "*")


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_dead_or_shadowed_can_be_removed_and_the_table_says_the_same(seed):
    world = made(seed)
    if world is None:
        return
    estate, compiled = world
    idle = [f.policy for f in lint(estate, compiled, TODAY).findings if f.rule in IDLE]
    before = verdicts(compiled)
    for name in idle:
        assert verdicts(without(estate, {name})) == before, name
    assert verdicts(without(estate, set(idle))) == before, idle


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_said_to_be_allowed_is(seed):
    world = made(seed)
    if world is None:
        return
    estate, compiled = world
    rules = {o.name: o for s in compiled.sidecars.values() for i in s.inbound for o in i.operations}
    for finding in lint(estate, compiled, TODAY).findings:
        for caller, operation in finding.pairs:
            cell = next(c for c in rules[operation].cells if caller in c.callers)
            outcomes = (
                (cell.rule,) if cell.tenants is None else (cell.tenants.otherwise, *cell.tenants.by_tenant.values())
            )
            assert any(part.verdict is Verdict.ALLOW for rule in outcomes for part in every_rule(rule)), finding


def test_the_random_estates_have_something_to_find():
    found = [f for seed in SEEDS if (world := made(seed)) for f in lint(*world, TODAY).findings]
    rules = [f.rule for f in found]
    assert sum(rule in IDLE for rule in rules) > 0
    assert sum(rule.startswith("wide-") for rule in rules) > 0
    assert sum(len(f.pairs) for f in found) > 3
