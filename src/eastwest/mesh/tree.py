"""Matcher trees (xDS unified matcher) whose cost does not grow with the number of policies.

The shape, from the root: method → path prefix → whole path → caller → tenant → action. Paths come before
callers so that a caller costs one map entry per operation. Every level ends in a named action: an
unnamed end would deny without saying why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.matching.common_inputs.ssl.v3 import ssl_inputs_pb2
from envoy.type.matcher.v3 import http_inputs_pb2
from google.protobuf import any_pb2
from xds.core.v3 import extension_pb2
from xds.type.matcher.v3 import matcher_pb2

from eastwest.errors import InvalidInput
from eastwest.mesh.action import ActionName
from eastwest.mesh.paths import Template, by_prefix
from eastwest.policy.enforcement import (
    Cell,
    DecisionCode,
    GrpcMatch,
    HttpMatch,
    OperationRules,
    Rule,
    TcpMatch,
    TenantRules,
    Verdict,
)

# Envoy's protobuf classes carry no types.
OnMatch = Any
Matcher = Any

UNKNOWN_CALLER = Rule(verdict=Verdict.DENY, code=DecisionCode.UNKNOWN_CALLER)
MTLS_REQUIRED = Rule(verdict=Verdict.DENY, code=DecisionCode.MTLS_REQUIRED)
UNLISTED = Rule(verdict=Verdict.DENY, code=DecisionCode.UNLISTED_OPERATION)
TENANT_MISSING = Rule(verdict=Verdict.DENY, code=DecisionCode.TENANT_MISSING)
_KNOWN = Rule(verdict=Verdict.ALLOW, code=DecisionCode.ALLOWED)
_TENANTS_PER_EXPRESSION = 500
# One value, no list: Envoy joins repeated headers with a comma, and an application may take either.
_ONE_VALUE = r"[^,\s]+"


class UnsupportedRules(InvalidInput):
    """The table asks for something that a proxy cannot be told."""


def known_callers(callers: Iterable[str], version: str) -> Matcher:
    """Admit registered callers, refuse all others as ``UNKNOWN_CALLER``."""
    known = action(_KNOWN, "", version)
    return _exact_map(_URI_SAN, dict.fromkeys(callers, known), action(UNKNOWN_CALLER, "", version))


def always(rule: Rule, version: str) -> Matcher:
    """The same answer to everything."""
    return matcher_pb2.Matcher(on_no_match=action(rule, "", version))


def http_operations(operations: Sequence[OperationRules], version: str) -> Matcher:
    """The whole decision about an HTTP or gRPC request from a registered caller."""
    unlisted = action(UNLISTED, "", version)
    by_method: dict[str, list[tuple[Template, OperationRules]]] = {}
    for operation in operations:
        method, template = http_match(operation)
        by_method.setdefault(method, []).append((template, operation))
    methods: dict[str, OnMatch] = {}
    for method, routes in by_method.items():
        leaves = [_by_caller(operation, template, version) for template, operation in routes]
        templates = [template for template, _ in routes]
        prefixes = {
            prefix: _nested(_first_of([(_regex(_PATH, templates[i].regex()), leaves[i]) for i in indices], unlisted))
            for prefix, indices in by_prefix(templates).items()
        }
        methods[method] = _nested(_map("prefix_match_map", _PATH, prefixes, unlisted))
    return _exact_map(_METHOD, methods, unlisted)


def tcp_callers(operations: Sequence[OperationRules], known: Iterable[str], version: str) -> Matcher:
    """The whole decision about a connection: one operation, by caller; unregistered callers are refused."""
    tcp = [operation for operation in operations if isinstance(operation.match, TcpMatch)]
    if len(tcp) > 1:
        raise UnsupportedRules("a TCP service has more than one operation", fix="keep one operation with tcp: true")
    unknown = action(UNKNOWN_CALLER, "", version)
    if not tcp:
        return _exact_map(_URI_SAN, dict.fromkeys(known, action(UNLISTED, "", version)), unknown)
    operation = tcp[0]
    callers = dict.fromkeys(known, action(operation.otherwise, operation.name, version))
    for cell in operation.cells:
        if cell.rule is None:
            raise UnsupportedRules(f"{operation.name}: a TCP connection names no tenant")
        callers.update(dict.fromkeys(cell.callers, action(cell.rule, operation.name, version)))
    return _exact_map(_URI_SAN, callers, unknown)


def http_match(operation: OperationRules) -> tuple[str, Template]:
    """Method and path template on the wire; gRPC is POST to a fixed path."""
    match = operation.match
    if isinstance(match, HttpMatch):
        return match.method, Template.parse(match.path)
    if isinstance(match, GrpcMatch):
        return "POST", Template.parse("/" + match.method)
    raise UnsupportedRules(f"{operation.name}: a TCP operation at an HTTP service")


def action(rule: Rule, operation: str, version: str) -> OnMatch:
    """The end of a branch: Envoy's allow or deny, under a name that carries the decision."""
    name = ActionName(rule.code, rule.policy, operation, version).encode()
    verdict = rbac_pb2.RBAC.ALLOW if rule.verdict == Verdict.ALLOW else rbac_pb2.RBAC.DENY
    return matcher_pb2.Matcher.OnMatch(
        action=extension_pb2.TypedExtensionConfig(
            name="envoy.filters.rbac.action", typed_config=pack(rbac_pb2.Action(name=name, action=verdict))
        )
    )


