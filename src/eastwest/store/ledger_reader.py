"""Asking a directory of segments with DuckDB, and the hot rows beside them where there are any. Needs no server.

    reader = LedgerReader(directory)            # DATA/server/ledger, or a copy of it, or some of its segments
    rows = reader.search(DecisionQuery(service="orders", limit=20))

Values are bound, paths are checked, and DuckDB may open nothing outside of the directory. It brings 65 MB of code and
takes memory as it likes within its bound: a server asks it in another process (``eastwest.store.ledger_worker``).
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from eastwest.errors import Corrupt, InvalidInput, NotFound, Unavailable
from eastwest.ledger.query import EDGE, FILTERS, FLAGS, DecisionQuery, dimension, moment, shaped
from eastwest.ledger.segment import COLUMNS, DEFAULTS, rows_of
from eastwest.policy.enforcement import MtlsMode
from eastwest.store.ledger import HOT, conditions, sealed_paths

if TYPE_CHECKING:
    import duckdb

MEMORY_MB = 512
THREADS = 2
MAX_SPILL = "4GB"
MAX_EXPORT = 20_000_000
"""Rows of one export."""
FORMATS = ("csv", "json", "jsonl", "parquet")
FIRST_BATCH = 16
"""Segments that a search looks into first; then four times as many, until it has enough."""

_TIMES = ("time", "until")
_SPEC = "{" + ", ".join(f"'{name}': '{kind}'" for name, kind in COLUMNS.items()) + "}"
_TEMPLATE = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in COLUMNS.items())
_TOTALS = """
  CAST(SUM("count") AS BIGINT) AS calls,
  CAST(SUM(IF(verdict = 'allow', "count", 0)) AS BIGINT) AS allowed,
  CAST(SUM(IF(verdict = 'deny', "count", 0)) AS BIGINT) AS denied,
  CAST(SUM(IF(verdict = 'deny' AND NOT enforced, "count", 0)) AS BIGINT) AS reported,
  epoch_us(MIN("time")) AS begin, epoch_us(MAX("time")) AS last
