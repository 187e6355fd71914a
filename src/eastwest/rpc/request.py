"""A gRPC request's header fields, read and judged: what is malformed, what is no gRPC, and what is asked."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from urllib.parse import quote

from grpclib.const import Status

from eastwest.rpc import frames

Fields = list[tuple[bytes, bytes]]

MAX_TEXT = 8 * 1024
"""Bytes of an encoded ``grpc-message``; Envoy and C-core refuse headers of more than about 16 KB."""
CONTENT_TYPE = b"application/grpc+proto"


class Malformed(Exception):
    """Not a request as RFC 9113 section 8 knows it; the stream is reset."""


class NotServed(Exception):
    """A request that is answered before any handler sees it."""

    def __init__(self, http_status: int, status: Status, text: str) -> None:
        super().__init__(text)
        self.http_status = http_status
        self.status = status


class Request:
    """What a call's first header block says."""

    __slots__ = ("_fields", "path", "size", "timeout")

    def __init__(self, fields: Fields) -> None:
        """Raises ``Malformed`` and ``NotServed``."""
        pseudo: dict[bytes, bytes] = {}
        named: dict[bytes, bytes] = {}
        size = 32 * len(fields)
        for name, value in fields:
            size += len(name) + len(value)
            if name[:1] == b":":
                if named or name in pseudo or name not in _PSEUDO:
                    raise Malformed
                pseudo[name] = value
            else:
                if name in _OF_HTTP_1 or not name or name != name.lower():
                    raise Malformed
                named.setdefault(name, value)
        if b":method" not in pseudo or b":path" not in pseudo or b":scheme" not in pseudo:
            raise Malformed
        if pseudo[b":method"] != b"POST":
            raise NotServed(405, Status.UNKNOWN, "gRPC calls are POST requests")
        if named.get(b"content-type") not in _CONTENT_TYPES:
            raise NotServed(415, Status.UNKNOWN, "the content-type must be application/grpc or application/grpc+proto")
        if named.get(b"te") != b"trailers":
            raise NotServed(400, Status.UNKNOWN, 'the header "te: trailers" is missing')
        if named.get(b"grpc-encoding", b"identity") != b"identity":
            raise NotServed(
                200, Status.UNIMPLEMENTED, "compressed messages are not accepted; grpc-encoding is identity"
            )
        self.path = pseudo[b":path"]
        self.size = size  # of the header list, as RFC 7541 counts it
        self.timeout = _timeout(named.get(b"grpc-timeout"))
        self._fields = fields

    def metadata(self) -> dict[str, str | bytes]:
        """What the caller added; of a name that comes twice the first, as nothing here takes lists."""
        found: dict[str, str | bytes] = {}
        for name, value in self._fields:
            if name in _NOT_METADATA or name.startswith((b":", b"grpc-")):
                continue
            key = name.decode("ascii", "replace")
            if key in found:
                continue
            if not key.endswith("-bin"):
                found[key] = value.decode("ascii", "replace")
                continue
            try:
                found[key] = b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except binascii.Error:
                continue
        return found


def trailers(status: Status, text: str | None, details: bytes | None, room: int) -> bytes:
    """The header block that ends a call; the text is cut where the caller said that it takes no more than ``room``."""
    block = frames.field(b"grpc-status", str(status.value).encode())
    if text:
        encoded = quote(text, safe=_PLAIN).encode()
        bound = max(min(MAX_TEXT, room - 512), 64)
        block += frames.field(b"grpc-message", _cut(encoded, bound))
    if details and len(details) < room // 3:
        block += frames.field(b"grpc-status-details-bin", binascii.b2a_base64(details, newline=False).rstrip(b"="))
    return block


def head(http_status: int = 200) -> bytes:
    """The header block before messages, or before the trailers of an answer that has none."""
    if http_status == 200:
        return _HEAD
    return frames.field(b":status", str(http_status).encode()) + _HEAD[1:]


# ":status: 200" is entry 8 of HPACK's static table.
_HEAD = b"\x88" + frames.field(b"content-type", CONTENT_TYPE)
_PSEUDO = frozenset({b":method", b":path", b":scheme", b":authority"})
_OF_HTTP_1 = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
_CONTENT_TYPES = frozenset({b"application/grpc", CONTENT_TYPE})
_NOT_METADATA = frozenset({b"te", b"content-type", b"user-agent"})
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if code != 0x25)
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def _timeout(value: bytes | None) -> float | None:
    if value is None:
        return None
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise NotServed(200, Status.UNKNOWN, "grpc-timeout is not one to eight digits and a unit")
    return int(match[1]) * _SECONDS[match[2]]


def _cut(encoded: bytes, bound: int) -> bytes:
    if len(encoded) <= bound:
        return encoded
    cut = encoded[:bound]
    # Not within an escape such as %C3.
    return cut[: cut.rindex(b"%")] if b"%" in cut[-2:] else cut
