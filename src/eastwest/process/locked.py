"""One process to a data directory, held by a lock that the kernel lets go when the process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eastwest import errors


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold ``path`` locked; raises ``FailedPrecondition`` when another process does. ``what``: such as ``agent``.

    The file is private: whoever may open it could hold the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise errors.FailedPrecondition(
                f"another {what} (pid {holder or 'unknown'}) runs on {path.parent}",
                fix="stop it, or choose another --data",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
