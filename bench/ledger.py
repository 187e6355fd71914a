"""What keeping decisions costs: rows sealed into segments, questions about a million of them, issuance beside it."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.issuance import PACE, _client
from bench.measure import Result, calibration, cpu_seconds, percentile, rss_mb, spread
from bench.processes import TRUST_DOMAIN, Helper, Server, scratch
from eastwest.clock import SystemClock
from eastwest.ledger.query import DecisionQuery
from eastwest.ledger.record import Decision
from eastwest.policy.enforcement import DecisionCode, MtlsMode, Verdict
from eastwest.server.config import LedgerSettings
from eastwest.server.journal import Journal
from eastwest.server.ledger.keeper import Ledger
from eastwest.testing.log import MemoryLog

NAMES = (
    "ledger_groupby_1m_s",
    "ledger_services_1m_s",
    "ledger_search_1m_ms",
    "ledger_seal_rows_per_s",
    "ledger_store_rows_per_s",
    "ledger_bytes_per_row",
    "ledger_issue_p99_ratio",
    "ledger_server_rss_mb",
)
ROWS = 1_000_000
BATCH = 20_000
REPORTS = 5
"""A second, of 1,000 rows each, while certificates are issued."""
ESTATE = {
    "estate.yaml": f"""
trust_domain: {TRUST_DOMAIN}
environments: [{{name: prod, kind: vm}}]
domains: [{{name: commerce, owners: [group:commerce]}}]
node_groups: [{{name: left, environment: prod, selectors: ["join_token:group:left"]}}]
""",
    "workloads/all.yaml": f"""
workloads:
  - {{spiffe_id: spiffe://{TRUST_DOMAIN}/prod/commerce/orders, environment: prod, domain: commerce,
     owner: group:commerce, node: group:left, selectors: ["unix:uid:1"], profile: workload}}
""",
    "services/orders.yaml": f"""
service: orders
workload: spiffe://{TRUST_DOMAIN}/prod/commerce/orders
owner: group:commerce
domain: commerce
listen: {{port: 1, protocol: http, mtls: strict}}
upstream: {{unix: /tmp/orders.sock}}
operations:
  - {{name: "orders:all:read", match: {{method: GET, path: /all}}, sensitivity: read}}
