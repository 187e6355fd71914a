"""What can be asked of the ledger: rows, totals by a dimension, and the edges of who called what.

A query is plain data that travels as JSON: from the command line to the server, from the server to the process that
reads segments, and to any other store that serves ``LedgerStore``. No part of it is ever put into SQL as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

import msgspec

from eastwest.errors import InvalidInput
from eastwest.ledger.record import Decision, Lost
from eastwest.policy.enforcement import DecisionCode
from eastwest.policy.problems import suggest

MAX_PAGE = 5000
"""Rows of one answer, totals and edges included."""
MAX_TEXT = 2048
"""Characters of a value that is looked for; a SPIFFE ID has no more."""

FILTERS = (
    "caller",
    "service",
    "operation",
    "tenant",
    "verdict",
    "code",
    "agent",
    "node",
    "policy",
    "report_code",
    "report_policy",
    "peer",
    "cause",
    "reference",
    "trace",
    "transaction",
    "kind",
)
"""Fields of a query that a row must equal where they are not empty."""

FLAGS = ("first", "break_glass", "canary")
"""Fields of a query that a row must have where they are true."""

DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "caller": ("caller",),
    "service": ("service",),
    "operation": ("service", "operation"),
    "edge": ("caller", "service", "operation"),
    "code": ("code",),
    "verdict": ("verdict",),
    "tenant": ("tenant",),
    "cause": ("code", "cause"),
    "failure": ("service", "caller", "claimed", "code", "cause"),
    "policy": ("policy",),
    "report": ("service", "operation", "report_policy", "code", "report_code"),
    "peer": ("service", "peer"),
    "agent": ("agent",),
    "node": ("node",),
    "mode": ("mode",),
    "sensor": ("sensor",),
}
"""What totals can be made by, and the columns that stand for it."""

EDGE = ("caller", "claimed", "service", "operation")
"""The columns that make an edge: a name that nobody verified is never one with the same name proven."""


class Scope(msgspec.Struct, frozen=True):
    """What a reader with limited rights sees: rows of these services, and of these callers where they proved it."""

    services: tuple[str, ...] = ()
    callers: tuple[str, ...] = ()


class DecisionQuery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which rows. Empty texts ask nothing; ``start`` <= time < ``end``, both aware.

    ``after`` is a row number: rows above it, or with ``newest_first`` below it; 0 is none. ``reasons``: pairs of a code
    and a cause, one of which must be the row's. ``scope`` is the server's word, never the caller's.
    """

    caller: str = ""
    service: str = ""
    operation: str = ""
    tenant: str = ""
    verdict: str = ""
    code: str = ""
    agent: str = ""
    node: str = ""
    policy: str = ""
    report_code: str = ""
    report_policy: str = ""
    peer: str = ""
    cause: str = ""
    reference: str = ""
    trace: str = ""
    transaction: str = ""
    kind: str = ""
    first: bool = False
    break_glass: bool = False
    canary: bool = False
    no_canary: bool = False  # leaves out what `verify run` asked; totals do so by themselves
    reasons: tuple[tuple[str, str], ...] | None = None
    start: datetime | None = None
    end: datetime | None = None
    after: int = 0
    limit: int = 100
    newest_first: bool = False
    scope: Scope | None = None

    def checked(self) -> DecisionQuery:
        """The query with ``limit`` within bounds; raises ``InvalidInput`` where it could match nothing by mistake."""
        if self.verdict not in {"", "allow", "deny"}:
            raise InvalidInput(f"{self.verdict[:32]!r} is not a verdict", fix="allow or deny")
        if self.code and self.code not in DecisionCode.__members__:
            fix = suggest(self.code, DecisionCode.__members__, otherwise="see docs/reference/codes.md")
            raise InvalidInput(f"{self.code[:64]!r} is no decision code", fix=fix)
        if self.report_code and self.report_code not in DecisionCode.__members__:
            fix = suggest(self.report_code, DecisionCode.__members__, otherwise="see docs/reference/codes.md")
            raise InvalidInput(f"{self.report_code[:64]!r} is no decision code", fix=fix)
        if self.kind not in {"", "decision", "lost"}:
            raise InvalidInput(f"{self.kind[:32]!r} is no kind of row", fix="decision or lost")
        for name in FILTERS:
            if len(getattr(self, name)) > MAX_TEXT:
                raise InvalidInput(f"{name} has more than {MAX_TEXT} characters")
        for moment in (self.start, self.end):
            if moment is not None and moment.tzinfo is None:
                raise InvalidInput("a time needs a time zone", fix="such as 2026-11-22T10:00:00Z")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise InvalidInput("the time window ends before it begins", fix="give --from before --to")
        if not 0 <= self.after < 1 << 62:
            raise InvalidInput("after is no row number")
        return msgspec.structs.replace(self, limit=min(max(self.limit, 1), MAX_PAGE))


class LedgerStore(Protocol):
    """A ledger that can be asked. ``eastwest.testing.ledgers.LedgerContract`` holds each one to the same answers.

    A row is the JSON object of a ``Decision`` or a ``Lost``, what equals a default left out, with ``row`` (its number,
    which grows in the order of arrival), ``agent`` (who reported it) and ``kind``.
    """

    async def search(self, query: DecisionQuery) -> list[dict[str, Any]]:
        """Matching rows by row number, at most ``limit``."""
        ...

    async def top(self, query: DecisionQuery, by: str) -> list[dict[str, Any]]:
        """Totals by one of ``DIMENSIONS``, the largest first, at most ``limit``; lost rows only if asked for by kind.

        Calls by canaries are no calls by anybody: they are counted only where the query asks for them alone.

        Each has the dimension's columns, ``count`` and of that ``allowed``, ``denied`` and ``reported`` (denied, but
        the call went on), ``first`` and ``last``.
        """
        ...

    async def edges(self, query: DecisionQuery) -> list[dict[str, Any]]:
        """One for each caller, service and operation, in that order: as ``top``, with ``claimed`` and ``modes``.

        At most ``limit``; the next page begins after ``after`` of them.
        """
        ...


def dimension(by: str) -> tuple[str, ...]:
    """The columns of a dimension; raises ``InvalidInput`` with the nearest name."""
    if by not in DIMENSIONS:
        raise InvalidInput(
            f"totals cannot be made by {by[:32]!r}", fix=suggest(by, DIMENSIONS, otherwise=", ".join(DIMENSIONS))
        )
    return DIMENSIONS[by]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Microseconds since 1970, exact."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(micros: int) -> str:
    """RFC 3339 in UTC as ``msgspec`` writes it into rows: without a fraction where there is none."""
    return (_EPOCH + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")


KEPT: Mapping[Literal["decision", "lost"], frozenset[str]] = {
    "decision": frozenset(f.encode_name for f in msgspec.structs.fields(Decision) if f.required),
    "lost": frozenset(f.encode_name for f in msgspec.structs.fields(Lost) if f.required),
}
"""Fields that every row of a kind has, whatever their value."""
_DEFAULTS: dict[str, Any] = {
    field.encode_name: field.default for field in msgspec.structs.fields(Decision) if not field.required
}


def shaped(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it, from a record with a value in every column."""
    kind: Literal["decision", "lost"] = "lost" if columns["kind"] == "lost" else "decision"
    kept = KEPT[kind]
    row = {"row": columns["row"], "agent": columns["agent"], "kind": kind}
    for name, value in columns.items():
        default = value is None or value in ("", False) or value == _DEFAULTS.get(name)
        if name in kept or not (default or name in row):
            row[name] = value
    return row
