"""The filters of a service, each a resource of its own (ECDS): a change swaps a filter under live connections.

Some decide; others find out what is decided by. Strict: the tree is enforced. Permissive: the same tree is the shadow
form, so a report says what enforcement would do. Both forms are the same resource under the same name, so that a mode
switch touches nothing else.

Rules in report mode are a second tree, made with them, in the place that the first leaves free: the shadow form where
the first is enforced; where the first is the shadow form, the enforced one, every end of which lets the call pass. A
service whose rules are all enforced, or none of whose answers they change, has no second tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac

from eastwest.mesh import names, tokens, tree
from eastwest.mesh.action import inbound_version
from eastwest.policy.canary import with_canaries
from eastwest.policy.enforcement import Inbound, MtlsMode
from eastwest.spiffe.id import SCHEME

OPERATIONS = "operations_"
PLAINTEXT = "plaintext_"
REPORT = "report_"

HTTP_METADATA = "envoy.filters.http.rbac"
NETWORK_METADATA = "envoy.filters.network.rbac"
ENFORCED_POLICY = "enforced_effective_policy_id"
SHADOW_POLICY = "shadow_effective_policy_id"

HTTP_RBAC = names.PREFIX + http_rbac.RBAC.DESCRIPTOR.full_name
NETWORK_RBAC = names.PREFIX + network_rbac.RBAC.DESCRIPTOR.full_name


def filters(
    inbound: Inbound,
    known_callers: Sequence[str],
    trust_domain: str,
    token_keys: bytes = b"",
    *,
    canaries: bool = False,
) -> dict[str, Any]:
    """All filter resources of one service: name → filter config message.

    ``token_keys``: the JWK set by which transaction tokens of ``trust_domain`` (``spiffe://...``) are verified.
    ``canaries``: those of a verify run count now; the version stays that of the rules which they prove.
    """
    version = inbound_version(inbound)
    if canaries:
        inbound, known_callers = with_canaries(inbound, known_callers, trust_domain.removeprefix(SCHEME))
    strict = inbound.mode != MtlsMode.PERMISSIVE  # whatever is not plainly permissive is enforced
    plaintext = tree.always(tree.MTLS_REQUIRED, version)
    service = inbound.service
    if inbound.protocol == "tcp":
        callers = tree.tcp_callers(inbound.operations, known_callers, version, inbound.report)
        return {
            names.operations_filter(service): _network(callers, OPERATIONS, strict=strict),
            names.plaintext_filter(service): _network(plaintext, PLAINTEXT, strict=strict),
        }
    operations = tree.http_operations(service, inbound.operations, known_callers, version)
    return {
        names.tokens_filter(service): tokens.verification(inbound, token_keys, trust_domain),
        names.tenants_filter(service): tokens.notes(inbound),
        names.operations_filter(service): _with_report(
            _http(operations, OPERATIONS, strict=strict), inbound, known_callers, version, strict=strict
        ),
        names.plaintext_filter(service): _http(plaintext, PLAINTEXT, strict=strict),
    }


def _with_report(filter_: Any, inbound: Inbound, known: Iterable[str], version: str, *, strict: bool) -> Any:
    """The filter with the tree of the rules in report mode beside its own."""
    if not inbound.report:
        return filter_
    reported = tree.http_operations(inbound.service, inbound.report, known, version, reported=True, passing=not strict)
    if strict:
        filter_.shadow_matcher.CopyFrom(reported)
        filter_.shadow_rules_stat_prefix = REPORT
    else:
        filter_.matcher.CopyFrom(reported)
        filter_.rules_stat_prefix = REPORT
    return filter_


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
