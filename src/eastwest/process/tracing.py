"""Where this process's spans go: an OTLP collector, or nowhere. Needs the extra ``tracing``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from opentelemetry import trace

from eastwest import __version__
from eastwest.errors import FailedPrecondition, InvalidInput

_LOCAL = frozenset({"127.0.0.1", "::1", "localhost"})


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[tracing]``: spans go to ``url`` (an OTLP/HTTP receiver, without ``/v1/traces``), a share ``ratio`` of traces.

    ``ca_file``: PEM, to verify an https receiver; empty: the system's.
    """

    url: str
    ratio: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 1.0
    ca_file: str = ""


def start_tracing(
    settings: TracingSettings | None, attributes: Mapping[str, str], where: str = ""
) -> Callable[[], None]:
    """Send spans from now on; gives what ends it and sends the last ones. Without settings nothing is sent.

    ``attributes`` describe the process (``service.name`` among them). Spans are sent in the background; what a
    collector does not take in time is dropped, and nothing ever waits for it.
    """
    if settings is None:
        return lambda: None
    _check(settings, where)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise FailedPrecondition(
            f"[tracing] needs a package that is not there: {error.name}",
            where=where,
            fix='pip install "eastwest[tracing]"',
        ) from None
    share = TraceIdRatioBased(settings.ratio)
    # A caller's word that a trace is kept counts for nothing: else anybody could fill the collector.
    sampler = ParentBased(share, remote_parent_sampled=share, remote_parent_not_sampled=share)
    resource = Resource.create({"service.version": __version__, **attributes})
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    endpoint = settings.url.rstrip("/") + "/v1/traces"
    exporter = OTLPSpanExporter(endpoint=endpoint, certificate_file=settings.ca_file or None, timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _check(settings: TracingSettings, where: str) -> None:
    try:
        parts = urlsplit(settings.url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and not parts.username
    except ValueError:
        usable = False
    if not usable:
        raise InvalidInput("url is not usable", where=where, fix="such as https://collector.example:4318")
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        raise InvalidInput("url is plain http to another machine", where=where, fix="use https")
