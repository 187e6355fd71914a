"""The filters before the tree: one verifies transaction tokens, one notes what the tree and the logs need besides.

Neither refuses anything: the tree decides (``eastwest.mesh.token_tree``), in report mode as in strict mode. Both are in
every listener, come by ECDS and are enabled by routes, so that neither a key nor a policy changes a listener, and a
service without tokens pays nothing. Where a tree asks for what they have not found, the token does not count.
"""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.http.header_to_metadata.v3 import header_to_metadata_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_pb2

from eastwest.mesh import names
from eastwest.mesh.paths import Template
from eastwest.policy.enforcement import Cell, HttpMatch, Inbound, TenantSource, uses_tokens
from eastwest.policy.transaction import HEADER, MAX_LIFE, MAX_TOKEN, SKEW

HEADER_PREFIX = "x-eastwest-token-"
CLAIMS = {
    "id": "jti",
    "transaction": "txn",
    "caller": "sub",
    "expires": "exp",
    "action": "tctx.action",
    "resource": "tctx.resource",
    "origin": "tctx.origin",
    "certificate": "tctx.certificate",
    "tenant": "tctx.tenant",
    "approval": "tctx.approval",
    "approver": "tctx.approver",
}
"""What trees and the agent read of a verified token, by the end of the header that says it within the sidecar."""
LOGGED = ("transaction", "caller", "tenant", "approver", "origin")
"""Claims that are still known when a request is logged; their headers are gone by then."""
NOTED = "eastwest.token"
"""Namespace of what logs tell of a verified token."""
METADATA = "envoy.filters.http.jwt_authn"
FAILED = "failed"
CHECKED_ROUTE = "eastwest.single-use"
"""Name of the routes that ask whether a token was used."""
TENANTS = "eastwest.tenant"
"""Namespace of the tenants that were read out of paths."""
TOKENS = names.PREFIX + jwt_pb2.JwtAuthentication.DESCRIPTOR.full_name
NOTES = names.PREFIX + header_to_metadata_pb2.Config.DESCRIPTOR.full_name
_PROVIDER = "eastwest"
_CACHED_TOKENS = 16
"""Of each worker. Most tokens come once, and what a cache holds of them makes the next one dearer: each is parsed into
memory that was dropped from the processor's caches long ago."""


def claim_header(name: str) -> str:
    """The header that carries a claim from the filter that verified it to the trees; never to an application."""
    return HEADER_PREFIX + name


def verification(inbound: Inbound, keys: bytes, trust_domain: str) -> Any:
    """What verifies tokens: ``keys`` is a JWK set, ``trust_domain`` (``spiffe://...``) both issuer and audience.

    Empty without keys, and where no token makes a difference: then none is looked at, and none counts.
    """
    if not keys or not uses_tokens(inbound):
        return jwt_pb2.JwtAuthentication()
    provider = jwt_pb2.JwtProvider(
        issuer=trust_domain,
        audiences=[trust_domain],
        require_expiration=True,
        max_lifetime={"seconds": MAX_LIFE + SKEW},  # that is left of it
        clock_skew_seconds=SKEW,
        local_jwks={"inline_bytes": keys},
        from_headers=[{"name": HEADER}],
        forward=True,  # the application exchanges it for one of its own when it calls on
        # Not the payload, which would be copied twice for each request: five claims of it are noted (``notes``).
        failed_status_in_metadata=FAILED,
        claim_to_headers=[
            {"header_name": claim_header(name), "claim_name": claim} for name, claim in sorted(CLAIMS.items())
        ],
    )
    if not _each_counts_once(inbound):
        provider.jwt_cache_config.jwt_cache_size = _CACHED_TOKENS
        provider.jwt_cache_config.jwt_max_token_size = MAX_TOKEN
    either: dict[str, Any] = {"requirements": [{"provider_name": _PROVIDER}, {"allow_missing_or_failed": {}}]}
    return jwt_pb2.JwtAuthentication(
        providers={_PROVIDER: provider}, rules=[{"match": {"prefix": "/"}, "requires": {"requires_any": either}}]
    )


def notes(inbound: Inbound) -> Any:
    """What notes tenants of paths for the tree (``path_tenants``), and claims of a verified token for the logs."""
    made = path_tenants(inbound)
    for name in LOGGED:
        made.request_rules.add(header=claim_header(name), on_header_present={"metadata_namespace": NOTED, "key": name})
    return made


def path_tenants(inbound: Inbound) -> Any:
    """What notes the tenant of a path under its shape, for the operations where a token must name the same."""
    found: dict[str, str] = {}
    for operation in (*inbound.operations, *inbound.report):
        source, match = operation.tenant, operation.match
        if source is None or not source.path or not isinstance(match, HttpMatch):
            continue
        if not any(looks_at_tokens(cell, source) for cell in operation.cells):
            continue
        template = Template.parse(match.path)
        if source.path in template.parameters:
            found[template.shape_until(source.path)] = template.capture(source.path)
    return header_to_metadata_pb2.Config(
        request_rules=[
            {
                "header": ":path",
                "on_header_present": {
                    "metadata_namespace": TENANTS,
                    "key": shape,
                    "regex_value_rewrite": {"pattern": {"google_re2": {}, "regex": expression}, "substitution": r"\1"},
                },
            }
            for shape, expression in sorted(found.items())
        ]
    )


def count_once(inbound: Inbound) -> bool:
    """Whether a token counts for a single call at some operation of the service."""
    return any(o.single_use and any(looks_at_tokens(c, o.tenant) for c in o.cells) for o in inbound.operations)


def _each_counts_once(inbound: Inbound) -> bool:
    """Whether no token makes a difference twice."""
    every = (*inbound.operations, *inbound.report)
    return all(o.single_use for o in every if any(looks_at_tokens(c, o.tenant) for c in o.cells))


def looks_at_tokens(cell: Cell, source: TenantSource | None) -> bool:
    """Whether a token can make a difference to the answer that the cell's callers get."""
    if cell.rule is not None:
        return cell.rule.token is not None
    if cell.tenants is None:
        return False
    by_claim = source is not None and source.claim
    rules = (cell.tenants.otherwise, *cell.tenants.by_tenant.values())
    return by_claim or any(rule.token is not None for rule in rules)
