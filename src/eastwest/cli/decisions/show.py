"""Rows for people, lines for machines; nothing in a row can command a terminal or a spreadsheet."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eastwest.cli.table import print_table
from eastwest.ledger.query import EDGE

COLUMNS = ("row", "time", "caller", "service", "operation", "tenant", "verdict", "code", "policy", "count")
LOST_COLUMNS = ("row", "time", "until", "agent", "node", "service", "cause", "count")
_EDGE_COLUMNS = (*EDGE, "count", "allowed", "denied", "reported", "first", "last", "modes")
_decoder = codecs.getincrementaldecoder("utf-8")("replace")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def print_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool, follow: bool) -> None:
    """A table; while following, one JSON object or one plain line each."""
    if as_json:
        import msgspec

        for row in rows:
            print(msgspec.json.encode(row).decode(), flush=True)
    elif rows:
        lost = [row for row in rows if row["kind"] == "lost"]
        told = [row for row in rows if row["kind"] != "lost"]
        if told:
            print_table(COLUMNS, [_shown(row) for row in told])
        if lost:
            print_table(LOST_COLUMNS, [tuple(str(row.get(name, "")) for name in LOST_COLUMNS) for row in lost])
        sys.stdout.flush()
    elif not follow:
        print("no decisions match; agents report them within a second")


def print_totals(rows: Sequence[Mapping[str, Any]]) -> None:
    """Totals or edges as a table."""
    if not rows:
        print("no decisions match; agents report them within a second")
        return
    columns = [name for name in rows[0] if name != "claimed"]
    print_table(columns, [tuple(_cell(row, name) for name in columns) for row in rows])


def print_lost(lost: int) -> None:
    """What nobody will ever know."""
    if lost:
        print(f"{lost} decisions were lost by agents and are not shown")


def print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Edges as CSV (RFC 4180); no cell begins as a formula."""
    told = io.StringIO(newline="")
    writer = csv.writer(told, lineterminator="\r\n")
    writer.writerow(_EDGE_COLUMNS)
    for row in rows:
        writer.writerow([_harmless(_text(row[name])) for name in _EDGE_COLUMNS])
    _to_output(told.getvalue().encode())


async def write_pieces(pieces: AsyncIterator[bytes], out: Path | None) -> None:
    """Write a file whole or not at all, readable by its owner alone; or to standard output."""
    if out is None:
        async for piece in pieces:
            _to_output(piece)
        return
    descriptor, temporary = tempfile.mkstemp(prefix=".export-", dir=out.absolute().parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for piece in pieces:
                file.write(piece)
        Path(temporary).replace(out)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def _to_output(piece: bytes) -> None:
    """Bytes as they are, unless a person's terminal would take some of them for commands."""
    if sys.stdout.isatty():
        text = "".join(
            c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in _decoder.decode(piece)
        )
        piece = text.encode()
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _shown(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row's cells. A name that nobody verified is marked as one, and so is a refusal that was only reported."""
    told: dict[str, str] = {name: str(row.get(name, "")) for name in COLUMNS}
    if row.get("claimed"):
        told["caller"] = f"claims {told['caller']}"
    if row["verdict"] == "deny" and not row["enforced"]:
        told["verdict"] = "deny (reported only)"
    if row.get("report_code"):
        told["code"] = f"{told['code']} (rules on trial: {row['report_code']})"
    if row.get("peer") and not told["caller"]:
        told["caller"] = f"? {row['peer']}"
    if row.get("canary"):
        told["caller"] = f"canary {told['caller']}"
    told["operation"] = told["operation"] or row.get("method", "")
    told["count"] = told["count"] or "1"
    return tuple(told.values())


def _cell(row: Mapping[str, Any], name: str) -> str:
    text = _text(row[name])
    return f"claims {text}" if name == "caller" and row.get("claimed") else text


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
