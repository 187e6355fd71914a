"""Subtrees that look at transaction tokens: whether one counts for the call, and what holds then.

A token that does not count is refused by the first check that fails, in the order of
``eastwest.policy.transaction.misuse``. A good one is through after a single predicate; the rest of the subtree only
finds the code. Where a rule has no ``token`` nothing of this is in the tree, and nobody looks at what was brought.
"""

from __future__ import annotations

from dataclasses import dataclass

from eastwest.mesh import cel, matching
from eastwest.mesh.action import outcome
from eastwest.mesh.matching import (
    OnMatch,
    Predicate,
    all_of,
    any_of,
    begins,
    contains,
    ends,
    equals,
    first_of,
    negated,
    nested,
    regex,
)
from eastwest.mesh.tokens import CHECKED_ROUTE, FAILED, METADATA, claim_header
from eastwest.policy.enforcement import (
    DecisionCode,
    OperationRules,
    OriginRules,
    Rule,
    TenantRules,
    TokenRules,
    Verdict,
)
from eastwest.policy.transaction import HEADER, refused

TENANT_MISSING = refused(DecisionCode.TENANT_MISSING)
_BROUGHT = matching.header(HEADER)
_ANYTHING = r"\C*"  # bytes, whether they make text or not
_SOMETHING = r"\C+"
_SECONDS = "[0-9]{1,12}"  # Envoy takes numbers near 2**64 for the past when it bounds lives, and for the future else
_SINGLE = r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"  # several headers arrive joined by commas
_OVERLOOKED = (",", " ", "\t", "=", "..")
"""What a token that Envoy has verified may contain though it is not of that form: other tokens beside it, blanks and
padding in base64, empty parts. To look for these takes a fifth of the expression, which reads each character."""
_EXPIRED = "Jwt is expired"  # Envoy's word; everything else it may say means that the token is none of ours
_NEEDED = ("id", "transaction", "caller", "certificate", "action", "resource", "origin")
_COMPARED = frozenset({"caller", "certificate", "action", "resource"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a decision is made: one operation of one service, in one version of its rules.

    ``reported``: the tree only tells what rules in report mode would do, and uses nothing up; ``passing``: it is where
    Envoy enforces, so nothing in it may refuse.
    """

    service: str
    operation: OperationRules
    version: str
    reported: bool = False
    passing: bool = False

    def ends(self, rule: Rule, *, by_token: bool = False) -> OnMatch:
        """``rule`` as the end of a branch; ``by_token``: a token led there, and is used up where it counts once."""
        if self.reported or not by_token or not self.operation.single_use or rule.verdict != Verdict.ALLOW:
            return outcome(rule, self.operation.name, self.version, passing=self.passing)
        # Routes and trees change one after the other; between them nobody may ask.
        asked = cel.holds(cel.same(cel.route_name(), cel.text(CHECKED_ROUTE)))
        allowed = outcome(rule, self.operation.name, self.version, once=True)
        return nested(first_of([(asked, allowed)], self.ends(refused(DecisionCode.CHECK_UNAVAILABLE))))


def decision(rule: Rule, place: Place, same_tenant: Predicate | None) -> OnMatch:
    """``rule``, and what holds instead with a token.

    ``same_tenant``: the token's tenant is the request's.
    """
    if rule.token is None:
        return place.ends(rule)
    return _judged(place, nothing=place.ends(rule), good=_for_tenant(_granted(rule.token, place), place, same_tenant))


def decision_by_claim(tenants: TenantRules, place: Place) -> OnMatch:
    """The decision where the token names the tenant."""
    source = matching.header(claim_header("tenant"))

    def told(rule: Rule) -> OnMatch:
        return place.ends(rule, by_token=True) if rule.token is None else _granted(rule.token, place)

    other = first_of([(regex(source, _SOMETHING), told(tenants.otherwise))], place.ends(TENANT_MISSING))
    named = {tenant: told(rule) for tenant, rule in tenants.by_tenant.items() if tenant}
    good = nested(matching.exact_map(source, named, nested(other)))
    return _judged(place, nothing=place.ends(TENANT_MISSING), good=good)


def genuine() -> Predicate:
    """A single token came that was verified and has the form of one, whatever call it was made for."""
    needed = (regex(matching.header(claim_header(name)), _ANYTHING) for name in _NEEDED)
    return all_of(regex(_BROUGHT, _SINGLE), *needed, regex(matching.header(claim_header("expires")), _SECONDS))


def without_tenant() -> Predicate:
    """The token names no tenant, as the operation has none."""
    return negated(regex(matching.header(claim_header("tenant")), _SOMETHING))


def tenant_is(expression: cel.Expression) -> Predicate:
    """The token's tenant is what ``expression`` says."""
    return cel.holds(cel.same(cel.header(claim_header("tenant")), expression))


def _judged(place: Place, *, nothing: OnMatch, good: OnMatch) -> OnMatch:
    """``good`` for a token that counts for this operation, caller and key."""
    action = equals(matching.header(claim_header("action")), place.operation.name)
    resource = equals(matching.header(claim_header("resource")), place.service)
    caller = cel.same(cel.header(claim_header("caller")), cel.peer_uri())
    key = cel.same(cel.header(claim_header("certificate")), cel.peer_digest())
    single = regex(_BROUGHT, _SINGLE)
    odd = [begins(_BROUGHT, "."), ends(_BROUGHT, "."), *(contains(_BROUGHT, text) for text in _OVERLOOKED)]
    clean = negated(any_of(odd))  # a verified token is single just where it is clean
    there = {name: regex(matching.header(claim_header(name)), _ANYTHING) for name in _NEEDED}
    seconds = regex(matching.header(claim_header("expires")), _SECONDS)
    # What is compared is there: a good token, the usual case, is not asked for it.
    uncompared = [there[name] for name in _NEEDED if name not in _COMPARED]
    expired = cel.same(cel.metadata(METADATA, FAILED, "message"), cel.text(_EXPIRED))
    checks = [
        (negated(single), DecisionCode.TOKEN_INVALID),
        (cel.holds(expired), DecisionCode.TOKEN_EXPIRED),
        (negated(all_of(*there.values(), seconds)), DecisionCode.TOKEN_INVALID),
        (negated(action), DecisionCode.TOKEN_WRONG_ACTION),
        (negated(resource), DecisionCode.TOKEN_WRONG_RESOURCE),
        (negated(cel.holds(caller)), DecisionCode.TOKEN_WRONG_CALLER),
    ]
    return nested(
        first_of(
            [
                (all_of(clean, *uncompared, seconds, action, resource, cel.holds(cel.both(caller, key))), good),
                (negated(regex(_BROUGHT, _ANYTHING)), nothing),
                *((failed, place.ends(refused(code))) for failed, code in checks),
            ],
            place.ends(refused(DecisionCode.TOKEN_WRONG_KEY)),
        )
    )


def _for_tenant(good: OnMatch, place: Place, same_tenant: Predicate | None) -> OnMatch:
    if same_tenant is None:
        return good
    return nested(first_of([(same_tenant, good)], place.ends(refused(DecisionCode.TOKEN_WRONG_TENANT))))


def _granted(rules: TokenRules, place: Place) -> OnMatch:
    """By approver, then by origin (``eastwest.policy.transaction.outcome``)."""
    approver = matching.header(claim_header("approver"))
    unapproved, approved = _by_origin(rules.unapproved, place), _by_origin(rules.approved, place)
    if approved == unapproved and not rules.approved_by:
        return approved
    other = first_of([(regex(approver, _SOMETHING), approved)], unapproved)
    named = {name: _by_origin(origins, place) for name, origins in rules.approved_by.items() if name}
    return nested(matching.exact_map(approver, named, nested(other)))


def _by_origin(origins: OriginRules, place: Place) -> OnMatch:
    named = {origin: place.ends(rule, by_token=True) for origin, rule in origins.by_origin.items()}
    otherwise = place.ends(origins.otherwise, by_token=True)
    return nested(matching.exact_map(matching.header(claim_header("origin")), named, otherwise))
