"""Clears up after a demo that was killed outright: ``python -m eastwest.cli.demo.janitor RECORD [DIRECTORY]``.

It waits for the end of its standard input, the other end of which only the demo holds. A last byte there means
that the demo has cleared up itself; without one the recorded processes are ended and DIRECTORY is removed.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eastwest.cli.demo.processes import stop_recorded
from eastwest.errors import Unavailable

_DONE = b"."


@contextmanager
def janitor(record: Path, directory: Path | None) -> Iterator[None]:
    """A janitor for the duration: ``record`` is where processes are written down, ``directory`` what to remove."""
    command = [sys.executable, "-m", "eastwest.cli.demo.janitor", str(record), *([str(directory)] if directory else [])]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.communicate(_DONE)


def main(record: Path, directory: Path | None) -> None:
    """Wait, then clear up if nobody else has."""
    if sys.stdin.buffer.read():
        return
    with contextlib.suppress(Unavailable):
        stop_recorded(record)
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
