"""The filter after the tree: whether a token that counts once was used before, which only the agent can say.

It asks about a call that the tree has allowed by an action whose name ends in ``once``, and about no other; where
decisions are only reported it never asks and nothing is used up. Policy does not change it: the routes enable it, under
a name without which the tree does not allow such a call.
"""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import config_source_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2

from eastwest.mesh import names, rbac
from eastwest.mesh.action import ONCE_SUFFIX
from eastwest.mesh.matching import pack
from eastwest.mesh.tokens import claim_header

ASKED = ("id", "expires", "approval", "action", "resource", "caller", "origin", "approver")
"""Claims that go with the question; nothing else of the request does."""
USED = "ext_authz_denied"
"""What Envoy's response details say where the agent has refused."""
UNAVAILABLE = "ext_authz_error"
"""What they say where it gave no answer in time, or could not say."""
TIMEOUT_MS = 500
NAME = "envoy.filters.http.ext_authz"


def check() -> Any:
    """The filter."""
    config = ext_authz_pb2.ExtAuthz(
        transport_api_version=config_source_pb2.V3,
        grpc_service={
            "envoy_grpc": {"cluster_name": names.AGENT_CLUSTER},
            "timeout": {"nanos": TIMEOUT_MS * 1_000_000},
        },
        failure_mode_allow=False,
        filter_enabled_metadata={
            "filter": rbac.HTTP_METADATA,
            "path": [{"key": rbac.OPERATIONS + rbac.ENFORCED_POLICY}],
            "value": {"string_match": {"suffix": ONCE_SUFFIX}},
        },
        allowed_headers={"patterns": [{"exact": claim_header(name)} for name in ASKED]},
    )
    return hcm_pb2.HttpFilter(name=NAME, typed_config=pack(config), disabled=True)
