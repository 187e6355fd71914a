"""What an access log entry of a request, or of an admitted connection, says was decided."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from envoy.data.accesslog.v3 import accesslog_pb2

from eastwest.agent.handshakes import caller_of, source_of, time_of
from eastwest.ledger.handshake import form_of
from eastwest.ledger.record import MAX_PATH, Decision
from eastwest.mesh import rbac, single_use, tokens
from eastwest.mesh.action import ActionName, InForce
from eastwest.mesh.tree import http_match
from eastwest.policy.emergency import is_emergency
from eastwest.policy.enforcement import DecisionCode, MtlsMode, OperationRules, TcpMatch, Verdict

MAX_TEXT = 256
_REFUSED_AS_MALFORMED = frozenset({400, 404, 413, 426, 431, 501})
_OF_THE_CHECK = {single_use.USED: DecisionCode.TOKEN_USED, single_use.UNAVAILABLE: DecisionCode.CHECK_UNAVAILABLE}
_IN_EVERY_MODE = frozenset(
    {DecisionCode.CALLER_CONTAINED, DecisionCode.TOKEN_CONTAINED, DecisionCode.IDENTITY_CONTAINED}
)
_TRACE = re.compile("[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
TRACE_HEADER = "traceparent"


def decided(entry: Any, current: InForce, version: Callable[[str], InForce | None], node: str) -> Decision | None:
    """The decision in an entry of a request or of an admitted connection; None where none was made."""
    common = entry.common_properties
    is_http = hasattr(entry, "request")
    found = _action(common.metadata.filter_metadata, is_http=is_http)
    cause = ""
    if found is not None:
        action, enforced = found
    elif is_http and entry.response.response_code.value in _REFUSED_AS_MALFORMED:
        # Refused before any filter: a path or header that could be read two ways.
        bare = not caller_of(common)[0] and current.mode != MtlsMode.PERMISSIVE
        code = DecisionCode.MTLS_REQUIRED if bare else DecisionCode.UNLISTED_OPERATION
        action, enforced = ActionName(code), True
        cause = entry.response.response_code_details[:MAX_TEXT]
    else:
        return None
    report = _report(common.metadata.filter_metadata, action, is_http=is_http) if found is not None else None
    asked = is_http and enforced and action.once
    if asked:
        action = _checked(action, entry.response.response_code_details)
    rules = version(action.version) or current
    if not is_http:  # the network filter names its policy in the shadow form only, which it has in both modes
        enforced = rules.mode != MtlsMode.PERMISSIVE
    enforced = enforced or action.code in _IN_EVERY_MODE
    caller, single = caller_of(common)
    if caller and not single:
        # The proxy's validator lets it in by the first of its names; no rule is about such a caller.
        cause = cause or form_of(tuple(caller.split(",")))
    verdict = Verdict.ALLOW if action.code is DecisionCode.ALLOWED else Verdict.DENY
    operation = next((o for o in rules.inbound.operations if is_http and o.name == action.operation), None)
    token = _token(common.metadata.filter_metadata, rules, operation, caller)
    tenant = _tenant(entry, operation, token)
    return Decision(
        time=time_of(common),
        service=current.service,
        verdict=verdict,
        code=action.code,
        mode=rules.mode,
        enforced=enforced,
        caller=caller[:MAX_TEXT],
        claimed=bool(caller) and not single,
        operation=action.operation,
        tenant=tenant[:MAX_TEXT],
        method=_METHODS.get(entry.request.request_method, "") if is_http else "",
        path=path_of(entry.request.path) if is_http and not action.operation else "",
        policy=action.policy,
        policy_version=rules.policy_version,
        rules_version=action.version or rules.version,
        node=node,
        sensor="agent" if asked else "envoy",
        trace=trace_of(entry.request.request_headers.get(TRACE_HEADER, "")) if is_http else "",
        reference=(entry.request.request_id if is_http else common.stream_id)[:MAX_TEXT],
        cause=cause,
        source=source_of(common) if verdict is Verdict.DENY else "",
        token=token is not None,
        transaction=token.transaction[:MAX_TEXT] if token else "",
        origin=token.origin[:MAX_TEXT] if token else "",
        approver=token.approver[:MAX_TEXT] if token and not action.code.startswith("TOKEN_") else "",
        break_glass=verdict is Verdict.ALLOW and is_emergency(rules.inbound, action.operation, caller, tenant),
        report_code=report[0] if report else "",
        report_policy=report[1][:MAX_TEXT] if report else "",
    )


def path_of(path: str) -> str:
    """A path as it is kept: without what stands behind ``?`` and ``#``, where secrets tend to be."""
    return path.partition("?")[0].partition("#")[0][:MAX_PATH]


