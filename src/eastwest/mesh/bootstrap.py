"""The file an Envoy starts with: who it is, and where its agent listens. Everything else comes over the stream."""

from __future__ import annotations

import json
from typing import Any

from eastwest.mesh import names

_PROTOCOLS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

# An agent that restarted is found again within two seconds; Envoy's own bound is thirty.
STATS_SECONDS = 5
"""How often a sidecar tells its agent its counters."""
RUNTIME = {"re2.max_program_size.error_level": 1_000_000}
"""Alternations of tenants make larger expressions than Envoy's default bound of 100 steps."""
_RETRY = {"retry_back_off": {"base_interval": "0.1s", "max_interval": "2s"}}


def bootstrap(
    *, node_id: str, spiffe_id: str, agent_socket: str, admin_socket: str, max_connections: int = 20_000
) -> bytes:
    """Bootstrap JSON. Both sockets are unix sockets; the admin one is made with mode 0600, and there is no TCP port."""
    agent: dict[str, Any] = {
        "name": names.AGENT_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": names.AGENT_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": agent_socket}}}}]}],
        },
        "typed_extension_protocol_options": {
            _PROTOCOLS: {
                "@type": names.PREFIX + _PROTOCOLS,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    stream = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    config = {
        "node": {"id": node_id, "cluster": spiffe_id},
        "admin": {"address": {"pipe": {"path": admin_socket, "mode": 0o600}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": names.AGENT_CLUSTER, "retry_policy": _RETRY}}],
                "set_node_on_first_message_only": True,
            },
            "cds_config": stream,
            "lds_config": stream,
        },
        "static_resources": {"clusters": [agent]},
        # By these the agent knows of log entries that it never received (eastwest.agent.proxies).
        "stats_sinks": [
            {
                "name": "envoy.stat_sinks.metrics_service",
                "typed_config": {
                    "@type": names.PREFIX + "envoy.config.metrics.v3.MetricsServiceConfig",
                    "grpc_service": {"envoy_grpc": {"cluster_name": names.AGENT_CLUSTER}},
                    "transport_api_version": "V3",
                    "histogram_emit_mode": "HISTOGRAM",
                },
            }
        ],
        "stats_flush_interval": f"{STATS_SECONDS}s",
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": names.PREFIX
                        + "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": max_connections,
                    },
                }
            ]
        },
        "layered_runtime": {
            "layers": [
                {"name": "eastwest", "static_layer": RUNTIME},
            ]
        },
    }
    return json.dumps(config, sort_keys=True, indent=1).encode()
