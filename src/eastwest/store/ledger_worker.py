"""The process in which DuckDB runs: it writes segments, and answers questions. Asked over pipes, in JSON.

It ends when its standard input does. A segment is written under a lock, so that a worker that outlives a killed server
cannot replace what the next server's worker has written.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import signal
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from eastwest.errors import Corrupt, Error, Internal
from eastwest.ledger.query import DecisionQuery, moment
from eastwest.ledger.segment import SegmentRecord
from eastwest.store.ledger import HOT
from eastwest.store.ledger_callers import callers
from eastwest.store.ledger_reader import LedgerReader, literal, open_hot, relation, write_rows

NICE = 10
"""How far the worker gives way to the server that issues certificates."""
ROW_GROUP = 65_536


class Question(msgspec.Struct, omit_defaults=True):
    """What a worker is asked: ``write``, ``search``, ``top``, ``edges`` or ``export``."""

    task: str
    query: DecisionQuery | None = None
    by: str = ""  # of top
    form: str = ""  # of export
    path: str = ""  # of export: file; of write: path of the segment
    first: int = 0
    last: int = 0
    previous: str = ""


class Answer(msgspec.Struct, omit_defaults=True):
    """What it says: rows, a number, a record; or the code, message and fix of an error."""

    rows: list[dict[str, Any]] = []
    number: int = 0
    record: SegmentRecord | None = None
    times: tuple[int, int] = (0, 0)
    error: tuple[str, str, str] | None = None


def write_segment(reader: LedgerReader, directory: Path, question: Question) -> Answer:
    """Write rows ``first`` to ``last`` of the hot database into a Parquet file, durable under its final name."""
    target = directory / question.path
    with (directory / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with tempfile.TemporaryDirectory(dir=reader.scratch) as place:
            rows, parquet = Path(place) / "rows.jsonl", Path(place) / "segment.parquet"
            number = _read_hot(directory, question, rows)
            source, bound = relation([], rows)
            reader.connection.execute(
                f'COPY (SELECT * FROM ({source}) ORDER BY "row") TO {literal(str(parquet))} '  # noqa: S608 - fixed text
                f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP})",
                bound,
            )
            facts = _facts(reader, parquet)
            if facts[0] != number:
                raise Corrupt(f"a segment of {number} rows was written with {facts[0]}", fix="tell the developers")
            _, decisions, lost, first_time, last_time = facts
            digest, size = _sync(parquet)
            _make_parents(directory, target)
            parquet.rename(target)
            _sync_directory(target.parent)
    record = SegmentRecord(
        segment=question.path,
        sha256=digest,
        bytes=size,
        rows=number,
        decisions=decisions,
        lost=lost,
        first_row=question.first,
        last_row=question.last,
        first_time=moment(first_time),
        last_time=moment(last_time),
        previous=question.previous,
    )
    return Answer(record=record, times=(first_time, last_time))


def file_hash(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()


def answer(reader: LedgerReader, directory: Path, question: Question) -> Answer:
    """Do one task; errors that have a name come as an answer too."""
    query = question.query or DecisionQuery()
    try:
        match question.task:
            case "write":
                return write_segment(reader, directory, question)
            case "search":
                return Answer(rows=reader.search(query))
            case "top":
                return Answer(rows=reader.top(query, question.by))
            case "callers":
                return Answer(rows=callers(reader, query))
            case "edges":
                return Answer(rows=reader.edges(query))
            case "export":
                return Answer(number=reader.export(query, question.form, Path(question.path)))
        raise Internal(f"the ledger's worker knows no task {question.task!r}")
    except Error as error:
        return Answer(error=(error.code, error.message, error.fix))
    except OSError as error:
        return Answer(error=("UNAVAILABLE", f"the ledger's directory cannot be used: {error}", "free some space"))


def _read_hot(directory: Path, question: Question, target: Path) -> int:
    with closing(open_hot(directory / HOT)) as connection, target.open("wb") as file:
        span = (question.first, question.last)
        rows = connection.execute("SELECT id, agent, body FROM decisions WHERE id BETWEEN ? AND ? ORDER BY id", span)
        write_rows(rows, file)
        return int(connection.execute("SELECT COUNT(*) FROM decisions WHERE id BETWEEN ? AND ?", span).fetchone()[0])


def _facts(reader: LedgerReader, parquet: Path) -> tuple[int, int, int, int, int]:
    row = reader.connection.execute(
        "SELECT COUNT(*), COALESCE(SUM(\"count\") FILTER (kind = 'decision'), 0), "
        'COALESCE(SUM("count") FILTER (kind = \'lost\'), 0), epoch_us(MIN("time")), epoch_us(MAX("time")) '
        "FROM read_parquet(?, hive_partitioning = false)",
        [str(parquet)],
    ).fetchone()
    assert row is not None
    return (int(row[0]), int(row[1]), int(row[2]), int(row[3]), int(row[4]))


def _sync(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())
    return file_hash(path)


def _make_parents(directory: Path, target: Path) -> None:
    day = target.parent.parent
    for each in (day, target.parent):
        each.mkdir(mode=0o700, exist_ok=True)
    _sync_directory(directory)
    _sync_directory(day)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _work(directory: Path, memory_mb: int, threads: int, questions: BinaryIO, answers: BinaryIO) -> None:
    scratch = directory / "tmp"
    decoder, encoder = msgspec.json.Decoder(Question), msgspec.json.Encoder()
    with LedgerReader(directory, scratch=scratch, memory_mb=memory_mb, threads=threads) as reader:
        while len(head := questions.read(4)) == 4:
            question = decoder.decode(questions.read(int.from_bytes(head)))
            body = encoder.encode(answer(reader, directory, question))
            answers.write(len(body).to_bytes(4) + body)
            answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the server ends its workers itself
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.stdin.buffer, sys.stdout.buffer)
