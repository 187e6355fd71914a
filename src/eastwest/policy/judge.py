"""One request put to Cedar, and its answer as a ``Rule``: the single place where Cedar's answers get their codes."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cedarpy
from cedarpy import pst

from eastwest.policy.analysis import Analysis
from eastwest.policy.enforcement import DecisionCode, Rule, Verdict
from eastwest.policy.estate import Demand, Estate
from eastwest.policy.schema import ACTION, SERVICE, WORKLOAD, cedar_entities, uid

NOT_PERMITTED = Rule(verdict=Verdict.DENY, code=DecisionCode.OPERATION_NOT_PERMITTED)
TENANT_NOT_PERMITTED = Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_NOT_PERMITTED)
ATTAINABLE = frozenset({DecisionCode.ALLOWED, DecisionCode.STEP_UP_REQUIRED, DecisionCode.APPROVAL_REQUIRED})

_MAX_TEXTS = 4  # up to here all pairs of texts are tried
# Questions asked to tell what would help against one refusal. Beyond it the refusal stands without that advice.
_MAX_ATTEMPTS = 64
_FAILED_POLICY = re.compile(r"policy `([^`]*)`")


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
    """The entities of an estate, parsed once."""

    def __init__(self, estate: Estate) -> None:
        self.schema = cedarpy.Schema.from_str(estate.schema)
        self.handle = cedarpy.Entities.from_json_str(cedar_entities(estate), self.schema)


class Judge:
    """Answers requests from a set of policies.

    ``texts`` are what a step-up token or an approval might say, used to find out whether one would help.
    """

    def __init__(
        self, policies: Sequence[Analysis], entities: Entities, texts: Sequence[str], *, checked: bool = False
    ) -> None:
        self._trees = {p.policy.id: replace(p.tree, id=p.policy.id) for p in policies}
        self._entities = entities
        self._uses_step_up = any(p.uses_step_up for p in policies)
        self._uses_approval = any(p.uses_approval for p in policies)
        self._texts = texts
        self._schema = entities.schema if checked else None
        self.asked = 0

    @cached_property
    def _policy_set(self) -> cedarpy.PolicySet:
        # Many slices are only looked at, never asked.
        return cedarpy.PolicySet.from_pst(pst.PolicySet(templates={}, static_policies=self._trees, template_links=()))

    def rules(self, requests: Sequence[Request]) -> list[Rule]:
        """The outcome of each; a tenant that is refused is not yet told from an operation that is refused."""
        answers = self._ask([(r, {}) for r in requests])
        return [self._rule(r, a) for r, a in zip(requests, answers, strict=True)]

    def _rule(self, request: Request, answer: Any) -> Rule:
        if answer.diagnostics.errors:
            failed = _FAILED_POLICY.search(min(answer.diagnostics.errors))
            return _deny(DecisionCode.POLICY_ERROR, failed[1] if failed else "")
        policy = min(answer.diagnostics.reasons, default="")
        if answer.allowed:
            # What the operation demands holds even where the policy forgets to ask for it.
            if Demand.STEP_UP in request.demands:
                return _deny(DecisionCode.STEP_UP_REQUIRED, policy)
            if Demand.APPROVAL in request.demands:
                return _deny(DecisionCode.APPROVAL_REQUIRED, policy)
            return Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED, policy=policy)
        unlocked = self._unlocked(request)
        if unlocked is not None:
            return unlocked
        return _deny(DecisionCode.FORBIDDEN_BY_POLICY, policy) if policy else NOT_PERMITTED

    def _unlocked(self, request: Request) -> Rule | None:
        """What would help: first a step-up token alone, then an approval alone, then both."""
        tokens = [{"step_up": t} for t in _tokens(request, self._texts)] if self._uses_step_up else []
        approvals = [{"approval": a} for a in _approvals(self._texts)] if self._uses_approval else []
        for code, attempts in (
            (DecisionCode.STEP_UP_REQUIRED, tokens),
            (DecisionCode.APPROVAL_REQUIRED, approvals),
            (DecisionCode.STEP_UP_REQUIRED, ({**t, **a} for t, a in itertools.product(tokens, approvals))),
        ):
            for answer in self._ask([(request, extra) for extra in itertools.islice(attempts, _MAX_ATTEMPTS)]):
                if answer.allowed and not answer.diagnostics.errors:
                    return _deny(code, min(answer.diagnostics.reasons))
        return None

    def _ask(self, questions: Sequence[tuple[Request, dict[str, Any]]]) -> list[Any]:
        if not questions:
            return []
        self.asked += len(questions)
        return cedarpy.is_authorized_batch(
            [_cedar_request(request, extra) for request, extra in questions],
            self._policy_set,
            self._entities.handle,
            self._schema,
        )


def demand_texts(policies: Iterable[Analysis]) -> tuple[str, ...]:
    """Texts that policies about step-up and approval compare with; patterns give a text that fits them."""
    texts: set[str] = {"someone"}
    for policy in policies:
        if policy.uses_demands:
            texts |= policy.texts | policy.patterns
    return tuple(sorted(texts))


def _deny(code: DecisionCode, policy: str) -> Rule:
    return Rule(verdict=Verdict.DENY, code=code, policy=policy)


def _tokens(request: Request, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Step-up tokens as this request would bring them."""
    tenant = {} if request.tenant is None else {"tenant": request.tenant}
    resources = [request.service, *texts] if len(texts) <= _MAX_TEXTS else [request.service]
    return [
        {"action": request.operation, "approver": approver, "resource": resource, **tenant}
        for approver, resource in itertools.product(texts, resources)
    ]


def _approvals(texts: Sequence[str]) -> list[dict[str, Any]]:
    if len(texts) > _MAX_TEXTS:
        return [{"id": text, "approver": text} for text in texts]
    return [{"id": name, "approver": approver} for name, approver in itertools.product(texts, repeat=2)]


def _cedar_request(request: Request, extra: dict[str, Any]) -> dict[str, Any]:
    context = {"path": request.path, "method": request.method, **extra}
    if request.tenant is not None:
        context["tenant"] = request.tenant
    return {
        "principal": uid(WORKLOAD, request.caller),
        "action": uid(ACTION, request.operation),
        "resource": uid(SERVICE, request.service),
        "context": json.dumps(context),
    }
