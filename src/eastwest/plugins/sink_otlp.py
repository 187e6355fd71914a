"""Decisions as OTLP log records over HTTP (binary protobuf), to any OpenTelemetry collector.

OTLP 1.x, ``POST /v1/logs``: 429, 502, 503 and 504 are tried again, and what a collector rejects (``partial_success``)
is told and not sent again.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Self

import msgspec
import structlog
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from eastwest.ledger.export.otlp import export_request
from eastwest.ledger.export.ports import Row, SinkContext
from eastwest.plugins.http_post import HttpPost, header_secret

_log = structlog.get_logger()


class OtlpSink:
    """Serves ``eastwest.ledger.export.ports.Sink``."""

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[export.otlp]``.

        ``url``: of the collector's HTTP receiver, without ``/v1/logs``; plain http only to this machine. ``ca_file``:
        PEM; empty: the system's. ``token_file``: private, its text is sent as ``Authorization: Bearer``. ``timeout``:
        seconds.
        """

        url: str
        ca_file: str = ""
        token_file: str = ""
        timeout: float = 15.0

    def __init__(self, options: Options, context: SinkContext) -> None:
        self._http = HttpPost(options.url, ca_file=options.ca_file, timeout=options.timeout)
        self._token_file = options.token_file
        self._context = context

    @classmethod
    def from_options(cls, options: Options, context: SinkContext) -> Self:
        """As the entry point makes it. A token that cannot be read is told now, not with the first refusal."""
        if options.token_file:
            header_secret(options.token_file, "token_file")
        return cls(options, context)

    async def deliver(self, rows: Sequence[Row]) -> None:
        request = export_request(
            rows,
            trust_domain=self._context.trust_domain,
            version=self._context.version,
            observed=self._context.clock.now(),
        )
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
        if self._token_file:
            headers["Authorization"] = f"Bearer {header_secret(self._token_file, 'token_file')}"
        answer = await self._http.post("/v1/logs", gzip.compress(request.SerializeToString(), 1), headers)
        try:
            rejected = ExportLogsServiceResponse.FromString(answer).partial_success.rejected_log_records
        except DecodeError:
            rejected = 0  # a collector that answers 200 in JSON has taken them all the same
        if rejected:
            _log.error("export.otlp.rejected", records=rejected, sent=len(rows))

    async def close(self) -> None:
        """Nothing is held open between deliveries."""
