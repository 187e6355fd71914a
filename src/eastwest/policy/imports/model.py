"""What a document says about a service, before it meets the service's file."""

from __future__ import annotations

from dataclasses import dataclass, field

from eastwest.policy.problems import EstateInvalid, Findings, Position, Problem

MAX_OPERATIONS = 20_000
"""Of one document."""


class DocumentInvalid(EstateInvalid):
    """The document, or the service file, has mistakes; ``problems`` holds all of them."""


def refuse(findings: Findings) -> None:
    """Raise ``DocumentInvalid`` with everything found, if an error is among it."""
    if findings.failed:
        raise DocumentInvalid(findings.all())


@dataclass(frozen=True, slots=True)
class Found:
    """An operation of a document. Either ``method`` and ``path`` are set, or ``grpc``.

    ``names`` are pairs of resource and verb, best first; the last is of this operation alone. ``sensitivity``,
    ``data`` and ``demands`` are what the document says by its extensions, ``suggestion`` the sensitivity that a
    person may want to confirm.
    """

    where: Position
    names: tuple[tuple[str, str], ...]
    suggestion: str
    method: str = ""
    path: str = ""
    grpc: str = ""
    name: str = ""  # said by the document, whole
    sensitivity: str = ""
    data: str = ""
    demands: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """How people call it: ``GET /pets`` or ``pets.v1.Pets/List``."""
        return self.grpc or f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something of a document that cannot become an operation, and why."""

    where: Position
    what: str
    reason: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.reason}" + (f" ({self.fix})" if self.fix else "")


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a document says; ``tenant`` is ``("path", PARAMETER)`` or ``("header", NAME)`` where it says one."""

    operations: tuple[Found, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[Problem, ...] = ()
    tenant: tuple[str, str] | None = None
    kind: str = "http"  # or "grpc": which operations of a service file the document speaks about


@dataclass(slots=True)
class Budget:
    """Steps that reading may take, so that a small document cannot ask for endless work."""

    left: int = 5_000_000
    exhausted: bool = field(default=False, init=False)

    def spend(self, steps: int = 1) -> bool:
        """Take steps; False when there are no more."""
        self.left -= steps
        if self.left < 0:
            self.exhausted = True
        return not self.exhausted
