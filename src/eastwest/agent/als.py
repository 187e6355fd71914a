"""Envoy's access logs (gRPC ALS) as decisions: the proxy tells what it decided, this makes it rows.

A log stream is believed only about services that the workload which sends it serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2

from eastwest.agent.xds import Identify, Principal
from eastwest.errors import InvalidInput
from eastwest.ledger.handshake import cause_of
from eastwest.ledger.record import Decision
from eastwest.mesh import names, rbac, single_use, tokens
from eastwest.mesh.action import ActionName, InForce
from eastwest.mesh.tree import http_match
from eastwest.policy.enforcement import DecisionCode, MtlsMode, OperationRules, TcpMatch, Verdict
from eastwest.rpc.service import Call, Service
from eastwest.spiffe.id import MalformedSpiffeId, SpiffeId

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_ENTRIES = 20_000
"""Entries of one message; Envoy sends what fits into a megabyte."""
_MAX_TEXT = 256
_YIELD_EVERY = 200  # decisions taken before others get a turn
_REFUSED_AS_MALFORMED = frozenset({400, 404, 413, 431, 501})
_OF_THE_CHECK = {single_use.USED: DecisionCode.TOKEN_USED, single_use.UNAVAILABLE: DecisionCode.CHECK_UNAVAILABLE}


class Rules(Protocol):
    """What services enforce, now and lately (decisions of a change's last moment still name the version before)."""

    def current(self, principal: Principal, service: str) -> InForce | None:
        """What ``service`` of this workload enforces now; None where it has no such service."""
        ...

    def version(self, version: str) -> InForce | None:
        """What a service's version stands for."""
        ...


@dataclass(slots=True)
class Counters:
    """Entries received, and those that became no decision: foreign logs, and requests cut before one."""

    entries: int = 0
    foreign: int = 0
    undecided: int = 0


class AccessLogs:
    """The access log service of one agent; ``record`` takes each decision and must not block."""

    def __init__(self, identify: Identify, rules: Rules, record: Callable[[Decision], None]) -> None:
        self._identify = identify
        self._rules = rules
        self._record = record
        self.counters = Counters()

    def services(self) -> list[Service]:
        """To be added to the agent's listener."""
        descriptor = als_pb2.DESCRIPTOR.services_by_name["AccessLogService"]
        return [Service(descriptor, {"StreamAccessLogs": self._stream}, limit=MAX_MESSAGE_BYTES)]

    async def _stream(self, _: None, call: Call) -> Any:
        principal = await self._identify(call)
        node = log_name = ""
        async for message in call:
            if message.HasField("identifier"):
                node, log_name = message.identifier.node.id[:_MAX_TEXT], message.identifier.log_name
            if len(message.http_logs.log_entry) + len(message.tcp_logs.log_entry) > MAX_ENTRIES:
                raise InvalidInput(f"a message has at most {MAX_ENTRIES} log entries")
            for number, decision in enumerate(self._decisions(message, principal, log_name, node), 1):
                self._record(decision)
                if number % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        return als_pb2.StreamAccessLogsResponse()

    def _decisions(self, message: Any, principal: Principal, log_name: str, node: str) -> Iterator[Decision]:
        entries = [*message.http_logs.log_entry, *message.tcp_logs.log_entry]
        self.counters.entries += len(entries)
        kind, service = names.service_of_log(log_name)
        current = self._rules.current(principal, service) if kind else None
        if current is None:
            self.counters.foreign += len(entries)
            return
        if kind == "connections":
            for entry in message.tcp_logs.log_entry:
                refused = refused_handshake(entry, current, node)
                if refused is not None:
                    yield refused
            return
        for entry in entries:
            if _told_before(entry):
                continue
            decision = decided(entry, current, self._rules.version, node)
            if decision is None:
                self.counters.undecided += 1
            else:
                yield decision


def refused_handshake(entry: Any, current: InForce, node: str) -> Decision | None:
    """The decision in a listener's entry, where the connection ended in its TLS handshake; else None."""
    common = entry.common_properties
    if not common.downstream_transport_failure_reason:
        return None
    caller, _ = _caller(common)
    cause = cause_of(common.downstream_transport_failure_reason, certificate=bool(caller))
    if cause.plaintext:  # the look into the first bytes leaves this mark; the plaintext chain makes its own entry
        return None
    return Decision(
        time=_time(common),
        service=current.service,
        verdict=Verdict.DENY,
        code=cause.code,
        mode=current.mode,
        enforced=True,
        caller=caller[:_MAX_TEXT],
        claimed=bool(caller),
        policy_version=current.policy_version,
        rules_version=current.version,
        node=node,
        reference=common.stream_id[:_MAX_TEXT],
        cause=cause.name,
        source=_source(common),
    )


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
        bare = not _caller(common)[0] and current.mode != MtlsMode.PERMISSIVE
        code = DecisionCode.MTLS_REQUIRED if bare else DecisionCode.UNLISTED_OPERATION
        action, enforced = ActionName(code), True
        cause = entry.response.response_code_details[:_MAX_TEXT]
    else:
        return None
    if is_http and enforced and action.once:
        action = _checked(action, entry.response.response_code_details)
    rules = version(action.version) or current
    if not is_http:  # the network filter names its policy in the shadow form only, which it has in both modes
        enforced = rules.mode != MtlsMode.PERMISSIVE
    caller, single = _caller(common)
    verdict = Verdict.ALLOW if action.code is DecisionCode.ALLOWED else Verdict.DENY
    operation = next((o for o in rules.inbound.operations if is_http and o.name == action.operation), None)
    token = _token(common.metadata.filter_metadata, operation, caller)
    return Decision(
        time=_time(common),
        service=current.service,
        verdict=verdict,
        code=action.code,
        mode=rules.mode,
        enforced=enforced,
        caller=caller[:_MAX_TEXT],
        claimed=bool(caller) and not single,
        operation=action.operation,
        tenant=_tenant(entry, operation, token)[:_MAX_TEXT],
        method=_METHODS.get(entry.request.request_method, "") if is_http else "",
        policy=action.policy,
        policy_version=rules.policy_version,
        rules_version=action.version or rules.version,
        node=node,
        reference=(entry.request.request_id if is_http else common.stream_id)[:_MAX_TEXT],
        cause=cause,
        source=_source(common) if verdict is Verdict.DENY else "",
        transaction=token.transaction[:_MAX_TEXT] if token else "",
        approver=token.approver[:_MAX_TEXT] if token and not action.code.startswith("TOKEN_") else "",
    )


def _told_before(entry: Any) -> bool:
    """Whether this ends a TCP session whose beginning was told (one that never reached the service was not)."""
    common = entry.common_properties
    ends = common.access_log_type == accesslog_pb2.TcpConnectionEnd
    return bool(ends and common.HasField("upstream_local_address"))


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


def _checked(action: ActionName, details: str) -> ActionName:
    """The action that the agent's answer about the token made of an ``action`` that allowed."""
    code = _OF_THE_CHECK.get(details)
    return action if code is None else ActionName(code, "", action.operation, action.version)


class _Brought(NamedTuple):
    """What a row says of a verified token."""

    transaction: str
    tenant: str
    approver: str


def _token(metadata: Any, operation: OperationRules | None, caller: str) -> _Brought | None:
    """The verified token of a request, where it is the caller's own and the decision looked at it."""
    if operation is None or tokens.METADATA not in metadata:
        return None
    said = metadata[tokens.METADATA].fields[tokens.PAYLOAD].struct_value.fields
    if said["sub"].string_value != caller:
        return None
    cell = next((cell for cell in operation.cells if caller in cell.callers), None)
    if cell is None or not tokens.looks_at_tokens(cell, operation.tenant):
        return None
    context = said["tctx"].struct_value.fields
    return _Brought(said["txn"].string_value, context["tenant"].string_value, context["approver"].string_value)


def _tenant(entry: Any, operation: OperationRules | None, token: _Brought | None) -> str:
    if operation is None or operation.tenant is None or isinstance(operation.match, TcpMatch):
        return ""
    if operation.tenant.claim:
        return token.tenant if token is not None else ""
    if operation.tenant.header:
        return str(entry.request.request_headers.get(operation.tenant.header, ""))
    found = http_match(operation)[1].match(entry.request.path) or {}
    return found.get(operation.tenant.path, "")


def _caller(common: Any) -> tuple[str, bool]:
    """The peer's URI SANs, joined as Envoy joins them, and whether they are one SPIFFE ID."""
    text = ",".join(san.uri for san in common.tls_properties.peer_certificate_properties.subject_alt_name if san.uri)
    try:
        SpiffeId.parse(text)
    except MalformedSpiffeId:
        return text, False
    return text, True


def _source(common: Any) -> str:
    return str(common.downstream_direct_remote_address.socket_address.address)


def _time(common: Any) -> datetime:
    start = common.start_time
    try:
        return datetime.fromtimestamp(start.seconds, UTC).replace(microsecond=start.nanos // 1000)
    except (ValueError, OverflowError, OSError):
        raise InvalidInput("a log entry has an impossible time") from None


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
