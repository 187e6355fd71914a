"""How many files and sockets this process may have open."""

from __future__ import annotations

import resource
from contextlib import suppress


def raise_file_limit() -> None:
    """Take all that the hard limit allows: each caller holds a socket, and the usual soft limit of 1,024 is too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
