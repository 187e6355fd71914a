"""Matcher trees (xDS unified matcher) whose cost does not grow with the number of policies.

The shape, from the root: registered caller → one host → method → path prefix → whole path → caller → tenant → action.
Paths come before callers so that a caller costs one map entry per operation. Every level ends in a named action: an
unnamed end would deny without saying why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from eastwest.errors import InvalidInput
from eastwest.mesh import cel, matching
from eastwest.mesh.action import outcome
from eastwest.mesh.matching import (
    HOST,
    METHOD,
    PATH,
    URI_SAN,
    Matcher,
    OnMatch,
    Predicate,
    any_of,
    exact_map,
    first_of,
    nested,
    one_of,
    prefix_map,
    regex,
)
from eastwest.mesh.paths import Template, by_prefix
from eastwest.mesh.token_tree import (
    TENANT_MISSING,
    Place,
    decision,
    decision_by_claim,
    tenant_is,
    without_tenant,
)
from eastwest.mesh.tokens import TENANTS, looks_at_tokens
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    GrpcMatch,
    HttpMatch,
    OperationRules,
    Rule,
    TcpMatch,
    TenantRules,
    TenantSource,
)
from eastwest.policy.normalise import ONE_HOST
from eastwest.policy.operations import can_be_tenant
from eastwest.policy.transaction import refused

UNKNOWN_CALLER = refused(DecisionCode.UNKNOWN_CALLER)
MTLS_REQUIRED = refused(DecisionCode.MTLS_REQUIRED)
UNLISTED = refused(DecisionCode.UNLISTED_OPERATION)
_TENANTS_PER_EXPRESSION = 500
_MAX_COPIES = 8
_ONE_VALUE = r"[!-+\--~]+"


class UnsupportedRules(InvalidInput):
    """The table asks for something that a proxy cannot be told."""


def always(rule: Rule, version: str) -> Matcher:
    """The same answer to everything."""
    return matching.always(outcome(rule, "", version))


def http_operations(
    service: str,
    operations: Sequence[OperationRules],
    known: Iterable[str],
    version: str,
    *,
    reported: bool = False,
    passing: bool = False,
) -> Matcher:
    """The whole decision about an HTTP or gRPC request; unregistered callers are refused before all else.

    ``reported``, ``passing``: as in ``Place``.
    """
    unlisted = outcome(UNLISTED, "", version, passing=passing)
    by_method: dict[str, list[tuple[Template, Place]]] = {}
    for operation in operations:
        method, template = http_match(operation)
        place = Place(service, operation, version, reported=reported, passing=passing)
        by_method.setdefault(method, []).append((template, place))
    methods: dict[str, OnMatch] = {}
    for method, routes in by_method.items():
        leaves = [_by_caller(place, template) for template, place in routes]
        templates = [template for template, _ in routes]
        prefixes = {
            prefix: nested(first_of([(regex(PATH, templates[i].regex()), leaves[i]) for i in indices], unlisted))
            for prefix, indices in by_prefix(templates).items()
        }
        methods[method] = nested(prefix_map(PATH, prefixes, unlisted))
    chosen = nested(exact_map(METHOD, methods, unlisted))
    asked = first_of([(regex(HOST, ONE_HOST), chosen)], unlisted)
    # A map would need a copy of all this for each caller.
    registered = one_of(URI_SAN, known)
    unknown = outcome(UNKNOWN_CALLER, "", version, passing=passing)
    return first_of([(any_of(registered), nested(asked))] if registered else [], unknown)


def tcp_callers(
    operations: Sequence[OperationRules],
    known: Iterable[str],
    version: str,
    report: Sequence[OperationRules] = (),
) -> Matcher:
    """The whole decision about a connection: one operation, by caller; unregistered callers are refused.

    ``report``: the operations with rules in report mode. A caller is all that either answer can depend on, so the
    action's name tells both.
    """
    unknown = outcome(UNKNOWN_CALLER, "", version)
    operation = _tcp_operation(operations)
    if operation is None:
        return exact_map(URI_SAN, dict.fromkeys(known, outcome(UNLISTED, "", version)), unknown)
    rules, other = _tcp_rules(operation), _tcp_operation(report)
    reported = rules if other is None else _tcp_rules(other)
    both = {
        caller: (rules.get(caller, operation.otherwise), reported.get(caller, operation.otherwise)) for caller in known
    }
    ends = {pair: outcome(pair[0], operation.name, version, report=pair[1]) for pair in dict.fromkeys(both.values())}
    return exact_map(URI_SAN, {caller: ends[pair] for caller, pair in both.items()}, unknown)


def _tcp_operation(operations: Sequence[OperationRules]) -> OperationRules | None:
    tcp = [operation for operation in operations if isinstance(operation.match, TcpMatch)]
    if len(tcp) > 1:
        raise UnsupportedRules("a TCP service has more than one operation", fix="keep one operation with tcp: true")
    return tcp[0] if tcp else None


def _tcp_rules(operation: OperationRules) -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for cell in operation.cells:
        if cell.rule is None:
            raise UnsupportedRules(f"{operation.name}: a TCP connection names no tenant")
        found.update(dict.fromkeys(cell.callers, cell.rule))
    return found


def http_match(operation: OperationRules) -> tuple[str, Template]:
    """Method and path template on the wire; gRPC is POST to a fixed path."""
    match = operation.match
    if isinstance(match, HttpMatch):
        return match.method, Template.parse(match.path)
    if isinstance(match, GrpcMatch):
        return "POST", Template.parse("/" + match.method)
    raise UnsupportedRules(f"{operation.name}: a TCP operation at an HTTP service")


def _by_caller(place: Place, template: Template) -> OnMatch:
    """The decision once the operation is known."""
    otherwise = place.ends(place.operation.otherwise)
    callers: dict[str, OnMatch] = {}
    branches: list[tuple[Predicate, OnMatch]] = []
    for cell in place.operation.cells:
        decided = _cell(cell, place, template)
        if _is_shared(cell, place.operation.tenant):
            branches += [(some, decided) for some in one_of(URI_SAN, cell.callers)]
        else:
            callers.update(dict.fromkeys(cell.callers, decided))
    return nested(exact_map(URI_SAN, callers, nested(first_of(branches, otherwise))))


def _is_shared(cell: Cell, source: TenantSource | None) -> bool:
    """Whether a copy of the cell's subtree for each caller is too much: it looks at tokens, and they are many."""
    return len(cell.callers) > _MAX_COPIES and looks_at_tokens(cell, source)


