"""Access logs that go to the agent: one entry per decision, one per connection of a listener."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2

from eastwest.mesh import names
from eastwest.mesh.matching import pack
from eastwest.mesh.settings import Settings

# Flushed by time. What a proxy decides while its agent is away it keeps in part only: it counts as sent what went
# into a stream that never opened.
_BUFFER_BYTES = 1 << 20


def http_log(log_name: str, settings: Settings, headers: Sequence[str] = ()) -> Any:
    """Requests, with the request headers that name a tenant."""
    config = als_pb2.HttpGrpcAccessLogConfig(
        common_config=_common(log_name, settings), additional_request_headers_to_log=headers
    )
    return accesslog_pb2.AccessLog(name="envoy.access_loggers.http_grpc", typed_config=pack(config))


def tcp_log(log_name: str, settings: Settings) -> Any:
    """Connections: at a listener also those whose handshake failed."""
    config = als_pb2.TcpGrpcAccessLogConfig(common_config=_common(log_name, settings))
    return accesslog_pb2.AccessLog(name="envoy.access_loggers.tcp_grpc", typed_config=pack(config))


def _common(log_name: str, settings: Settings) -> Any:
    return als_pb2.CommonGrpcAccessLogConfig(
        log_name=log_name,
        grpc_service={"envoy_grpc": {"cluster_name": names.AGENT_CLUSTER}},
        transport_api_version=config_source_pb2.V3,
        buffer_flush_interval=settings.log_flush,
        buffer_size_bytes={"value": _BUFFER_BYTES},
    )
