"""A closed-loop load generator in a process of its own: raw blocking sockets, connections kept open.

``python -m bench.load``; each question is a JSON line ``{path, request, connections, seconds, expect}``, where
``path`` is a unix socket and ``request`` the bytes of an HTTP/1.1 request as text. The answer counts what came back.
``tokens`` are values of which each request takes another for ``{token}`` in its text; without any left it ends early.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from itertools import repeat
from typing import Any


class Connection:
    """One keep-alive connection with at most one request in flight."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(20)
        self._socket.connect(path)
        self._rest = b""

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def receive(self) -> int:
        """Read one answer; its status."""
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._read()
        head = data[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        while len(data) < end + 4 + length:
            data += self._read()
        self._rest = data[end + 4 + length :]
        return int(data[9:12])

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> bytes:
        chunk = self._socket.recv(65536)
        if not chunk:
            raise ConnectionError("the sidecar closed the connection")
        return chunk


class Generator:
    """Keeps its connections between questions."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], list[Connection]] = {}

    def run(
        self, path: str, request: str, connections: int, seconds: float, expect: int, tokens: Sequence[str] = ()
    ) -> dict[str, Any]:
        if tokens:
            fresh = iter([request.replace("{token}", token).encode("latin-1") for token in tokens])
        else:
            fresh = repeat(request.encode("latin-1"))
        # Their own for each request, so that one upstream connection pool belongs to one variant.
        pool = self._open.setdefault((path, request), [])
        while len(pool) < connections:
            pool.append(Connection(path))
        done = wrong = 0
        for connection in pool:
            connection.send(next(fresh))
        begin = time.perf_counter()
        end = begin + seconds
        open_ = deque(pool)
        while open_:
            connection = open_.popleft()
            wrong += connection.receive() != expect
            done += 1
            raw = next(fresh, None) if time.perf_counter() < end else None
            if raw is not None:
                connection.send(raw)
                open_.append(connection)
        return {"requests": done, "wrong": wrong, "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    generator = Generator()
    for line in sys.stdin:
        print(json.dumps(generator.run(**json.loads(line))), flush=True)
