"""What inbound and outbound HTTP have in common: the connection manager and the reading of a request.

A proxy and the application behind it must read the same request. So paths are normalised and what cannot be
is refused, headers that could be read two ways are refused, and headers that speak about identity, about the
original request or about the method are removed before anything looks at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envoy.config.core.v3 import extension_pb2, protocol_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2

from eastwest.mesh import names, rbac, single_use, tokens
from eastwest.mesh.matching import pack
from eastwest.mesh.settings import Settings
from eastwest.mesh.transport import from_agent
from eastwest.policy.headers import REMOVED, REMOVED_PREFIXES

CALLER_HEADER = "x-eastwest-caller"
_MIB = 1 << 20
_NOBODY = {"address_prefix": "255.255.255.255", "prefix_len": {"value": 32}}  # no range would mean the private ones


def connection_manager(
    *,
    stat_prefix: str,
    routes: str,
    filters: Sequence[Any],
    replies: Any,
    logs: Sequence[Any],
    settings: Settings,
    inbound: bool,
    certificate: bool,
) -> Any:
    """The HTTP connection manager as a network filter.

    ``inbound``: peers come over the network, so their connections are bounded in age; ``certificate``: they have
    one, and the application is told whose.
    """
    set_uri = hcm_pb2.HttpConnectionManager.SANITIZE_SET
    sanitize = hcm_pb2.HttpConnectionManager.SANITIZE
    return hcm_pb2.HttpConnectionManager(
        stat_prefix=stat_prefix,
        rds={"route_config_name": routes, "config_source": from_agent()},
        http_filters=[*filters, router()],
        access_log=logs,
        # Whose a stream is must be known before it ends: it may have to be ended for that (containment).
        access_log_options={"access_log_flush_interval": settings.stream_report} if inbound and certificate else None,
        local_reply_config=replies,
        common_http_protocol_options={
            "headers_with_underscores_action": protocol_pb2.HttpProtocolOptions.REJECT_REQUEST,
            "max_connection_duration": settings.max_connection_age if inbound else None,
            "max_stream_duration": settings.max_stream_age,
            "idle_timeout": settings.max_connection_age,
        },
        http1_safe_max_connection_duration=True,  # between requests, not in one
        http2_protocol_options={
            "max_concurrent_streams": {"value": 1024},
            "initial_stream_window_size": {"value": _MIB},
            "initial_connection_window_size": {"value": 16 * _MIB},
        },
        request_headers_timeout={"seconds": 30},
        delayed_close_timeout=settings.delayed_close,
        server_header_transformation=hcm_pb2.HttpConnectionManager.PASS_THROUGH,
        # Every peer counts as external: headers that steer Envoy are not taken from it.
        use_remote_address={"value": True},
        skip_xff_append=True,
        internal_address_config={"unix_sockets": False, "cidr_ranges": [_NOBODY]},
        # One reference joins the caller's log with the service's.
        generate_request_id={"value": True},
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        early_header_mutation_extensions=[_strip()],
        normalize_path={"value": True},
        merge_slashes=True,
        path_with_escaped_slashes_action=hcm_pb2.HttpConnectionManager.REJECT_REQUEST,
        forward_client_cert_details=set_uri if certificate else sanitize,
        set_current_client_cert_details={"uri": True} if certificate else None,
    )


def discovered(name: str, type_url: str, *, disabled: bool = False) -> Any:
    """An HTTP filter that arrives by ECDS. Without it the listener does not open: it fails closed.

    ``disabled``: it costs nothing and does nothing, unless the routes enable it.
    """
    discovery = {"config_source": from_agent(), "type_urls": [type_url]}
    return hcm_pb2.HttpFilter(name=name, config_discovery=discovery, disabled=disabled)


def decision_filters(service: str) -> list[Any]:
    """The filters of a chain whose callers have certificates: what they bring, and what they may.

    Those about tokens are enabled by the routes of services that look at some (``eastwest.mesh.inbound``).
    """
    return [
        discovered(names.tokens_filter(service), tokens.TOKENS, disabled=True),
        discovered(names.tenants_filter(service), tokens.NOTES, disabled=True),
        discovered(names.operations_filter(service), rbac.HTTP_RBAC),
        single_use.check(),
    ]


def router() -> Any:
    """The last filter. Envoy's own headers stay out of what applications see."""
    return hcm_pb2.HttpFilter(
        name="envoy.filters.http.router", typed_config=pack(router_pb2.Router(suppress_envoy_headers=True))
    )


def _strip() -> Any:
    """Remove before anything reads: no filter, route or log sees the caller's version of these."""
    mutation = header_mutation_pb2.HeaderMutation()
    for name in REMOVED:
        mutation.mutations.add(remove=name)
    for prefix in REMOVED_PREFIXES:
        mutation.mutations.add(remove_on_match={"key_matcher": {"prefix": prefix, "ignore_case": True}})
    return extension_pb2.TypedExtensionConfig(
        name="envoy.http.early_header_mutation.header_mutation", typed_config=pack(mutation)
    )
