"""Explanations are held against Cedar and the table: random estates, random questions, a hundred denials and more."""

from __future__ import annotations

import os
import re
from collections import Counter
from random import Random

import msgspec

from eastwest.policy.analysis import analyse
from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.policy.estate import Estate
from eastwest.policy.explain import Applied, Asked, Explainer, Explanation, Unlock
from eastwest.policy.judge import Brought, Entities, Judge, Request
from eastwest.policy.load import load_estate
from eastwest.policy.operations import method_of, tenant_source
from eastwest.policy.oracle import Decision, Oracle, lookup
from eastwest.policy.schema import cedar_entities
from eastwest.policy.table import compile_estate
from eastwest.policy.transaction import NoToken, Token
from eastwest.testing.calls import STRANGERS
from eastwest.testing.estates import APPROVERS, HEADER, TENANTS, RandomEstate, Route, random_estate

ESTATES, QUESTIONS = int(os.environ.get("EASTWEST_EXPLAIN_ESTATES", "12")), 14
FIRST = int(os.environ.get("EASTWEST_EXPLAIN_SEED", "12"))
KEY = "0" * 64


def test_every_explanation_is_right() -> None:
    codes: Counter[DecisionCode] = Counter()
    unlocks: Counter[str] = Counter()
    for seed in range(FIRST, FIRST + ESTATES):
        random = Random(seed)
        made = random_estate(random, report=0.3 if seed % 2 else 0.0)
        world = _World(made)
        for _ in range(QUESTIONS):
            asked = _question(random, made)
            explained = world.explainer.explain(asked)
            world.check(explained, seed)
            codes[explained.code] += 1
            unlocks.update(unlock.change for unlock in explained.unlocks)
    denials = codes.total() - codes[DecisionCode.ALLOWED]
    assert denials > 100, codes
    assert len(codes) >= 8, codes
    assert {"tenant", "step-up", "approval", "attribute", "caller"} <= unlocks.keys(), unlocks


