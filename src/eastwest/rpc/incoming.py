"""The receiving half of an HTTP/2 connection: bytes into frames, frames into what they mean.

Judges what can be judged without knowing the calls; what concerns one is ``eastwest.rpc.http2``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import hpack
import structlog

from eastwest.rpc import frames, limits, request
from eastwest.rpc.limits import Fault
from eastwest.rpc.outgoing import Outgoing

Reader = Callable[[Any, int, int, bytes], None]

_log = structlog.get_logger()


class Incoming(Outgoing):
    """What a connection reads. Serves no call by itself."""

    readers: ClassVar[tuple[Reader, ...]]
    """What takes a frame of each kind, 0 to 9: (self, flags, stream, payload)."""

    def __init__(self) -> None:
        super().__init__()
        self._pending = bytearray()
        self._needed = len(frames.PREFACE) + frames.HEAD
        self._greeted = False
        self._first_frame = True
        self._decoder = hpack.Decoder(max_header_list_size=limits.MAX_HEADER_LIST)
        self._block: tuple[int, int, bytearray] | None = None
        self.allowance = limits.Allowance(self._loop.time())

    # What a connection does with it.

    def greeted(self) -> None:
        """The peer has said what HTTP/2 begins with."""
        raise NotImplementedError

    def read_fields(self, stream_id: int, fields: request.Fields, *, ended: bool) -> None:
        """A whole header block."""
        raise NotImplementedError

    def fail(self, code: int, text: str) -> None:
        """End the connection and tell why."""
        raise NotImplementedError

    def spend(self, cost: int = 1) -> None:
        """Pay for a frame without content, or raise ``Fault``."""
        self.allowance.spend(cost, self._loop.time())

    # From asyncio.

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return
            data = bytes(self._pending)
            self._pending.clear()
        try:
            taken = self._read_frames(data)
            if taken < len(data):
                self._pending += data[taken:] if taken else data
        except Fault as fault:
            self.fail(fault.code, str(fault))
        except Exception:  # noqa: BLE001 - a fault of ours: this peer's connection ends, the others' go on
            _log.exception("http2.failed")
            self.fail(frames.INTERNAL_ERROR, "internal error")

    # Frames.

    def _read_frames(self, data: bytes) -> int:
        """Handle every whole frame; how many bytes they had."""
        at, end = 0, len(data)
        if not self._greeted:
            if not frames.PREFACE.startswith(data[: len(frames.PREFACE)]):
                raise Fault(frames.PROTOCOL_ERROR, "this port speaks HTTP/2 only")
            if end < len(frames.PREFACE):
                return 0
            self._greeted = True
            at = len(frames.PREFACE)
        while end - at >= frames.HEAD:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if length > frames.DEFAULT_MAX_FRAME:
                raise Fault(frames.FRAME_SIZE_ERROR, "a frame is longer than 16384 bytes")
            stop = at + frames.HEAD + length
            if stop > end:
                self._needed = stop - at
                return at
            kind, flags = data[at + 3], data[at + 4]
            stream_id = int.from_bytes(data[at + 5 : at + 9]) & 0x7FFFFFFF
            self._read_frame(kind, flags, stream_id, data[at + frames.HEAD : stop])
            if self.closing:
                return end
            at = stop
        self._needed = frames.HEAD
        return at

    def _read_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._first_frame:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise Fault(frames.PROTOCOL_ERROR, "the first frame must be SETTINGS")
            self._first_frame = False
            self.greeted()
        if self._block is not None and kind != frames.CONTINUATION:
            raise Fault(frames.PROTOCOL_ERROR, "a header block is not finished")
        if kind < len(self.readers):
            self.readers[kind](self, flags, stream_id, payload)
        else:
            self.spend()  # unknown frames are ignored (RFC 9113, section 4.1)

    def read_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id % 2:
            raise Fault(frames.PROTOCOL_ERROR, "a client opens streams with odd numbers")
        if flags & frames.PADDED:
            payload = unpadded(payload)
        if flags & frames.HAS_PRIORITY:
            if len(payload) < 5:
                raise Fault(frames.FRAME_SIZE_ERROR, "HEADERS is too short")
            payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._read_block(flags, stream_id, payload)
        else:
            self._block = stream_id, flags, bytearray(payload)

    def read_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise Fault(frames.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self.spend()
        _, first_flags, block = self._block
        block += payload
        if len(block) > limits.MAX_HEADER_BLOCK:
            raise Fault(frames.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & frames.END_HEADERS:
            self._block = None
            self._read_block(first_flags, stream_id, bytes(block))

    def read_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise Fault(frames.PROTOCOL_ERROR, "PRIORITY of no stream")
        if len(payload) != 5:
            raise Fault(frames.FRAME_SIZE_ERROR, "PRIORITY has five bytes")
        self.spend()

    def read_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise Fault(frames.PROTOCOL_ERROR, "a client does not push")

    def read_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Fault(frames.PROTOCOL_ERROR, "PING is of the connection")
        if len(payload) != 8:
            raise Fault(frames.FRAME_SIZE_ERROR, "PING has eight bytes")
        self.spend()
        if not flags & frames.ACK:
            self.write(frames.frame(frames.PING, frames.ACK, 0, payload))

    def read_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Fault(frames.PROTOCOL_ERROR, "GOAWAY is of the connection")
        if len(payload) < 8:
            raise Fault(frames.FRAME_SIZE_ERROR, "GOAWAY has eight bytes or more")
        self.spend()  # it says that no more calls come; those that run go on

    def _read_block(self, flags: int, stream_id: int, block: bytes) -> None:
        if len(block) >= limits.HEADERS_FREE:
            self.spend(len(block) // limits.HEADERS_PER_FRAME)
        try:
            fields = cast("request.Fields", self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError:
            raise Fault(frames.ENHANCE_YOUR_CALM, "a header list is too large") from None
        except Exception:  # noqa: BLE001 - the library's own errors are not all that its parsing of hostile bytes raises
            raise Fault(frames.COMPRESSION_ERROR, "a header block is not HPACK") from None
        self.read_fields(stream_id, fields, ended=bool(flags & frames.END_STREAM))


def unpadded(payload: bytes) -> bytes:
    """The content of a padded payload."""
    if not payload or payload[0] >= len(payload):
        raise Fault(frames.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