""",
}


def run(*, quick: bool) -> list[Result]:
    """A million rows in a directory of segments; then a server under reports, with sealing and without."""
    with scratch() as folder:
        results = asyncio.run(_million(folder / "ledger", ROWS // 10 if quick else ROWS))
    return [*results, *_beside(4 if quick else 20, rounds=1 if quick else 3)]


def rows(count: int) -> Iterator[Decision]:
    """Distinct rows of 3,000 callers that have 20 edges each, over 200 services: no two are equal."""
    chance = random.Random(6)
    begin = datetime(2026, 11, 22, tzinfo=UTC)
    for number in range(count):
        caller = chance.randrange(3000)
        edge = chance.randrange(20)
        service = f"service-{(caller * 7 + edge) % 200}"
        denied = number % 50 == 0
        yield Decision(
            time=begin + timedelta(seconds=60 * (number // 700)),
            service=service,
            verdict=Verdict.DENY if denied else Verdict.ALLOW,
            code=DecisionCode.OPERATION_NOT_PERMITTED if denied else DecisionCode.ALLOWED,
            mode=MtlsMode.STRICT,
            enforced=True,
            caller=f"spiffe://{TRUST_DOMAIN}/prod/commerce/caller-{caller}",
            operation=f"{service}.operation-{(caller + edge) % 10}",
            tenant=f"tenant-{number % 997}",
            method="GET",
            policy=f"{service}-read",
            policy_version=f"{number // 100_000:064x}",
            rules_version=f"{number % 200:064x}",
            node=f"node-{number % 50}",
            count=chance.randrange(1, 500),
            reference=f"{chance.getrandbits(128):032x}" if denied else "",
        )


async def _million(directory: Path, count: int) -> list[Result]:
    clock, log = SystemClock(), MemoryLog()
    settings = LedgerSettings()
    ledger = await Ledger.open(
        directory,
        trust_domain=TRUST_DOMAIN,
        settings=settings,
        max_rows=2 * ROWS,
        log=log,
        journal=Journal(log, clock),
        clock=clock,
    )
    try:
        storing, sealing, batch, sequence = 0.0, 0.0, list[Decision](), 0
        for row in rows(count):
            batch.append(row)
            if len(batch) == BATCH:
                sequence += 1
                begin = time.perf_counter()
                await ledger.add(f"agent-{sequence % 50}", "s", sequence, batch)
                storing += time.perf_counter() - begin
                batch = []
                if sequence % 5 == 0:
                    begin = time.perf_counter()
                    await ledger.sealer.seal(settings.seal_rows)
                    sealing += time.perf_counter() - begin
        segments = [each.record for each in await ledger.segments()]
        assert sum(each.rows for each in segments) == count
        size = sum(each.bytes for each in segments)
        by_edge, by_service, one, spent = [], [], [], []
        for _ in range(7):
            pid = ledger._questions.pid  # noqa: SLF001 - on a busy machine its CPU says more than the clock
            before, begin = cpu_seconds(pid) if pid else 0.0, time.perf_counter()
            edges = await ledger.edges(DecisionQuery(limit=5000))
            by_edge.append(time.perf_counter() - begin)
            spent.append(cpu_seconds(ledger._questions.pid) - before)  # noqa: SLF001 - as above
            assert len(edges) == 5000
            begin = time.perf_counter()
            services = await ledger.top(DecisionQuery(limit=5000), "service")
            by_service.append(time.perf_counter() - begin)
            assert len(services) == 200
            begin = time.perf_counter()
            await ledger.search(DecisionQuery(caller=services[0]["service"], verdict="deny", limit=100))
            one.append((time.perf_counter() - begin) * 1e3)
        note = f"{count} distinct rows in {len(segments)} segments; {calibration()}"
        return [
            Result(
                "ledger_groupby_1m_s",
                round(statistics.median(by_edge), 2),
                "s",
                len(by_edge),
                "60,000 edges of caller, service and operation with calls, verdicts, times and modes, 5,000 sent; "
                f"{spread(by_edge, 2)}, the first starts the worker; "
                f"CPU of the worker {statistics.median(spent):.2f} s; {note}",
            ),
            Result(
                "ledger_services_1m_s",
                round(statistics.median(by_service), 2),
                "s",
                len(by_service),
                f"the same by service; {spread(by_service, 2)}; {note}",
            ),
            Result(
                "ledger_search_1m_ms",
                round(statistics.median(one), 0),
                "ms",
                len(one),
                f"refusals of a caller that has none: every segment is looked into; {spread(one)}; {note}",
            ),
            Result(
                "ledger_seal_rows_per_s",
                round(count / sealing),
                "rows/s",
                count,
                f"hot rows to a logged segment; {note}",
            ),
            Result(
                "ledger_store_rows_per_s",
                round(count / storing),
                "rows/s",
                count,
                f"reports of {BATCH}, durable; {note}",
            ),
            Result("ledger_bytes_per_row", round(size / count, 1), "B", count, note),
        ]
    finally:
        await ledger.close()


def _beside(seconds: int, rounds: int) -> list[Result]:
    """p99 of single issuances: alone, beside reports that are only stored, and beside reports that are sealed too."""
    kinds = {"alone": "seal_interval = 3600", "stored": "seal_interval = 3600", "sealed": "seal_interval = 1"}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    middles: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory: dict[str, float] = {}
    cpu: dict[str, float] = {}
    for _ in range(rounds):
        for kind, setting in kinds.items():
            with _server(setting) as (server, client, reporter):
                client.ask(do="prepare", count=200)
                client.ask(do="batches", size=1)
                client.ask(do="prepare", count=seconds * PACE)
                before = cpu_seconds(server.pid)
                with ThreadPoolExecutor(1) as pool:
                    reports = 0 if kind == "alone" else REPORTS
                    work = pool.submit(reporter.ask, do="report", pace=reports, seconds=seconds)
                    found = [taken * 1e3 for taken in client.ask(do="paced", pace=PACE)["seconds"]]
                    work.result()
                times[kind].append(percentile(found, 0.99))
                middles[kind].append(percentile(found, 0.5))
                memory[kind] = rss_mb(server.pid)
                cpu[kind] = (cpu_seconds(server.pid) - before) / seconds
    told = ", ".join(
        f"{kind}: p50 {statistics.median(middles[kind]):.1f}, p99 {statistics.median(times[kind]):.1f} ms, "
        f"server CPU {cpu[kind]:.2f} s/s"
        for kind in kinds
    )
    ratios = [sealed / stored for sealed, stored in zip(times["sealed"], times["stored"], strict=True)]
    note = f"p99 of {PACE} issuances a second beside {REPORTS} reports of 1,000 rows a second, sealed by not; {told}; "
    spent = ", ".join(f"{kind} {size:.0f}" for kind, size in memory.items())
    return [
        Result("ledger_issue_p99_ratio", round(statistics.median(ratios), 2), "", rounds, note + calibration()),
        Result("ledger_server_rss_mb", round(memory["sealed"], 1), "MB", 1, f"resident memory of the server: {spent}"),
    ]


@contextmanager
def _server(setting: str) -> Iterator[tuple[Server, Helper, Helper]]:
    with scratch() as folder:
        server = Server(folder / "data")
        config = folder / "data" / "server" / "server.toml"
        config.write_text(f"{config.read_text()}\n[ledger]\n{setting}\n")
        with server, _client(server, folder) as client:
            files = {name: text.encode() for name, text in ESTATE.items()}
            server.admin(lambda admin: admin.apply_estate(files))
            token = server.token(group="left")
            with Helper("bench.ledger_client", server.address, server.bundle(), token) as reporter:
                yield server, client, reporter
