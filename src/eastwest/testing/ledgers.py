"""What every ledger store must answer, as a test class: subclass it and give it a fixture ``store`` that was
filled with ``sample()``.

The same rows go into each store, and the same questions must have the same answers: SQLite and segments, ClickHouse,
and whatever comes after them. No test changes the store, so that all may share one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from eastwest.errors import InvalidInput
from eastwest.ledger.query import DIMENSIONS, DecisionQuery, LedgerStore, Scope, moment
from eastwest.ledger.record import Decision, Lost, LostReason, Row
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict

AGENT = "spiffe://saas.example/spire/agent/join_token/one"
BEGIN = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
WEB = "spiffe://saas.example/env/prod/web"
JOBS = "spiffe://saas.example/env/prod/jobs"
PROBE = "spiffe://saas.example/env/prod/probe"
HOSTILE = (
    "'); DROP TABLE decisions; --",
    '=HYPERLINK("http://evil.example","x")',
    "\x1b[31mred\x07",
    'two\nlines,\tand a "quote" and a \'',
    "\u202etfel ot thgir\u0000nul \\u0041 \\",
    "@SUM(A1)",
)
"""Texts that a peer may bring to have its words taken for commands: to SQL, a spreadsheet or a terminal."""


def decision(second: float = 0, **fields: Any) -> Decision:
    """An allowed call of web to orders, so many seconds after ``BEGIN``, with these fields instead."""
    denied = fields.get("verdict") == "deny"
    values: dict[str, Any] = {
        "service": "orders",
        "caller": WEB,
        "operation": "orders.list",
        "method": "GET",
        "verdict": Verdict.ALLOW,
        "code": DecisionCode.OPERATION_NOT_PERMITTED if denied else DecisionCode.ALLOWED,
        "mode": MtlsMode.STRICT,
        "enforced": True,
    }
    return Decision(time=BEGIN + timedelta(seconds=second), **(values | fields))


def sample() -> list[Row]:
    """Rows of every shape: counted and full, allowed, refused, only reported, claimed names, hostile texts, losses."""
    rows: list[Row] = [
        decision(0, count=7, tenant="acme", policy="orders-read", policy_version="f" * 64),
        decision(60, count=5, tenant="acme"),
        decision(
            61.25, verdict=Verdict.DENY, operation="orders.delete", method="DELETE", reference="r-1", trace="a" * 32
        ),
        decision(62, verdict=Verdict.DENY, enforced=False, mode=MtlsMode.PERMISSIVE, operation="orders.delete"),
        decision(63, caller=JOBS, service="ledger-db", operation="", method="", count=3),
        decision(
            64,
            caller=WEB,
            claimed=True,
            verdict=Verdict.DENY,
            code=DecisionCode.CERTIFICATE_REFUSED,
            cause="expired",
            operation="",
            method="",
            source="192.0.2.7",
        ),
        Lost(
            time=BEGIN + timedelta(seconds=10),
            until=BEGIN + timedelta(seconds=20),
            count=4,
            cause=LostReason.SPOOL_FULL,
            node="n1",
        ),
        decision(3600, caller=JOBS, first=True, break_glass=True, token=True, origin=WEB, sensor="sdk", count=2),
    ]
    rows += [
        decision(
            7200 + place,
            verdict=Verdict.DENY,
            code=DecisionCode.UNLISTED_OPERATION,
            caller=text,
            tenant=text,
            path=text,
            operation="",
        )
        for place, text in enumerate(HOSTILE)
    ]
    rows += [
        decision(8000, caller=PROBE, service="probed", report_code="FORBIDDEN_BY_POLICY", report_policy="trial"),
        decision(8001, caller=PROBE, service="probed", canary=True, count=7),
        decision(8002, caller="", service="probed", peer="unit:reports.service uid:33", operation=""),
    ]
    return rows


def expected(rows: Sequence[Row], agent: str = AGENT) -> list[dict[str, Any]]:
    """What a search for everything gives of rows that were added first."""
    return [
        {"row": number, "agent": agent, **msgspec.json.decode(msgspec.json.encode(row))}
        for number, row in enumerate(rows, 1)
    ]


_FILTERED: tuple[tuple[dict[str, Any], list[float]], ...] = (
    ({"service": "orders", "verdict": "deny", "kind": "decision"}, [61.25, 62, 64]),
    ({"caller": JOBS}, [63, 3600]),
    ({"operation": "orders.delete"}, [61.25, 62]),
    ({"tenant": "acme"}, [0, 60]),
    ({"code": "CERTIFICATE_REFUSED"}, [64]),
    ({"cause": "expired"}, [64]),
    ({"policy": "orders-read"}, [0]),
    ({"reference": "r-1"}, [61.25]),
    ({"trace": "a" * 32}, [61.25]),
    ({"kind": "lost"}, [10]),
    ({"first": True}, [3600]),
    ({"break_glass": True, "caller": WEB}, []),
    ({"canary": True}, [8001]),
    ({"report_code": "FORBIDDEN_BY_POLICY"}, [8000]),
    ({"report_policy": "trial"}, [8000]),
    ({"peer": "unit:reports.service uid:33"}, [8002]),
    ({"agent": AGENT, "node": "n1"}, [10]),
    ({"agent": "spiffe://saas.example/spire/agent/other"}, []),
    ({"reasons": (("CERTIFICATE_REFUSED", "expired"), ("ALLOWED", "x"))}, [64]),
    ({"reasons": ()}, []),
    ({"start": BEGIN + timedelta(seconds=60), "end": BEGIN + timedelta(seconds=63)}, [60, 61.25, 62]),
)
"""Filters, and the seconds of the rows that they must find, hostile ones aside."""


class LedgerContract:
    """The promises of ``eastwest.ledger.query.LedgerStore``, each one a test."""

    async def test_every_row_comes_back_as_it_was_given(self, store: LedgerStore) -> None:
        assert await store.search(DecisionQuery(limit=1000)) == expected(sample())

    async def test_pages_follow_each_other_in_both_directions(self, store: LedgerStore) -> None:
        everything = expected(sample())
        for newest_first, order in ((False, everything), (True, everything[::-1])):
            found: list[dict[str, Any]] = []
            while page := await store.search(
                DecisionQuery(after=found[-1]["row"] if found else 0, limit=3, newest_first=newest_first)
            ):
                assert len(page) <= 3
                found += page
            assert found == order

    async def test_filters_are_equalities_that_all_hold(self, store: LedgerStore) -> None:
        for fields, seconds in _FILTERED:
            found = await store.search(DecisionQuery(limit=1000, **fields))
            seconds_found = [row["time"] for row in found if row.get("caller", "") not in HOSTILE]
            assert seconds_found == [_time(second) for second in seconds], fields

    async def test_hostile_texts_are_found_as_values_and_do_nothing_else(self, store: LedgerStore) -> None:
        for text in HOSTILE:
            [row] = await store.search(DecisionQuery(caller=text))
            assert (row["caller"], row["tenant"], row["path"]) == (text, text, text)
        assert len(await store.search(DecisionQuery(limit=1000))) == len(sample())

    async def test_totals_are_sums_of_counts(self, store: LedgerStore) -> None:
        decisions = [row for row in sample() if isinstance(row, Decision) and not row.canary]
        for by, columns in DIMENSIONS.items():
            counts: Counter[tuple[str, ...]] = Counter()
            for row in decisions:
                counts[tuple(AGENT if name == "agent" else getattr(row, name) for name in columns)] += row.count
            found = await store.top(DecisionQuery(limit=1000), by)
            assert {tuple(row[name] for name in columns): row["count"] for row in found} == counts, by
            assert [row["count"] for row in found] == sorted((row["count"] for row in found), reverse=True)
            assert all(row["allowed"] + row["denied"] == row["count"] for row in found)

    async def test_totals_have_a_bound_a_filter_and_times(self, store: LedgerStore) -> None:
        [found] = await store.top(DecisionQuery(service="orders", tenant="acme", limit=1), "caller")
        times = {"first": _time(0), "last": _time(60)}
        assert found == {"caller": WEB, "count": 12, "allowed": 12, "denied": 0, "reported": 0} | times
        [lost] = await store.top(DecisionQuery(kind="lost"), "agent")
        assert (lost["agent"], lost["count"]) == (AGENT, 4)
        [canaries] = await store.top(DecisionQuery(canary=True), "caller")
        assert (canaries["caller"], canaries["count"]) == (PROBE, 7), "canaries are counted only by themselves"

    async def test_an_edge_is_a_caller_a_service_and_an_operation(self, store: LedgerStore) -> None:
        window: dict[str, Any] = {"end": BEGIN + timedelta(hours=2)}
        edges = await store.edges(DecisionQuery(limit=1000, **window))
        keys = [(e["caller"], e["claimed"], e["service"], e["operation"]) for e in edges]
        assert keys == [
            (JOBS, False, "ledger-db", ""),
            (JOBS, False, "orders", "orders.list"),
            (WEB, False, "orders", "orders.delete"),
            (WEB, False, "orders", "orders.list"),
            (WEB, True, "orders", ""),
        ]
        named = dict(zip(("caller", "claimed", "service", "operation"), keys[2], strict=True))
        counts = {"count": 2, "allowed": 0, "denied": 2, "reported": 1}
        assert edges[2] == named | counts | {
            "first": _time(61.25),
            "last": _time(62),
            "modes": ["permissive", "strict"],
        }
        pages = [await store.edges(DecisionQuery(limit=2, after=after, **window)) for after in (0, 2, 4, 6)]
        assert [edge for page in pages for edge in page] == edges

    async def test_a_scope_hides_what_lies_outside_of_it(self, store: LedgerStore) -> None:
        jobs = Scope(services=(), callers=(JOBS,))
        assert [row["row"] for row in await store.search(DecisionQuery(scope=jobs))] == [5, 8]
        web = Scope(services=("ledger-db",), callers=(WEB,))
        rows = [row["row"] for row in await store.search(DecisionQuery(scope=web))]
        assert rows == [1, 2, 3, 4, 5], "a name that is only claimed shows nothing, and nor does a loss"
        assert await store.top(DecisionQuery(scope=Scope()), "caller") == []
        assert await store.edges(DecisionQuery(scope=Scope())) == []

    async def test_a_question_that_makes_no_sense_is_refused(self, store: LedgerStore) -> None:
        for query in (
            DecisionQuery(verdict="maybe"),
            DecisionQuery(code="ALOWED"),
            DecisionQuery(start=BEGIN, end=BEGIN),
            DecisionQuery(after=-1),
            DecisionQuery(caller="x" * 3000),
        ):
            assert await _refused(store.search(query))
        assert "service" in await _refused(store.top(DecisionQuery(), "servce"))


async def _refused(asked: Awaitable[object]) -> str:
    try:
        await asked
    except InvalidInput as error:
        return str(error)
    raise AssertionError("it was not refused")


def _time(second: float) -> str:
    return moment(round((BEGIN.timestamp() + second) * 1_000_000))
