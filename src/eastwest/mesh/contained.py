"""The deny that wins: who is contained is refused before a service's table is asked, in every mode.

Laid around the filters that ``eastwest.mesh.rbac`` makes, and only while somebody is contained: otherwise nothing of
this is in a tree. A permissive service's tree only reports; beside it stands an enforced one that knows nobody else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac

from eastwest.mesh import matching, names, rbac
from eastwest.mesh.action import inbound_version, outcome
from eastwest.mesh.matching import (
    URI_SAN,
    Matcher,
    OnMatch,
    Predicate,
    all_of,
    any_of,
    first_of,
    header,
    nested,
    one_of,
)
from eastwest.mesh.token_tree import genuine
from eastwest.mesh.tokens import claim_header
from eastwest.policy.enforcement import DecisionCode, Inbound, Rule, Verdict, uses_tokens
from eastwest.registry.containment import Contained

_TOLD_BY = ("caller", "origin", "approver")
"""Claims of a transaction token that name who answers for it."""
_PASSED_BY = "not-contained"
"""The name of an action that says nothing about the call: the tree that only reports has the word."""


def contained_filters(inbound: Inbound, filters: Mapping[str, Any], contained: Contained, own: str) -> dict[str, Any]:
    """The filters of a service of the workload ``own`` while ``contained`` are cut off."""
    if not contained:
        return dict(filters)
    version = inbound_version(inbound)
    made = dict(filters)
    if own in contained:
        closed = matching.always(_refusal(DecisionCode.IDENTITY_CONTAINED, version))
        for name, prefix in (
            (names.operations_filter(inbound.service), rbac.OPERATIONS),
            (names.plaintext_filter(inbound.service), rbac.PLAINTEXT),
        ):
            made[name] = _enforced(made[name], closed, closed, prefix)
        return made
    name = names.operations_filter(inbound.service)
    branches = [(any_of(one_of(URI_SAN, contained.spiffe_ids)), _refusal(DecisionCode.CALLER_CONTAINED, version))]
    if inbound.protocol != "tcp" and uses_tokens(inbound):
        branches.append((_brings_token_of(contained.spiffe_ids), _refusal(DecisionCode.TOKEN_CONTAINED, version)))
    before = made[name]
    table = before.shadow_matcher if before.HasField("shadow_matcher") else before.matcher
    whole = first_of(branches, nested(table))
    if before.HasField("matcher"):
        enforced = first_of(branches, nested(before.matcher))
    else:
        passes = rbac_pb2.Action(name=_PASSED_BY, action=rbac_pb2.RBAC.ALLOW)
        enforced = first_of(branches, matching.ending(matching.typed("envoy.filters.rbac.action", passes)))
    # Where the enforced place holds what rules in report mode say, it goes on being read as that.
    made[name] = _enforced(before, enforced, whole, getattr(before, "rules_stat_prefix", "") or rbac.OPERATIONS)
    return made


def _enforced(before: Any, enforced: Matcher, whole: Matcher, prefix: str) -> Any:
    """``before`` with an enforced tree, and ``whole`` where it has (or, for a report, must keep) the shadow form."""
    made = type(before)()
    made.CopyFrom(before)
    made.matcher.CopyFrom(enforced)
    if before.HasField("shadow_matcher"):
        made.shadow_matcher.CopyFrom(whole)
    if isinstance(made, http_rbac.RBAC):
        made.rules_stat_prefix = prefix
    return made


def _brings_token_of(contained: Collection[str]) -> Predicate:
    """A verified token whose caller, origin or approver is contained; what is no token is the table's to refuse."""
    named = any_of([some for claim in _TOLD_BY for some in one_of(header(claim_header(claim)), contained)])
    return all_of(named, genuine())


def _refusal(code: DecisionCode, version: str) -> OnMatch:
    return outcome(Rule(verdict=Verdict.DENY, code=code), "", version)
