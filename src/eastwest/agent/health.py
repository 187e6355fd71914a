"""Health and metrics over HTTP on loopback, for probes and Prometheus: two paths, GET only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from eastwest import errors
from eastwest.metrics import BY_NAME
from eastwest.metrics import Metric as Catalogued

_HEAD_LIMIT = 8192
_SECONDS = 5.0

Readings = Callable[[], Mapping[str, float]]
"""Values by the names of ``eastwest.metrics.AGENT``."""


class AgentMetrics(Collector):
    """Metrics read at the moment they are asked for."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def collect(self) -> list[Metric]:
        return [_family(BY_NAME[name], value) for name, value in self._readings().items()]


def _family(metric: Catalogued, value: float) -> Metric:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(metric.name, metric.help, value=value)


class HealthServer:
    """``/healthz``: 200, or 503 with what is wrong. ``/metrics``: Prometheus text."""

    def __init__(self, problems: Callable[[], list[str]], readings: Readings) -> None:
        self._problems = problems
        self._registry = CollectorRegistry()
        self._registry.register(AgentMetrics(readings))
        self._server: asyncio.Server | None = None
        self.port = 0

    async def listen(self, port: int) -> None:
        """Listen on loopback; port 0 takes a free one, and ``port`` then says which."""
        try:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=_HEAD_LIMIT)
        except OSError as error:
            raise errors.FailedPrecondition(
                f"cannot listen on 127.0.0.1:{port} for health checks: {error.strerror}", fix="choose another port"
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head.split(b"\r\n", 1)[0]))
                await writer.drain()
        writer.close()

    def _answer(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method != b"GET":
            return _response("405 Method Not Allowed", b"only GET\n")
        if path == b"/metrics":
            return _response("200 OK", generate_latest(self._registry), "text/plain; version=0.0.4; charset=utf-8")
        if path in {b"/healthz", b"/readyz", b"/livez"}:
            problems = [] if path == b"/livez" else self._problems()
            if problems:
                return _response("503 Service Unavailable", "".join(f"{p}\n" for p in problems).encode())
            return _response("200 OK", b"ok\n")
        return _response("404 Not Found", b"try /healthz or /metrics\n")


def _response(status: str, body: bytes, kind: str = "text/plain; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
