"""Calls that are like one before, counted without being read again: what most of an access log is.

A shape is what a decision was made of: the bytes of the peer's certificate names, those of what the filters noted, and
the method. Where the tenant is in the request besides, it is read for each call. Only allowed calls are counted so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from eastwest.errors import InvalidInput
from eastwest.ledger.record import Decision
from eastwest.mesh.action import InForce
from eastwest.mesh.tree import http_match
from eastwest.policy.enforcement import OperationRules, TcpMatch, Verdict

MAX_SHAPES = 4_096
MAX_TEXT = 256
_LATEST = 1 << 37  # seconds; a year that datetime does not have any more
_LENGTH_BYTE = 0x80  # a length below it is one byte (protobuf varint)

_Key = tuple[bytes, bytes, int]
TenantOf = Callable[[Any], str]


class _Shape:
    """Equal only to itself, so that counting by it is cheap."""

    __slots__ = ("decision", "tenant_of")

    def __init__(self, decision: Decision, tenant_of: TenantOf | None) -> None:
        self.decision = decision
        self.tenant_of = tenant_of


class Shapes:
    """The shapes seen in one service's log of one sidecar, while ``current`` holds."""

    def __init__(self, current: InForce) -> None:
        self.current = current
        self._shapes: dict[_Key, _Shape] = {}

    def count(self, entries: Sequence[Any]) -> tuple[list[Decision], list[Any]]:
        """Decisions with counts for those entries whose shape is known, and the entries whose shape is not."""
        known = self._shapes
        counts: dict[tuple[_Shape, str, int], int] = {}
        left = []
        for entry in entries:
            common = entry.common_properties
            shape = known.get((common.tls_properties, common.metadata, entry.request.request_method))
            if shape is None:
                left.append(entry)
                continue
            key = (
                shape,
                shape.tenant_of(entry) if shape.tenant_of is not None else "",
                common.start_time.seconds // 60,
            )
            counts[key] = counts.get(key, 0) + 1
        return [_counted(*key, count) for key, count in counts.items()], left

    def learn(self, entry: Any, decision: Decision, rules: InForce) -> None:
        """Remember what ``entry`` was decided to be, by ``rules``."""
        operation = next((o for o in rules.inbound.operations if o.name == decision.operation), None)
        # Of a call whose token was asked about, the answer is part of the decision.
        if decision.verdict is not Verdict.ALLOW or decision.sensor != "envoy" or operation is None:
            return
        if decision.cause or len(decision.caller) >= MAX_TEXT:
            return
        if len(self._shapes) >= MAX_SHAPES:
            self._shapes.clear()
        tenant_of = _tenant_of(operation)
        common = entry.common_properties
        key = (common.tls_properties, common.metadata, entry.request.request_method)
        plain = msgspec.structs.replace(
            decision,
            tenant=decision.tenant if tenant_of is None else "",
            reference="",
            trace="",
        )
        self._shapes[key] = _Shape(plain, tenant_of)


def _counted(shape: _Shape, tenant: str, minute: int, count: int) -> Decision:
    if not 0 <= minute * 60 < _LATEST:
        raise InvalidInput("a log entry has an impossible time")
    time = datetime.fromtimestamp(minute * 60, UTC)
    if tenant:
        return msgspec.structs.replace(shape.decision, time=time, tenant=tenant, count=count)
    return msgspec.structs.replace(shape.decision, time=time, count=count)


def _tenant_of(operation: OperationRules) -> TenantOf | None:
    """How to find the tenant in a request; None where it is not in it, or in the token."""
    source = operation.tenant
    if source is None or source.claim or isinstance(operation.match, TcpMatch):
        return None
    if source.header:
        return _HeaderTenant(source.header)
    name = source.path
    match = http_match(operation)[1].match

    def from_path(entry: Any) -> str:
        found = match(entry.request.path)
        return found.get(name, "")[:MAX_TEXT] if found else ""

    return from_path


class _HeaderTenant:
    """The value of a logged header: of map entries as they are on the wire, key first."""

    def __init__(self, name: str) -> None:
        raw = name.encode()
        self._lead = re.compile(re.escape(b"\n" + bytes([len(raw)]) + raw + b"\x12"))

    def __call__(self, entry: Any) -> str:
        for raw in entry.request.request_headers:
            if (found := self._lead.match(raw)) is not None:
                start = found.end() + 1
                while start <= len(raw) and raw[start - 1] >= _LENGTH_BYTE:
                    start += 1
                return str(raw[start:], "utf-8", "replace")[:MAX_TEXT]
        return ""
