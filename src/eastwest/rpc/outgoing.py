"""The sending half of an HTTP/2 connection: what waits to leave, the windows, and who waits for room.

One write for one turn of the event loop: over TLS each write is a record and a system call, which cost more than
what an answer carries.
"""

from __future__ import annotations

import asyncio
from typing import Any

from eastwest.rpc import frames
from eastwest.rpc.exchange import HttpExchange

MAX_HELD = 64 * 1024
"""Bytes that wait for the end of the event loop's turn; more is passed on at once, so that back-pressure is felt."""
MAX_UNREAD = 256 * 1024
"""Bytes of answers that wait for a peer that does not read, beyond what the transport holds already."""


class Outgoing(asyncio.Protocol):
    """What a connection sends. ``send_window`` and ``max_frame`` are the peer's word."""

    transport: Any

    def __init__(self) -> None:
        self.send_window = frames.DEFAULT_WINDOW
        self.max_frame = frames.DEFAULT_MAX_FRAME
        self.header_room = 64 * 1024
        self.writable = True
        self.closing = False
        self._held: list[bytes | memoryview] = []
        self._held_size = 0
        self._unread = 0
        self._blocked: dict[HttpExchange, None] = {}  # in the order in which they began to wait
        self._loop = asyncio.get_running_loop()

    def pause_writing(self) -> None:
        self.writable = False
        self._unread = 0

    def resume_writing(self) -> None:
        self.writable = True
        self.wake()

    def write(self, data: bytes | memoryview) -> None:
        """Send bytes at the end of the turn. Never waits: only what is small and bounded comes here."""
        if self.closing:
            return
        size = len(data)
        if not self.writable:
            self._unread += size
            if self._unread > MAX_UNREAD:
                self.abort()
                return
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._held_size += size
        if self._held_size >= MAX_HELD:
            self.flush()

    def write_data(self, stream_id: int, part: bytes | memoryview) -> None:
        """Send a DATA frame for which there is room in the windows."""
        size = len(part)
        self.send_window -= size
        self.write(frames.head(size, frames.DATA, 0, stream_id))
        self.write(part)

    def wait(self, exchange: HttpExchange) -> None:
        """Tell ``exchange.opened`` when there is room for it."""
        self._blocked[exchange] = None

    def leave_queue(self, exchange: HttpExchange) -> None:
        """The call has ended; room that it had been given goes to those who come next."""
        self._blocked.pop(exchange, None)
        self.wake()

    def wake(self) -> None:
        """Wake as many as there is room for, first come first: one byte of room must not wake a hundred tasks."""
        if not self._blocked or not self.writable:
            return
        room = self.send_window
        for exchange in list(self._blocked):
            if room <= 0:
                return
            share = min(room, exchange.send_window, exchange.wanted)
            if share > 0:
                room -= share
                del self._blocked[exchange]
                exchange.opened()

    def flush(self) -> None:
        """Pass on what is held."""
        if not self._held:
            return
        data = b"".join(self._held)
        self._held.clear()
        self._held_size = 0
        if not self.transport.is_closing():
            self.transport.write(data)

    def abort(self) -> None:
        """End the connection without another word."""
        self.closing = True
        self._held.clear()
        self.transport.abort()
