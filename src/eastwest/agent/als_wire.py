"""Envoy's log messages read only as far as a decision needs, which is what the agent pays for each call.

The same messages as ``envoy.service.accesslog.v3``, with the same field numbers, in a descriptor pool of their own:
parts that are equal for many calls stay bytes, by which what was made of them is found again; other fields stay
unread, and are there again where a whole entry is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envoy.config.core.v3 import address_pb2
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

_Shape = dict[str, "_Shape | bool"]
# By field of the real message: a shape to read into, True for bytes or a plain value as it is.
_MESSAGE: _Shape = {
    "identifier": True,
    "http_logs": {
        "log_entry": {
            "common_properties": {
                "tls_properties": True,
                "start_time": {"seconds": True},
                "metadata": True,
                "downstream_direct_remote_address": True,
                "downstream_local_address": True,
                "access_log_type": True,
            },
            "request": {"request_method": True, "path": True, "request_headers": True},
            "response": {"response_code_details": True},
        }
    },
    "tcp_logs": True,
}
_PLAIN = descriptor_pb2.FieldDescriptorProto
_LABEL = {True: _PLAIN.LABEL_REPEATED, False: _PLAIN.LABEL_OPTIONAL}


def whole_entry(entry: Any) -> Any:
    """The ``HTTPAccessLogEntry`` that ``entry`` was read from."""
    return accesslog_pb2.HTTPAccessLogEntry.FromString(entry.SerializeToString())


def plaintext(http: Sequence[Any], tcp: Sequence[Any]) -> dict[tuple[bytes, bytes], int]:
    """Connections without TLS that entries tell of, and when (Unix seconds) the last request of each began.

    By their remote and local address, each an ``Address`` as it was on the wire.
    """
    found: dict[tuple[bytes, bytes], int] = {}
    for entry in http:
        common = entry.common_properties
        if not common.tls_properties:
            ends = common.downstream_direct_remote_address, common.downstream_local_address
            found[ends] = max(found.get(ends, 0), common.start_time.seconds)
    for entry in tcp:
        common = entry.common_properties
        if not common.HasField("tls_properties"):
            both = common.downstream_direct_remote_address, common.downstream_local_address
            remote, local = (each.SerializeToString() for each in both)
            found[remote, local] = max(found.get((remote, local), 0), common.start_time.seconds)
    return found


def address(wire: bytes) -> tuple[str, int]:
    """An ``Address`` as IP address and port."""
    socket = address_pb2.Address.FromString(wire).socket_address
    return socket.address, socket.port_value


def identifier(message: Any) -> Any:
    """Who sends, where the message says it; else None."""
    if not message.identifier:
        return None
    return als_pb2.StreamAccessLogsMessage.Identifier.FromString(message.identifier)


def tcp_entries(message: Any) -> Any:
    """The whole ``TCPAccessLogEntry`` messages of one message."""
    return als_pb2.StreamAccessLogsMessage.TCPAccessLogEntries.FromString(message.tcp_logs).log_entry


def _service() -> ServiceDescriptor:
    file = descriptor_pb2.FileDescriptorProto(name="eastwest/als_wire.proto", package="wire", syntax="proto3")
    _add(file, als_pb2.StreamAccessLogsMessage.DESCRIPTOR, _MESSAGE)
    answer = file.message_type.add(name="StreamAccessLogsResponse")
    real = als_pb2.DESCRIPTOR.services_by_name["AccessLogService"]
    package, _, name = real.full_name.rpartition(".")
    served = descriptor_pb2.FileDescriptorProto(
        name="eastwest/als_service.proto", package=package, syntax="proto3", dependency=[file.name]
    )
    service = served.service.add(name=name)
    service.method.add(
        name="StreamAccessLogs",
        input_type=".wire.StreamAccessLogsMessage",
        output_type=f".wire.{answer.name}",
        client_streaming=True,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    pool.Add(served)
    return pool.FindServiceByName(real.full_name)


def _add(file: descriptor_pb2.FileDescriptorProto, real: Descriptor, shape: _Shape) -> str:
    message = file.message_type.add(name=real.name)
    for name, inner in shape.items():
        field = real.fields_by_name[name]
        added = message.field.add(name=name, number=field.number)
        repeated = field.is_repeated
        added.label = _LABEL[repeated]
        if isinstance(inner, dict) and field.message_type is not None:
            added.type = _PLAIN.TYPE_MESSAGE
            added.type_name = f".wire.{_add(file, field.message_type, inner)}"
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            added.type = _PLAIN.TYPE_BYTES
        elif field.type == FieldDescriptor.TYPE_ENUM:
            added.type = _PLAIN.TYPE_INT32
        else:
            added.type = _PLAIN.Type.ValueType(field.type)
    return real.name


SERVICE = _service()
"""The access log service, its messages read so."""
Message: Any = GetMessageClass(SERVICE.methods_by_name["StreamAccessLogs"].input_type)
Response: Any = GetMessageClass(SERVICE.methods_by_name["StreamAccessLogs"].output_type)
