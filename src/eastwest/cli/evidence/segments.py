"""Whole segments in an archive against its rows: each row is in its segment, and none that should be here is missing.

This takes DuckDB, so it is what ``eastwest evidence verify`` adds to the archive's own program.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from eastwest.cli.evidence.collect import questions, rows_of
from eastwest.cli.evidence.verifier import Defect

PREFIX = "decisions/segments/"


def compare(files: Mapping[str, bytes]) -> str:
    """Raise ``Defect`` where rows and segments differ; gives a sentence for the report."""
    from eastwest.store.ledger_reader import LedgerReader

    manifest = json.loads(files["manifest.json"])
    included = {one["segment"]: one for one in manifest["segments"] if one["included"]}
    if not included:
        return "no segment is here in full"
    told = {row["row"]: row for row in _rows(files["decisions/rows.jsonl"])}
    start, end = (datetime.fromisoformat(manifest[name]) for name in ("from", "to"))
    with tempfile.TemporaryDirectory(prefix="eastwest-evidence-") as folder:
        for name in included:
            target = Path(folder, name)
            if not target.resolve().is_relative_to(Path(folder).resolve()):
                raise Defect(f"{name} is no path of a segment")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files[PREFIX + name])
        with LedgerReader(Path(folder), sorted(included)) as reader:
            found: dict[int, dict[str, Any]] = {}
            for question in questions(manifest["principal"], manifest["services"], start, end):
                found |= {row["row"]: row for row in rows_of(reader, question)}
    within = {
        number: row
        for number, row in told.items()
        if any(one["first_row"] <= number <= one["last_row"] for one in included.values())
    }
    plain: dict[int, Any] = {number: msgspec.to_builtins(row) for number, row in found.items()}
    for number in sorted(within.keys() | plain.keys()):
        if number not in plain:
            raise Defect(f"row {number} is in no segment")
        if number not in within:
            raise Defect(f"row {number} of the segments was left out")
        if within[number] != plain[number]:
            raise Defect(f"row {number} is not as it was sealed")
    return f"{len(within)} rows are as they were sealed, and none of these {len(included)} segments is missing"


def _rows(raw: bytes) -> Iterator[dict[str, Any]]:
    for line in raw.splitlines():
        yield json.loads(line)
