"""``envoy.service.metrics.v3.MetricsService``, read only as far as single counters need.

An Envoy sends all that it counts; every metric but a few stays unread bytes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

MAX_VALUE = 1 << 53
"""Whole numbers up to it are exact as they come here; no honest counter is larger."""
_FIELD = descriptor_pb2.FieldDescriptorProto
_ONE, _MANY = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED
# Field numbers of envoy/service/metrics/v3/metrics_service.proto, and of Prometheus' metrics.proto below it.
_MESSAGES: dict[str, list[tuple[str, int, Any, Any, str]]] = {
    "Message": [("identifier", 1, _ONE, _FIELD.TYPE_BYTES, ""), ("envoy_metrics", 2, _MANY, 0, "Family")],
    "Family": [("name", 1, _ONE, _FIELD.TYPE_STRING, ""), ("metric", 4, _MANY, _FIELD.TYPE_BYTES, "")],
    "Metric": [("counter", 3, _ONE, 0, "Counter")],
    "Counter": [("value", 1, _ONE, _FIELD.TYPE_DOUBLE, "")],
    "Identifier": [("node", 1, _ONE, 0, "Node")],
    "Node": [("id", 1, _ONE, _FIELD.TYPE_STRING, "")],
    "Response": [],
}


def counters(message: Any, names: Collection[str]) -> dict[str, int]:
    """The values of those counters that ``message`` has; one that no counter can have counts as 0."""
    found = {}
    for family in message.envoy_metrics:
        name = family.name
        if name in names:
            total = sum(_value(_METRIC.FromString(raw).counter.value) for raw in family.metric)
            found[name] = min(total, MAX_VALUE)
    return found


def _value(told: float) -> int:
    return int(told) if 0 <= told <= MAX_VALUE else 0  # not so: infinite, or no number


def node_id(message: Any) -> str:
    """Who sends, where the message says it; else ""."""
    return str(_IDENTIFIER.FromString(message.identifier).node.id) if message.identifier else ""


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="eastwest/metrics_wire.proto", package="wire", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, label, kind, inner in fields:
            added = message.field.add(name=field, number=number, label=label)
            added.type = kind or _FIELD.TYPE_MESSAGE
            if inner:
                added.type_name = f".wire.{inner}"
    served = descriptor_pb2.FileDescriptorProto(
        name="eastwest/metrics_service.proto",
        package="envoy.service.metrics.v3",
        syntax="proto3",
        dependency=[file.name],
    )
    served.service.add(name="MetricsService").method.add(
        name="StreamMetrics", input_type=".wire.Message", output_type=".wire.Response", client_streaming=True
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    pool.Add(served)
    return pool


_POOL = _pool()
SERVICE: ServiceDescriptor = _POOL.FindServiceByName("envoy.service.metrics.v3.MetricsService")
"""The metrics service, its messages read so."""
Message: Any = GetMessageClass(_POOL.FindMessageTypeByName("wire.Message"))
Response: Any = GetMessageClass(_POOL.FindMessageTypeByName("wire.Response"))
_METRIC: Any = GetMessageClass(_POOL.FindMessageTypeByName("wire.Metric"))
_IDENTIFIER: Any = GetMessageClass(_POOL.FindMessageTypeByName("wire.Identifier"))
