"""Every way Eastwest refuses or fails, as one tree.

    Error
      ├── InvalidInput        the caller's bytes, file or flag are wrong
      ├── NotFound            the thing named does not exist
      ├── AlreadyExists       the thing named exists and differs
      ├── PermissionDenied    the caller is known and may not
      ├── Unauthenticated     the caller has no valid proof
      ├── FailedPrecondition  the state forbids it (wrong trust domain, newer schema, ...)
      ├── Exhausted           a stated bound was reached
      ├── Unavailable         a part that is needed does not answer; trying again may help
      │     └── LogUnavailable    the transparency log cannot be written: nothing is issued
      ├── Corrupt             stored data contradicts itself; nothing more is signed
      └── Internal            our own mistake

Domains subclass these per fact (``UntrustedChain(Unauthenticated)``). Three maps turn an error into
what a peer sees: gRPC status (``eastwest.rpc.status``), HTTP, and the CLI's exit code and sentence.
"""

from __future__ import annotations

import enum


class Code(enum.StrEnum):
    """Stable names of error kinds; printed, logged and sent to peers, never renamed."""

    INVALID_INPUT = "INVALID_INPUT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    EXHAUSTED = "EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    LOG_UNAVAILABLE = "LOG_UNAVAILABLE"
    CORRUPT = "CORRUPT"
    INTERNAL = "INTERNAL"


class Error(Exception):
    """Root of all errors of Eastwest.

    ``message`` is one sentence for a person; ``fix`` says what would mend it; ``where`` is a
    position such as ``workloads/all.yaml:12:5``. Never put a key, a token or a secret into any of them.
    """

    code: Code = Code.INTERNAL
    reason: str = ""
    """The exact stable code, where the kind is refined by one: a decision code, for instance."""

    def __init__(self, message: str, *, fix: str = "", where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.where = where

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        suffix = f" ({self.fix})" if self.fix else ""
        return f"{prefix}{self.message}{suffix}"


class InvalidInput(Error):
    """The caller's bytes, file or flag are wrong."""

    code = Code.INVALID_INPUT


class NotFound(Error):
    """The thing named does not exist."""

    code = Code.NOT_FOUND


class AlreadyExists(Error):
    """The thing named exists already and is not the same."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(Error):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED


class Unauthenticated(Error):
    """The caller has no valid proof of who it is."""

    code = Code.UNAUTHENTICATED


class FailedPrecondition(Error):
    """The present state forbids this; something else must be done first."""

    code = Code.FAILED_PRECONDITION


class Exhausted(Error):
    """A stated bound was reached."""

    code = Code.EXHAUSTED


class Unavailable(Error):
    """A part that is needed does not answer; trying again may help."""

    code = Code.UNAVAILABLE


class LogUnavailable(Unavailable):
    """The transparency log cannot be written, so nothing may be released."""

    code = Code.LOG_UNAVAILABLE


class Corrupt(Error):
    """Stored data contradicts itself; nothing more is signed until a person has looked."""

    code = Code.CORRUPT


class Internal(Error):
    """Our own mistake."""

    code = Code.INTERNAL
