"""A sealed segment: its columns, what the log says of it, and whether the files beside a log are the ones it means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from eastwest.errors import Corrupt
from eastwest.ledger.record import Decision

SEALED = "decision.segment.sealed"
PRUNED = "decision.segment.pruned"
"""Kinds of log entries: a segment is complete; a segment was deleted by stated policy."""

_TYPES = {"str": "VARCHAR", "bool": "BOOLEAN", "int": "UBIGINT", "datetime": "TIMESTAMPTZ"}
COLUMNS: Mapping[str, str] = {
    "row": "UBIGINT",
    "agent": "VARCHAR",
    "kind": "VARCHAR",
    "time": "TIMESTAMPTZ",
    "until": "TIMESTAMPTZ",
    **{
        field.encode_name: _TYPES.get(getattr(field.type, "__name__", ""), "VARCHAR")
        for field in msgspec.structs.fields(Decision)
        if field.encode_name != "time"
    },
}
"""Columns of a segment in order, with their SQL types: the fields of a decision, and what the store adds.

``until`` is of lost rows only. A segment of an earlier version has fewer columns; new ones come at no fixed place.
"""
DEFAULTS: Mapping[str, Any] = {
    name: {"VARCHAR": "", "BOOLEAN": False, "UBIGINT": 0}.get(kind) for name, kind in COLUMNS.items()
} | {
    field.encode_name: field.default
    for field in msgspec.structs.fields(Decision)
    if field.default is not msgspec.NODEFAULT
}
"""What a row has in a column that it does not mention."""

_PATH = re.compile(r"dt=\d{4}-\d\d-\d\d/hour=\d\d/(\d{1,19})-(\d{1,19})\.parquet")


class SegmentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a ``decision.segment.sealed`` entry."""

    segment: str  # path below the ledger's directory
    sha256: str  # of the file, hex
    bytes: int
    rows: int
    decisions: int  # sum of the counts of its decisions
    lost: int  # sum of the counts of its lost rows
    first_row: int
    last_row: int
    first_time: str  # RFC 3339; of the earliest row
    last_time: str
    previous: str  # sha256 of the segment sealed before; "" for the first


class PrunedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a ``decision.segment.pruned`` entry."""

    segment: str
    sha256: str
    rows: int
    decisions: int
    last_time: str
    reason: str  # keep_days or keep_mib


@dataclass(frozen=True, slots=True)
class Found:
    """A file that lies in a ledger's directory."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class SegmentProblem:
    """A defect: which segment, the index of its log entry if it has one, and a sentence."""

    segment: str
    message: str
    entry: int | None = None

    def __str__(self) -> str:
        return f"{self.segment}: {self.message}"


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """What was compared. Only if ``ok`` are the files the ones that the log speaks of."""

    sealed: int
    pruned: int
    rows: int
    decisions: int
    lost: int
    pending: tuple[str, ...]
    problems: tuple[SegmentProblem, ...]
    unproven: tuple[str, ...] = ()
    """Files whose log entries were pruned from the log by its retention, so that nothing vouches for them any more."""

    @property
    def ok(self) -> bool:
        """Whether every segment that should be there is, unchanged, and no other."""
        return not self.problems


def segment_path(day: str, hour: int, first: int, last: int) -> str:
    """Where a segment lies below the ledger's directory; day and hour (UTC) are those of its sealing."""
    return f"dt={day}/hour={hour:02}/{first}-{last}.parquet"


def rows_of(path: str) -> tuple[int, int] | None:
    """First and last row number of a segment by its path; None: this is no segment's path."""
    match = _PATH.fullmatch(path)
    return None if match is None else (int(match[1]), int(match[2]))


def compare_segments(
    entries: Iterable[tuple[int, str, Mapping[str, Any]]],
    files: Mapping[str, Found],
    pending: Sequence[str] = (),
    *,
    since: int = 0,
) -> SegmentReport:
    """Hold files against log entries, which the caller has proven against a checkpoint.

    ``entries``: index, kind and facts in the log's order. ``pending``: files that the server has written and not yet
    logged; they are told, not judged. ``since``: the entries before this index were pruned from the log, so that the
    chain begins in its middle, and files of before it are told as unproven. Raises ``Corrupt`` for an entry that is
    none.
    """
    sealed: dict[str, tuple[int, SegmentRecord]] = {}
    pruned: dict[str, int] = {}
    problems: list[SegmentProblem] = []
    previous: str | None = None if since else ""
    last_row = 0
    for index, kind, facts in entries:
        if kind == PRUNED:
            name = str(facts.get("segment", ""))
            if name not in sealed and not since:
                problems.append(SegmentProblem(name, "was pruned by the log, but never sealed", index))
            pruned[name] = index
        if kind != SEALED:
            continue
        record = _record(index, facts)
        if record.segment in sealed:
            problems.append(SegmentProblem(record.segment, "is sealed twice in the log", index))
        if previous is not None and record.previous != previous:
            problems.append(SegmentProblem(record.segment, "does not name the segment before it in the log", index))
        if record.first_row <= last_row or record.last_row - record.first_row + 1 < record.rows:
            problems.append(SegmentProblem(record.segment, "its rows overlap those before, or are miscounted", index))
        sealed[record.segment] = (index, record)
        previous, last_row = record.sha256, record.last_row
    first = min((record.first_row for _, record in sealed.values()), default=None)
    unproven: list[str] = []
    by_hash = {record.sha256: name for name, (_, record) in sealed.items()}
    for name, (index, record) in sealed.items():
        if name not in pruned and (defect := _defect(record, files.get(name), by_hash)):
            problems.append(SegmentProblem(name, defect, index))
    for name, found in sorted(files.items()):
        if name in pruned:
            problems.append(SegmentProblem(name, "is here although the log says it was pruned", pruned[name]))
        elif name not in sealed and since and _is_before(name, first):
            unproven.append(name)
        elif name not in sealed and name not in pending:
            twin = by_hash.get(found.sha256)
            what = f"is a copy of {twin}" if twin else "is no segment that the log knows"
            problems.append(SegmentProblem(name, what))
    here = [record for name, (_, record) in sealed.items() if name not in pruned]
    return SegmentReport(
        sealed=len(here),
        pruned=len(pruned),
        rows=sum(record.rows for record in here),
        decisions=sum(record.decisions for record in here),
        lost=sum(record.lost for record in here),
        pending=tuple(name for name in pending if name in files and name not in sealed),
        problems=tuple(problems),
        unproven=tuple(unproven),
    )


def _is_before(name: str, row: int | None) -> bool:
    """Whether a file's rows all come before ``row``, the first that the log still speaks of."""
    rows = rows_of(name)
    return rows is not None and (row is None or rows[1] < row)


def _record(index: int, facts: Mapping[str, Any]) -> SegmentRecord:
    try:
        return msgspec.convert(dict(facts), SegmentRecord)
    except msgspec.ValidationError as error:
        raise Corrupt(f"log entry {index} is no {SEALED}: {error}") from None


def _defect(record: SegmentRecord, found: Found | None, by_hash: Mapping[str, str]) -> str:
    if found is None:
        return f"is missing: {record.rows} rows from {record.first_time} to {record.last_time}"
    if found.sha256 == record.sha256:
        return ""
    if other := by_hash.get(found.sha256):
        return f"holds the content of {other}"
    if found.bytes < record.bytes:
        return f"was cut short: {found.bytes} of {record.bytes} bytes"
    return "was changed: its SHA-256 is not the one in the log"
