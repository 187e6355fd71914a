"""What an edit newly allows is never missed: Cedar decides call by call, before and after."""

from random import Random

import pytest

from eastwest.policy.enforcement import Verdict
from eastwest.policy.load import load_estate
from eastwest.policy.oracle import Oracle
from eastwest.policy.problems import EstateInvalid
from eastwest.policy.risk import RISKY, widenings
from eastwest.policy.table import compile_estate
from eastwest.testing.edits import every_call, random_edit
from eastwest.testing.estates import random_estate

SEEDS, MOST = 10, 150
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


@pytest.mark.parametrize("seed", range(SEEDS))
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
