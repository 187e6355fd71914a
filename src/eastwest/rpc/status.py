"""One map between our errors and gRPC status codes, in both directions."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from eastwest import errors

_STATUS = {
    errors.Code.INVALID_INPUT: Status.INVALID_ARGUMENT,
    errors.Code.NOT_FOUND: Status.NOT_FOUND,
    errors.Code.ALREADY_EXISTS: Status.ALREADY_EXISTS,
    errors.Code.PERMISSION_DENIED: Status.PERMISSION_DENIED,
    errors.Code.UNAUTHENTICATED: Status.UNAUTHENTICATED,
    errors.Code.FAILED_PRECONDITION: Status.FAILED_PRECONDITION,
    errors.Code.EXHAUSTED: Status.RESOURCE_EXHAUSTED,
    errors.Code.UNAVAILABLE: Status.UNAVAILABLE,
    errors.Code.LOG_UNAVAILABLE: Status.UNAVAILABLE,
    errors.Code.CORRUPT: Status.DATA_LOSS,
    errors.Code.INTERNAL: Status.INTERNAL,
}

_ERROR: dict[Status, type[errors.Error]] = {
    Status.INVALID_ARGUMENT: errors.InvalidInput,
    Status.OUT_OF_RANGE: errors.InvalidInput,
    Status.NOT_FOUND: errors.NotFound,
    Status.ALREADY_EXISTS: errors.AlreadyExists,
    Status.PERMISSION_DENIED: errors.PermissionDenied,
    Status.UNAUTHENTICATED: errors.Unauthenticated,
    Status.FAILED_PRECONDITION: errors.FailedPrecondition,
    Status.ABORTED: errors.FailedPrecondition,
    Status.RESOURCE_EXHAUSTED: errors.Exhausted,
    Status.UNAVAILABLE: errors.Unavailable,
    Status.DEADLINE_EXCEEDED: errors.Unavailable,
    Status.CANCELLED: errors.Unavailable,
    Status.DATA_LOSS: errors.Corrupt,
}


class Refused(errors.PermissionDenied):
    """A refusal that carries protobuf details for the peer (``grpc-status-details-bin``)."""

    def __init__(self, message: str, details: Sequence[Message]) -> None:
        super().__init__(message)
        self.details = details


class Unimplemented(errors.FailedPrecondition):
    """A method that this server does not have."""


_ERROR[Status.UNIMPLEMENTED] = Unimplemented
DOMAIN = "eastwest"
"""Of our ``google.rpc.ErrorInfo``: code, sentence and fix apart. The text of a status has them together, for people."""


def status_of(error: errors.Error) -> Status:
    """The gRPC status of one of our errors."""
    return Status.UNIMPLEMENTED if isinstance(error, Unimplemented) else _STATUS[error.code]


def to_grpc(error: errors.Error) -> GRPCError:
    """What a peer is told. The code's name leads the sentence where gRPC has no status of its own for it."""
    text = str(error)
    if error.code is errors.Code.LOG_UNAVAILABLE:
        text = f"{error.code}: {text}"
    details = list(error.details) if isinstance(error, Refused) else _apart(error)
    return GRPCError(status_of(error), text, details)


def from_grpc(error: GRPCError) -> errors.Error:
    """Our error for a peer's status."""
    text = error.message or error.status.name
    details = list(error.details or ())
    apart = next((one for one in details if isinstance(one, ErrorInfo) and one.domain == DOMAIN), None)
    if error.status is Status.PERMISSION_DENIED and details and apart is None:
        return Refused(text, details)
    kind = _ERROR.get(error.status, errors.Internal)
    if error.status is Status.UNAVAILABLE and text.startswith(errors.Code.LOG_UNAVAILABLE):
        kind, text = errors.LogUnavailable, text.partition(": ")[2]
    if apart is None:
        return kind(text)
    told = kind(apart.metadata["message"], fix=apart.metadata["fix"], where=apart.metadata["where"])
    told.reason = apart.reason
    return told


def _apart(error: errors.Error) -> list[Message] | None:
    """The parts of an error that has more than one."""
    if not (error.reason or error.fix or error.where):
        return None
    parts = {"message": error.message, "fix": error.fix, "where": error.where}
    return [ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=parts)]


def error_of(code: int, message: str) -> errors.Error | None:
    """Our error for one item's status in a batch, or None for OK."""
    return None if code == Status.OK.value else _ERROR.get(Status(code), errors.Internal)(message)
