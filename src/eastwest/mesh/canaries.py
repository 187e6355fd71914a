"""Canaries at an enforcement point: what they are allowed ends here, and they alone are told what was decided.

The route is always there, so that no canary's request reaches an application at any moment. Whom it is for says the
proxy's own account of the certificate, which it makes anew for each request (``x-forwarded-client-cert``).
"""

from __future__ import annotations

from typing import Any

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2

from eastwest.mesh import rbac
from eastwest.mesh.matching import pack
from eastwest.policy.canary import PREFIX
from eastwest.spiffe.id import SCHEME, SpiffeId

DECIDED_HEADER = "x-eastwest-decision"
"""In an answer to a canary: the action that decided, enforced (``eastwest.mesh.action``), or Envoy's words with it."""
SHADOW_HEADER = "x-eastwest-decision-reported"
"""The same where the decision is only reported."""
NOTHING = "-"
"""What Envoy writes where there is nothing to write."""


def route(spiffe_id: str) -> Any:
    """Answers every request of a canary that was not refused. ``spiffe_id``: the workload's."""
    made = route_components_pb2.Route(
        name="canary",
        match={
            "prefix": "/",
            "headers": [
                {
                    "name": "x-forwarded-client-cert",
                    "string_match": {"contains": f";URI={_prefix(spiffe_id)}"},
                }
            ],
        },
        direct_response={"status": 204},
    )
    for header, key in ((DECIDED_HEADER, rbac.ENFORCED_POLICY), (SHADOW_HEADER, rbac.SHADOW_POLICY)):
        value = f"%DYNAMIC_METADATA({rbac.HTTP_METADATA}:{rbac.OPERATIONS}{key})%"
        made.response_headers_to_add.add(
            header={"key": header, "value": value},
            append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            keep_empty_value=True,
        )
    return made


def reply(spiffe_id: str) -> Any:
    """What a refused canary is told: Envoy's account of what refused it. The first mapper of a listener."""
    told = cel_pb2.ExpressionFilter(
        expression=f"response.code == 403 && connection.uri_san_peer_certificate.startsWith('{_prefix(spiffe_id)}')"
    )
    return hcm_pb2.ResponseMapper(
        filter=accesslog_pb2.AccessLogFilter(
            extension_filter={"name": "envoy.access_loggers.extension_filters.cel", "typed_config": pack(told)}
        ),
        headers_to_add=[
            base_pb2.HeaderValueOption(
                header={"key": DECIDED_HEADER, "value": "%RESPONSE_CODE_DETAILS%"},
                append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )
        ],
    )


def _prefix(spiffe_id: str) -> str:
    return f"{SCHEME}{SpiffeId.parse(spiffe_id).trust_domain.name}{PREFIX}"
