"""What an edit newly allows is never missed, and nothing else is told: Cedar decides call by call, before and after."""

from random import Random

import pytest

from eastwest.policy.enforcement import Verdict
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import Oracle, lookup
from eastwest.policy.problems import EstateInvalid, Severity
from eastwest.policy.risk import RISKY, required, widenings
from eastwest.policy.table import compile_estate
from eastwest.testing.edits import calls_of, every_call, random_edit
from eastwest.testing.estates import random_estate

SEEDS, MOST = (0, 1, 2, 3, 6), 120
"""Quick ones; tests/interop/test_two_persons_whole.py takes 150 as they come."""
GAINS = 12
"""Of one widening, for each of which every call is gone through."""
STRICTNESS = ("open", "read", "restricted-read", "mutate", "control")


def versions(seed):
    """The name of an edit that leaves a good estate, and the estates before and after."""
    random = Random(seed)
    while True:
        made = random_estate(random)
        name, files = random_edit(random, made)
        try:
            return name, load_estate(made.files), load_estate(files), random
        except EstateInvalid:
            continue


def worst(*classes):
    return max((one for one in classes if one), key=STRICTNESS.index, default="")


def classes(estate):
    return {o.name: o.sensitivity and o.sensitivity.value for s in estate.services for o in s.operations}


def gained(before, after, random, decide, most):
    """Calls that are allowed after and were not before, with the operation then and now."""
    services = {service.service for service in before.services}
    for asked in every_call(before, after, random, most):
        now = decide[1](asked)
        if now[0] is Verdict.ALLOW:
            was = decide[0](asked) if asked[1] in services else (Verdict.DENY, "", "", "")
            if was[0] is not Verdict.ALLOW:
                yield asked, was[3], now[3]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_that_is_newly_allowed_is_missed(seed: int) -> None:
    name, before, after, random = versions(seed)
    compiled = compile_estate(before), compile_estate(after)
    found = widenings(*compiled, before, after)
    oracles = Oracle(before), Oracle(after)
    decide = [lambda asked, one=one: one.decide(*asked) for one in oracles]
    said = classes(before), classes(after)
    for asked, was, now in gained(before, after, random, decide, MOST):
        matching = [
            w for w in found if w.kind == "access" and w.subject == now and any(g.caller == asked[0] for g in w.gains)
        ]
        assert matching, (name, asked, was, now, found)
        if worst(said[0].get(was), said[0].get(now), said[1].get(now)) in RISKY:
            assert any(w.needs for w in matching), (name, asked, was, now, matching)


def inbound_of(compiled):
    return {one.service: sidecar for sidecar in compiled.sidecars.values() for one in sidecar.inbound}


def shown(gain, place, estates, tables, oracles):
    """A call that shows the gain, by Cedar's word; None where no call at all does. The tables say where to look."""
    operation, service = place

    def newly(asked, decide):
        before = decide(0, asked)[0] if asked[1] in tables[0] else Verdict.DENY
        return before is not Verdict.ALLOW and decide(1, asked)[0] is Verdict.ALLOW

    def by_table(side, asked):
        return lookup(tables[side][asked[1]], *asked)

    def by_cedar(side, asked):
        return oracles[side].decide(*asked)

    calls = list(calls_of(*estates, gain, service, operation))
    likely = (asked for asked in calls if newly(asked, by_table) and newly(asked, by_cedar))
    return next(likely, None) or next((asked for asked in calls if newly(asked, by_cedar)), None)


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_that_is_told_can_be_called(seed: int) -> None:
    name, before, after, random = versions(seed)
    compiled = compile_estate(before), compile_estate(after)
    tables, oracles = [inbound_of(one) for one in compiled], (Oracle(before), Oracle(after))
    places = {o.name: (o, service) for service in after.services for o in service.operations}
    known = classes(before)
    for widening in widenings(*compiled, before, after):
        if widening.kind != "access" or widening.subject not in known:
            continue  # what has a new name is told as a whole
        for gain in random.sample(widening.gains, min(GAINS, len(widening.gains))):
            found = shown(gain, places[widening.subject], (before, after), tables, oracles)
            assert found is not None, (name, widening.subject, gain)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pure_narrowing_needs_nobody(seed: int) -> None:
    """Permits taken away, or a forbid of anybody, anything, anywhere added: whatever else the estate has."""
    random = Random(seed)
    made, before, compiled = sound(random)
    permits = [one for one in made.policies if "\nforbid " not in one]
    gone = random.sample(permits, random.randint(0, len(permits)))
    policies = [one for one in made.policies if one not in gone]
    if random.random() < 0.5 or not gone:
        caller, route = random.choice(made.callers), random.choice(made.routes)
        who = random.choice(["principal", f'principal == Workload::"{caller}"', 'principal in Domain::"d1"'])
        what = random.choice(["action", f'action == Action::"{route.operation}"', 'action in Action::"mutate"'])
        policies.append(f'@id("less") @owner("group:x") @reason("r")\nforbid ({who}, {what}, resource);')
    after = load_estate(made.files | {"policies/all.cedar": "\n".join(policies).encode()})
    assert required(widenings(compiled, compile_estate(after), before, after)) == ()


def sound(random):
    """An estate that may be in force: a permit that fails when it is asked denies, so that taking it away opens."""
    while True:
        made = random_estate(random)
        estate = load_estate(made.files)
        compiled = compile_estate(estate)
        if not any(problem.severity is Severity.ERROR for problem in compiled.problems):
            return made, estate, compiled
