"""HTTP byte for byte: an application that records what reaches it, and clients that send what they are told.

Nothing here normalises, and no library stands between a test and the wire; of HTTP/2 only frames and HPACK are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import hpack

from eastwest.rpc import frames

Headers = list[tuple[bytes, bytes]]


@dataclass
class Seen:
    """A request as it reached the application: HTTP/2's pseudo-headers are in ``headers``."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes = b""

    def values(self, name: str) -> list[bytes]:
        """All values of a header."""
        return [value for known, value in self.headers if known.lower() == name.encode()]


class Recorder:
    """An application on a unix socket, HTTP/1.1 and HTTP/2; each answer's ``x-seen`` is the place in ``seen``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[Seen] = []
        self.unreadable: list[bytes] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def stop(self) -> None:
        assert self._server
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                if head == frames.PREFACE[:18]:
                    await reader.readexactly(6)
                    await self._http2(reader, writer)
                else:
                    await self._http1(head, reader, writer)
            finally:
                writer.close()

    async def _http1(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            first, *lines = head.split(b"\r\n")[:-2]
            parts = first.split(b" ")
            pairs = [line.partition(b":") for line in lines]
            if len(parts) != 3 or any(not colon for _, colon, _ in pairs):
                self.unreadable.append(head)
                return
            headers = [(name, value.strip(b" \t")) for name, _, value in pairs]
            request = Seen(parts[0], parts[1], headers)
            request.body = await read_body(reader, headers)
            self.seen.append(request)
            extra = b"x-eastwest-code: FORGED\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\n%bx-seen: %d\r\ncontent-length: 0\r\n\r\n" % (extra, len(self.seen) - 1))
            head = await reader.readuntil(b"\r\n\r\n")

    async def _http2(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frames.settings([]))
        decoder = hpack.Decoder()
        requests: dict[int, Seen] = {}
        block = b""
        while True:
            kind, flags, stream, payload = await read_frame(reader)
            if kind in {frames.HEADERS, frames.CONTINUATION}:
                block += unpadded(kind, flags, payload)
                if flags & frames.END_HEADERS:
                    headers = [(bytes(n), bytes(v)) for n, v in decoder.decode(block, raw=True)]
                    named = dict(headers)
                    if stream not in requests:
                        requests[stream] = Seen(named[b":method"], named[b":path"], headers)
                    block = b""
            elif kind == frames.DATA:
                requests[stream].body += unpadded(kind, flags, payload)
                if payload:
                    size = len(payload)
                    writer.write(frames.window_update(0, size) + frames.window_update(stream, size))
            elif kind == frames.SETTINGS and not flags & frames.ACK:
                writer.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
            elif kind == frames.PING and not flags & frames.ACK:
                writer.write(frames.frame(frames.PING, frames.ACK, 0, payload))
            if kind in {frames.HEADERS, frames.DATA} and flags & frames.END_STREAM:
                self.seen.append(requests.pop(stream))
                answer = [(b":status", b"200"), (b"x-seen", b"%d" % (len(self.seen) - 1)), (b"grpc-status", b"0")]
                answer.append((b"x-eastwest-code", b"FORGED"))
                writer.write(frames.headers(stream, fields(answer), frames.DEFAULT_MAX_FRAME, end_stream=True))


@dataclass
class Answer:
    """What came back; ``status`` 0 where the connection or stream ended instead."""

    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytes = b""

    def value(self, name: str) -> str:
        """The one value of a header, "" without it."""
        found = [value for known, value in self.headers if known.lower() == name.encode()]
        assert len(found) < 2, self.headers
        return found[0].decode() if found else ""


class Http1:
    """One HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.open = True

    @classmethod
    async def tls(cls, port: int, context: ssl.SSLContext) -> Http1:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="x"))

    async def send(self, data: bytes) -> None:
        """Just these bytes."""
        self._writer.write(data)
        await self._writer.drain()

    async def ask(
        self, method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]] = (), *, host: bytes = b"svc"
    ) -> Answer:
        """A request without a body, and its answer."""
        lines = [b"%b %b HTTP/1.1\r\nhost: %b" % (method, target, host), *(b"%b: %b" % pair for pair in headers)]
        if method not in {b"GET", b"HEAD", b"OPTIONS", b"TRACE"}:
            lines.append(b"content-length: 0")
        return await self.exchange(b"\r\n".join(lines) + b"\r\n\r\n", head=method == b"HEAD")

    async def exchange(self, request: bytes, *, head: bool = False) -> Answer:
        """The answer to these bytes."""
        try:
            await self.send(request)
        except (ConnectionError, ssl.SSLError):
            self.open = False
            return Answer()
        return await self.answer(head=head)

    async def answer(self, *, head: bool = False) -> Answer:
        """The next answer."""
        try:
            async with asyncio.timeout(15):
                raw = await self._reader.readuntil(b"\r\n\r\n")
                first, *lines = raw.split(b"\r\n")[:-2]
                headers = [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
                answer = Answer(int(first.split(b" ")[1]), headers)
                if not head and answer.status != 304:
                    answer.body = await read_body(self._reader, headers)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            self.open = False
            return Answer()
        self.open = answer.value("connection").lower() != "close"
        return answer

    async def closed(self) -> bool:
        """Whether the peer ends the connection without another byte."""
        try:
            async with asyncio.timeout(15):
                return await self._reader.read(1) == b""
        except (ConnectionError, ssl.SSLError):
            return True

    async def close(self) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(Exception):
            await self._writer.wait_closed()


class Http2:
    """One HTTP/2 connection; requests go one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._streams = itertools.count(1, 2)
        self._decoder = hpack.Decoder()
        self.open = True
        writer.write(frames.PREFACE + frames.settings([]) + frames.window_update(0, 1 << 30))

    @classmethod
    async def tls(cls, port: int, context: ssl.SSLContext) -> Http2:
        """``context`` offers h2."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="x"))

    async def ask(
        self,
        method: bytes,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        host: bytes = b"svc",
    ) -> Answer:
        """A request without a body, and its answer."""
        pseudo = [(b":method", method), (b":scheme", b"https"), (b":authority", host), (b":path", target)]
        return await self.exchange([*pseudo, *((name.lower(), value) for name, value in headers)])

    async def exchange(self, headers: Headers, body: bytes | None = None) -> Answer:
        """The answer to exactly these fields."""
        stream = next(self._streams)
        data = frames.headers(stream, fields(headers), frames.DEFAULT_MAX_FRAME, end_stream=body is None)
        if body is not None:
            data += frames.frame(frames.DATA, frames.END_STREAM, stream, body)
        answer = Answer()
        block = b""
        try:
            self._writer.write(data)
            async with asyncio.timeout(15):
                while True:
                    kind, flags, of, payload = await read_frame(self._reader)
                    if kind == frames.GOAWAY:
                        self.open = False
                    elif kind == frames.SETTINGS and not flags & frames.ACK:
                        self._writer.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
                    elif kind in {frames.HEADERS, frames.CONTINUATION}:
                        block += unpadded(kind, flags, payload)
                        if flags & frames.END_HEADERS:
                            found = [(bytes(n), bytes(v)) for n, v in self._decoder.decode(block, raw=True)]
                            block = b""
                            if of == stream:
                                answer.headers += found
                    elif kind == frames.DATA and of == stream:
                        answer.body += unpadded(kind, flags, payload)
                    elif kind == frames.RST_STREAM and of == stream:
                        if answer.value(":status"):
                            break
                        return Answer()
                    if kind in {frames.HEADERS, frames.DATA} and of == stream and flags & frames.END_STREAM:
                        break
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            self.open = False
            return Answer()
        answer.status = int(answer.value(":status"))
        return answer

    async def close(self) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(Exception):
            await self._writer.wait_closed()


async def read_body(reader: asyncio.StreamReader, headers: Headers) -> bytes:
    """The body that follows ``headers``."""
    named = {name.lower(): value for name, value in headers}
    if named.get(b"transfer-encoding", b"").lower() != b"chunked":
        return await reader.readexactly(int(named.get(b"content-length", b"0")))
    body = b""
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        chunk = await reader.readexactly(size + 2)
        if not size:
            return body
        body += chunk[:-2]


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    """Kind, flags, stream and payload of the next frame."""
    head = await reader.readexactly(frames.HEAD)
    payload = await reader.readexactly(int.from_bytes(head[:3]))
    return head[3], head[4], int.from_bytes(head[5:]) & 0x7FFFFFFF, payload


def unpadded(kind: int, flags: int, payload: bytes) -> bytes:
    """What a HEADERS or DATA frame carries."""
    if kind in {frames.HEADERS, frames.DATA} and flags & frames.PADDED:
        payload = payload[1 : len(payload) - payload[0]]
    if kind == frames.HEADERS and flags & frames.HAS_PRIORITY:
        payload = payload[5:]
    return payload


def fields(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A header block without tables."""
    return b"".join(frames.field(name, value) for name, value in headers)