def _cell(cell: Cell, place: Place, template: Template) -> OnMatch:
    source = place.operation.tenant
    if cell.rule is not None:
        return decision(cell.rule, place, _same_tenant(source, template))
    if cell.tenants is None or source is None:
        raise UnsupportedRules(f"{place.operation.name}: a cell has neither a rule nor a tenant to ask for")
    if source.claim:
        return decision_by_claim(cell.tenants, place)
    if source.header:
        return _by_tenant_header(cell.tenants, source, place, template)
    return _by_tenant_parameter(cell.tenants, source, place, template)


def _same_tenant(source: TenantSource | None, template: Template) -> Predicate | None:
    """The token's tenant is the request's; None where the token's is the request's by definition."""
    if source is None:
        return without_tenant()
    if source.claim:
        return None
    if source.header:
        return tenant_is(cel.header(source.header))
    if source.path not in template.parameters:
        return without_tenant()
    return tenant_is(cel.metadata(TENANTS, template.shape_until(source.path)))


def _by_tenant_header(tenants: TenantRules, source: TenantSource, place: Place, template: Template) -> OnMatch:
    header = matching.header(source.header)
    same = _same_tenant(source, template)
    named = {tenant: rule for tenant, rule in tenants.by_tenant.items() if can_be_tenant(source, tenant)}
    small = {tenant: place.ends(rule) for tenant, rule in named.items() if rule.token is None}
    branches = [
        (some, decision(rule, place, same))
        for rule, texts in _by_rule({tenant: rule for tenant, rule in named.items() if tenant not in small}).items()
        for some in one_of(header, texts)
    ]
    branches.append((regex(header, _ONE_VALUE), decision(tenants.otherwise, place, same)))
    return nested(exact_map(header, small, nested(first_of(branches, place.ends(TENANT_MISSING)))))


def _by_tenant_parameter(tenants: TenantRules, source: TenantSource, place: Place, template: Template) -> OnMatch:
    if source.path not in template.parameters:
        return place.ends(TENANT_MISSING)
    same = _same_tenant(source, template)
    branches = [
        (regex(PATH, template.regex(source.path, chunk)), decision(rule, place, same))
        for rule, texts in _by_rule(tenants.by_tenant).items()
        for chunk in _chunks(texts, _TENANTS_PER_EXPRESSION)
    ]
    return nested(first_of(branches, decision(tenants.otherwise, place, same)))


def _by_rule(tenants: Mapping[str, Rule]) -> dict[Rule, list[str]]:
    same: dict[Rule, list[str]] = {}
    for tenant, rule in sorted(tenants.items()):
        same.setdefault(rule, []).append(tenant)
    return same


def _chunks(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
