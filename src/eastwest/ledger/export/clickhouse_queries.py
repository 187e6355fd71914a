"""Questions to the ledger as ClickHouse SQL: fixed texts with parameters, never a value inside the text.

A parameter's value is written as ClickHouse reads one of type ``String``: with the escapes of its TabSeparated form.
Lists travel as JSON inside such a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from eastwest.ledger.export.clickhouse import COLUMNS, TIMES
from eastwest.ledger.query import EDGE, FILTERS, FLAGS, DecisionQuery, dimension, moment, shaped

_SETTINGS = "SETTINGS output_format_json_quote_64bit_integers = 0 FORMAT JSONEachRow"
_TOTALS = (
    "sum(d.`count`) AS calls, sumIf(d.`count`, d.`verdict` = 'allow') AS allowed, "
    "sumIf(d.`count`, d.`verdict` = 'deny') AS denied, "
    "sumIf(d.`count`, d.`verdict` = 'deny' AND NOT d.`enforced`) AS reported, "
    "min(toUnixTimestamp64Micro(d.`time`)) AS began, max(toUnixTimestamp64Micro(d.`time`)) AS ended"
)
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0", "\b": "\\b", "\f": "\\f"})


@dataclass(frozen=True, slots=True)
class Question:
    """A statement and its parameters, by name."""

    statement: str
    parameters: Mapping[str, str]


def ledgers(table: str) -> Question:
    """Which ledgers have rows in the table."""
    return Question(f"SELECT DISTINCT ledger FROM {table} LIMIT 10 FORMAT JSONEachRow", {})  # noqa: S608 - the table's name was checked


def search(table: str, ledger: str, query: DecisionQuery) -> Question:
    """Matching rows by row number."""
    where, parameters = _where(ledger, query)
    columns = ", ".join(
        f"toUnixTimestamp64Micro(d.`{name}`) AS `{name}`" if name in TIMES else f"d.`{name}` AS `{name}`"
        for name in COLUMNS
    )
    order = "DESC" if query.newest_first else "ASC"
    return Question(
        f"SELECT {columns} FROM {table} AS d FINAL WHERE {where} ORDER BY d.`row` {order} "  # noqa: S608 - fixed texts, and a checked name
        f"LIMIT {{limit:UInt64}} {_SETTINGS}",
        parameters | {"limit": str(query.limit)},
    )


def top(table: str, ledger: str, query: DecisionQuery, by: str) -> tuple[Question, tuple[str, ...]]:
    """Totals by a dimension, and its columns."""
    columns = dimension(by)
    if query.kind == "lost":
        columns = tuple(name for name in columns if name in {"agent", "node", "service", "cause"}) or ("cause",)
    return _totals(table, ledger, query, columns, "", "calls DESC, ", 0), columns


def edges(table: str, ledger: str, query: DecisionQuery) -> Question:
    """Who called what, in the order of the names."""
    modes = ", arraySort(groupUniqArray(d.`mode`)) AS modes"
    return _totals(table, ledger, query, EDGE, modes, "", query.after)


def found_row(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of ``search``'s answer as the ledger has the row."""
    columns = dict(line)
    columns.pop("ledger", None)
    for name in TIMES:
        columns[name] = None if columns[name] is None else moment(int(columns[name]))
    return shaped(columns)


def found_total(line: Mapping[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    """A line of ``top``'s or ``edges``' answer."""
    total = {name: line[name] for name in columns} | {"count": line["calls"]}
    total |= {name: line[name] for name in ("allowed", "denied", "reported")}
    total |= {"first": moment(int(line["began"])), "last": moment(int(line["ended"]))}
    return total | ({"modes": line["modes"]} if "modes" in line else {})


def _totals(
    table: str, ledger: str, query: DecisionQuery, columns: tuple[str, ...], more: str, order: str, offset: int
) -> Question:
    every = msgspec.structs.replace(query, kind=query.kind or "decision", after=0)
    where, parameters = _where(ledger, every)
    where += "" if query.canary else " AND NOT d.`canary`"
    grouped = ", ".join(f"d.`{name}`" for name in columns)
    named = ", ".join(f"d.`{name}` AS `{name}`" for name in columns)
    return Question(
        f"SELECT {named}, {_TOTALS}{more} FROM {table} AS d FINAL WHERE {where} GROUP BY {grouped} "  # noqa: S608 - fixed texts, and a checked name
        f"ORDER BY {order}{grouped} LIMIT {{limit:UInt64}} OFFSET {{offset:UInt64}} {_SETTINGS}",
        parameters | {"limit": str(query.limit), "offset": str(offset)},
    )


def _where(ledger: str, query: DecisionQuery) -> tuple[str, dict[str, str]]:
    clauses = ["d.`ledger` = {ledger:String}"]
    parameters = {"ledger": _text(ledger)}
    if query.after:
        clauses.append(f"d.`row` {'<' if query.newest_first else '>'} {{after:UInt64}}")
        parameters["after"] = str(query.after)
    for name in FILTERS:
        if value := getattr(query, name):
            clauses.append(f"d.`{name}` = {{{name}:String}}")
            parameters[name] = _text(value)
    clauses += [f"d.`{name}`" for name in FLAGS if getattr(query, name)]
    clauses += ["NOT d.`canary`"] if query.no_canary else []
    for name, sign, value in (("start", ">=", query.start), ("end", "<", query.end)):
        if value is not None:
            clauses.append(f"d.`time` {sign} {{{name}:DateTime64(6, 'UTC')}}")
            parameters[name] = _time(value)
    if query.reasons is not None:
        clauses.append("has(JSONExtract({reasons:String}, 'Array(String)'), concat(d.`code`, ':', d.`cause`))")
        parameters["reasons"] = _list([f"{code}:{cause}" for code, cause in query.reasons])
    if query.scope is not None:
        clauses.append(
            "(has(JSONExtract({services:String}, 'Array(String)'), d.`service`) OR "
            "(has(JSONExtract({callers:String}, 'Array(String)'), d.`caller`) AND NOT d.`claimed`))"
        )
        parameters["services"] = _list(query.scope.services)
        parameters["callers"] = _list(query.scope.callers)
    return " AND ".join(clauses), parameters


def _text(value: str) -> str:
    return value.translate(_ESCAPES)


def _list(values: object) -> str:
    return _text(json.dumps(values))


def _time(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(sep=" ", timespec="microseconds").removesuffix("+00:00")
