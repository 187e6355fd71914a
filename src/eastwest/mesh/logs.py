"""Access logs that go to the agent: one entry per decision, one per handshake that failed, on the way in or out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2

from eastwest.mesh import names
from eastwest.mesh.matching import pack
from eastwest.mesh.settings import Settings

# Flushed by time. What a proxy decides while its agent is away it keeps in part only: it counts as sent what went
# into a stream that never opened.
_BUFFER_BYTES = 1 << 20
_CEL = "envoy.access_loggers.extension_filters.cel"
_NO_CONNECTION = accesslog_pb2.AccessLogFilter(response_flag_filter={"flags": ["UF"]})

PEER = "peer"
"""Tag of an entry: the certificate (PEM, percent-encoded) that a caller showed."""

TRACE_HEADER = "traceparent"
"""W3C Trace Context: its trace id is kept with decisions that are recorded in full."""


def http_log(log_name: str, settings: Settings, headers: Sequence[str] = ()) -> Any:
    """Requests, with the request headers that name a tenant, and the trace that the caller is in."""
    config = als_pb2.HttpGrpcAccessLogConfig(
        common_config=_common(log_name, settings), additional_request_headers_to_log=[*headers, TRACE_HEADER]
    )
    return accesslog_pb2.AccessLog(name="envoy.access_loggers.http_grpc", typed_config=pack(config))


def tcp_log(log_name: str, settings: Settings) -> Any:
    """Connections."""
    config = als_pb2.TcpGrpcAccessLogConfig(common_config=_common(log_name, settings))
    return accesslog_pb2.AccessLog(name="envoy.access_loggers.tcp_grpc", typed_config=pack(config))


def failed_handshakes(log_name: str, settings: Settings) -> Any:
    """A listener's connections whose handshake failed, with the certificate that was shown, and no others."""
    config = als_pb2.TcpGrpcAccessLogConfig(common_config=_common(log_name, settings))
    config.common_config.custom_tags.add(tag=PEER, value="%DOWNSTREAM_PEER_CERT%")
    failed = cel_pb2.ExpressionFilter(expression="connection.transport_failure_reason != ''")
    return accesslog_pb2.AccessLog(
        name="envoy.access_loggers.tcp_grpc",
        typed_config=pack(config),
        filter={"extension_filter": {"name": _CEL, "typed_config": pack(failed)}},
    )


def failed_http_calls(settings: Settings) -> Any:
    """Requests on the way out for which no connection to the service came about.

    Of the certificate that a service showed Envoy keeps nothing where it refused it: only the reason is told.
    """
    config = als_pb2.HttpGrpcAccessLogConfig(common_config=_common(names.EGRESS, settings))
    return accesslog_pb2.AccessLog(
        name="envoy.access_loggers.http_grpc", typed_config=pack(config), filter=_NO_CONNECTION
    )


def failed_tcp_calls(settings: Settings) -> Any:
    """Connections on the way out, as ``failed_http_calls``."""
    config = als_pb2.TcpGrpcAccessLogConfig(common_config=_common(names.EGRESS, settings))
    return accesslog_pb2.AccessLog(
        name="envoy.access_loggers.tcp_grpc", typed_config=pack(config), filter=_NO_CONNECTION
    )


def _common(log_name: str, settings: Settings) -> Any:
    return als_pb2.CommonGrpcAccessLogConfig(
        log_name=log_name,
        grpc_service={"envoy_grpc": {"cluster_name": names.AGENT_CLUSTER}},
        transport_api_version=config_source_pb2.V3,
        buffer_flush_interval=settings.log_flush,
        buffer_size_bytes={"value": _BUFFER_BYTES},
    )
