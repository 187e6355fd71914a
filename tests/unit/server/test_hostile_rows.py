"""Rows that an agent made up, or was made to tell: they cost nobody else's rows, and end no export."""

import random
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from eastwest.api.eastwest.control.v1 import control_pb2 as pb
from eastwest.errors import InvalidInput
from eastwest.ledger.export.ocsf import api_activity
from eastwest.ledger.export.otlp import export_request
from eastwest.ledger.record import Decision, Lost, LostReason
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.server.agents import AHEAD, OLDEST, _by_a_caller, _checked
from eastwest.server.export.feeder import BATCH, Feeder, Progress
from eastwest.server.telemetry import Metrics
from eastwest.testing.clock import FakeClock

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
ROW = Decision(
    time=NOW,
    service="stock",
    verdict=Verdict.ALLOW,
    code=DecisionCode.ALLOWED,
    mode=MtlsMode.STRICT,
    enforced=True,
    trace="ab" * 16,
)
LOSS = Lost(time=NOW, until=NOW, count=3, cause=LostReason.SDK_DROPPED)


def checked(*rows):
    body = msgspec.json.encode(rows)
    return _checked(pb.ReportDecisionsRequest(decisions=body, spool="ab" * 16, sequence=1), NOW)


@pytest.mark.parametrize(
    "bad",
    [
        msgspec.structs.replace(ROW, time=datetime(1, 1, 1, tzinfo=UTC), count=3),
        msgspec.structs.replace(ROW, time=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), count=3),
        msgspec.structs.replace(ROW, time=NOW + AHEAD + timedelta(seconds=1), count=3),
        msgspec.structs.replace(ROW, time=NOW - OLDEST - timedelta(seconds=1), count=3),
        msgspec.structs.replace(ROW, trace="z" * 32, count=3),
        msgspec.structs.replace(LOSS, until=datetime(9999, 1, 1, tzinfo=UTC)),
        msgspec.structs.replace(LOSS, time=datetime(1969, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_row_that_cannot_be_is_counted_and_the_others_stay(bad):
    rows = checked(ROW, bad, LOSS)
    assert rows == [ROW, LOSS, Lost(time=NOW, until=NOW, count=3, cause=LostReason.REFUSED)]
    plain = [msgspec.to_builtins(row) for row in rows]
    export_request(plain, trust_domain="td.test", version="1", observed=NOW)
    assert all(api_activity(row, "1")["time"] > 0 for row in plain)


def test_a_loss_until_no_certain_moment_is_refused():
    with pytest.raises(InvalidInput, match="zone"):
        checked(ROW, msgspec.structs.replace(LOSS, until=datetime(2026, 11, 22, 12)))  # noqa: DTZ001 - without a zone is the point


def test_a_callers_agent_is_believed_about_refusals_only():
    refused = msgspec.structs.replace(ROW, code=DecisionCode.SERVER_REFUSED, verdict=Verdict.DENY)
    assert _by_a_caller(refused)
    assert not _by_a_caller(msgspec.structs.replace(refused, verdict=Verdict.ALLOW))
    assert not _by_a_caller(msgspec.structs.replace(refused, enforced=False))


class Held:
    identity = "ledger"

    def __init__(self, rows: int) -> None:
        self.rows = [{"row": number} for number in range(1, rows + 1)]

    async def search(self, query):
        return [row for row in self.rows if row["row"] > query.after][: query.limit]


class Choosy:
    """A sink that has no form for some rows, and one failure of its own making."""

    def __init__(self, *bad: int, error: Exception | None = None) -> None:
        self.bad, self.error = set(bad), error or InvalidInput("not accepted")
        self.taken: list[int] = []
        self.asked = 0

    async def deliver(self, rows):
        self.asked += 1
        if self.bad & {row["row"] for row in rows}:
            raise self.error
        self.taken += [row["row"] for row in rows]

    async def close(self) -> None: ...


def feeder(tmp_path, sink, rows):
    progress = Progress(tmp_path / "progress", "ledger")
    return Feeder("s", sink, Held(rows), progress, FakeClock(NOW), Metrics(), random.Random(1))


@pytest.mark.parametrize("error", [InvalidInput("no"), ValueError("no"), OverflowError("no")])
async def test_one_row_that_a_sink_has_no_place_for_does_not_end_the_export(tmp_path, error):
    sink = Choosy(7, 400, error=error)
    fed = feeder(tmp_path, sink, BATCH)
    assert await fed.step() == BATCH
    assert sink.taken == [number for number in range(1, BATCH + 1) if number not in {7, 400}]
    assert fed._metrics.export_missed.labels("s")._value.get() == 2
    assert fed._metrics.export_rows.labels("s")._value.get() == BATCH - 2
    assert await fed.step() == 0


async def test_a_sink_that_refuses_everything_is_waited_for(tmp_path):
    sink = Choosy(*range(1, BATCH + 1))
    fed = feeder(tmp_path, sink, BATCH)
    with pytest.raises(InvalidInput):
        await fed.step()
    assert sink.asked < 50
    sink.bad.clear()
    assert await fed.step() == BATCH
    assert sink.taken == [*range(1, BATCH + 1)]


async def test_a_single_row_that_is_refused_waits_for_another_to_compare_with(tmp_path):
    sink = Choosy(1)
    fed = feeder(tmp_path, sink, 1)
    with pytest.raises(InvalidInput):
        await fed.step()
    fed._ledger.rows.append({"row": 2})
    assert await fed.step() == 2
    assert sink.taken == [2]
