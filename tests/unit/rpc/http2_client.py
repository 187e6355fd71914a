"""A client that speaks HTTP/2 frame by frame, as no library would: wrong frames to send, right ones to look at."""

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass, field

import hpack

from eastwest.rpc import frames

GREETING = frames.PREFACE + frames.settings([])
PATH = "/grpc.health.v1.Health/Check"


@dataclass
class Answer:
    """What came on one stream."""

    headers: list[dict[str, str]] = field(default_factory=list)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        """The gRPC status, once it is there."""
        for headers in self.headers:
            if "grpc-status" in headers:
                return int(headers["grpc-status"])
        return None

    @property
    def messages(self) -> list[bytes]:
        found, rest = [], self.data
        while len(rest) >= 5:
            size = 5 + int.from_bytes(rest[1:5])
            found.append(rest[5:size])
            rest = rest[size:]
        return found


class RawClient:
    """One connection; ``answers`` by stream."""

    def __init__(self, reader, writer, window=2**30):
        self.reader = reader
        self.writer = writer
        self.answers = defaultdict(Answer)
        self.goaway = None
        self.pongs = []
        self.settings = {}
        self.windows = defaultdict(int)  # what was given back to us
        self.closed = False
        self._decoder = hpack.Decoder()
        self._encoder = hpack.Encoder()
        self._rest = b""
        self._block = b""

    @classmethod
    async def connect(cls, path, greeting=GREETING):
        reader, writer = await asyncio.open_unix_connection(str(path))
        client = cls(reader, writer)
        client.send(greeting)
        return client

    async def close(self):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def send(self, *parts):
        self.writer.write(b"".join(parts))

    def headers(self, stream_id, *more, path=PATH, end=False, without=(), priority=b"", flags=0, **changed):
        """A HEADERS frame of a call; keywords change headers, ``without`` takes some away."""
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
        fields |= {"te": "trailers", "content-type": "application/grpc"}
        fields |= {name.replace("_", "-"): value for name, value in changed.items()}
        listed = [(name, value) for name, value in fields.items() if name not in without] + list(more)
        block = priority + self._encoder.encode(listed)
        flags |= frames.END_HEADERS | (frames.END_STREAM if end else 0)
        return frames.frame(frames.HEADERS, flags, stream_id, block)

    def data(self, stream_id, message=b"", *, end=True, flag=0, length=None):
        """A DATA frame with one gRPC message."""
        framed = bytes([flag]) + (len(message) if length is None else length).to_bytes(4) + message
        return frames.frame(frames.DATA, frames.END_STREAM if end else 0, stream_id, framed)

    def call(self, stream_id, message=b"", **changed):
        return self.headers(stream_id, **changed) + self.data(stream_id, message)

    async def until(self, condition, seconds=5.0):
        """Read until ``condition`` holds or the connection has ended."""
        async with asyncio.timeout(seconds):
            while not condition() and not self.closed:
                await self._read()

    async def ended(self, *streams):
        """Read until these streams have ended."""
        await self.until(lambda: all(self.answers[one].ended or self.answers[one].reset is not None for one in streams))

    async def gone(self, seconds=5.0):
        """Read until the server has closed the connection; the code of its GOAWAY."""
        await self.until(lambda: False, seconds)
        return self.goaway

    async def _read(self):
        try:
            data = await self.reader.read(65536)
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return
        data = self._rest + data
        while len(data) >= 9:
            stop = 9 + int.from_bytes(data[:3])
            if len(data) < stop:
                break
            self._frame(data[3], data[4], int.from_bytes(data[5:9]), data[9:stop])
            data = data[stop:]
        self._rest = data

    def _frame(self, kind, flags, stream_id, payload):
        answer = self.answers[stream_id]
        match kind:
            case frames.DATA:
                answer.data += payload
                answer.ended |= bool(flags & frames.END_STREAM)
            case frames.HEADERS | frames.CONTINUATION:
                if kind == frames.HEADERS:
                    self._ends = bool(flags & frames.END_STREAM)
                self._block += payload
                if flags & frames.END_HEADERS:
                    answer.headers.append(dict(self._decoder.decode(self._block)))
                    self._block = b""
                    answer.ended |= self._ends
            case frames.RST_STREAM:
                answer.reset = int.from_bytes(payload)
            case frames.SETTINGS if not flags & frames.ACK:
                self.settings |= dict(frames.read_settings(payload))
            case frames.PING if flags & frames.ACK:
                self.pongs.append(payload)
            case frames.WINDOW_UPDATE:
                self.windows[stream_id] += int.from_bytes(payload)
            case frames.GOAWAY:
                self.goaway = int.from_bytes(payload[4:8])
