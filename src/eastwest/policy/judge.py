"""One request put to Cedar, and its answer as a ``Rule``: the single place where Cedar's answers get their codes.

A transaction token that counts for a call says four things that Cedar sees: the action, resource and tenant, which are
those of the call itself, and who approved it and which workload began the transaction. So what a token can change is
a function of approver and origin, and Cedar is asked about each that policies can tell apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import cedarpy
import msgspec
from cedarpy import pst

from eastwest.errors import InvalidInput
from eastwest.policy.analysis import Analysis
from eastwest.policy.enforcement import DecisionCode, OriginRules, Rule, TokenRules, Verdict
from eastwest.policy.estate import Demand
from eastwest.policy.schema import ACTION, SERVICE, WORKLOAD, uid

NOT_PERMITTED = Rule(verdict=Verdict.DENY, code=DecisionCode.OPERATION_NOT_PERMITTED)
TENANT_NOT_PERMITTED = Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_NOT_PERMITTED)
UNCLASSIFIED = Rule(verdict=Verdict.DENY, code=DecisionCode.UNCLASSIFIED_OPERATION)
ATTAINABLE = frozenset({DecisionCode.ALLOWED, DecisionCode.STEP_UP_REQUIRED, DecisionCode.APPROVAL_REQUIRED})

MAX_QUESTIONS = 10_000
"""About one caller at one operation: each is answered and held for a moment."""
_FAILED_POLICY = re.compile(r"policy `([^`]*)`")


@dataclass(frozen=True, slots=True)
class Brought:
    """What a token that counts for the call says of its own: who approved it ("": nobody), who began it (SPIFFE ID)."""

    approver: str
    origin: str


@dataclass(frozen=True, slots=True)
class Request:
    """A question as Cedar sees it; ``tenant`` None when the operation is not per tenant."""

    caller: str
    operation: str
    service: str
    method: str
    path: str
    tenant: str | None
    demands: tuple[Demand, ...] = ()


class Entities:
    """The entities of an estate (``cedar_entities``), parsed once."""

    def __init__(self, schema: str, entities: str) -> None:
        self.schema = _parsed(schema)
        self.handle = cedarpy.Entities.from_json_str(entities, self.schema)


@lru_cache(maxsize=2)
def _parsed(schema: str) -> cedarpy.Schema:
    """One schema for all that is asked of an estate: a large one takes a second to read."""
    return cedarpy.Schema.from_str(schema)


class TooManyQuestions(InvalidInput):
    """Policies tell so many approvers, origins and tenants apart that nobody can list what holds."""

    def __init__(self, approvers: int, origins: int, tenants: int) -> None:
        super().__init__(
            f"{approvers} approvers, {origins} origins and {tenants} tenants are told apart at one operation, "
            f"and all together there may be {MAX_QUESTIONS:,} cases",
            fix="write policies that name fewer of them, or put what they have in common into an attribute",
        )


class _Compared:
    """The texts that policies compare something with."""

    def __init__(self, policies: Sequence[Analysis]) -> None:
        self._literals = frozenset(text for p in policies for text in p.texts)
        self._open = any(p.reads_attributes for p in policies)

    def among(self, texts: Iterable[str]) -> list[str]:
        """Those that may make a difference, where attributes and the like say ``texts``."""
        return sorted(self._literals.union(texts) if self._open else self._literals)


class Judge:
    """Answers requests from a set of policies."""

    def __init__(self, policies: Sequence[Analysis], entities: Entities, *, checked: bool = False) -> None:
        self._trees = {p.policy.id: replace(p.tree, id=p.policy.id) for p in policies}
        self._entities = entities
        self._uses_tokens = any(p.uses_demands for p in policies)
        self._about_step_up = frozenset(p.policy.id for p in policies if p.uses_step_up)
        self._texts = frozenset(text for p in policies for text in p.texts)
        self._approvers = _Compared([p for p in policies if p.reads_approver])
        self._origins = _Compared([p for p in policies if p.reads_origin])
        self._schema = entities.schema if checked else None
        self.asked = 0

    @cached_property
    def _policy_set(self) -> cedarpy.PolicySet:
        # Many slices are only looked at, never asked.
        return cedarpy.PolicySet.from_pst(pst.PolicySet(templates={}, static_policies=self._trees, template_links=()))

    def rules(self, requests: Sequence[Request], texts: Iterable[str] = ()) -> list[Rule]:
        """The outcome of each, with and without a token; a refused tenant is not yet told from a refused operation.

        ``texts``: what attributes and the call itself say, with which an approver or an origin might be compared.
        Approvers and origins that neither these nor policies name are all alike.
        """
        known = self._texts.union(texts)
        plain = [
            self._rule(r, None, a) for r, a in zip(requests, self._ask([(r, None) for r in requests]), strict=True)
        ]
        others = Brought(fresh_text("any-approver", known), fresh_text("any-origin", known))
        approvers = ["", others.approver, *(text for text in self._approvers.among(texts) if text)]
        origins = [others.origin, *self._origins.among(texts)]
        asking = [i for i, request in enumerate(requests) if self._uses_tokens or request.demands]
        if len(approvers) * len(origins) * len(asking) > MAX_QUESTIONS:
            raise TooManyQuestions(len(approvers), len(origins), len(asking))
        kinds = [Brought(approver, origin) for approver in approvers for origin in origins]
        questions = [(requests[i], brought) for i in asking for brought in kinds]
        answers = iter(self._ask(questions))
        for i in asking:
            with_token = {brought: self._rule(requests[i], brought, next(answers)) for brought in kinds}
            plain[i] = self._joined(requests[i], plain[i], with_token, others)
        return plain

    def rule(self, request: Request, brought: Brought | None, texts: Iterable[str] = ()) -> Rule:
        """The outcome for exactly this token, without ``token``."""
        advised = self.rules([request], texts)[0]
        if brought is None or advised.token is None:
            return msgspec.structs.replace(advised, token=None)
        answer = self._rule(request, brought, self._ask([(request, brought)])[0])
        if brought.approver:
            return answer
        other = fresh_text("any-approver", self._texts.union(texts))
        approved = [Brought(a, brought.origin) for a in (other, *self._approvers.among(texts)) if a]
        answers = self._ask([(request, kind) for kind in approved])
        return _advised(answer, [self._rule(request, k, a) for k, a in zip(approved, answers, strict=True)])

    def _rule(self, request: Request, brought: Brought | None, answer: Any) -> Rule:
        if answer.diagnostics.errors:
            failed = _FAILED_POLICY.search(min(answer.diagnostics.errors))
            return _deny(DecisionCode.POLICY_ERROR, failed[1] if failed else "")
        policy = min(answer.diagnostics.reasons, default="")
        if answer.allowed:
            # What the operation demands holds even where the policy forgets to ask for it.
            if brought is None and {Demand.STEP_UP, Demand.SINGLE_USE} & set(request.demands):
                return _deny(DecisionCode.STEP_UP_REQUIRED, policy)
            if Demand.APPROVAL in request.demands and (brought is None or not brought.approver):
                return _deny(DecisionCode.APPROVAL_REQUIRED, policy)
            return Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy=policy)
        return _deny(DecisionCode.FORBIDDEN_BY_POLICY, policy) if policy else NOT_PERMITTED

    def _joined(self, request: Request, plain: Rule, answers: dict[Brought, Rule], others: Brought) -> Rule:
        """One rule for the call: what holds without a token, and what with each kind; refusals say what would help."""
        with_token = {
            brought: answer if brought.approver else _advised(answer, _same_origin(answers, brought.origin))
            for brought, answer in answers.items()
        }
        unapproved = [rule for brought, rule in answers.items() if not brought.approver]
        told = _helped(plain, DecisionCode.STEP_UP_REQUIRED, unapproved)
        if told is plain:
            told = _helped(plain, DecisionCode.APPROVAL_REQUIRED, [r for b, r in answers.items() if b.approver])
            step_up = {Demand.STEP_UP, Demand.SINGLE_USE} & set(request.demands) or told.policy in self._about_step_up
            if told is not plain and step_up:
                told = _deny(DecisionCode.STEP_UP_REQUIRED, told.policy)
        if all(rule == plain for rule in answers.values()):
            return plain
        return msgspec.structs.replace(told, token=_token_rules(with_token, others))

    def _ask(self, questions: Sequence[tuple[Request, Brought | None]]) -> list[Any]:
        if not questions:
            return []
        self.asked += len(questions)
        return cedarpy.is_authorized_batch(
            [cedar_request(request, brought) for request, brought in questions],
            self._policy_set,
            self._entities.handle,
            self._schema,
        )


def fresh_text(name: str, taken: Collection[str]) -> str:
    """A text that nothing mentions: it stands for every one that nothing mentions."""
    while name in taken:
        name += "-"
    return name


def _token_rules(by_kind: dict[Brought, Rule], others: Brought) -> TokenRules:
    by_approver: dict[str, dict[str, Rule]] = {}
    for brought, rule in by_kind.items():
        by_approver.setdefault(brought.approver, {})[brought.origin] = rule
    origins = {approver: _origin_rules(rules, others.origin) for approver, rules in by_approver.items()}
    unapproved, approved = origins.pop(""), origins.pop(others.approver)
    named = {approver: rules for approver, rules in sorted(origins.items()) if rules != approved}
    return TokenRules(unapproved=unapproved, approved_by=named, approved=approved)


def _origin_rules(rules: dict[str, Rule], other: str) -> OriginRules:
    otherwise = rules[other]
    named = {origin: rule for origin, rule in sorted(rules.items()) if rule != otherwise}
    return OriginRules(by_origin=named, otherwise=otherwise)


def _same_origin(answers: dict[Brought, Rule], origin: str) -> list[Rule]:
    return [rule for brought, rule in answers.items() if brought.approver and brought.origin == origin]


def _advised(refused: Rule, approved: Iterable[Rule]) -> Rule:
    return _helped(refused, DecisionCode.APPROVAL_REQUIRED, approved)


def _helped(refused: Rule, code: DecisionCode, better: Iterable[Rule]) -> Rule:
    """``refused`` as it is told when one of ``better`` allows what it refuses; itself when none does."""
    if refused.verdict is Verdict.ALLOW or refused.code is DecisionCode.POLICY_ERROR:
        return refused
    policy = min((rule.policy for rule in better if rule.verdict is Verdict.ALLOW), default=None)
    return refused if policy is None else _deny(code, policy)


def _deny(code: DecisionCode, policy: str) -> Rule:
    return Rule(verdict=Verdict.DENY, code=code, policy=policy)


def cedar_request(request: Request, brought: Brought | None) -> dict[str, Any]:
    """The question as Cedar takes it."""
    context: dict[str, Any] = {"path": request.path, "method": request.method}
    tenant = {} if request.tenant is None else {"tenant": request.tenant}
    context |= tenant
    if brought is not None:
        said = {"action": request.operation, "resource": request.service, "approver": brought.approver}
        context["step_up"] = said | tenant
        context["transaction"] = {"id": "transaction", "origin": brought.origin}
        if brought.approver:
            context["approval"] = {"id": "approval", "approver": brought.approver}
    return {
        "principal": uid(WORKLOAD, request.caller),
        "action": uid(ACTION, request.operation),
        "resource": uid(SERVICE, request.service),
        "context": json.dumps(context),
    }
