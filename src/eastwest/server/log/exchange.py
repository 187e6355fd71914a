"""One HTTP/1.1 exchange with a witness or another log: bounded in time and bytes; no redirects, proxies or cookies."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import h11

from eastwest import __version__
from eastwest.errors import InvalidInput, Unavailable
from eastwest.server.config import is_loopback

SECONDS = 10.0
MAX_HEAD = 16 * 1024
_CHUNK = 64 * 1024


class ExchangeFailed(Unavailable):
    """The other side did not answer, or not with HTTP."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its status, media type and body."""

    status: int
    media_type: str
    body: bytes


def check_url(url: str, where: str = "") -> SplitResult:
    """The parts of a prefix; raises ``InvalidInput`` unless it is https, or http on this machine alone."""
    parts = urlsplit(url)
    try:
        parts.port  # noqa: B018 - it raises for what is no port
    except ValueError:
        parts = urlsplit("")
    host = parts.hostname or ""
    if parts.scheme not in {"http", "https"} or not host or parts.query or parts.fragment or parts.username:
        raise InvalidInput(f"{url[:200]!r} is not an address", where=where, fix="such as https://witness.example/")
    if parts.scheme == "http" and not is_loopback(host):
        raise InvalidInput(f"{url[:200]!r} is not https", where=where, fix="http is for 127.0.0.1 only")
    return parts


async def exchange(
    url: str, trust: ssl.SSLContext, limit: int, body: bytes | None = None, seconds: float = SECONDS
) -> Reply:
    """GET ``url``, or POST ``body`` there; raises ``ExchangeFailed`` with the reason."""
    parts = check_url(url)
    tls = trust if parts.scheme == "https" else None
    host, port = parts.hostname or "", parts.port or (443 if tls is not None else 80)
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=tls, server_hostname=host if tls is not None else None
            )
            try:
                return await _ask(reader, writer, parts, limit, body)
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise ExchangeFailed(f"{url} did not answer within {seconds:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise ExchangeFailed(f"{url} did not prove itself: {error.verify_message}") from None
    except (OSError, ssl.SSLError, UnicodeError) as error:
        raise ExchangeFailed(f"{url} cannot be reached: {error}") from None
    except h11.RemoteProtocolError:
        raise ExchangeFailed(f"{url} does not speak HTTP") from None


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parts: SplitResult, limit: int, body: bytes | None
) -> Reply:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    headers = [("host", parts.netloc), ("user-agent", f"eastwest/{__version__}"), ("connection", "close")]
    if body is not None:
        headers += [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body)))]
    method = "GET" if body is None else "POST"
    sent = connection.send(h11.Request(method=method, target=parts.path or "/", headers=headers)) or b""
    if body is not None:
        sent += connection.send(h11.Data(data=body)) or b""
    writer.write(sent + (connection.send(h11.EndOfMessage()) or b""))
    await writer.drain()
    status, media_type, answer = 0, "", bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response):
            status = event.status_code
            media_type = dict(event.headers).get(b"content-type", b"").decode("latin-1")
        elif isinstance(event, h11.Data):
            answer += event.data
            if len(answer) > limit:
                raise ExchangeFailed(f"the answer of {parts.netloc} is larger than {limit} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return Reply(status, media_type, bytes(answer))
        elif isinstance(event, h11.ConnectionClosed):
            raise ExchangeFailed(f"{parts.netloc} closed the connection before its answer was whole")