class _World:
    """One estate: what is explained, and what tells whether that is right."""

    def __init__(self, made: RandomEstate) -> None:
        self.estate = load_estate(made.files)
        self.explainer = Explainer(self.estate, compile_estate(self.estate))
        self.oracle = Oracle(self.estate)
        self.reporting = Oracle(self.estate, report=True)
        self.routes = {route.operation: route for route in made.routes}
        self.known = {caller.spiffe_id for caller in self.estate.callers}

    def check(self, explained: Explanation, seed: int) -> None:
        asked = explained.asked
        verdict, code, policy, _ = self.cedar(self.oracle, asked)
        assert (explained.verdict, explained.code, explained.policy) == (verdict, code, policy), (seed, asked)
        report = self.cedar(self.reporting, asked)[:3]
        told = explained.report
        assert report[1] == (told.code if told is not None else code), (seed, asked)
        if asked.caller not in self.known or code is DecisionCode.UNCLASSIFIED_OPERATION:
            return
        self.check_policies(explained, seed)
        for unlock in explained.unlocks:
            assert self.unlocked(asked, unlock)[0] is Verdict.ALLOW, (seed, asked, unlock)
        for unlock in explained.together:
            named = "nobody-knows" if unlock.value == "any other" else unlock.value
            [approver] = re.findall(r"token that (\S+|anybody who may) has approved$", unlock.sentence) or [""]
            [origin] = re.findall(r"that (\S+) began$", unlock.sentence) or [""]
            both = {unlock.change: named, "approver": approver.replace("anybody who may", "nobody-knows")}
            changed = msgspec.structs.replace(asked, **both, token=True, origin=origin)
            assert self.cedar(self.oracle, changed)[0] is Verdict.ALLOW, (seed, asked, unlock)
        assert not (explained.unlocks and explained.together)
        if verdict is Verdict.DENY and self.routes[asked.operation].method:
            with_token = msgspec.structs.replace(asked, token=True)
            approved = msgspec.structs.replace(with_token, approver="nobody-knows")
            allowed = [self.cedar(self.oracle, one)[0] is Verdict.ALLOW for one in (with_token, approved)]
            assert explained.step_up == (not asked.token and allowed[0]), (seed, asked)
            assert explained.approval >= (not asked.approver and allowed[1]), (seed, asked)

    def check_policies(self, explained: Explanation, seed: int) -> None:
        """Which policies apply, Cedar says too; and no permit is nearer than the one that is told."""
        asked = explained.asked
        service = next(s for s in self.estate.services if s.service == asked.service)
        operation = next(o for o in service.operations if o.name == asked.operation)
        applied = self.explainer.applied(asked, service, operation)
        entities = Entities(self.estate.schema, cedar_entities(self.estate))
        tenant = asked.tenant if tenant_source(service, operation) is not None and asked.tenant else None
        request = Request(asked.caller, operation.name, service.service, method_of(operation), "/", tenant)
        brought = Brought(asked.approver, asked.origin or asked.caller) if asked.token else None
        for one, policy in zip(applied, self.estate.policies, strict=True):
            [answer] = Judge([analyse(policy)], entities)._ask([(request, brought)])
            assert one.applies == (one.policy in answer.diagnostics.reasons), (seed, asked, one)
            assert all(part.holds is one.applies or not one.applies for part in one.parts)
        permits = [one for one in applied if one.effect == "permit" and not one.report]
        if explained.nearest is not None:
            assert not any(one.applies for one in permits)
            assert explained.nearest.policy == explained.policy or far(explained.nearest) == min(map(far, permits))
        assert {f.policy for f in explained.forbids} == {
            one.policy for one in applied if one.effect == "forbid" and one.applies and not one.report
        }

    def unlocked(self, asked: Asked, unlock: Unlock) -> Decision:
        """The answer with the change: of Cedar for another call, of a table made anew for another estate."""
        replace = msgspec.structs.replace
        match unlock.change:
            case "step-up":
                return self.cedar(self.oracle, replace(asked, token=True))
            case "approval":
                who = "nobody-knows" if unlock.value == "anybody who may" else unlock.value
                return self.cedar(self.oracle, replace(asked, token=True, approver=who))
            case "origin":
                return self.cedar(self.oracle, replace(asked, token=True, origin=unlock.value))
            case "tenant":
                named = "nobody-knows" if unlock.value == "any other" else unlock.value
                return self.cedar(self.oracle, replace(asked, tenant=named))
            case "caller":
                return self.cedar(self.oracle, replace(asked, caller=unlock.value))
            case "policy":
                kept = tuple(p for p in self.estate.policies if p.id != unlock.value)
                return self.table(replace(self.estate, policies=kept), asked)
            case "attribute":
                name, _, said = unlock.value.partition(": ")
                caller = next(c for c in self.estate.callers if c.spiffe_id == asked.caller)
                kind = next(
                    (c.attributes[name] for c in self.estate.callers if name in c.attributes),
                    () if name == "tenants" else "",
                )
                value = said if isinstance(kind, str) else tuple(said.split(", "))
                changed = replace(caller, attributes={**caller.attributes, name: value})
                return self.table(self.explainer.with_caller(changed), asked)

    def table(self, estate: Estate, asked: Asked) -> Decision:
        compiled = compile_estate(estate)
        sidecar = next(s for s in compiled.sidecars.values() if any(i.service == asked.service for i in s.inbound))
        return lookup(sidecar, *_request(asked, self.routes[asked.operation]), KEY)

    def cedar(self, oracle: Oracle, asked: Asked) -> Decision:
        return oracle.decide(*_request(asked, self.routes[asked.operation]), KEY)


def far(applied: Applied) -> tuple[int, int]:
    """Parts that say that a permit is about something else, and all parts that fail."""
    return sum(part.kind in {"action", "resource"} for part in applied.parts), len(applied.parts)


def _request(asked: Asked, route: Route) -> tuple:
    """The call over the wire."""
    tenant = asked.tenant if route.tenant == "path" and asked.tenant else "any"
    path = route.template.replace("{tenant}", tenant).replace("{item}", "any").replace("{part}", "any")
    headers = ((HEADER, asked.tenant),) if route.tenant == "header" and asked.tenant else ()
    token = NoToken.MISSING
    if asked.token:
        token = Token(
            id="t",
            transaction="x",
            caller=asked.caller,
            certificate=KEY,
            action=asked.operation,
            resource=asked.service,
            origin=asked.origin or asked.caller,
            expires=1,
            tenant=asked.tenant if route.tenant else "",
            approval="a" if asked.approver else "",
            approver=asked.approver,
        )
    return (asked.caller or None, asked.service, route.method, path, headers, token)


def _question(random: Random, made: RandomEstate) -> Asked:
    route = random.choice(made.routes)
    tenants = [t for t in TENANTS if t.replace("-", "").replace(".", "").isalnum() and t.isascii()]
    token = bool(route.method) and random.random() < 0.3
    return Asked(
        caller=random.choice(made.callers) if random.random() < 0.95 else STRANGERS[0],
        operation=route.operation,
        tenant=random.choice([*tenants, "unheard-of", *([""] if route.tenant != "path" else [])]),
        token=token,
        approver=random.choice(["", *APPROVERS]) if token else "",
    )
