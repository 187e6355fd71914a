"""The filters of a service, each a resource of its own (ECDS): a change swaps a filter under live connections.

Some decide; others find out what is decided by. Strict: the tree is enforced. Permissive: the same tree is the shadow
form, so a report says what enforcement would do. Both forms are the same resource under the same name, so that a mode
switch touches nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac

from eastwest.mesh import names, tokens, tree
from eastwest.mesh.action import inbound_version
from eastwest.policy.enforcement import Inbound, MtlsMode

OPERATIONS = "operations_"
PLAINTEXT = "plaintext_"

HTTP_METADATA = "envoy.filters.http.rbac"
NETWORK_METADATA = "envoy.filters.network.rbac"
ENFORCED_POLICY = "enforced_effective_policy_id"
SHADOW_POLICY = "shadow_effective_policy_id"

HTTP_RBAC = names.PREFIX + http_rbac.RBAC.DESCRIPTOR.full_name
NETWORK_RBAC = names.PREFIX + network_rbac.RBAC.DESCRIPTOR.full_name


def filters(
    inbound: Inbound, known_callers: Iterable[str], trust_domain: str, token_keys: bytes = b""
) -> dict[str, Any]:
    """All filter resources of one service: name → filter config message.

    ``token_keys``: the JWK set by which transaction tokens of ``trust_domain`` (``spiffe://...``) are verified.
    """
    version = inbound_version(inbound)
    strict = inbound.mode != MtlsMode.PERMISSIVE  # whatever is not plainly permissive is enforced
    plaintext = tree.always(tree.MTLS_REQUIRED, version)
    service = inbound.service
    if inbound.protocol == "tcp":
        callers = tree.tcp_callers(inbound.operations, known_callers, version)
        return {
            names.operations_filter(service): _network(callers, OPERATIONS, strict=strict),
            names.plaintext_filter(service): _network(plaintext, PLAINTEXT, strict=strict),
        }
    operations = tree.http_operations(service, inbound.operations, known_callers, version)
    return {
        names.tokens_filter(service): tokens.verification(inbound, token_keys, trust_domain),
        names.tenants_filter(service): tokens.notes(inbound),
        names.operations_filter(service): _http(operations, OPERATIONS, strict=strict),
        names.plaintext_filter(service): _http(plaintext, PLAINTEXT, strict=strict),
    }


def _http(matcher: Any, prefix: str, *, strict: bool) -> Any:
    if strict:
        return http_rbac.RBAC(matcher=matcher, rules_stat_prefix=prefix)
    return http_rbac.RBAC(shadow_matcher=matcher, shadow_rules_stat_prefix=prefix)


def _network(matcher: Any, prefix: str, *, strict: bool) -> Any:
    # The enforced form names its policy only when it refuses; the shadow beside it names it always.
    rbac = network_rbac.RBAC(shadow_matcher=matcher, shadow_rules_stat_prefix=prefix, stat_prefix=prefix)
    if strict:
        rbac.matcher.CopyFrom(matcher)
    return rbac
