"""Spans of calls, and W3C Trace Context (https://www.w3.org/TR/trace-context/) between our processes.

Only OpenTelemetry's API is used here, which does nothing until a process sets a provider
(``eastwest.process.tracing``). What a caller sends as ``traceparent`` joins a trace; it never decides whether one is
kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from eastwest import errors

_tracer = trace.get_tracer("eastwest")
_w3c = TraceContextTextMapPropagator()
MAX_HEADER = 64
"""Characters of a ``traceparent`` of version 00: 55."""


@contextmanager
def span(
    name: str, parent: str = "", kind: SpanKind = SpanKind.INTERNAL, **attributes: str | int | bool
) -> Iterator[Span]:
    """A span around what is done inside; ``parent`` is a ``traceparent``, "" for the span this one is inside of.

    Errors of ours are told by their code, never by their sentence.
    """
    with _tracer.start_as_current_span(
        name, _remote(parent), kind, attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except Exception as error:
            current.set_status(Status(StatusCode.ERROR, _code(error)))
            raise


@contextmanager
def serving(method: str, metadata: Mapping[str, str | bytes]) -> Iterator[Span]:
    """The server's span of one call of ``/package.Service/Method``, below the caller's span where it tells one."""
    service, _, name = method.lstrip("/").partition("/")
    told = metadata.get("traceparent", "")
    parent = told if isinstance(told, str) and len(told) <= MAX_HEADER else ""
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    with span(method.lstrip("/"), parent, SpanKind.SERVER, **attributes) as current:
        yield current


def carried() -> dict[str, str]:
    """Headers that tell the other side which span calls it; empty where none is kept."""
    headers: dict[str, str] = {}
    _w3c.inject(headers)
    return headers


def traceparent() -> str:
    """The present span as one header's value; "" where none is kept."""
    return carried().get("traceparent", "")


def record(name: str, parent: str, start_ns: int, end_ns: int, **attributes: str | int) -> None:
    """A span that is over already, with its times in Unix nanoseconds."""
    done = _tracer.start_span(name, _remote(parent), attributes=attributes, start_time=start_ns)
    done.end(end_ns)


def _remote(parent: str) -> Context | None:
    return _w3c.extract({"traceparent": parent}) if parent else None


def _code(error: Exception) -> str:
    return error.code if isinstance(error, errors.Error) else type(error).__name__
