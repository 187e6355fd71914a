"""The ledger as a ClickHouse table: its schema, its rows for ``INSERT ... FORMAT JSONEachRow``, and queries.

A row that is delivered twice is one row once ClickHouse has merged (``ReplacingMergeTree`` by ledger and row number);
queries read with ``FINAL``, so that counts are right before that too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

COLUMNS: dict[str, str] = {
    "ledger": "LowCardinality(String)",
    "row": "UInt64",
    "kind": "LowCardinality(String)",
    "agent": "LowCardinality(String)",
    "time": "DateTime64(6, 'UTC')",
    "until": "Nullable(DateTime64(6, 'UTC'))",
    "service": "LowCardinality(String)",
    "caller": "LowCardinality(String)",
    "claimed": "Bool",
    "operation": "LowCardinality(String)",
    "method": "LowCardinality(String)",
    "path": "String",
    "tenant": "String",
    "verdict": "LowCardinality(String)",
    "code": "LowCardinality(String)",
    "mode": "LowCardinality(String)",
    "enforced": "Bool",
    "policy": "LowCardinality(String)",
    "policy_version": "LowCardinality(String)",
    "rules_version": "LowCardinality(String)",
    "node": "LowCardinality(String)",
    "sensor": "LowCardinality(String)",
    "count": "UInt64",
    "first": "Bool",
    "break_glass": "Bool",
    "token": "Bool",
    "transaction": "String",
    "origin": "LowCardinality(String)",
    "approver": "LowCardinality(String)",
    "cause": "LowCardinality(String)",
    "source": "String",
    "reference": "String",
    "trace": "String",
    "report_code": "LowCardinality(String)",
    "report_policy": "LowCardinality(String)",
    "peer": "String",
    "canary": "Bool",
}
"""The table's columns and their ClickHouse types. What a row lacks is the type's empty value."""

TIMES = ("time", "until")
_SINCE = ("report_code", "report_policy", "peer", "canary")
"""Columns that the table of an earlier version may lack."""
_FLAGS = frozenset(name for name, kind in COLUMNS.items() if kind == "Bool")


def create_table(table: str) -> str:
    """The statement that makes the table where there is none; ``table`` is a checked name."""
    columns = ",\n  ".join(f"`{name}` {kind}" for name, kind in COLUMNS.items())
    return (
        f"CREATE TABLE IF NOT EXISTS {table} (\n  {columns}\n)\n"
        "ENGINE = ReplacingMergeTree\n"
        "PARTITION BY toYYYYMMDD(time)\n"
        "ORDER BY (service, caller, time, ledger, row)"
    )


def add_columns(table: str) -> str:
    """The statement that gives a table of an earlier version the columns that came since."""
    added = ", ".join(f"ADD COLUMN IF NOT EXISTS `{name}` {COLUMNS[name]}" for name in _SINCE)
    return f"ALTER TABLE {table} {added}"


def insert(table: str) -> str:
    """The statement before the rows. A table that lacks a column refuses them; by itself it would drop the value.

    Rows may be of more days than ClickHouse takes at once by itself: agents say when a call was, and one of them may
    make times up.
    """
    settings = "input_format_skip_unknown_fields = 0, max_partitions_per_insert_block = 0"
    return f"INSERT INTO {table} SETTINGS {settings} FORMAT JSONEachRow"


def json_row(row: Mapping[str, Any], ledger: str) -> bytes:
    """One line of ``JSONEachRow``. Times as ClickHouse's basic parser reads them: UTC, without a zone."""
    line: dict[str, Any] = {"ledger": ledger}
    for name in COLUMNS:
        value = row.get(name)
        if name in TIMES and value is not None:
            line[name] = str(value).replace("T", " ").removesuffix("Z").removesuffix("+00:00")
        elif value not in (None, ""):
            line[name] = bool(value) if name in _FLAGS else value
    line.setdefault("count", 1)
    if row.get("kind") != "lost":
        line.setdefault("sensor", "envoy")
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
