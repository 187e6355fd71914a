"""Logging of our processes: JSON lines on standard error, one event a line, from a level that may change."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any, TextIO, cast

import structlog


class Level:
    """From which severity on events are written; numbers as in ``logging``."""

    def __init__(self) -> None:
        self.launch = self.current = logging.INFO

    def start_at(self, level: int) -> None:
        """The level of the process's start, to which ``reset`` returns."""
        self.launch = self.current = level

    def reset(self) -> None:
        """Back to the level of the start."""
        self.current = self.launch

    def drop_below(self, _logger: Any, method: str, event: Any) -> Any:
        """A structlog processor that keeps what is severe enough."""
        if logging.getLevelNamesMapping().get(method.upper(), logging.ERROR) < self.current:
            raise structlog.DropEvent
        return event


class _Stderr(io.TextIOBase):
    """Standard error as it is when a line is written: loggers live longer than what took its place for a while."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


LEVEL = Level()
"""The level of this process."""


def configure_logging(level: str) -> None:
    """JSON lines on standard error, one event a line, from ``level`` (a name) upwards."""
    LEVEL.start_at(logging.getLevelNamesMapping()[level.upper()])
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format='{"event":"%(name)s","message":"%(message)s"}')
    structlog.configure(
        processors=[
            LEVEL.drop_below,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Without the values of variables: they may be keys and tokens.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Stderr())),
        cache_logger_on_first_use=True,
    )
