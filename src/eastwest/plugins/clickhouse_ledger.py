"""The ledger in ClickHouse, asked over its HTTP interface with the questions of ``eastwest.ledger.query``."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import msgspec

from eastwest.errors import FailedPrecondition, InvalidInput, Unavailable
from eastwest.ledger.export import clickhouse_queries as sql
from eastwest.ledger.query import EDGE, DecisionQuery
from eastwest.plugins.clickhouse_table import check_table, credentials
from eastwest.plugins.http_post import HttpPost

MAX_ANSWER_BYTES = 64 * 1024 * 1024


class ClickHouseLedger:
    """Serves ``eastwest.ledger.query.LedgerStore`` from a table that ``ClickHouseSink`` fills."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """As of ``[export.clickhouse]``; ``ledger``: whose rows, where the table has those of several."""

        url: str
        table: str = "eastwest_decisions"
        user: str = ""
        password_file: str = ""
        ca_file: str = ""
        timeout: float = 30.0
        ledger: str = ""

    def __init__(self, options: Options) -> None:
        """Raises ``InvalidInput`` for a table's name or an address that is none."""
        self._table = check_table(options.table)
        self._http = HttpPost(options.url, ca_file=options.ca_file, timeout=options.timeout)
        self._options = options
        self._ledger = options.ledger

    async def search(self, query: DecisionQuery) -> list[dict[str, Any]]:
        query = query.checked()
        lines = await self._ask(sql.search(self._table, await self._which(), query))
        return [sql.found_row(line) for line in lines]

    async def top(self, query: DecisionQuery, by: str) -> list[dict[str, Any]]:
        question, columns = sql.top(self._table, await self._which(), query.checked(), by)
        return [sql.found_total(line, columns) for line in await self._ask(question)]

    async def edges(self, query: DecisionQuery) -> list[dict[str, Any]]:
        lines = await self._ask(sql.edges(self._table, await self._which(), query.checked()))
        return [sql.found_total(line, EDGE) for line in lines]

    async def _which(self) -> str:
        """The ledger that is asked; found out once where the table has only one."""
        if not self._ledger:
            found = [str(line["ledger"]) for line in await self._ask(sql.ledgers(self._table))]
            if len(found) > 1:
                raise InvalidInput(f"the table has rows of several ledgers: {', '.join(found)}", fix="say which one")
            if not found:
                raise FailedPrecondition(f"the table {self._table} has no rows yet", where=self._options.url)
            self._ledger = found[0]
        return self._ledger

    async def _ask(self, question: sql.Question) -> list[dict[str, Any]]:
        parameters = {f"param_{name}": value for name, value in question.parameters.items()}
        target = "/?" + urlencode({"query": question.statement, "readonly": "1", **parameters})
        answer = await self._http.post(target, b"", credentials(self._options), limit=MAX_ANSWER_BYTES)
        try:
            return [json.loads(line) for line in answer.splitlines()]
        except ValueError:
            raise Unavailable("the answer is not what was asked for", where=self._options.url) from None
