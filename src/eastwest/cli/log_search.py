"""``eastwest log search``: entries by what they are about and when, each proven before it is shown."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eastwest.cli.log_reading import head, line, locate, readable
from eastwest.cli.options import print_json
from eastwest.errors import FailedPrecondition, InvalidInput, NotFound, Unavailable

if TYPE_CHECKING:
    from eastwest.log.index import LogIndex, LogQuery
    from eastwest.log.proven import ProvenReader
    from eastwest.store.log_index import SqliteLogIndex

INDEX_NAME = "log-index.db"
MAX_UNINDEXED = 65_536
"""Entries that are looked through without an index: half a second."""

COLUMNS = ("index", "time", "kind", "subject", "actor", "node", "entry_id", "serial", "certificate_sha256")

Subject = Annotated[str, typer.Option("--subject", "--spiffe-id", metavar="ID", help="Whom or what it is about.")]
Actor = Annotated[str, typer.Option(metavar="ID", help="Who caused it.")]
Serial = Annotated[str, typer.Option(metavar="HEX", help="A certificate's serial number.")]
Certificate = Annotated[str, typer.Option("--certificate-sha256", metavar="HEX", help="A certificate's hash.")]
Node = Annotated[str, typer.Option(metavar="ID", help="The agent that asked.")]
EntryId = Annotated[str, typer.Option("--entry", metavar="ID", help="The registration entry.")]
Kind = Annotated[str, typer.Option(metavar="KIND", help="Such as x509_svid.issued.")]
Start = Annotated[
    str, typer.Option("--from", metavar="TIME", help="2026-11-22, 2026-11-22T10:00:00Z, or 90m, 24h, 7d ago.")
]
End = Annotated[str, typer.Option("--to", metavar="TIME", help="Up to, and without, this time.")]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many: the latest ones.")]
Oldest = Annotated[bool, typer.Option("--oldest", help="The first ones instead of the latest.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV with a line of names.")]
Index = Annotated[
    Path | None,
    typer.Option("--index", metavar="FILE", help="Make or continue an index in this file; for a copy of a log."),
]


class Finder:
    """Proven answers from a log's files, by an index as far as it goes and by looking beyond it."""

    def __init__(self, reader: ProvenReader, index: SqliteLogIndex | None) -> None:
        self._reader = reader
        self._index: LogIndex | None = index
        known = index.covered if index is not None else None
        self._covered = min(known.size, reader.checkpoint.size) if known is not None else 0
        self.pruned: list[int] = []

    def find(self, query: LogQuery) -> list[tuple[int, bytes]]:
        """The entries, oldest first."""
        from eastwest.log.index import find

        hits = list(find(self, self._entry, query))
        return hits[::-1] if query.newest_first else hits

    def search(self, query: LogQuery) -> list[int]:
        """Serves ``LogIndex``: beyond the index every entry may be an answer."""
        size = self._reader.checkpoint.size
        if query.newest_first:
            top = size if query.after is None else min(size, query.after)
            beyond: Sequence[int] = range(top - 1, self._covered - 1, -1)
        else:
            beyond = range(max(self._covered, -1 if query.after is None else query.after + 1), size)
        if query.newest_first and len(beyond) >= query.limit:
            return list(beyond[: query.limit])
        left = query.limit - (len(beyond) if query.newest_first else 0)
        known = [i for i in self._index.search(replace(query, limit=left)) if i < self._covered] if self._index else []
        return [*beyond, *known] if query.newest_first else [*known, *beyond][: query.limit]

    def _entry(self, index: int) -> bytes:
        try:
            return self._reader.entry(index)
        except NotFound:
            # Its hash is proven, so the log had it; what it said is pruned, or not copied.
            self._reader.leaf(index)
            self.pruned.append(index)
            return b""


@contextmanager
def opened(data: Path | None, log_dir: Path | None, vkey: str | None) -> Iterator[Finder]:
    """A finder on a log's files, by its usual index."""
    from eastwest.log.checkpoint import open_checkpoint
    from eastwest.log.proven import ProvenReader
    from eastwest.log.tiles import CHECKPOINT_PATH

    files, key = locate(data, log_dir, vkey)
    reader = ProvenReader(files, open_checkpoint(files.read(CHECKPOINT_PATH), key))
    with ExitStack() as stack:
        yield Finder(reader, _index(stack, reader, data if log_dir is None else None, None))


