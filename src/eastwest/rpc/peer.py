"""Who is at the other end of a unix socket, in the kernel's words.

The kernel notes the process that called ``connect``; a descriptor passed on later does not change it. A pid
alone is not enough, for it can be given to another process: a pidfd names one process for good.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from eastwest.errors import Unauthenticated

SO_PEERPIDFD = 77
"""Linux 6.5 and later; Python has no name for it yet."""


class UnknownPeer(Unauthenticated):
    """The caller has ended, or the kernel cannot say who it is."""


class UnixSocket(Protocol):
    """A connected unix socket, asyncio's view of one included."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


def peer_credentials(connection: UnixSocket) -> tuple[int, int, int]:
    """Pid, effective uid and effective gid of the process that connected, at that time.

    The process may be gone; use ``Peer`` wherever the pid is looked into.
    """
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError as error:
        raise UnknownPeer(f"the kernel does not say who is calling: {error.strerror}") from None
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    if pid <= 0:
        # No peer, or one whose pid has no meaning in our pid namespace.
        raise UnknownPeer("the caller has no pid here", fix="call over a unix socket from this pid namespace or below")
    return pid, uid, gid


class Peer:
    """The process that connected, held until ``close``. Serves ``eastwest.attest.workload.Process``.

    With a pidfd the answer of ``is_alive`` is the kernel's. Without (Linux before 6.5) it compares start times, and
    a pid given away between ``connect`` and ``of`` goes unnoticed: there, call ``of`` right after ``accept``.
    """

    __slots__ = ("_pidfd", "_started", "gid", "pid", "uid")

    def __init__(self, pid: int, uid: int, gid: int, *, pidfd: int | None, started: int) -> None:
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self._pidfd = pidfd
        self._started = started

    @classmethod
    def of(cls, connection: UnixSocket, *, use_pidfd: bool = True) -> Peer:
        """The peer of a connected unix socket; raises ``UnknownPeer`` when it has ended."""
        pid, uid, gid = peer_credentials(connection)
        pidfd = _peer_pidfd(connection) if use_pidfd else None
        peer = cls(pid, uid, gid, pidfd=pidfd, started=started_at(pid))
        if not peer.is_alive():
            peer.close()
            raise UnknownPeer(f"process {pid} ended after it had connected")
        return peer

    @classmethod
    def of_pid(cls, pid: int) -> Peer:
        """A process of this machine that has not called, held by its pid; raises ``UnknownPeer`` when there is none."""
        gone = UnknownPeer(f"there is no process {pid}", fix="give the pid as the agent sees it")
        try:
            pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError):
            raise gone from None
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            # Real, effective, saved, file system.
            uid, gid = int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])
        except (OSError, KeyError, ValueError, IndexError):
            os.close(pidfd)
            raise gone from None
        peer = cls(pid, uid, gid, pidfd=pidfd, started=started_at(pid))
        if not peer.is_alive():
            peer.close()
            raise gone
        return peer

    def is_alive(self) -> bool:
        """Whether the process that connected still runs; false after ``close``."""
        if self._started == 0:
            return False
        if self._pidfd is None:
            return started_at(self.pid) == self._started
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Let go of the process; harmless when repeated."""
        self._started = 0
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Peer(pid={self.pid}, uid={self.uid}, gid={self.gid})"


def started_at(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 when it has ended."""
    with suppress(OSError, ValueError, IndexError):
        # The second field, the program's name in brackets, may hold anything, brackets and spaces included.
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        if state not in {b"Z", b"X", b"x"}:
            return int(fields[18])
    return 0


_CREDENTIALS = struct.Struct("iII")
_DESCRIPTOR = struct.Struct("i")


def _peer_pidfd(connection: UnixSocket) -> int | None:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, _DESCRIPTOR.size)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        raise UnknownPeer(f"the caller cannot be held: {error.strerror}") from None
    (descriptor,) = _DESCRIPTOR.unpack(raw)
    return int(descriptor)
