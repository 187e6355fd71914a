"""Becoming a workload: dying with the demo, and giving up root for a uid of one's own.

Imported by the small programs that the demo starts, so it imports next to nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: after a fork it must only be called


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when ``parent`` (a pid) dies; at once if that has already happened.

    The kernel forgets the wish when the uid changes, so ``become`` comes first.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def become(uid: int) -> None:
    """Change to ``uid`` and the gid of the same number, for good, with no other groups."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def in_child(parent: int, uid: int | None, *, tied: bool) -> Callable[[], None]:
    """What a child does between fork and exec: become ``uid`` (None: stay) and, if ``tied``, die with ``parent``."""

    def prepare() -> None:
        if uid is not None:
            become(uid)
        if tied:
            die_with_parent(parent)

    return prepare