def trace_of(traceparent: str) -> str:
    """The trace id in a ``traceparent`` header (W3C Trace Context, section 3.2); "" where it is none."""
    found = _TRACE.match(traceparent)
    return found[1] if found else ""


def told_before(entry: Any) -> bool:
    """Whether this is about a TCP session whose beginning is told apart, or only says whose the session is.

    The end of one that never reached the service was not told before.
    """
    common = entry.common_properties
    if common.access_log_type == accesslog_pb2.TcpPeriodic:
        return True
    if common.access_log_type != accesslog_pb2.TcpConnectionEnd:
        return False
    if common.upstream_remote_address.HasField("pipe"):  # of a Unix socket Envoy knows no address of its own
        return not common.response_flags.upstream_connection_failure
    return bool(common.HasField("upstream_local_address"))


def _action(metadata: Any, *, is_http: bool) -> tuple[ActionName, bool] | None:
    """The action that decided, and whether it was enforced: the first refusal of the chain, else its last word."""
    namespace = rbac.HTTP_METADATA if is_http else rbac.NETWORK_METADATA
    if namespace not in metadata:
        return None
    fields = metadata[namespace].fields
    told: list[tuple[ActionName, bool]] = []
    for prefix in (rbac.PLAINTEXT, rbac.OPERATIONS):
        # A call that comes while a mode is switched may meet one filter in its new form and the next in its old one.
        for enforced, key in ((True, rbac.ENFORCED_POLICY), (False, rbac.SHADOW_POLICY)):
            action = ActionName.parse(fields[prefix + key].string_value) if prefix + key in fields else None
            if action is not None:
                told.append((action, enforced))
                break
    refusals = [each for each in told if each[0].code is not DecisionCode.ALLOWED]
    enforced_first = sorted(refusals, key=lambda each: not each[1])
    chosen = enforced_first or told[-1:]
    return chosen[0] if chosen else None


def _report(metadata: Any, decided: ActionName, *, is_http: bool) -> tuple[DecisionCode, str] | None:
    """What rules in report mode would have said, and by which policy, where it is not what was ``decided``."""
    if not is_http:
        return decided.report
    fields = metadata[rbac.HTTP_METADATA].fields
    for key in (rbac.REPORT + rbac.SHADOW_POLICY, rbac.REPORT + rbac.ENFORCED_POLICY):
        action = ActionName.parse(fields[key].string_value) if key in fields else None
        if action is not None and action.code is not decided.code:
            return action.code, action.policy
    return None


def _checked(action: ActionName, details: str) -> ActionName:
    """The action that the agent's answer about the token made of an ``action`` that allowed."""
    code = _OF_THE_CHECK.get(details)
    return action if code is None else ActionName(code, "", action.operation, action.version)


class _Brought(NamedTuple):
    """What a row says of a verified token."""

    transaction: str
    tenant: str
    approver: str
    origin: str


def _token(metadata: Any, rules: InForce, operation: OperationRules | None, caller: str) -> _Brought | None:
    """The verified token of a request, where it is the caller's own and the decision looked at it."""
    if operation is None or tokens.NOTED not in metadata:
        return None
    said = metadata[tokens.NOTED].fields
    if said["caller"].string_value != caller:
        return None
    same = [operation, *(o for o in rules.inbound.report if o.name == operation.name)]
    cells = [cell for one in same for cell in one.cells if caller in cell.callers]
    if not any(tokens.looks_at_tokens(cell, operation.tenant) for cell in cells):
        return None
    return _Brought(*(said[name].string_value for name in _Brought._fields))


def _tenant(entry: Any, operation: OperationRules | None, token: _Brought | None) -> str:
    if operation is None or operation.tenant is None or isinstance(operation.match, TcpMatch):
        return ""
    if operation.tenant.claim:
        return token.tenant if token is not None else ""
    if operation.tenant.header:
        return str(entry.request.request_headers.get(operation.tenant.header, ""))
    found = http_match(operation)[1].match(entry.request.path) or {}
    return found.get(operation.tenant.path, "")


# envoy.config.core.v3.RequestMethod
_METHODS = {
    1: "GET",
    2: "HEAD",
    3: "POST",
    4: "PUT",
    5: "DELETE",
    6: "CONNECT",
    7: "OPTIONS",
    8: "TRACE",
    9: "PATCH",
}
