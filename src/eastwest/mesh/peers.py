"""The filter that lets the agent see who is at the other end of a plaintext connection, while it is open.

It decides nothing: every answer lets the connection go on, and so do no answer and a late one. It is there in every
mode and under every policy, for a listener that changes drains; callers with certificates never meet it.
"""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import config_source_pb2
from envoy.config.listener.v3 import listener_components_pb2
from envoy.extensions.filters.network.ext_authz.v3 import ext_authz_pb2

from eastwest.mesh import names
from eastwest.mesh.matching import pack

TIMEOUT_MS = 500
"""What a plaintext connection waits at most; the agent that answers takes some milliseconds."""
NAME = "envoy.filters.network.ext_authz"


def ask(service: str) -> Any:
    """The network filter for the plaintext chain of a service."""
    config = ext_authz_pb2.ExtAuthz(
        stat_prefix=f"peers.{service}",
        transport_api_version=config_source_pb2.V3,
        grpc_service={
            "envoy_grpc": {"cluster_name": names.AGENT_CLUSTER},
            "timeout": {"nanos": TIMEOUT_MS * 1_000_000},
        },
        failure_mode_allow=True,
    )
    return listener_components_pb2.Filter(name=NAME, typed_config=pack(config))
