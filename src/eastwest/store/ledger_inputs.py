"""The distinct inputs of decisions in a window of the ledger, with how many calls each stands for, in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from eastwest.errors import Corrupt, Unavailable
from eastwest.ledger.impact import Recorded
from eastwest.ledger.query import DecisionQuery
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.policy.replay import Input
from eastwest.store.ledger_reader import LedgerReader, Source, where_of

BATCH = 8_192
"""Rows that are in this process at a time; DuckDB keeps the others, on the disk where they do not fit."""
# A path says something only where no operation matched, and where a token came from only where one counted.
_INPUT = """
  service, code, caller, claimed, operation,
  IF(operation = '', "method", '') AS "method", IF(operation = '', "path", '') AS "path",
  tenant, token, IF(token, origin, '') AS origin, IF(token, approver, '') AS approver,
  split_part(cause, ':', 1) AS cause, mode, enforced, (verdict = 'deny' AND reference = '') AS counted,
  verdict, policy, rules_version, policy_version
"""
_IDENTIFIED = "AND NOT canary AND verdict = 'allow' AND NOT claimed AND caller <> '' AND NOT break_glass"
_DAY = 86_400_000_000
_EPOCH = 719_163  # date(1970, 1, 1).toordinal()
_SUMS = 'CAST(SUM("count") AS BIGINT), epoch_us(MIN("time")), epoch_us(MAX("time")), MAX(reference), MIN("row")'


@dataclass(frozen=True, slots=True)
class Window:
    """What was read: segments (path and SHA-256), hot rows, and sums over the window."""

    segments: tuple[tuple[str, str], ...]
    hot: str  # SHA-256 of the hot rows as they were read; "" where there were none
    lost: int
    versions: tuple[str, ...]  # of policies, under which its rows were recorded, the newest last


class LedgerInputs:
    """One snapshot of a window; use as ``with reading(reader, query) as inputs``."""

    def __init__(self, reader: LedgerReader, source: Source, query: DecisionQuery) -> None:
        self._reader = reader
        self._source = source
        self._query = msgspec.structs.replace(query, kind="decision", after=0)

    def window(self) -> Window:
        """The facts of it."""
        lost = msgspec.structs.replace(self._query, kind="lost", caller="", service="")
        total = self._one('SELECT COALESCE(SUM("count"), 0)', lost, "")[0][0]
        versions = self._one('SELECT policy_version, MAX("row")', self._query, "GROUP BY policy_version ORDER BY 2")
        hot = self._source.hot
        return Window(
            tuple((path, _hash(self._reader.directory / path)) for path in self._source.paths),
            _hash(hot) if hot is not None else "",
            int(total),
            tuple(str(version) for version, _ in versions if version),
        )

    def size(self) -> int:
        """How many rows there are before they are grouped; grouping makes them fewer."""
        return int(self._one("SELECT COUNT(*)", self._query, "AND NOT canary")[0][0])

    def permitted(self) -> dict[str, int]:
        """Calls that were allowed, by the policy that decided."""
        found = self._one('SELECT policy, CAST(SUM("count") AS BIGINT)', self._query, f"{_IDENTIFIED} GROUP BY policy")
        return {str(policy): int(calls) for policy, calls in found}

    def days(self) -> dict[tuple[str, str, str], list[int]]:
        """For caller, service and operation the days (proleptic ordinals, UTC) with allowed calls."""
        select = f'SELECT caller, service, operation, list(DISTINCT epoch_us("time") // {_DAY})'
        found = self._one(select, self._query, f"{_IDENTIFIED} GROUP BY ALL")
        return {(caller, service, name): [day + _EPOCH for day in days] for caller, service, name, days in found}

    def lost(self) -> dict[str, int]:
        """Decisions that are missing from the record, by service ("": it is not known of which)."""
        query = msgspec.structs.replace(self._query, kind="lost", caller="", service="")
        found = self._one('SELECT service, CAST(SUM("count") AS BIGINT)', query, "GROUP BY service")
        return {str(service): int(count) for service, count in found}

    def span(self) -> tuple[int, int]:
        """The first and the last time of a decision, in microseconds since 1970; 0 and 0 where there is none."""
        select = 'SELECT COALESCE(epoch_us(MIN("time")), 0), COALESCE(epoch_us(MAX("time")), 0)'
        first, last = self._one(select, self._query, "AND NOT canary")[0]
        return int(first), int(last)

    def inputs(self, *, identified: bool = False) -> Iterator[list[Recorded]]:
        """Batches of distinct inputs; ``identified``: only allowed calls of callers that proved who they are.

        Calls that an emergency grant allowed are no such calls.
        """
        import duckdb

        relation, bound = self._source.relation()
        where, values = where_of(self._query)
        only = _IDENTIFIED if identified else "AND NOT canary"
        statement = f"SELECT {_INPUT}, {_SUMS} FROM ({relation}) WHERE {where} {only} GROUP BY ALL"  # noqa: S608 - fixed texts
        codes, modes = dict(DecisionCode.__members__), {each.value: each for each in MtlsMode}
        verdicts = {each.value: each for each in Verdict}
        try:
            found = self._reader.connection.execute(statement, [*bound, *values])
            while rows := found.fetchmany(BATCH):
                yield [_recorded(row, codes, modes, verdicts) for row in rows]
        except duckdb.OutOfMemoryException:
            raise Unavailable(
                "the window needs more memory than the ledger's reader may take", fix="narrow --from and --to"
            ) from None
        except (duckdb.IOException, duckdb.InvalidInputException) as error:
            text = str(error).splitlines()[0][:300]
            raise Corrupt(
                f"a segment cannot be read: {text}", fix="eastwest decisions verify says which segments are whole"
            ) from None

    def _one(self, select: str, query: DecisionQuery, rest: str) -> list[tuple[Any, ...]]:
        relation, bound = self._source.relation()
        where, values = where_of(query)
        statement = f"{select} FROM ({relation}) WHERE {where} {rest}"
        return self._reader.execute(statement, [*bound, *values])


@contextmanager
def reading(reader: LedgerReader, query: DecisionQuery) -> Iterator[LedgerInputs]:
    """A snapshot of the window that ``query`` names (its limit, order and kind say nothing here)."""
    query = query.checked()
    every = msgspec.structs.replace(query, kind="", after=0, newest_first=False)
    with reader.source(every) as source:
        yield LedgerInputs(reader, source, query)


def _recorded(
    row: tuple[Any, ...], codes: dict[str, DecisionCode], modes: dict[str, MtlsMode], verdicts: dict[str, Verdict]
) -> Recorded:
    service, code, caller, claimed, operation, method, path, tenant, token, origin, approver, cause, mode = row[:13]
    enforced, counted, verdict, policy, rules, version, calls, first, last, reference, number = row[13:]
    try:
        given = Input(
            service=service,
            code=codes[code],
            caller=caller,
            claimed=claimed,
            operation=operation,
            method=method,
            path=path,
            tenant=tenant,
            token=token,
            origin=origin,
            approver=approver,
            cause=cause,
            mode=modes[mode],
            enforced=enforced,
            counted=counted,
        )
        return Recorded(given, verdicts[verdict], policy, rules, version, calls, first, last, reference, number)
    except KeyError as error:
        raise Corrupt(
            f"row {number} says {error.args[0]!r}, which no decision says", fix="eastwest decisions verify"
        ) from None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
