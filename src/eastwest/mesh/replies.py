"""What a caller is told when its request is refused: a stable code, a sentence and a reference; no policy.

``{"error": {"code": ..., "message": ..., "reference": ...}}`` and the header ``x-eastwest-code``. All codes are
mapped once and for ever, so that a new policy does not change a listener.
"""

from __future__ import annotations

from typing import Any

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import base_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2

from eastwest.mesh import single_use
from eastwest.mesh.matching import pack
from eastwest.policy.enforcement import DecisionCode

CODE_HEADER = "x-eastwest-code"
UNKNOWN_SERVICE = "UNKNOWN_SERVICE"
REQUEST_REFUSED = "REQUEST_REFUSED"
UPSTREAM_UNAVAILABLE = "UPSTREAM_UNAVAILABLE"
CALLER_ROUTE, SERVICE_ROUTE = "contained-caller", "contained-service"
"""Routes of a way out that refuse: because of whose way out it is, and because of who serves there."""

_MESSAGES = {
    DecisionCode.MTLS_REQUIRED: "this service takes calls only over mutual TLS",
    DecisionCode.UNKNOWN_CALLER: "the caller's identity is not registered here",
    DecisionCode.UNLISTED_OPERATION: "this service has no such operation",
    DecisionCode.OPERATION_NOT_PERMITTED: "the caller may not do this operation",
    DecisionCode.FORBIDDEN_BY_POLICY: "a policy forbids the caller this operation",
    DecisionCode.TENANT_MISSING: "the request does not name exactly one tenant",
    DecisionCode.TENANT_NOT_PERMITTED: "the caller may not do this for that tenant",
    DecisionCode.STEP_UP_REQUIRED: "this operation needs a step-up token",
    DecisionCode.APPROVAL_REQUIRED: "this operation needs an approval",
    DecisionCode.POLICY_ERROR: "the policy could not be evaluated",
    DecisionCode.UNCLASSIFIED_OPERATION: "this operation is not classified yet, so nobody may do it",
    DecisionCode.TOKEN_INVALID: "the transaction token is not valid here",
    DecisionCode.TOKEN_EXPIRED: "the transaction token has expired",
    DecisionCode.TOKEN_WRONG_ACTION: "the transaction token was made for another operation",
    DecisionCode.TOKEN_WRONG_RESOURCE: "the transaction token was made for another service",
    DecisionCode.TOKEN_WRONG_CALLER: "the transaction token was made for another caller",
    DecisionCode.TOKEN_WRONG_KEY: "the transaction token was made for another certificate of the caller",
    DecisionCode.TOKEN_WRONG_TENANT: "the transaction token was made for another tenant",
    DecisionCode.CHECK_UNAVAILABLE: "whether the transaction token was used before cannot be found out now",
    DecisionCode.RECORD_UNAVAILABLE: "this service wants every call recorded, and that is not possible now",
    DecisionCode.CALLER_CONTAINED: "the caller's identity is cut off",
    DecisionCode.TOKEN_CONTAINED: "an identity that the transaction token names is cut off",
    DecisionCode.IDENTITY_CONTAINED: "this service's own identity is cut off, so it takes no calls",
}
_AFTER_THE_TREE = (
    (single_use.USED, DecisionCode.TOKEN_USED, "the transaction token counts once, and was used or withdrawn"),
    (single_use.UNAVAILABLE, DecisionCode.CHECK_UNAVAILABLE, _MESSAGES[DecisionCode.CHECK_UNAVAILABLE]),
)
_MALFORMED = "the request is not in a form that is accepted"
_DETAILS = "rbac_access_denied_matched_policy"


def inbound_replies(first: Any = None) -> Any:
    """For a service's listener; ``first`` is a mapper that goes before all others."""
    mappers = [first] if first is not None else []
    mappers += [_mapper(_refused_with(code), code, message) for code, message in _MESSAGES.items()]
    mappers += [_mapper(_details(f"== '{details}'"), code, message) for details, code, message in _AFTER_THE_TREE]
    mappers.append(_mapper(_status(501), REQUEST_REFUSED, _MALFORMED))  # how its body is delimited, say
    mappers.append(_mapper(_status_at_least(500), UPSTREAM_UNAVAILABLE, "the service does not answer"))
    mappers.append(_mapper(_status_at_least(400), REQUEST_REFUSED, _MALFORMED))
    return hcm_pb2.LocalReplyConfig(mappers=mappers)


def egress_replies() -> Any:
    """For the application's way out; it may see why a connection failed, as the failure is its own side's."""
    mappers = [
        _mapper(_route(CALLER_ROUTE), DecisionCode.CALLER_CONTAINED, _MESSAGES[DecisionCode.CALLER_CONTAINED]),
        _mapper(_route(SERVICE_ROUTE), DecisionCode.IDENTITY_CONTAINED, "the service's own identity is cut off"),
        _mapper(_status(404), UNKNOWN_SERVICE, "no service of this name can be reached from here"),
        _mapper(_status(501), REQUEST_REFUSED, _MALFORMED),
        _mapper(
            _status_at_least(500),
            UPSTREAM_UNAVAILABLE,
            "%LOCAL_REPLY_BODY%",
            flags="%RESPONSE_FLAGS%",
            cause="%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        ),
        _mapper(_status_at_least(400), REQUEST_REFUSED, _MALFORMED),
    ]
    return hcm_pb2.LocalReplyConfig(mappers=mappers)


def sentence(code: str) -> str:
    """What a caller is told with ``code``, in the same words wherever its call is refused."""
    known: dict[str, str] = {told: words for _, told, words in _AFTER_THE_TREE}
    known.update((told.value, words) for told, words in _MESSAGES.items())
    known[REQUEST_REFUSED] = _MALFORMED
    return known.get(code, "the call is refused")


def _mapper(when: Any, code: str, message: str, **more: str) -> Any:
    body = {"error": {"code": code, "message": message, "reference": "%REQ(X-REQUEST-ID)%", **more}}
    return hcm_pb2.ResponseMapper(
        filter=when,
        body_format_override={"json_format": body},
        headers_to_add=[
            base_pb2.HeaderValueOption(
                header={"key": CODE_HEADER, "value": code},
                append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )
        ],
    )


def _refused_with(code: str) -> Any:
    """The action that refused begins with ``code``.

    The filter's metadata comes too late for this: it is written after the reply is made. The details are there.
    """
    return _details(f".startsWith('{_DETAILS}[{code}|')")


def _details(condition: str) -> Any:
    return _where(f"response.code == 403 && response.code_details{condition}")


def _route(name: str) -> Any:
    return _where(f"response.code == 403 && xds.route_name == '{name}'")


def _where(expression: str) -> Any:
    filter_ = cel_pb2.ExpressionFilter(expression=expression)
    return accesslog_pb2.AccessLogFilter(
        extension_filter={"name": "envoy.access_loggers.extension_filters.cel", "typed_config": pack(filter_)}
    )


def _status(status: int) -> Any:
    return _compare(accesslog_pb2.ComparisonFilter.EQ, status)


def _status_at_least(status: int) -> Any:
    return _compare(accesslog_pb2.ComparisonFilter.GE, status)


def _compare(operation: int, status: int) -> Any:
    return accesslog_pb2.AccessLogFilter(
        status_code_filter={
            "comparison": {
                "op": operation,
                "value": {"default_value": status, "runtime_key": "eastwest.unset"},
            }
        }
    )
