"""A service's way in: one port with two filter chains, TLS and plaintext, both there in every mode.

Mode and policy live in the filters' own resources, so neither ever changes the listener: a changed listener
drains, and until it has drained goes on enforcing the old policy.
"""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2

from eastwest.mesh import canaries, clusters, http, logs, names, peers, rbac, replies, single_use, tokens, transport
from eastwest.mesh.matching import pack
from eastwest.mesh.settings import Settings
from eastwest.mesh.snapshot import Resource
from eastwest.policy.enforcement import Inbound, uses_tokens

_TLS, _PLAINTEXT = "tls", "plaintext"


def inbound_resources(inbound: Inbound, spiffe_id: str, settings: Settings) -> list[Resource]:
    """Listener, routes and clusters of one service; the filters are made by ``eastwest.mesh.rbac``."""
    service = inbound.service
    if inbound.protocol == "tcp":
        chains = [_tcp_chain(inbound, kind, settings) for kind in (_TLS, _PLAINTEXT)]
        locals_ = [clusters.local(inbound.service, inbound.upstream, settings, grpc=None)]
        needs = [
            (names.EXTENSION, names.operations_filter(service)),
            (names.EXTENSION, names.plaintext_filter(service)),
        ]
        routes = []
    else:
        chains = [_http_chain(inbound, kind, settings, spiffe_id) for kind in (_TLS, _PLAINTEXT)]
        locals_ = [clusters.local(service, inbound.upstream, settings, grpc=grpc) for grpc in (False, True)]
        routes = [_routes(inbound, kind, spiffe_id) for kind in (_TLS, _PLAINTEXT)]
        needs = [
            (names.EXTENSION, names.tokens_filter(service)),
            (names.EXTENSION, names.tenants_filter(service)),
            (names.EXTENSION, names.operations_filter(service)),
            (names.EXTENSION, names.plaintext_filter(service)),
            *((names.ROUTES, route.name) for route in routes),
        ]
    callers = names.POST_QUANTUM_CALLERS_SECRET if inbound.post_quantum else names.CALLERS_SECRET
    chains[0].transport_socket.CopyFrom(
        transport.downstream(spiffe_id, callers, http=inbound.protocol == "http", post_quantum=inbound.post_quantum)
    )
    listener = listener_pb2.Listener(
        name=names.inbound_listener(service),
        address={"socket_address": {"address": inbound.address, "port_value": inbound.port}},
        listener_filters=[
            {
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": pack(tls_inspector_pb2.TlsInspector()),
            }
        ],
        listener_filters_timeout={"seconds": 5},
        filter_chains=chains,
        access_log=[logs.failed_handshakes(names.connection_log(service), settings)],
        per_connection_buffer_limit_bytes={"value": 1 << 20},
    )
    needs += [(names.SECRET, spiffe_id), (names.SECRET, callers)]
    needs += [(names.CLUSTER, cluster.name) for cluster in locals_]
    return [
        *(Resource.of(cluster.name, names.CLUSTER, cluster) for cluster in locals_),
        *(Resource.of(route.name, names.ROUTES, route) for route in routes),
        Resource.of(listener.name, names.LISTENER, listener, needs),
    ]


def tenant_headers(inbound: Inbound) -> list[str]:
    """Names of the headers in which this service's operations look for a tenant."""
    return sorted({o.tenant.header for o in inbound.operations if o.tenant is not None and o.tenant.header})


def _http_chain(inbound: Inbound, kind: str, settings: Settings, spiffe_id: str) -> Any:
    service = inbound.service
    secure = kind == _TLS
    filters = (
        http.decision_filters(service) if secure else [http.discovered(names.plaintext_filter(service), rbac.HTTP_RBAC)]
    )
    manager = http.connection_manager(
        stat_prefix=f"inbound.{service}.{kind}",
        routes=_route_name(service, kind),
        filters=filters,
        replies=replies.inbound_replies(canaries.reply(spiffe_id) if secure else None),
        logs=[logs.http_log(names.request_log(service), settings, tenant_headers(inbound))],
        settings=settings,
        inbound=True,
        certificate=secure,
    )
    chain = _chain(kind, [("envoy.filters.network.http_connection_manager", manager)])
    return chain if secure else _asking(chain, service)


