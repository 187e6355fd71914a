"""Protobuf descriptors: a ``FileDescriptorSet`` as ``protoc --descriptor_set_out`` or ``buf build`` write it.

Each method of each service becomes an operation; on the wire it is POST to ``/package.Service/Method``. HTTP rules
(``google.api.http``) are not read: what a transcoder offers is another interface, with a document of its own.
"""

from __future__ import annotations

from collections.abc import Collection

from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodDescriptorProto, MethodOptions
from google.protobuf.message import DecodeError

from eastwest.policy.forms import complaint
from eastwest.policy.imports.model import MAX_OPERATIONS, Contents, DocumentInvalid, Found, LeftOut
from eastwest.policy.imports.names import grpc_names, is_reading
from eastwest.policy.imports.wire import Malformed, Pruner, TooMany
from eastwest.policy.problems import Position, Problem, Severity, suggest

MAX_DESCRIPTORS = 64 << 20  # bytes
MAX_FIELDS = 1_000_000
"""Of the set: names, messages, services and methods with their options."""
MAX_NAME = 512
"""Characters of package, service and method."""
_METHOD = {1: None, 4: {34: None}}  # name, options: idempotency_level
_READ = {1: {1: None, 2: None, 6: {1: None, 2: _METHOD}}}  # file: name, package, service: name, method
_FIX = "make it with protoc --descriptor_set_out=FILE, or buf build -o FILE.binpb"


def read_protobuf(
    file: str, data: bytes, *, packages: Collection[str] = (), services: Collection[str] = ()
) -> Contents:
    """Read a descriptor set; ``packages`` and full names of ``services`` limit what is taken, empty limits nothing.

    Raises ``DocumentInvalid``.
    """
    where = Position(file)
    if len(data) > MAX_DESCRIPTORS:
        raise _refusal(where, f"the descriptor set is larger than {MAX_DESCRIPTORS >> 20} MiB", "import in parts")
    descriptors = FileDescriptorSet()
    try:
        descriptors.ParseFromString(Pruner(MAX_FIELDS).prune(memoryview(data), _READ))
    except TooMany:
        raise _refusal(where, f"the descriptor set has more than {MAX_FIELDS} fields", "import in parts") from None
    except (Malformed, DecodeError):
        raise _refusal(where, "this is not a set of protobuf descriptors", _FIX) from None
    if not descriptors.file or not all(one.name for one in descriptors.file):
        raise _refusal(where, "this is not a set of protobuf descriptors", _FIX)
    _check_filters(descriptors, packages, services, where)
    operations: list[Found] = []
    left_out: list[LeftOut] = []
    known: set[str] = set()
    for one in descriptors.file:
        here = Position(one.name[:MAX_NAME])
        for service in one.service:
            full = f"{one.package}.{service.name}" if one.package else service.name
            if (packages and one.package not in packages) or (services and full not in services):
                continue
            for method in service.method:
                if len(operations) + len(left_out) == MAX_OPERATIONS:
                    raise _refusal(where, f"more than {MAX_OPERATIONS} methods", "import in parts, by --package")
                _take(full, method, here, operations, left_out, known)
    notes = () if operations or left_out else (Problem(Severity.NOTE, where, "the descriptors have no services"),)
    return Contents(tuple(operations), tuple(left_out), notes, kind="grpc")


def _take(
    full: str,
    method: MethodDescriptorProto,
    where: Position,
    operations: list[Found],
    left_out: list[LeftOut],
    known: set[str],
) -> None:
    grpc = f"{full}/{method.name}"
    wrong = complaint("grpc-method", grpc) if len(grpc) <= MAX_NAME else (f"longer than {MAX_NAME} characters", "")
    if wrong is not None:
        left_out.append(LeftOut(where, grpc[:200], wrong[0], wrong[1]))
        return
    if grpc in known:
        left_out.append(LeftOut(where, grpc, "the same method is in two files"))
        return
    known.add(grpc)
    names = grpc_names(full, method.name)
    safe = method.options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    suggestion = "read" if safe or is_reading(names) else "mutate"
    operations.append(Found(where=where, names=names, suggestion=suggestion, grpc=grpc))


def _check_filters(
    descriptors: FileDescriptorSet, packages: Collection[str], services: Collection[str], where: Position
) -> None:
    known_packages = {one.package for one in descriptors.file if one.service}
    known = {f"{one.package}.{s.name}" if one.package else s.name for one in descriptors.file for s in one.service}
    for what, given, there in (("package", packages, known_packages), ("gRPC service", services, known)):
        for name in given:
            if name not in there:
                raise _refusal(where, f"no {what} {name[:80]!r} with methods is in it", suggest(name, there))


def _refusal(where: Position, message: str, fix: str) -> DocumentInvalid:
    return DocumentInvalid([Problem(Severity.ERROR, where, message, fix)])
