"""A closed-loop load generator in a process of its own: raw blocking sockets, connections kept open.

``python -m bench.load``; each question is a JSON line ``{path, request, connections, seconds, expect}``, where
``path`` is a unix socket and ``request`` the bytes of an HTTP/1.1 request as text. The answer counts what came back.
"""

from __future__ import annotations

import json
import socket
import sys
import time
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

    def run(self, path: str, request: str, connections: int, seconds: float, expect: int) -> dict[str, Any]:
        raw = request.encode("latin-1")
        # Their own for each request, so that one upstream connection pool belongs to one variant.
        pool = self._open.setdefault((path, request), [])
        while len(pool) < connections:
            pool.append(Connection(path))
        done = wrong = 0
        for connection in pool:
            connection.send(raw)
        begin = time.perf_counter()
        end = begin + seconds
        while time.perf_counter() < end:
            for connection in pool:
                wrong += connection.receive() != expect
                connection.send(raw)
            done += len(pool)
        for connection in pool:
            wrong += connection.receive() != expect
        done += len(pool)
        return {"requests": done, "wrong": wrong, "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    generator = Generator()
    for line in sys.stdin:
        print(json.dumps(generator.run(**json.loads(line))), flush=True)
