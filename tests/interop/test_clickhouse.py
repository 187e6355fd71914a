"""The ClickHouse export against ClickHouse's own engine (chdb), behind its HTTP interface."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio

from eastwest.clock import SystemClock
from eastwest.errors import InvalidInput
from eastwest.ledger.export.ports import SinkContext
from eastwest.ledger.query import DecisionQuery
from eastwest.plugins.clickhouse_ledger import ClickHouseLedger
from eastwest.process.plugins import LEDGER_SINKS, load_plugin
from eastwest.testing.ledgers import LedgerContract, expected, sample

pytestmark = [pytest.mark.interop, pytest.mark.asyncio(loop_scope="module")]
chdb_session = pytest.importorskip("chdb.session", reason="chdb has no wheel for this machine")


class _Interface(BaseHTTPRequestHandler):
    """``POST /?query=...&param_x=...`` with rows as body, as ClickHouse's HTTP interface takes statements."""

    def do_POST(self) -> None:
        """Run one statement in the engine."""
        server: Any = self.server
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        statement = asked["query"] + (f"\n{body}" if body else "")
        parameters = {name.removeprefix("param_"): v for name, v in asked.items() if name.startswith("param_")}
        try:
            answer = server.engine.query(statement, params=parameters or None).bytes()
            status = 200
        except RuntimeError as error:
            server.errors.append(str(error))
            status, answer = 400, b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@contextmanager
def _served(path: Path) -> Iterator[Any]:
    """The HTTP interface; ``engine`` asks ClickHouse directly."""
    server: Any = HTTPServer(("127.0.0.1", 0), _Interface)
    server.errors = []
    server.engine = chdb_session.Session(str(path))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    server.engine.close()


@pytest.fixture
def interface(tmp_path: Path) -> Iterator[Any]:
    """An engine of this test alone."""
    with _served(tmp_path / "clickhouse") as server:
        yield server


@pytest.fixture(scope="class")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One engine for a class of tests."""
    with _served(tmp_path_factory.mktemp("clickhouse") / "data") as server:
        yield server


def _rows(numbers: range) -> list[dict[str, Any]]:
    return [
        {
            "row": number,
            "kind": "decision",
            "agent": "spiffe://shop.example/spire/agent/join_token/x",
            "time": f"2026-11-22T10:{number % 60:02}:00.250000Z",
            "service": "billing",
            "caller": "spiffe://shop.example/web",
            "operation": "billing:invoice:read",
            "tenant": "acme'); DROP TABLE audit; --",
            "verdict": "deny" if number % 4 == 0 else "allow",
            "code": "TENANT_NOT_PERMITTED" if number % 4 == 0 else "ALLOWED",
            "mode": "strict",
            "enforced": True,
            "count": 3,
        }
        for number in numbers
    ]


async def test_rows_arrive_once_and_whole(interface: Any) -> None:
    sink = _sink(interface)
    await sink.deliver(_rows(range(1, 61)))
    await sink.deliver(_rows(range(41, 101)))
    answer = _ask(
        interface,
        "SELECT verdict, count() AS rows, sum(count) AS calls, "
        "any(tenant) AS tenant, "
        "min(time) AS first FROM audit FINAL GROUP BY verdict ORDER BY verdict",
    )
    assert [(line["verdict"], int(line["rows"]), int(line["calls"])) for line in answer] == [
        ("allow", 75, 225),
        ("deny", 25, 75),
    ]
    assert answer[0]["tenant"] == "acme'); DROP TABLE audit; --"
    assert answer[0]["first"] == "2026-11-22 10:00:00.250000" or answer[0]["first"].startswith("2026-11-22 10:01")
    enforced = _ask(interface, "SELECT DISTINCT enforced, claimed FROM audit")
    assert enforced == [{"enforced": True, "claimed": False}]


async def test_rows_of_very_many_days_arrive_too(interface: Any) -> None:
    """An agent that makes times up would else end the export: ClickHouse takes 100 partitions at once by itself."""
    rows = [
        row | {"time": f"20{17 + n // 12 % 10}-{n % 12 + 1:02}-{n // 120 + 1:02}T10:00:00Z"}
        for n, row in enumerate(_rows(range(1, 301)))
    ]
    await _sink(interface).deliver(rows)
    (answer,) = _ask(interface, "SELECT count() AS rows, uniq(toDate(time)) AS days FROM audit FINAL")
    assert (int(answer["rows"]), int(answer["days"])) == (300, 300)


async def test_a_table_of_another_shape_is_told(interface: Any) -> None:
    interface.engine.query("CREATE TABLE audit (x UInt8) ENGINE = MergeTree ORDER BY x")
    with pytest.raises(InvalidInput, match="400"):
        await _sink(interface).deliver(_rows(range(1, 3)))


@pytest_asyncio.fixture(scope="class", loop_scope="module")
async def store(engine: Any) -> AsyncIterator[ClickHouseLedger]:
    """All rows of the contract, delivered twice in parts, beside another ledger's."""
    await _fill(engine)
    url = f"http://127.0.0.1:{engine.server_port}"
    yield ClickHouseLedger(ClickHouseLedger.Options(url=url, table="audit", ledger="0123abcd"))
    assert engine.errors == []


class TestLedgerInClickHouse(LedgerContract):
    """The questions that every ledger answers, to a table that the sink has filled."""


async def _fill(engine: Any) -> None:
    rows = expected(sample())
    await _sink(engine).deliver(rows[:9])
    await _sink(engine).deliver(rows[4:])
    await _sink(engine, ledger="other").deliver(rows)


async def test_which_ledger_is_asked_must_be_clear(interface: Any) -> None:
    url = f"http://127.0.0.1:{interface.server_port}"
    await _sink(interface).deliver(_rows(range(1, 3)))
    alone = ClickHouseLedger(ClickHouseLedger.Options(url=url, table="audit"))
    assert len(await alone.search(DecisionQuery())) == 2
    await _sink(interface, ledger="other").deliver(_rows(range(1, 3)))
    with pytest.raises(InvalidInput, match="several ledgers"):
        await ClickHouseLedger(ClickHouseLedger.Options(url=url, table="audit")).search(DecisionQuery())


def _sink(interface: Any, ledger: str = "0123abcd") -> Any:
    context = SinkContext("shop.example", "0.1.0", ledger, SystemClock())
    options = {"url": f"http://127.0.0.1:{interface.server_port}", "table": "audit"}
    return load_plugin(LEDGER_SINKS, "clickhouse", options, context, "server.toml: export.clickhouse")


def _ask(interface: Any, query: str) -> list[dict[str, Any]]:
    lines = str(interface.engine.query(query, "JSONEachRow")).splitlines()
    return [json.loads(line) for line in lines if line]


async def test_the_command_line_asks_the_table(interface: Any, tmp_path: Path) -> None:
    await _sink(interface).deliver(_rows(range(1, 9)))
    settings = tmp_path / "server.toml"
    settings.write_text(f'[export.clickhouse]\nurl = "http://127.0.0.1:{interface.server_port}"\ntable = "audit"\n')
    words = ["decisions", "top", "--clickhouse", str(settings), "--by", "verdict", "--json"]
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "eastwest.cli.main", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [(row["verdict"], row["count"]) for row in json.loads(done.stdout)["top"]] == [("allow", 18), ("deny", 6)]
