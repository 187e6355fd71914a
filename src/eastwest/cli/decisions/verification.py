"""Holding a ledger's files against the transparency log, from files alone."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from eastwest.cli.log_reading import locate, open_log
from eastwest.errors import Corrupt, InvalidInput, NotFound, Unavailable
from eastwest.ledger.segment import PRUNED, SEALED, Found, SegmentReport, compare_segments
from eastwest.log.entry import decode
from eastwest.log.proven import ProvenReader
from eastwest.log.tiles import TILE_WIDTH
from eastwest.log.verify import PRUNED_KIND
from eastwest.store.ledger import HOT
from eastwest.store.ledger_reader import open_hot
from eastwest.store.ledger_worker import file_hash

SETTLE_SECONDS = 2.0
"""In which a running server publishes what it has logged."""
_MARKS = (SEALED.encode(), PRUNED.encode(), PRUNED_KIND.encode())
_FRAME = ("actor", "subject", "time")


def verify_ledger(
    data: Path | None, ledger: Path | None, log_dir: Path | None, vkey: str | None
) -> tuple[SegmentReport, int]:
    """What was found, and the size of the checkpoint that every entry was proven against.

    Raises ``Corrupt`` if the log itself does not lead to its checkpoint.
    """
    if ledger is None and data is None:
        raise InvalidInput("it is not said which ledger", fix="give --data DIR, or --ledger, --log-dir and --vkey")
    folder = ledger if ledger is not None else Path(data or "") / "server" / "ledger"
    if not folder.is_dir():
        raise NotFound(f"there is no ledger in {folder}", fix="give --data DIR of a server that has run")
    report, size = _compare(folder, data, log_dir, vkey)
    if not report.ok and (folder / HOT).exists():
        # A server may have been at work: between a file and the checkpoint that covers its entry lies a second.
        time.sleep(SETTLE_SECONDS)
        report, size = _compare(folder, data, log_dir, vkey)
    return report, size


def _compare(folder: Path, data: Path | None, log_dir: Path | None, vkey: str | None) -> tuple[SegmentReport, int]:
    files, key = locate(data, log_dir, vkey)
    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        name = str(path.relative_to(folder))
        if name.startswith("tmp/"):
            continue  # of a question or a sealing under way
        try:
            found[name] = Found(*file_hash(path))
        except FileNotFoundError:
            continue  # pruned meanwhile
    checkpoint, _note, _reader = open_log(files, key)
    since, entries = _entries(ProvenReader(files, checkpoint))
    return compare_segments(entries, found, _pending(folder / HOT, checkpoint.size), since=since), checkpoint.size


def _entries(log: ProvenReader) -> tuple[int, list[tuple[int, str, Mapping[str, Any]]]]:
    """Every entry about segments, each proven against the checkpoint, and from which index on there are entries.

    Entries that are not there must have been pruned by the log's own word, else ``Corrupt`` is raised.
    """
    found: list[tuple[int, str, Mapping[str, Any]]] = []
    since = allowed = index = 0
    while index < log.checkpoint.size:
        try:
            raw = log.entry(index)
        except NotFound:
            index = since = (index // TILE_WIDTH + 1) * TILE_WIDTH
            continue
        if any(mark in raw for mark in _MARKS):
            entry = decode(raw)
            if entry.kind in {SEALED, PRUNED}:
                facts = {name: value for name, value in entry.body.items() if name not in _FRAME}
                found.append((index, entry.kind, facts))
            elif entry.kind == PRUNED_KIND:
                allowed = max(allowed, int(entry.body["before"]))
        index += 1
    if since > allowed:
        raise Corrupt(
            f"entries before {since} are missing from the log, which says it was pruned up to {allowed}",
            fix="eastwest log verify names the files",
        )
    return since, found


def _pending(hot: Path, size: int) -> list[str]:
    """Segments whose log entry no checkpoint of ``size`` entries can cover yet, as the server's own notes say."""
    if not hot.exists():
        return []
    try:
        with closing(open_hot(hot)) as connection:
            rows = connection.execute(
                "SELECT path FROM segments WHERE state IN ('planned', 'written') OR log_index >= ?", (size,)
            )
            return [path for (path,) in rows]
    except sqlite3.Error as error:
        raise Unavailable(f"{hot} cannot be read: {error}", fix="let its owner read it") from None
