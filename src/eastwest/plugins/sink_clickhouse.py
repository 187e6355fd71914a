"""Decisions in a ClickHouse table, over its HTTP interface: the table is made where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self
from urllib.parse import quote

import msgspec

from eastwest.ledger.export.clickhouse import add_columns, create_table, insert, json_row
from eastwest.ledger.export.ports import Row, SinkContext
from eastwest.plugins.clickhouse_table import check_table, credentials
from eastwest.plugins.http_post import HttpPost


class ClickHouseSink:
    """Serves ``eastwest.ledger.export.ports.Sink``."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[export.clickhouse]``.

        ``url``: of the HTTP interface, such as ``https://clickhouse.example:8443``; plain http only to this machine.
        ``table``: or ``database.table``. ``user`` and ``password_file`` (private). ``ca_file``: PEM; empty: the
        system's. ``timeout``: seconds.
        """

        url: str
        table: str = "eastwest_decisions"
        user: str = ""
        password_file: str = ""
        ca_file: str = ""
        timeout: float = 30.0

    def __init__(self, options: Options, context: SinkContext) -> None:
        self._table = check_table(options.table)
        self._http = HttpPost(options.url, ca_file=options.ca_file, timeout=options.timeout)
        self._options = options
        self._ledger = context.ledger_id
        self._made = False

    @classmethod
    def from_options(cls, options: Options, context: SinkContext) -> Self:
        """As the entry point makes it. A password that cannot be read is told now, not with the first refusal."""
        credentials(options)
        return cls(options, context)

    async def deliver(self, rows: Sequence[Row]) -> None:
        if not self._made:
            await self._run(create_table(self._table), b"")
            await self._run(add_columns(self._table), b"")
            self._made = True
        await self._run(insert(self._table), b"".join(json_row(row, self._ledger) for row in rows))

    async def close(self) -> None:
        """Nothing is held open between deliveries."""

    async def _run(self, statement: str, data: bytes) -> None:
        await self._http.post(f"/?query={quote(statement)}&wait_end_of_query=1", data, credentials(self._options))
