"""Where requests go: the application behind the sidecar, and services that it calls."""

from __future__ import annotations

import ipaddress
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from eastwest.errors import InvalidInput
from eastwest.mesh import names, transport
from eastwest.mesh.matching import pack
from eastwest.mesh.settings import Settings
from eastwest.policy.enforcement import Outbound
from eastwest.spiffe.id import SpiffeId

_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class MalformedAddress(InvalidInput):
    """A text is neither ``unix:/path`` nor ``tcp:host:port`` nor ``host:port``."""


def local(service: str, upstream: str, settings: Settings, *, grpc: bool | None) -> Any:
    """The application. ``grpc``: speak HTTP/2 (True) or HTTP/1.1 (False) to it; None for bytes."""
    name = names.local_cluster(service, grpc=bool(grpc))
    cluster = _cluster(name, [upstream], settings)
    if grpc is not None:
        _protocol(cluster, http2=grpc)
    return cluster


def remote(outbound: Outbound, spiffe_id: str, settings: Settings) -> Any:
    """A service over mTLS, trusted only as ``outbound.spiffe_id``."""
    server = SpiffeId.parse(outbound.spiffe_id)
    cluster = _cluster(names.remote_cluster(outbound.service), list(outbound.endpoints), settings)
    http = outbound.protocol == "http"
    post_quantum = outbound.post_quantum
    if http:
        _negotiated(cluster)
    cluster.transport_socket.CopyFrom(
        transport.upstream(
            spiffe_id,
            outbound.spiffe_id,
            names.post_quantum_bundle(server.trust_domain.name) if post_quantum else server.trust_domain.uri,
            sni=f"{outbound.service}.{server.trust_domain.name}",
            http=http,
            post_quantum=post_quantum,
        )
    )
    return cluster


def address(text: str) -> tuple[dict[str, Any], bool]:
    """An Envoy address, and whether its host is a name to be resolved."""
    if text.startswith("unix:"):
        return {"pipe": {"path": text.removeprefix("unix:")}}, False
    host, colon, port = text.removeprefix("tcp:").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise MalformedAddress(f"{text[:80]!r} is not an address", fix="write unix:/path or tcp:host:port")
    return {"socket_address": {"address": host, "port_value": int(port)}}, not _is_ip(host)


def _cluster(name: str, endpoints: list[str], settings: Settings) -> Any:
    addresses = [address(endpoint) for endpoint in endpoints]
    named = any(is_name for _, is_name in addresses)
    limit = {"value": settings.max_connections}
    return cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.STRICT_DNS if named else cluster_pb2.Cluster.STATIC,
        connect_timeout=settings.connect_timeout,
        load_assignment={
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": where}} for where, _ in addresses]}],
        },
        circuit_breakers={
            "thresholds": [{"max_connections": limit, "max_pending_requests": limit, "max_requests": limit}]
        },
    )


def _protocol(cluster: Any, *, http2: bool) -> None:
    explicit: dict[str, Any] = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    options = http_protocol_options_pb2.HttpProtocolOptions(explicit_http_config=explicit)
    cluster.typed_extension_protocol_options[_OPTIONS].CopyFrom(pack(options))


def _negotiated(cluster: Any) -> None:
    """HTTP/2 with a server that takes it, as sidecars do, else HTTP/1.1: what TLS agrees on (RFC 7301).

    Servers that enforce by the SDK speak HTTP/1.1 alone.
    """
    either: dict[str, Any] = {"http_protocol_options": {}, "http2_protocol_options": {}}
    options = http_protocol_options_pb2.HttpProtocolOptions(auto_config=either)
    cluster.typed_extension_protocol_options[_OPTIONS].CopyFrom(pack(options))


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
