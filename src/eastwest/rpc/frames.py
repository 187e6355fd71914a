"""HTTP/2 on the wire (RFC 9113): kinds of frames, error codes, and frames as bytes.

Header fields go out as literals that touch no table (RFC 7541, section 6.2.2), so that the same bytes serve every
connection; only what comes in needs HPACK's state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD = 9
"""Bytes before a frame's payload: length (3), kind (1), flags (1), stream (4)."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

HEADER_TABLE_SIZE = 0x1
ENABLE_PUSH = 0x2
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6

DEFAULT_WINDOW = 65_535
DEFAULT_MAX_FRAME = 16_384
LARGEST_MAX_FRAME = 2**24 - 1
LARGEST_WINDOW = 2**31 - 1


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return head(len(payload), kind, flags, stream_id) + payload


def head(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """What goes before a payload of ``length`` bytes."""
    return (length << 48 | kind << 40 | flags << 32 | stream_id).to_bytes(HEAD)


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in values))


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """Keys and values of a SETTINGS payload whose length is a multiple of six."""
    for start in range(0, len(payload), 6):
        yield int.from_bytes(payload[start : start + 2]), int.from_bytes(payload[start + 2 : start + 6])


def window_update(stream_id: int, size: int) -> bytes:
    """Let the peer send ``size`` bytes more; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, size.to_bytes(4))


def rst_stream(stream_id: int, code: int) -> bytes:
    """End one stream at once."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4))


def goaway(last_stream_id: int, code: int, text: str = "") -> bytes:
    """The last stream that was or will be served, and why no more are."""
    return frame(GOAWAY, 0, 0, last_stream_id.to_bytes(4) + code.to_bytes(4) + text.encode()[:200])


def headers(stream_id: int, block: bytes, max_frame: int, *, end_stream: bool) -> bytes:
    """A header block as HEADERS and as many CONTINUATION frames as it needs."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [block[start : start + max_frame] for start in range(0, len(block), max_frame)]
    found = [frame(HEADERS, flags, stream_id, parts[0])]
    found += [frame(CONTINUATION, 0, stream_id, part) for part in parts[1:-1]]
    found.append(frame(CONTINUATION, END_HEADERS, stream_id, parts[-1]))
    return b"".join(found)


def field(name: bytes, value: bytes) -> bytes:
    """A header field as a literal without indexing and without Huffman coding."""
    return b"\x00" + _integer(len(name)) + name + _integer(len(value)) + value


def _integer(value: int) -> bytes:
    """HPACK's integer with a prefix of seven bits (RFC 7541, section 5.1)."""
    if value < 127:
        return bytes((value,))
    value -= 127
    found = [127]
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
