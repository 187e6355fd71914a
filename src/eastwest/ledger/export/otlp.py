"""OTLP log records (opentelemetry-proto, logs v1): one per row, attributes by OpenTelemetry's names where it has them.

Attribute names: semantic conventions for what they cover (``http.request.method``, ``client.address``), else
``eastwest.*``. Severity: INFO for what was allowed, WARN for refusals, ERROR for lost records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber

SCOPE = "eastwest.decisions"
EVENT = "eastwest.decision"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAMES = {"method": "http.request.method", "source": "client.address"}
_NOT_ATTRIBUTES = frozenset({"time", "trace"})


def export_request(
    rows: Iterable[Mapping[str, Any]], *, trust_domain: str, version: str, observed: datetime
) -> ExportLogsServiceRequest:
    """One request with all rows, as of the resource ``service.name = eastwest`` of the trust domain."""
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.extend(
        [
            _pair("service.name", "eastwest"),
            _pair("service.version", version),
            _pair("eastwest.trust_domain", trust_domain),
        ]
    )
    scope = resource.scope_logs.add()
    scope.scope.name = SCOPE
    scope.scope.version = version
    seen = _nanoseconds(observed)
    scope.log_records.extend(log_record(row, seen) for row in rows)
    return request


def log_record(row: Mapping[str, Any], observed: int) -> LogRecord:
    """The record of one row; ``observed`` in Unix nanoseconds."""
    number, text = _severity(row)
    record = LogRecord(
        time_unix_nano=_nanoseconds(row["time"]),
        observed_time_unix_nano=observed,
        severity_number=number,
        severity_text=text,
        event_name=EVENT,
        body=AnyValue(string_value=_sentence(row)),
    )
    trace = row.get("trace") or ""
    if len(trace) == 32:
        record.trace_id = bytes.fromhex(trace)
    record.attributes.extend(
        _pair(_NAMES.get(name, f"eastwest.{name}"), value)
        for name, value in row.items()
        if name not in _NOT_ATTRIBUTES and value not in ("", None)
    )
    return record


def _severity(row: Mapping[str, Any]) -> tuple[SeverityNumber.ValueType, str]:
    if row.get("kind") == "lost":
        return SeverityNumber.SEVERITY_NUMBER_ERROR, "ERROR"
    if row.get("verdict") == "allow":
        return SeverityNumber.SEVERITY_NUMBER_INFO, "INFO"
    return SeverityNumber.SEVERITY_NUMBER_WARN, "WARN"


def _sentence(row: Mapping[str, Any]) -> str:
    if row.get("kind") == "lost":
        return f"{row.get('count', 0)} decisions were lost: {row.get('cause', '')}"
    caller = row.get("caller") or "a caller without proof"
    what = row.get("operation") or row.get("method") or "connection"
    return f"{row.get('verdict', '')} {caller} -> {row.get('service', '')} {what}: {row.get('code', '')}"


def _pair(name: str, value: object) -> KeyValue:
    if isinstance(value, bool):
        return KeyValue(key=name, value=AnyValue(bool_value=value))
    if isinstance(value, int):
        return KeyValue(key=name, value=AnyValue(int_value=value))
    return KeyValue(key=name, value=AnyValue(string_value=str(value)))


def _nanoseconds(time: object) -> int:
    moment = time if isinstance(time, datetime) else datetime.fromisoformat(str(time))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    delta = moment - _EPOCH
    return ((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds) * 1000
