"""What an operation is on the wire, and whether and where a request for it names a tenant."""

from __future__ import annotations

import re
from collections.abc import Collection

from eastwest.policy.enforcement import GrpcMatch, HttpMatch, OperationRules, TcpMatch, TenantSource
from eastwest.policy.estate import Operation, Sensitivity, Service
from eastwest.policy.paths import Template, is_parameter_value

OWN_SERVICE = "eastwest"
"""The name by which applications reach the server itself through their sidecars; no estate may use it."""
TENANT_PARAMETERS = ("tenant", "tenant_id", "tenantId", "tenant-id")
"""Names that a path's parameter has when it says which tenant a request is about, the likeliest first."""
_ONE_VALUE = re.compile(r"[!-+\--~]+")  # visible ASCII without the comma


def matcher(operation: Operation) -> HttpMatch | GrpcMatch | TcpMatch:
    """How enforcement points recognise the operation."""
    match = operation.match
    if match.tcp:
        return TcpMatch()
    if match.grpc is not None:
        return GrpcMatch(method=match.grpc)
    if match.method is None or match.path is None:
        raise AssertionError("a checked match has a method and a path")
    return HttpMatch(method=match.method, path=match.path)


def wire_form(match: HttpMatch | GrpcMatch | TcpMatch) -> tuple[str, Template] | None:
    """HTTP method and path template; ``None`` for TCP, which has neither."""
    if isinstance(match, TcpMatch):
        return None
    if isinstance(match, GrpcMatch):
        return "POST", Template.parse("/" + match.method)
    return match.method, Template.parse(match.path)


def method_of(operation: Operation) -> str:
    """The HTTP method that requests for the operation have; empty for TCP."""
    form = wire_form(matcher(operation))
    return form[0] if form else ""


def tenant_source(service: Service, operation: Operation) -> TenantSource | None:
    """Where requests name their tenant, or ``None`` when the operation is not per tenant.

    A path source holds for the templates that have the parameter; a header or a token for all but open operations.
    """
    if service.tenant is None or operation.match.tcp:
        return None
    if service.tenant.claim:
        return None if operation.sensitivity is Sensitivity.OPEN else TenantSource(claim=True)
    if service.tenant.header is not None:
        return None if operation.sensitivity is Sensitivity.OPEN else TenantSource(header=service.tenant.header)
    form = wire_form(matcher(operation))
    if form is None or service.tenant.path is None or service.tenant.path not in form[1].parameters:
        return None
    return TenantSource(path=service.tenant.path)


def likely_tenant(parameters: Collection[str]) -> str:
    """Which of these parameters of paths names a tenant, by its own name; "" when none does."""
    return next((name for name in TENANT_PARAMETERS if name in parameters), "")


def match_text(operation: OperationRules) -> str:
    """Which requests are the operation's: ``GET /users/{user}``, or ``tcp``."""
    form = wire_form(operation.match)
    if form is None:
        return "tcp"
    path = "/" + "/".join(f"{{{parameter}}}" if parameter else literal for literal, parameter in form[1].segments)
    return f"{form[0]} {path}"


def tenant_source_text(operation: OperationRules) -> str:
    """Where requests name their tenant: ``path NAME``, ``header NAME``, ``claim``; "" when it is not per tenant."""
    source = operation.tenant
    if source is None:
        return ""
    if source.claim:
        return "claim"
    return f"path {source.path}" if source.path else f"header {source.header}"


def can_be_tenant(source: TenantSource, text: str) -> bool:
    """Whether a request can name ``text`` as its tenant there.

    A header value that is empty or has a comma or a space is no tenant: proxies join repeated headers with commas.
    """
    if source.path:
        return is_parameter_value(text)
    if source.claim:
        return bool(text)
    return _ONE_VALUE.fullmatch(text) is not None