def pack(message: Any) -> any_pb2.Any:
    """``message`` as an Any, with deterministic bytes."""
    packed = any_pb2.Any()
    packed.Pack(message, deterministic=True)
    return packed


def _by_caller(operation: OperationRules, template: Template, version: str) -> OnMatch:
    """The decision once the operation is known."""
    otherwise = action(operation.otherwise, operation.name, version)
    callers: dict[str, OnMatch] = {}
    for cell in operation.cells:
        outcome = _cell(cell, operation, template, version)
        callers.update(dict.fromkeys(cell.callers, outcome))
    if not callers:
        return otherwise
    return _nested(_exact_map(_URI_SAN, callers, otherwise))


def _cell(cell: Cell, operation: OperationRules, template: Template, version: str) -> OnMatch:
    if cell.rule is not None:
        return action(cell.rule, operation.name, version)
    if cell.tenants is None or operation.tenant is None:
        raise UnsupportedRules(f"{operation.name}: a cell has neither a rule nor a tenant to ask for")
    if operation.tenant.header:
        return _by_tenant_header(cell.tenants, operation.tenant.header, operation.name, version)
    return _by_tenant_parameter(cell.tenants, operation.tenant.path, template, operation.name, version)


def _by_tenant_header(tenants: TenantRules, header: str, operation: str, version: str) -> OnMatch:
    source = _header(header)
    missing = action(TENANT_MISSING, operation, version)
    other = _nested(_first_of([(_regex(source, _ONE_VALUE), action(tenants.otherwise, operation, version))], missing))
    exact = {
        tenant: action(rule, operation, version)
        for tenant, rule in tenants.by_tenant.items()
        if tenant and "," not in tenant
    }
    return _nested(_exact_map(source, exact, other))


def _by_tenant_parameter(
    tenants: TenantRules, parameter: str, template: Template, operation: str, version: str
) -> OnMatch:
    if parameter not in template.parameters:
        return action(TENANT_MISSING, operation, version)
    same: dict[Rule, list[str]] = {}
    for tenant, rule in sorted(tenants.by_tenant.items()):
        same.setdefault(rule, []).append(tenant)
    branches = [
        (_regex(_PATH, template.regex(parameter, chunk)), action(rule, operation, version))
        for rule, names in same.items()
        for chunk in _chunks(names, _TENANTS_PER_EXPRESSION)
    ]
    return _nested(_first_of(branches, action(tenants.otherwise, operation, version)))


def _input(name: str, message: Any) -> Any:
    return extension_pb2.TypedExtensionConfig(name=name, typed_config=pack(message))


def _header(name: str) -> Any:
    return _input(
        "envoy.matching.inputs.request_headers", http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=name)
    )


# The only sound input for identity: a certificate with two URI SANs gives their joined text, which no map holds.
_URI_SAN = _input("envoy.matching.inputs.uri_san", ssl_inputs_pb2.UriSanInput())
_PATH = _header(":path")
_METHOD = _header(":method")


def _exact_map(source: Any, entries: Mapping[str, OnMatch], otherwise: OnMatch) -> Matcher:
    return _map("exact_match_map", source, entries, otherwise)


def _map(kind: str, source: Any, entries: Mapping[str, OnMatch], otherwise: OnMatch) -> Matcher:
    matcher = matcher_pb2.Matcher(on_no_match=otherwise)
    if not entries:  # Envoy refuses an empty map
        return matcher
    matcher.matcher_tree.input.CopyFrom(source)
    table = getattr(matcher.matcher_tree, kind).map
    for key, outcome in entries.items():
        table[key].CopyFrom(outcome)
    return matcher


def _first_of(branches: Sequence[tuple[Any, OnMatch]], otherwise: OnMatch) -> Matcher:
    matcher = matcher_pb2.Matcher(on_no_match=otherwise)
    for predicate, outcome in branches:
        matcher.matcher_list.matchers.add(predicate=predicate, on_match=outcome)
    return matcher


def _regex(source: Any, expression: str) -> Any:
    predicate = matcher_pb2.Matcher.MatcherList.Predicate()
    predicate.single_predicate.input.CopyFrom(source)
    pattern = predicate.single_predicate.value_match.safe_regex
    pattern.google_re2.SetInParent()
    pattern.regex = expression
    return predicate


def _nested(matcher: Matcher) -> OnMatch:
    return matcher_pb2.Matcher.OnMatch(matcher=matcher)


def _chunks(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
