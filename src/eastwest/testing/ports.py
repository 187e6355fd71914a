"""TCP ports for tests that must write a port down before anybody listens on it.

A port that the kernel chose and that was let go again may be chosen again: by the next question, or as the near end of
somebody's connection. These come from below the kernel's own range, each is handed out once in a process, and each
process works through blocks that no other process on the machine holds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_port", "free_ports"]

_FIRST = 10_000
_BLOCK = 200


class _Blocks:
    """Blocks of ports held by this process: the name of an abstract Unix socket (unix(7)) is free again when its
    process ends, however it ends.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []
        self._pid = 0
        self._ports: Iterator[int] = iter(())

    def next(self) -> int:
        if self._pid != os.getpid():  # a fork must not hand out what its parent will
            self._pid, self._held, self._ports = os.getpid(), [], iter(())
        port = next(self._ports, None)
        if port is None:
            self._ports = self._another()
            port = next(self._ports)
        return port

    def _another(self) -> Iterator[int]:
        for start in range(_FIRST, _ephemeral() - _BLOCK, _BLOCK):
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0eastwest-test-ports-{start}")
            except OSError:
                claim.close()
                continue
            self._held.append(claim)
            return iter(range(start, start + _BLOCK))
        raise RuntimeError("every block of test ports is held by some process on this machine")


def _ephemeral() -> int:
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


_blocks = _Blocks()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now and that no other test will be given."""
    while True:
        port = _blocks.next()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def free_ports(count: int) -> list[int]:
    """`count` different ports, each as `free_port` gives them."""
    return [free_port() for _ in range(count)]
