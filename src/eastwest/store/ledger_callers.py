"""Who called a service, and with what answer, as totals with the days of each: for ``eastwest.ledger.breaks``."""

from __future__ import annotations

from typing import Any

from eastwest.ledger.query import DecisionQuery, moment
from eastwest.store.ledger_reader import LedgerReader, where_of

MAX_CALLERS = 20_000
"""Totals of one answer."""
# Of allowed calls only who and where: what they were about makes them too many, and nobody needs it.
_OF_REFUSALS = ("operation", "tenant", "origin", "approver", "source")
COLUMNS = (
    *("service", "verdict", "code", "caller", "claimed", "cause", "enforced", "token", "mode", "peer", "agent"),
    *_OF_REFUSALS,
)
_SAID = ", ".join(
    f"IF(verdict = 'allow', '', \"{name}\") AS \"{name}\"" if name in _OF_REFUSALS else f'"{name}"' for name in COLUMNS
)
_TOTALS = """
  CAST(SUM("count") AS BIGINT) AS calls, epoch_us(MIN("time")), epoch_us(MAX("time")),
  LIST(DISTINCT strftime("time", '%Y-%m-%d')),
  (LIST(DISTINCT method || ' ' || path) FILTER (path <> ''))[1:20]
"""


def callers(reader: LedgerReader, query: DecisionQuery) -> list[dict[str, Any]]:
    """At most ``MAX_CALLERS`` totals, the largest first, with the fields of ``eastwest.ledger.breaks.Seen``."""
    query = query.checked()
    with reader.source(query) as source:
        relation, bound = source.relation()
        chosen, values = where_of(query)
        statement = (
            f"SELECT {_SAID}, {_TOTALS} FROM ({relation}) "  # noqa: S608 - fixed texts
            f"WHERE {chosen} AND kind = 'decision' AND NOT canary GROUP BY ALL ORDER BY calls DESC LIMIT ?"
        )
        found = reader.execute(statement, [*bound, *values, MAX_CALLERS])
    rows = [dict(zip((*COLUMNS, "count", "first", "last", "days", "requests"), each, strict=True)) for each in found]
    for row in rows:
        row["first"], row["last"] = moment(row["first"]), moment(row["last"])
        row["days"], row["requests"] = sorted(row["days"]), row["requests"] or []
    return rows
