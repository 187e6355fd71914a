"""The application's way out: services by name over one unix socket, mTLS by the sidecar.

A request's host chooses the service (``billing`` or ``billing.saas.example``, any port); an unknown one is
answered 404 with ``UNKNOWN_SERVICE``. TCP services have a socket each. While the caller or a service is contained,
calls are refused here already (``CALLER_CONTAINED``, ``IDENTITY_CONTAINED``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2

from eastwest.mesh import clusters, http, logs, names, replies
from eastwest.mesh.matching import pack
from eastwest.mesh.settings import Settings
from eastwest.mesh.snapshot import Resource
from eastwest.policy.enforcement import Outbound
from eastwest.registry.containment import NOBODY, Contained
from eastwest.spiffe.id import SpiffeId

_SOCKET_MODE = 0o600


def egress_resources(
    outbound: Sequence[Outbound], spiffe_id: str, settings: Settings, contained: Contained = NOBODY
) -> list[Resource]:
    """Listeners, the one route table, and a cluster per service that may be reached: none who is ``contained``."""
    found: list[Resource] = []
    closed = spiffe_id in contained
    refused = [service for service in outbound if service.spiffe_id in contained and not closed]
    outbound = [service for service in outbound if service.spiffe_id not in contained and not closed]
    for service in outbound:
        bundle = SpiffeId.parse(service.spiffe_id).trust_domain.uri
        cluster = clusters.remote(service, spiffe_id, settings)
        needs = [(names.SECRET, spiffe_id), (names.SECRET, bundle)]
        found.append(Resource.of(cluster.name, names.CLUSTER, cluster, needs))
        if service.protocol == "tcp" and settings.tcp_egress_directory:
            found.append(_tcp_listener(service.service, settings))
    web = [service for service in outbound if service.protocol == "http"]
    routes = _routes(web, [service for service in refused if service.protocol == "http"], closed=closed)
    needs = [(names.CLUSTER, names.remote_cluster(service.service)) for service in web]
    found.append(Resource.of(names.EGRESS, names.ROUTES, routes, needs))
    found.append(Resource.of(names.EGRESS, names.LISTENER, _listener(settings), [(names.ROUTES, names.EGRESS)]))
    return found


def _listener(settings: Settings) -> Any:
    manager = http.connection_manager(
        stat_prefix=names.EGRESS,
        routes=names.EGRESS,
        filters=(),
        replies=replies.egress_replies(),
        logs=[logs.failed_http_calls(settings)],
        settings=settings,
        inbound=False,
        certificate=False,
    )
    listener = listener_pb2.Listener(
        name=names.EGRESS,
        address=_pipe(settings.egress_socket),
        filter_chains=[_chain("envoy.filters.network.http_connection_manager", manager)],
    )
    if settings.egress_port is not None:
        loopback = {"socket_address": {"address": "127.0.0.1", "port_value": settings.egress_port}}
        listener.additional_addresses.add(address=loopback)
    return listener


def _tcp_listener(service: str, settings: Settings) -> Resource:
    name = f"{names.EGRESS}/{service}"
    proxy = tcp_proxy_pb2.TcpProxy(
        stat_prefix=name,
        cluster=names.remote_cluster(service),
        max_downstream_connection_duration=settings.max_stream_age,
        access_log=[logs.failed_tcp_calls(settings)],
    )
    listener = listener_pb2.Listener(
        name=name,
        address=_pipe(f"{settings.tcp_egress_directory}/{service}.sock"),
        filter_chains=[_chain("envoy.filters.network.tcp_proxy", proxy)],
    )
    return Resource.of(name, names.LISTENER, listener, [(names.CLUSTER, names.remote_cluster(service))])


def _routes(outbound: Sequence[Outbound], refused: Sequence[Outbound], *, closed: bool) -> Any:
    hosts = [_host(service) for service in outbound]
    hosts += [_answering(one.service, _domains(one), 403, replies.SERVICE_ROUTE) for one in refused]
    last = ("closed", ["*"], 403, replies.CALLER_ROUTE) if closed else ("unknown", ["*"], 404, "")
    hosts.append(_answering(*last))
    return route_pb2.RouteConfiguration(
        name=names.EGRESS,
        virtual_hosts=hosts,
        ignore_port_in_host_matching=True,
        validate_clusters={"value": False},
    )


def _answering(name: str, domains: Sequence[str], status: int, route: str) -> Any:
    """Calls that go nowhere. ``route`` is the name by which a reply is told from others."""
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": status}, **({"name": route} if route else {})}
    return route_components_pb2.VirtualHost(name=name, domains=domains, routes=[answer])


def _domains(outbound: Outbound) -> list[str]:
    trust_domain = SpiffeId.parse(outbound.spiffe_id).trust_domain.name
    return [outbound.service, f"{outbound.service}.{trust_domain}"]


def _host(outbound: Outbound) -> Any:
    return route_components_pb2.VirtualHost(
        name=outbound.service,
        domains=_domains(outbound),
        routes=[
            {
                "match": {"prefix": "/"},
                "route": {
                    "cluster": names.remote_cluster(outbound.service),
                    "timeout": {"seconds": 0},
                    # Only what the server never saw: a connection that was just being closed for its age.
                    "retry_policy": {"retry_on": "refused-stream,connect-failure", "num_retries": {"value": 2}},
                },
            }
        ],
    )


def _pipe(path: str) -> dict[str, Any]:
    return {"pipe": {"path": path, "mode": _SOCKET_MODE}}


def _chain(name: str, message: Any) -> dict[str, Any]:
    return {"filters": [{"name": name, "typed_config": pack(message)}]}
