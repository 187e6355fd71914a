"""Names that both ends of the config stream must agree on: type URLs, clusters, filters, secrets, logs."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "type.googleapis.com/"
LISTENER: Final = PREFIX + "envoy.config.listener.v3.Listener"
ROUTES: Final = PREFIX + "envoy.config.route.v3.RouteConfiguration"
CLUSTER: Final = PREFIX + "envoy.config.cluster.v3.Cluster"
EXTENSION: Final = PREFIX + "envoy.config.core.v3.TypedExtensionConfig"
SECRET: Final = PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

# Make before break: what others refer to is sent first.
PUSH_ORDER: Final = (SECRET, CLUSTER, EXTENSION, ROUTES, LISTENER)
# A refusal of these does not say which resource was meant, so each travels in a response of its own.
ONE_PER_RESPONSE: Final = frozenset({EXTENSION, SECRET})

AGENT_CLUSTER: Final = "eastwest-agent"
CALLERS_SECRET: Final = "eastwest:callers"  # noqa: S105 - a name; the bundles of every trust domain that may call
POST_QUANTUM_CALLERS_SECRET: Final = "eastwest:callers:post-quantum"  # noqa: S105 - a name; their ML-DSA-65 roots only
EGRESS: Final = "egress"


def post_quantum_bundle(trust_domain: str) -> str:
    """The secret with the ML-DSA-65 roots of a trust domain, and no others."""
    return f"eastwest:post-quantum:{trust_domain}"


def operations_filter(service: str) -> str:
    """The filter that asks whether the caller is registered, and may do this operation."""
    return f"eastwest.operations/{service}"


def tokens_filter(service: str) -> str:
    """The filter that verifies transaction tokens and says what they claim."""
    return f"eastwest.tokens/{service}"


def tenants_filter(service: str) -> str:
    """The filter that notes tenants of paths, where tokens must agree with them, and what logs tell of tokens."""
    return f"eastwest.tenants/{service}"


def plaintext_filter(service: str) -> str:
    """The filter that decides about requests without TLS."""
    return f"eastwest.plaintext/{service}"


def inbound_listener(service: str) -> str:
    return f"inbound/{service}"


def local_cluster(service: str, *, grpc: bool = False) -> str:
    """The application behind this sidecar."""
    return f"local/{service}/grpc" if grpc else f"local/{service}"


def remote_cluster(service: str) -> str:
    """A service that this sidecar's application calls."""
    return f"remote/{service}"


def request_log(service: str) -> str:
    """The access log of requests (HTTP) or admitted connections (TCP) at a service."""
    return f"decisions/{service}"


def connection_log(service: str) -> str:
    """The access log of a listener's connections, where refused handshakes appear."""
    return f"connections/{service}"


def service_of_log(log_name: str) -> tuple[str, str]:
    """Split a log name into its kind (``decisions``, ``connections``) and service; ("", "") for a foreign one."""
    kind, slash, service = log_name.partition("/")
    return (kind, service) if slash and kind in {"decisions", "connections"} else ("", "")