"""
# A list of distinct modes for each of a million edges would take longer than all the rest.
_MODES = "".join(f", BOOL_OR(mode = '{mode}')" for mode in sorted(MtlsMode))


def connect(
    directory: Path, scratch: Path, *, memory_mb: int = MEMORY_MB, threads: int = THREADS
) -> duckdb.DuckDBPyConnection:
    """DuckDB in memory, which may open files below these two only, and loads nothing from anywhere."""
    import duckdb

    connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"})
    connection.execute("SET autoload_known_extensions = false")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET preserve_insertion_order = false")
    for name, value in (
        ("memory_limit", f"{memory_mb}MB"),
        ("threads", threads),
        ("temp_directory", str(scratch.absolute())),
        ("max_temp_directory_size", MAX_SPILL),
        ("allowed_directories", [f"{directory.absolute()}/", f"{scratch.absolute()}/"]),
        ("enable_external_access", False),
        ("lock_configuration", True),
    ):
        connection.execute(
            f"SET {name} = {literal(value)}"
        )  # fixed names, and our own settings; SET takes no parameters
    return connection


class LedgerReader:
    """Answers ``DecisionQuery`` from files. Serves ``eastwest.ledger.query.LedgerStore`` without ``async``."""

    def __init__(
        self,
        directory: Path,
        files: Sequence[str] | None = None,
        *,
        scratch: Path | None = None,
        memory_mb: int = MEMORY_MB,
        threads: int = THREADS,
    ) -> None:
        """``files``: only these segments, paths below ``directory``; None: all, with the hot rows if they are there.

        ``scratch``: an existing directory for what does not fit into memory; None: a temporary one.
        """
        if not directory.is_dir() or (files is None and not _has_ledger(directory)):
            raise NotFound(f"there is no ledger in {directory}", fix="give the directory that holds dt=... directories")
        self.directory = directory.absolute()
        self._files = files
        self._temporary = None if scratch else tempfile.TemporaryDirectory(prefix="eastwest-ledger-")
        self.scratch = scratch or Path(self._temporary.name if self._temporary else "")
        self.connection = connect(self.directory, self.scratch, memory_mb=memory_mb, threads=threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of memory and of the temporary directory."""
        self.connection.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def search(self, query: DecisionQuery) -> list[dict[str, Any]]:
        """Matching rows by row number, at most ``limit``."""
        query = query.checked()
        with self.source(query) as source:
            batches = source.batches(newest_first=query.newest_first)
            rows: list[dict[str, Any]] = []
            for batch in batches:
                rows += self._page(query, batch, query.limit - len(rows))
                if len(rows) >= query.limit:
                    break
            return rows

    def top(self, query: DecisionQuery, by: str) -> list[dict[str, Any]]:
        columns = dimension(by)
        if query.kind == "lost":
            columns = tuple(name for name in columns if name in {"agent", "node", "service", "cause"}) or ("cause",)
        return self._totals(query, columns, "", "calls DESC, ", 0)

    def edges(self, query: DecisionQuery) -> list[dict[str, Any]]:
        return self._totals(query, EDGE, _MODES, "", query.after)

    def export(self, query: DecisionQuery, form: str, target: Path) -> int:
        """Write matching rows to ``target``, a file in ``scratch``; gives how many."""
        if form not in FORMATS:
            raise InvalidInput(f"{form[:32]!r} is no format of an export", fix=f"one of {', '.join(FORMATS)}")
        query = query.checked()
        with self.source(query) as source:
            relation, bound = source.relation()
            where, values = where_of(query)
            counted = self.execute(f"SELECT COUNT(*) FROM ({relation}) WHERE {where}", [*bound, *values])  # noqa: S608 - fixed texts
            number = int(counted[0][0])
            if number > MAX_EXPORT:
                raise InvalidInput(
                    f"these are {number} rows, an export has at most {MAX_EXPORT}", fix="narrow --from and --to"
                )
            columns = ", ".join(_exported(name, form) for name in COLUMNS)
            order = 'ORDER BY "row"'
            chosen = f"SELECT {columns} FROM ({relation}) WHERE {where} {order}"  # noqa: S608 - fixed texts
            self.execute(f"COPY ({chosen}) TO {literal(str(target))} ({_COPY[form]})", [*bound, *values])
            return number

    def _page(self, query: DecisionQuery, source: tuple[str, list[Any]], limit: int) -> list[dict[str, Any]]:
        relation, bound = source
        where, values = where_of(query)
        columns = ", ".join(f'epoch_us("{n}") AS "{n}"' if n in _TIMES else f'"{n}"' for n in COLUMNS)
        order = "DESC" if query.newest_first else "ASC"
        statement = f'SELECT {columns} FROM ({relation}) WHERE {where} ORDER BY "row" {order} LIMIT ?'  # noqa: S608 - fixed texts
        return [_row(values) for values in self.execute(statement, [*bound, *values, limit])]

    def _totals(
        self, query: DecisionQuery, columns: tuple[str, ...], more: str, order: str, offset: int
    ) -> list[dict[str, Any]]:
        query = query.checked()
        kind = query.kind or "decision"
        every = msgspec.structs.replace(query, kind=kind, after=0)
        names = ", ".join(f'"{name}"' for name in columns)
        with self.source(every) as source:
            relation, bound = source.relation()
            where, values = where_of(every)
            where += "" if query.canary else " AND NOT canary"
            statement = (
                f"SELECT {names}, {_TOTALS}{more} FROM ({relation}) WHERE {where} "  # noqa: S608 - fixed texts
                f"GROUP BY {names} ORDER BY {order}{names} LIMIT ? OFFSET ?"
            )
            found = self.execute(statement, [*bound, *values, query.limit, offset])
        keys = (*columns, "count", "allowed", "denied", "reported", "first", "last")
        rows: list[dict[str, Any]] = [dict(zip(keys, each, strict=False)) for each in found]  # modes follow
        for row, columns_found in zip(rows, found, strict=True):
            row["first"], row["last"] = moment(row["first"]), moment(row["last"])
            if more:
                seen = columns_found[len(keys) :]
                row["modes"] = [str(mode) for mode, there in zip(sorted(MtlsMode), seen, strict=True) if there]
        return rows

    @contextmanager
    def source(self, query: DecisionQuery) -> Iterator[Source]:
        """The files to read, from one snapshot of what is sealed and what is not."""
        hot = self.directory / HOT
        if self._files is not None or not hot.exists():
            yield Source(self.directory, _segments(self.directory, self._files, query), None)
            return
        with tempfile.NamedTemporaryFile("wb", suffix=".jsonl", dir=self.scratch) as file:
            paths = _snapshot(hot, query, file)
            file.flush()
            empty = file.tell() == 0
            yield Source(self.directory, paths, None if empty else Path(file.name))

    def execute(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """All rows of an answer; raises what can be wrong with files and memory."""
        import duckdb

        try:
            return self.connection.execute(statement, values).fetchall()
        except duckdb.OutOfMemoryException:
            raise Unavailable(
                "the question needs more memory than the ledger's reader may take", fix="narrow --from and --to"
            ) from None
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            text = str(error).splitlines()[0][:300]
            raise Corrupt(
                f"a segment cannot be read: {text}", fix="eastwest decisions verify says which segments are whole"
            ) from None


@dataclass(frozen=True, slots=True)
class Source:
    """Segments and hot rows of one moment."""

    directory: Path
    paths: Sequence[str]  # oldest first
    hot: Path | None

    def relation(self) -> tuple[str, list[Any]]:
        return relation([str(self.directory / path) for path in self.paths], self.hot)

    def batches(self, *, newest_first: bool) -> Iterator[tuple[str, list[Any]]]:
        """Relations that follow each other by row number, so that a search can stop when it has enough."""
        if newest_first and self.hot:
            yield relation([], self.hot)
        paths = [str(self.directory / path) for path in self.paths]
        if newest_first:
            paths.reverse()
        start, size = 0, FIRST_BATCH
        while start < len(paths):
            yield relation(paths[start : start + size], None)
            start, size = start + size, size * 4
        if self.hot and not newest_first:
            yield relation([], self.hot)


def relation(paths: list[str], hot: Path | None) -> tuple[str, list[Any]]:
    """Rows of segments and hot rows under all the columns of today, without NULL except for times."""
    parts, bound = [f"SELECT {_TEMPLATE} WHERE false"], list[Any]()
    if paths:
        parts.append("SELECT * FROM read_parquet(?, union_by_name = true, hive_partitioning = false)")
        bound.append(paths)
    if hot is not None:
        parts.append(f"SELECT * FROM read_json(?, format = 'newline_delimited', columns = {_SPEC})")  # noqa: S608 - fixed text
        bound.append(str(hot))
    columns = ", ".join(_column(name) for name in COLUMNS)
    return f"SELECT {columns} FROM ({' UNION ALL BY NAME '.join(parts)})", bound  # noqa: S608 - fixed texts


def _column(name: str) -> str:
    if name in _TIMES:
        return f'"{name}"'
    default = "CASE kind WHEN 'lost' THEN '' ELSE 'envoy' END" if name == "sensor" else literal(DEFAULTS[name])
    return f'COALESCE("{name}", {default}) AS "{name}"'


def where_of(query: DecisionQuery) -> tuple[str, list[Any]]:
    """The condition that rows must meet, and the values bound in it."""
    clauses, values = ["true"], list[Any]()

    def where(clause: str, *bound: object) -> None:
        clauses.append(clause)
        values.extend(bound)

    if query.after:
        where('"row" < ?' if query.newest_first else '"row" > ?', query.after)
    for name in FILTERS:
        if value := getattr(query, name):
            where(f'"{name}" = ?', value)
    for name in FLAGS:
        if getattr(query, name):
            where(f'"{name}"')
    if query.no_canary:
        where("NOT canary")
    if query.start is not None:
        where('"time" >= CAST(? AS TIMESTAMPTZ)', query.start.isoformat())
    if query.end is not None:
        where('"time" < CAST(? AS TIMESTAMPTZ)', query.end.isoformat())
    if query.reasons is not None:
        pairs = [f"{code}:{cause}" for code, cause in query.reasons]
        where("code || ':' || cause IN (SELECT unnest(CAST(? AS VARCHAR[])))", pairs)
    if query.scope is not None:
        where(
            "(service IN (SELECT unnest(CAST(? AS VARCHAR[]))) OR "
            "(caller IN (SELECT unnest(CAST(? AS VARCHAR[]))) AND NOT claimed))",
            list(query.scope.services),
            list(query.scope.callers),
        )
    return " AND ".join(clauses), values


def _has_ledger(directory: Path) -> bool:
    return (directory / HOT).exists() or next(directory.glob("dt=*"), None) is not None


def _segments(directory: Path, files: Sequence[str] | None, query: DecisionQuery) -> list[str]:
    """Segments of a directory that is only a copy, by their numbers."""
    names = (
        files if files is not None else [str(p.relative_to(directory)) for p in directory.glob("dt=*/hour=*/*.parquet")]
    )
    found = []
    for name in names:
        rows = rows_of(name)
        if rows is None:
            if files is not None:
                raise InvalidInput(f"{name[:200]!r} is no segment's path")
            continue
        first, last = rows
        if not query.after or (first < query.after if query.newest_first else last > query.after):
            found.append((first, name))
    return [name for _, name in sorted(found)]


def _snapshot(hot: Path, query: DecisionQuery, target: Any) -> list[str]:
    """Write the hot rows that match to ``target`` as JSON lines; gives the sealed segments of the same moment."""
    where, values = conditions(query)
    try:
        with closing(open_hot(hot)) as connection:
            connection.execute("BEGIN")
            paths = sealed_paths(connection, query)
            order = "DESC" if query.newest_first else "ASC"
            write_rows(
                connection.execute(f"SELECT id, agent, body FROM decisions WHERE {where} ORDER BY id {order}", values),  # noqa: S608 - fixed texts
                target,
            )
            return paths
    except sqlite3.Error as error:
        raise Unavailable(
            f"{hot} cannot be read: {error}", fix="let its owner read it, or copy the segments alone"
        ) from None


def open_hot(path: Path) -> sqlite3.Connection:
    """The hot rows, read only; the server may be at work on them."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    connection.execute("PRAGMA query_only = ON")
    return connection


def write_rows(rows: Iterator[tuple[int, str, str]] | sqlite3.Cursor, target: Any) -> None:
    """Rows as JSON lines with their number and agent."""
    agents: dict[str, bytes] = {}
    for number, agent, body in rows:
        if agent not in agents:
            agents[agent] = msgspec.json.encode(agent)
        target.write(b'{"row":%d,"agent":%b,%b\n' % (number, agents[agent], body[1:].encode()))


def _row(values: Sequence[Any]) -> dict[str, Any]:
    columns = dict(zip(COLUMNS, values, strict=True))
    for name in _TIMES:
        columns[name] = None if columns[name] is None else moment(columns[name])
    return shaped(columns)


_COPY = {
    "csv": "FORMAT csv, HEADER true",
    "json": "FORMAT json, ARRAY true",
    "jsonl": "FORMAT json",
    "parquet": "FORMAT parquet, COMPRESSION zstd",
}
_TEXT_TIME = "strftime({}, '%Y-%m-%dT%H:%M:%S.%fZ')"
_FORMULA = "CASE WHEN regexp_matches({0}, '^[-=+@\\t\\r]') THEN '''' || {0} ELSE {0} END"


def _exported(name: str, form: str) -> str:
    """A column of an export. In CSV no cell may begin as a formula: spreadsheets would run it."""
    if form == "parquet":
        return f'"{name}"'
    if name in _TIMES:
        return f'{_TEXT_TIME.format(f"{chr(34)}{name}{chr(34)}")} AS "{name}"'
    if form == "csv" and COLUMNS[name] == "VARCHAR":
        return f'{_FORMULA.format(f"{chr(34)}{name}{chr(34)}")} AS "{name}"'
    return f'"{name}"'


def literal(value: object) -> str:
    """A SQL literal of a constant or a setting of ours."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    return "'" + str(value).replace("'", "''") + "'"
