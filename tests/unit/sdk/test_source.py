"""Decisions on their way to the agent: small whatever callers send, told in batches, given up where they never pass."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from eastwest.agent.enforcement import MAX_REPORT
from eastwest.api.eastwest.enforcement.v1 import enforcement_pb2 as api
from eastwest.errors import PermissionDenied
from eastwest.policy.enforcement import DecisionCode, Verdict
from eastwest.rpc.service import Listener, Service
from eastwest.sdk.decide import Decision
from eastwest.sdk.recording import told
from eastwest.sdk.refusals import is_recorded
from eastwest.sdk.source import MAX_BATCH_BYTES, MAX_WAITING_BYTES, RuleSource


def made(number: int, padding: int = 0) -> api.Decision:
    return api.Decision(service="svc", reference=str(number), tenant="a" * padding)


class Agent:
    """The agent's side of reports, over a real socket; ``limit`` is that of one message."""

    def __init__(self, path, limit: int) -> None:
        self.path, self.limit = path, limit
        self.reports = []

    async def __aenter__(self):
        handlers = {"Watch": self.nothing, "UseToken": self.nothing, "Report": self.report}
        service = Service(api.DESCRIPTOR.services_by_name["Enforcement"], handlers, limit=self.limit)
        self.listener = Listener([service])
        await self.listener.listen_unix(self.path, 0o600)
        return self

    async def __aexit__(self, *_):
        await self.listener.close()

    async def nothing(self, request, call):
        raise PermissionDenied("not here")

    async def report(self, request, call):
        if any(decision.service == "gone" for decision in request.decisions):
            raise PermissionDenied("the caller serves no such service")
        self.reports.append(request)
        return api.ReportResponse()

    @property
    def taken(self) -> list[int]:
        return [int(decision.reference) for report in self.reports for decision in report.decisions]


@pytest.fixture
def agent(tmp_path):
    return lambda limit=MAX_REPORT: Agent(tmp_path / "agent.sock", limit)


def test_texts_that_callers_choose_are_cut():
    long = "a" * 60_000
    decision = Decision(
        verdict=Verdict.DENY,
        code=DecisionCode.TENANT_NOT_PERMITTED,
        service="svc",
        tenant=long,
        method=long,
        operation="svc:x:read",
    )
    record = told(decision, datetime.now(UTC), reference=long, source_address=long)
    assert record.tenant == record.method == record.reference == record.source == "a" * 256
    assert record.operation == "svc:x:read"
    assert record.ByteSize() < 2048


def test_a_request_that_can_be_read_two_ways_is_told_as_sidecars_tell_it():
    decision = Decision(
        verdict=Verdict.DENY, code="REQUEST_REFUSED", service="svc", principal="spiffe://td.test/a", reason="path.dots"
    )
    assert is_recorded(decision, known=True)
    record = told(decision, datetime.now(UTC), traceparent="00-" + "ab" * 16 + "-" + "cd" * 8 + "-00")
    assert (record.code, record.cause, record.allowed) == ("UNLISTED_OPERATION", "request_refused:path.dots", False)
    assert record.trace == "ab" * 16
    stranger = told(replace(decision, principal=""), datetime.now(UTC), traceparent="00-" + "00" * 16 + "-x")
    assert (stranger.code, stranger.trace) == ("MTLS_REQUIRED", "")


async def test_reports_stay_below_what_the_agent_takes(agent):
    """More than it takes at once waits; all of it arrives, in order, and nothing of it twice."""
    async with agent() as there, RuleSource(str(there.path)) as source:
        for number in range(1000):
            source.report(made(number, 6000))
        await source.until(lambda: len(there.taken) == 1000)
        assert there.taken == list(range(1000))
        assert len(there.reports) > 5
        assert all(report.ByteSize() < MAX_BATCH_BYTES + 10_000 for report in there.reports)
        assert source.lost == 0


async def test_one_that_never_passes_is_given_up(agent):
    """Not kept at the head of all others for ever."""
    async with agent(limit=20_000) as there, RuleSource(str(there.path)) as source:
        for number in range(40):
            source.report(made(number, 30_000 if number == 7 else 1000))
        await source.until(lambda: len(there.taken) == 39)
        assert there.taken == [number for number in range(40) if number != 7]
        assert source.lost == 1


async def test_what_is_refused_is_given_up(agent):
    async with agent() as there, RuleSource(str(there.path)) as source:
        source.report(api.Decision(service="gone"))
        await source.until(lambda: source.lost == 1)
        source.report(made(1))
        await source.until(lambda: there.taken == [1])


async def test_what_is_lost_is_told_once(agent):
    began = datetime.now(UTC)
    async with agent(limit=20_000) as there, RuleSource(str(there.path)) as source:
        source.report(made(1))
        source.report(made(2, 30_000))
        source.report(api.Decision(service="gone"))
        await source.until(lambda: source.lost == 2 and sum(report.lost for report in there.reports) == 2)
        since = min(report.lost_since_unix_ms for report in there.reports if report.lost)
        assert began.timestamp() <= since / 1000 + 1 <= datetime.now(UTC).timestamp() + 1
        source.report(made(3))
        await source.until(lambda: there.taken == [1, 3])
        assert sum(report.lost for report in there.reports) == 2


async def test_a_decision_counts_as_recorded_only_while_the_agent_is_there(agent):
    async with agent() as there:
        source = RuleSource(str(there.path))
        assert source.records
        async with source:
            # The agent of this test gives no rules: what it would say of them it cannot say of records either.
            async with asyncio.timeout(10):
                await source.until(lambda: not source.records)


async def test_there_is_no_record_without_room():
    source = RuleSource("/nowhere.sock")
    while source.records:
        source.report(made(1, 10_000))
    assert source.lost == 0


async def test_what_waits_is_bounded_in_bytes(agent):
    source = RuleSource("/nowhere.sock")
    for number in range(200):
        source.report(made(number, 100_000))
    kept = MAX_WAITING_BYTES // 100_000 - 1
    assert 200 - kept - 2 <= source.lost <= 200 - kept
    async with agent() as there:
        source.socket = str(there.path)
        async with source:
            await source.until(lambda: len(there.taken) == 200 - source.lost)
            # There is room again.
            lost = source.lost
            source.report(made(1000))
            await source.until(lambda: there.taken[-1] == 1000)
            assert source.lost == lost
