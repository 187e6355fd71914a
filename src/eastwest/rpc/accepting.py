"""A listening socket's loop: who may not connect is let go before TLS costs anything."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from eastwest.rpc import limits
from eastwest.rpc.method import Admission, Place

PAUSE_SECONDS = 0.5
"""Between two tries when the machine has no descriptors or memory left."""
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_log = structlog.get_logger()


class Acceptor:
    """Accepts on ``sock`` until closed; ``make`` gives a protocol for each connection with its place."""

    def __init__(
        self,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        admit: Admission,
        make: Callable[[Place], asyncio.Protocol],
        handshake: float | None = None,
    ) -> None:
        """``handshake``: seconds that TLS may take, ``limits.HANDSHAKE_SECONDS`` unless told."""
        self._sock = sock
        self._admit = admit
        self._make = make
        self._more: dict[str, Any] = {}
        if tls is not None:
            self._more = {
                "ssl": tls,
                "ssl_handshake_timeout": limits.HANDSHAKE_SECONDS if handshake is None else handshake,
                "ssl_shutdown_timeout": limits.LINGER_SECONDS,
            }
        self._beginning: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def start(self, backlog: int) -> None:
        """Listen."""
        self._sock.setblocking(False)
        self._sock.listen(backlog)
        self._task = self._loop.create_task(self._run())

    async def close(self) -> None:
        """Stop listening; connections that have not begun end."""
        tasks = [*self._beginning, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sock.close()

    async def _run(self) -> None:
        while True:
            try:
                sock, _ = await self._loop.sock_accept(self._sock)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    _log.warning("rpc.cannot_accept", cause=error.strerror)
                    await asyncio.sleep(PAUSE_SECONDS)
                continue
            place = self._admit(sock)
            if place is None:
                sock.close()
                continue
            task = self._loop.create_task(self._begin(sock, place))
            place.ending = task.cancel
            self._beginning.add(task)
            task.add_done_callback(partial(self._begun, sock, place))

    async def _begin(self, sock: socket.socket, place: Place) -> None:
        _keep_alive(sock)
        await self._loop.connect_accepted_socket(lambda: self._make(place), sock, **self._more)

    def _begun(self, sock: socket.socket, place: Place, task: asyncio.Task[None]) -> None:
        # Here and not in the task: one that is cancelled before its first step does nothing at all.
        self._beginning.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            return
        place.release()
        sock.close()
        # Failures of TLS and of the network, timeouts included, are OSErrors and nothing to tell.
        if error is not None and not isinstance(error, OSError):
            _log.error("rpc.connection_failed", exc_info=error)


def _keep_alive(sock: socket.socket) -> None:
    """Let the kernel find a caller that vanished without a word, and hold nothing back that is to leave."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in limits.KEEP_ALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
