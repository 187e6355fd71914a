"""Headers that no application is handed in its caller's version, whoever enforces.

They speak of identity, of the original request or of its method, which only the enforcement point knows. A sidecar's
Envoy is told to remove the first (``eastwest.mesh.http``); the rest an Envoy removes or sets anew by itself.
"""

from __future__ import annotations

REMOVED = (
    # Whose certificate it was: only this proxy knows (RFC 9440 and what came before it).
    "x-forwarded-client-cert",
    "client-cert",
    "client-cert-chain",
    "x-client-cert",
    # Where the request came from, and where it was meant to go.
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-forwarded-uri",
    "x-forwarded",
    "forwarded-for",
    "front-end-https",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-host",
    "x-http-host-override",
    "x-override-url",
    "x-url-scheme",
    "proxy",
    "x-original-url",
    "x-original-uri",
    "x-original-method",
    "x-original-host",
    "x-original-forwarded-for",
    "x-real-ip",
    "x-rewrite-url",
    "x-envoy-original-path",
    "x-envoy-original-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
)
"""Names in lower case."""
REMOVED_PREFIXES = ("x-eastwest-", "x-ssl-", "ssl-client-")
ENVOYS_OWN = frozenset(
    {
        "x-forwarded-proto",
        "x-envoy-decorator-operation",
        "x-envoy-downstream-service-cluster",
        "x-envoy-downstream-service-node",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-external-address",
        "x-envoy-force-trace",
        "x-envoy-hedge-on-per-try-timeout",
        "x-envoy-internal",
        "x-envoy-ip-tags",
        "x-envoy-max-retries",
        "x-envoy-retriable-header-names",
        "x-envoy-retriable-status-codes",
        "x-envoy-retry-grpc-on",
        "x-envoy-retry-on",
        "x-envoy-upstream-alt-stat-name",
        "x-envoy-upstream-rq-per-try-timeout-ms",
        "x-envoy-upstream-rq-timeout-alt-response",
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-stream-duration-ms",
    }
)
"""Those that steer or describe an Envoy, which it takes from nobody outside."""
KEPT_ONCE = frozenset(
    [
        *("accept", "accept-encoding", "access-control-request-headers", "access-control-request-method"),
        *("authorization", "cache-control", "cdn-loop", "content-encoding", "content-type", "expect"),
        *("grpc-accept-encoding", "grpc-timeout", "if-match", "if-modified-since", "if-none-match", "if-range"),
        *("if-unmodified-since", "origin", "pragma", "referer", "user-agent", "via", "x-client-trace-id"),
        *("x-envoy-attempt-count", "x-envoy-is-timeout-retry", "x-request-id"),
    ]
)
"""Those of which an Envoy hands on one line, the values that are not empty joined by commas; others come as often as
they came."""
_STRIPPED = ENVOYS_OWN.union(REMOVED)
_HTTPS_OWN = frozenset(
    [
        *(
            "accept",
            "authorization",
            "cache-control",
            "cdn-loop",
            "connection",
            "cookie",
            "date",
            "early-data",
            "expect",
        ),
        *("expect", "from", "host", "http2-settings", "keep-alive", "max-forwards", "origin", "pragma"),
        *("prefer", "priority", "range", "referer", "te", "trailer", "transfer-encoding", "upgrade"),
        *("upgrade-insecure-requests", "user-agent", "via", "warning"),
        *("baggage", "traceparent", "tracestate", "txn-token", "x-client-trace-id", "x-request-id"),
    ]
)
_HTTPS_OWN_PREFIXES = ("accept-", "access-control-", "content-", "grpc-", "if-", "proxy-", "sec-", "x-envoy-")


def is_stripped(name: str) -> bool:
    """Whether a header (name in lower case) is removed before anything looks at it."""
    return name in _STRIPPED or name.startswith(REMOVED_PREFIXES)


def has_another_meaning(name: str) -> bool:
    """Whether a header (name in lower case) is HTTP's, a proxy's or ours, and so cannot say a request's tenant.

    Proxies set, drop, split and join these by rules of their own, each one by another: enforcement points would differ.
    """
    return is_stripped(name) or name in _HTTPS_OWN or name.startswith(_HTTPS_OWN_PREFIXES)