def _tcp_chain(inbound: Inbound, kind: str, settings: Settings) -> Any:
    service = inbound.service
    name = names.operations_filter(service) if kind == _TLS else names.plaintext_filter(service)
    proxy = tcp_proxy_pb2.TcpProxy(
        stat_prefix=f"inbound.{service}.{kind}",
        cluster=names.local_cluster(service),
        max_downstream_connection_duration=settings.max_stream_age,
        access_log=[logs.tcp_log(names.request_log(service), settings)],
        # A session may last for days; its decision is told when it begins. Before its first byte, and to an agent that
        # was started anew, it says from time to time whose it is.
        access_log_options={
            "flush_access_log_on_connected": True,
            "access_log_flush_interval": settings.session_report if kind == _TLS else None,
        },
        # The filter before this one decides at the first byte; nothing may reach or leave the service before.
        upstream_connect_mode=tcp_proxy_pb2.ON_DOWNSTREAM_DATA,
        max_early_data_bytes={"value": 65_536},
    )
    chain = _chain(kind, [("envoy.filters.network.tcp_proxy", proxy)])
    decide = listener_components_pb2.Filter(
        name=name, config_discovery={"config_source": transport.from_agent(), "type_urls": [rbac.NETWORK_RBAC]}
    )
    proxied = listener_components_pb2.Filter()
    proxied.CopyFrom(chain.filters[0])
    del chain.filters[:]
    chain.filters.extend([decide, proxied])
    return chain if kind == _TLS else _asking(chain, service)


def _asking(chain: Any, service: str) -> Any:
    """The chain with the question who is there before all else."""
    others = [*chain.filters]
    asked = listener_components_pb2.FilterChain()
    asked.CopyFrom(chain)
    del asked.filters[:]
    asked.filters.extend([peers.ask(service), *others])
    return asked


def _chain(kind: str, filters: list[tuple[str, Any]]) -> Any:
    return listener_components_pb2.FilterChain(
        name=kind,
        filter_chain_match={"transport_protocol": "tls" if kind == _TLS else "raw_buffer"},
        filters=[{"name": name, "typed_config": pack(message)} for name, message in filters],
        transport_socket_connect_timeout={"seconds": 10},
    )


def _route_name(service: str, kind: str) -> str:
    return f"{names.inbound_listener(service)}/{kind}"


def _routes(inbound: Inbound, kind: str, spiffe_id: str) -> Any:
    """Everything that was decided to pass goes to the application, canaries' apart; the proved caller goes with it."""
    service, secure = inbound.service, kind == _TLS
    enabled = _enabled(inbound) if secure else ()
    name = tokens.CHECKED_ROUTE if single_use.NAME in enabled else ""
    forward = {"timeout": {"seconds": 0}}
    host = route_components_pb2.VirtualHost(
        name=service,
        domains=["*"],
        routes=[
            *([canaries.route(spiffe_id)] if secure else []),
            {
                "name": name,
                "match": {"prefix": "/", "grpc": {}},
                "route": {"cluster": names.local_cluster(service, grpc=True), **forward},
            },
            {"name": name, "match": {"prefix": "/"}, "route": {"cluster": names.local_cluster(service), **forward}},
        ],
    )
    for filter_name in enabled:
        host.typed_per_filter_config[filter_name].CopyFrom(pack(route_components_pb2.FilterConfig(config={})))
    # What was verified stays here: a claim says nothing about a call that did not need the token.
    claims = (tokens.claim_header(name) for name in sorted(tokens.CLAIMS))
    host.request_headers_to_remove.extend(["x-envoy-external-address", *(claims if secure else ())])
    host.response_headers_to_remove.append(replies.CODE_HEADER)  # only the proxy speaks for the policy
    if secure:
        host.request_headers_to_add.add(
            header={"key": http.CALLER_HEADER, "value": "%DOWNSTREAM_PEER_URI_SAN%"},
            append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    return route_pb2.RouteConfiguration(
        name=_route_name(service, kind), virtual_hosts=[host], validate_clusters={"value": False}
    )


def _enabled(inbound: Inbound) -> tuple[str, ...]:
    """The filters about tokens that the service needs."""
    if not uses_tokens(inbound):
        return ()
    service = inbound.service
    found = (names.tokens_filter(service), names.tenants_filter(service))
    return (*found, single_use.NAME) if tokens.count_once(inbound) else found
