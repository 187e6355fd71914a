"""As much HTTP/1.1 over asyncio streams as the demo's services and callers need; no more.

Heads of at most 64 KiB, bodies by ``content-length`` or chunks, of at most 1 MiB. Standard library only,
because a dozen processes import it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

_MAX_BODY = 1 << 20
REASONS = {200: "OK", 201: "Created", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found"}


class Malformed(Exception):
    """The peer does not speak HTTP/1.1 as we do."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request; header names are lower case and a repeated header keeps its last value."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """A response, with headers as in ``Request``."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request, or None when the peer is done."""
    head = await _read_head(reader)
    if head is None:
        return None
    first, headers = head
    parts = first.split(" ")
    if len(parts) != 3:
        raise Malformed(first[:80])
    return Request(parts[0], parts[1], headers, await _read_body(reader, headers))


async def read_response(reader: asyncio.StreamReader) -> Response:
    """The response to what was written; ``ConnectionError`` when the peer closes instead."""
    head = await _read_head(reader)
    if head is None:
        raise ConnectionResetError("closed without an answer")
    first, headers = head
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[1].isdigit():
        raise Malformed(first[:80])
    status = int(parts[1])
    body = b"" if status in {204, 304} else await _read_body(reader, headers)
    return Response(status, headers, body)


def encode_request(request: Request) -> bytes:
    """The bytes of ``request``."""
    return _encode(f"{request.method} {request.path} HTTP/1.1", request.headers, request.body)


def encode_response(response: Response) -> bytes:
    """The bytes of ``response``."""
    reason = REASONS.get(response.status, "Status")
    return _encode(f"HTTP/1.1 {response.status} {reason}", response.headers, response.body)


def _encode(first: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers.items()), f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise ConnectionResetError("closed within a message") from None
        return None
    except asyncio.LimitOverrunError:
        raise Malformed("the head is too long") from None
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise Malformed(line[:80])
        headers[name.strip().lower()] = value.strip()
    return first, headers


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _read_chunks(reader)
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > _MAX_BODY:
        raise Malformed("content-length")
    return await _exactly(reader, int(length))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        line = await reader.readline()
        try:
            size = int(line.split(b";")[0], 16)
        except ValueError:
            raise Malformed("chunk size") from None
        if not 0 <= size <= _MAX_BODY - len(body):
            raise Malformed("chunk size")
        chunk = await _exactly(reader, size + 2)
        if size == 0:
            return body
        body += chunk[:-2]


async def _exactly(reader: asyncio.StreamReader, size: int) -> bytes:
    try:
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        raise ConnectionResetError("closed within a body") from None
