"""What a join token may grant, judged when it is made and not when a node comes."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from eastwest.policy.estate import Right
from eastwest.registry.administrators import Administrator, Subject
from eastwest.registry.entry import Entry
from eastwest.registry.nodes import node_selector
from eastwest.registry.registry import Registry
from eastwest.registry.tokens import JOIN_TOKEN_PREFIX
from eastwest.spiffe.id import SpiffeId


def check_token(
    caller: Administrator, registry: Registry, environment: str, alias: SpiffeId | None, now: datetime
) -> None:
    """Raise the refusal unless the caller may let a node into a group of ``environment`` and give it ``alias``.

    A token without a group belongs to no environment. An alias is a registration, and follows its rules.
    """
    subject = Subject(environment=environment)
    caller.require_for(Right.TOKENS, subject, f"make a token for environment {environment or '(none)'}")
    if alias is None:
        return
    agent = registry.trust_domain.id(JOIN_TOKEN_PREFIX + "x")
    entry = Entry(spiffe_id=alias, parent_id=agent, selectors=frozenset({node_selector(agent)}))
    registry.entries.check(entry, now)
    rules = registry.entries.rules
    caller.writer(rules).check(None, replace(entry, environment=rules.environment_of(alias)))