def search(
    data: Path | None,
    log_dir: Path | None,
    vkey: str | None,
    query: LogQuery,
    index_file: Path | None,
    *,
    json: bool,
    as_csv: bool,
) -> None:
    """What ``eastwest log search`` does."""
    from eastwest.log.checkpoint import open_checkpoint
    from eastwest.log.proven import ProvenReader
    from eastwest.log.tiles import CHECKPOINT_PATH

    query = query.normal()
    if query.start and query.end and query.start >= query.end:
        raise InvalidInput("the time window ends before it begins", fix="give --from before --to")
    files, key = locate(data, log_dir, vkey)
    checkpoint = open_checkpoint(files.read(CHECKPOINT_PATH), key)
    reader = ProvenReader(files, checkpoint)
    with ExitStack() as stack:
        index = _index(stack, reader, data if log_dir is None else None, index_file)
        finder = Finder(reader, index)
        found = finder.find(query)
    if not found:
        note_kind(query.kind)
    if json:
        entries = [{"index": number, "entry": readable(raw)} for number, raw in found]
        print_json({**head(key, checkpoint), "entries": entries, "limited": len(found) == query.limit})
    elif as_csv:
        print_csv(found)
    else:
        for number, raw in found:
            print(line(number, readable(raw)))
        more = "; there may be more, see --limit" if len(found) == query.limit else ""
        print(f"{len(found)} of {checkpoint.size} entries, each proven against the checkpoint of {key.name}{more}")
    if finder.pruned:
        print(f"{len(finder.pruned)} more may match; their bundles are not here (pruned?)", file=sys.stderr)


def note_kind(kind: str) -> None:
    """Say on standard error that a kind is none that this version knows: a log may be of a later one."""
    from eastwest.log.kinds import KINDS
    from eastwest.policy.problems import suggest

    if kind and kind not in KINDS:
        fix = suggest(kind, KINDS, otherwise="eastwest log schema lists them")
        print(f"note: no kind {kind[:64]!r} is known ({fix})", file=sys.stderr)


def print_csv(found: Sequence[tuple[int, bytes]]) -> None:
    """One line for each entry, the fields it is found by; no cell begins as a formula or commands a terminal."""
    from eastwest.cli.table import printable
    from eastwest.log.index import read_fields

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)

    def harmless(text: str) -> str:
        text = printable(text)
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text

    for number, raw in found:
        fields = read_fields(raw)
        writer.writerow([number, *(harmless(getattr(fields, name, "")) for name in COLUMNS[1:])])


def _index(stack: ExitStack, reader: ProvenReader, data: Path | None, file: Path | None) -> SqliteLogIndex | None:
    """An index that goes far enough; None where the log is short enough to do without."""
    size = reader.checkpoint.size
    if file is not None:
        return _continued(stack, reader, file)
    usual = data / "server" / INDEX_NAME if data is not None else None
    index = _fitting(stack, reader, usual) if usual is not None else None
    known = index.covered if index is not None else None
    if size - (known.size if known is not None else 0) <= MAX_UNINDEXED:
        return index
    if data is not None and usual is not None:
        from eastwest.process.locked import locked

        with suppress(FailedPrecondition, Unavailable, OSError), locked(data / "server" / "lock", "server"):
            return _continued(stack, reader, usual)
    raise FailedPrecondition(
        f"there is no index of most of the {size} entries",
        fix="--index FILE makes one there and keeps it (about 90 bytes an entry); a running server makes its own",
    )


def _fitting(stack: ExitStack, reader: ProvenReader, path: Path) -> SqliteLogIndex | None:
    """The index there, if it is one of this log."""
    from eastwest.store.log_index import SqliteLogIndex

    try:
        index = SqliteLogIndex.open(path, readonly=True)
    except (NotFound, Unavailable):
        return None
    stack.callback(index.close)
    known = index.covered
    if known is None or known.origin != reader.checkpoint.origin:
        return None
    # One that is ahead was read after the checkpoint; the next time it is not.
    if known.size <= reader.checkpoint.size and reader.leaf(known.size - 1) != known.last:
        return None
    return index


def _continued(stack: ExitStack, reader: ProvenReader, path: Path) -> SqliteLogIndex:
    """The index in a file, made or brought up to the checkpoint, with a bar on standard error if that takes time."""
    from rich.console import Console
    from rich.progress import Progress

    from eastwest.store.log_index import SqliteLogIndex, catch_up

    index = SqliteLogIndex.open(path)
    stack.callback(index.close)
    size = reader.checkpoint.size
    steps: Iterator[int] = catch_up(
        index, reader.checkpoint.origin, size, entries_of(reader), reader.leaf, batch=65_536
    )
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("indexing", total=size)
        for done in steps:
            progress.update(task, completed=done)
    return index


def entries_of(reader: ProvenReader) -> Any:
    """``read(start, end)`` for ``catch_up``: proven entries, b"" for those whose bundle is gone."""

    def read(start: int, end: int) -> list[bytes]:
        return [_or_nothing(reader, index) for index in range(start, end)]

    return read


def _or_nothing(reader: ProvenReader, index: int) -> bytes:
    try:
        return reader.entry(index)
    except NotFound:
        return b""
