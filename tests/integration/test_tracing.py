"""One trace from a change of policy to the Envoy that enforces it, one from an agent's wish to the log; exports too."""

import asyncio
import gzip
import json
import shutil
import tempfile
import threading
from collections import defaultdict
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from envoy_mesh import Http
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sdk_world import POLICY, SERVICE, SdkWorld

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver of traces: every span with the service it came from."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Receive)
        self.spans = []
        self.came = threading.Condition()
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def until(self, condition, seconds=30):
        """What ``condition`` gives of the spans, as soon as it is something."""
        with self.came:
            found = self.came.wait_for(lambda: condition(self.spans), seconds)
        assert found, sorted({(service, span.name) for service, span in self.spans})
        return found

    def close(self):
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Receive(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with self.server.came:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {pair.key: pair.value.string_value for pair in group.resource.attributes}
                for scope in group.scope_spans:
                    self.server.spans += [(names["service.name"], span) for span in scope.spans]
            self.server.came.notify_all()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    made = Collector()
    yield made
    made.close()


@pytest.fixture
async def world(collector):
    root = Path(tempfile.mkdtemp(prefix="ewt-", dir="/tmp"))  # sockets' paths must stay short
    made = SdkWorld(root)
    events = root / "events"
    events.mkdir()
    tracing = f'[tracing]\nurl = "{collector.url}"\n'
    made.settings = f'\n[export.ocsf]\ndirectory = "{events}"\n\n{tracing}'
    (root / "agent.toml").write_text(tracing)
    try:
        yield made
    finally:
        await made.close()
        shutil.rmtree(root, ignore_errors=True)


def named(spans, name):
    return [span for _, span in spans if span.name == name]


def below(spans, parent):
    return [span for _, span in spans if span.parent_span_id == parent.span_id and span.trace_id == parent.trace_id]


async def test_a_change_and_an_issuance_are_each_one_trace(world, collector):
    upstream = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = upstream.sockets[0].getsockname()[1]
    service = SERVICE.replace("PORT", str(world.port)).replace('"127.0.0.1:1"', f'"127.0.0.1:{port}"')
    async with upstream:
        await world.start()
        await world.apply(**{"services/billing.yaml": service})
        await world.sidecar("billing")
        out = await world.sidecar("web")
        http = await Http.unix(out)
        async with asyncio.timeout(30):
            while (answer := await http.ask("GET", "/status", ("traceparent", PARENT), host="billing")).status != 200:
                await asyncio.sleep(0.1)  # Envoy tells nobody that it listens
        # W3C Trace Context goes through both sidecars as it came.
        assert json.loads(answer.body)["traceparent"] == PARENT
        await world.apply(
            **{"services/billing.yaml": service, "policies/shop.cedar": POLICY.replace("looks after", "minds")}
        )
        refused = await http.ask("GET", "/tenants/other/invoices", ("traceparent", PARENT), host="billing")
        assert refused.status == 403
        http.writer.close()
        await asyncio.to_thread(the_change, collector)
        await asyncio.to_thread(the_issuance, collector)
        await the_export(world)


def the_change(collector):
    """estate.apply (server) > agent.apply_update (agent) > envoy.enforced (agent), all in one trace."""

    def whole(spans):
        groups = defaultdict(list)
        for service, span in spans:
            groups[span.trace_id].append((service, span))
        for group in groups.values():
            applied, heard, enforced = (
                named(group, name) for name in ("estate.apply", "agent.apply_update", "envoy.enforced")
            )
            if applied and heard and enforced:
                return applied[0], heard[0], enforced[0], group
        return None

    applied, heard, enforced, group = collector.until(whole)
    assert heard.parent_span_id == applied.span_id
    assert enforced.parent_span_id == heard.span_id
    assert {service for service, _ in group} == {"eastwest-server", "eastwest-agent"}
    assert {pair.key for pair in enforced.attributes} == {"eastwest.spiffe_id", "eastwest.version"}
    assert enforced.end_time_unix_nano >= heard.start_time_unix_nano


def the_issuance(collector):
    """svid.renew (agent) > the call (server) > issuance.issue > log.append."""

    def whole(spans):
        for wish in named(spans, "svid.renew"):
            for call in below(spans, wish):
                for issue in below(spans, call):
                    for append in below(spans, issue):
                        return wish, call, issue, append
        return None

    _, call, issue, append = collector.until(whole)
    assert call.name == "spire.api.server.svid.v1.SVID/BatchNewX509SVID"
    assert (issue.name, append.name) == ("issuance.issue", "log.append")


async def the_export(world):
    """The refusal is in the OCSF file, as the ledger has it."""
    rows = await world.decisions(lambda rows: any(row["code"] == "TENANT_NOT_PERMITTED" for row in rows))
    wanted = {row["row"] for row in rows}
    traces = {row["trace"] for row in rows if row["code"] == "TENANT_NOT_PERMITTED"}
    assert traces == {PARENT.split("-")[1]}
    async with asyncio.timeout(20):
        while True:
            files = list((world.root / "events").iterdir())
            events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
            if wanted <= {event["metadata"]["sequence"] for event in events}:
                break
            await asyncio.sleep(0.1)  # exports travel by themselves
    assert len(events) == len({event["metadata"]["uid"] for event in events})
    assert {event["disposition"] for event in events if event["status_code"] == "TENANT_NOT_PERMITTED"} == {"Blocked"}


async def _echo(reader, writer):
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while head := await reader.readuntil(b"\r\n\r\n"):
            headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if ": " in line)
            body = json.dumps({"traceparent": headers.get("traceparent", "")}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
    writer.close()
