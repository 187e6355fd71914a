"""Fetching a foreign bundle: one GET over a connection whose peer has proved itself before anything is sent.

Everything is bounded: the whole exchange in time, the answer in bytes. Redirects are not followed, because only the
host in the relationship was agreed on; proxies and cookies do not exist here. (SPIFFE Federation, section 5.2.)
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import h11

from eastwest import __version__
from eastwest.errors import Error, InvalidInput, Unauthenticated, Unavailable
from eastwest.registry.federation import MAX_DOCUMENT
from eastwest.rpc.tls import client_context, expect_server
from eastwest.spiffe.bundle import Bundle
from eastwest.spiffe.id import SpiffeId

FETCH_SECONDS = 20.0
MAX_HEAD = 16 * 1024
_CHUNK = 64 * 1024
CheckPeer = Callable[[bytes | None], None]


class FetchFailed(Unavailable):
    """A bundle endpoint did not answer, or not with a bundle."""


def web_trust(ca_file: str) -> ssl.SSLContext:
    """Verifies endpoints of profile https_web: by the machine's own roots, or by those in ``ca_file`` (PEM)."""
    try:
        context = ssl.create_default_context(cafile=str(Path(ca_file)) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            f"federation_ca_file cannot be used: {error.strerror or error}", where=ca_file, fix="give roots in PEM"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def spiffe_trust(bundle: Bundle, expected: SpiffeId) -> tuple[ssl.SSLContext, CheckPeer]:
    """Verifies endpoints of profile https_spiffe: by ``bundle``, as exactly ``expected``."""
    context = client_context([authority.der for authority in bundle.x509_authorities])
    context.set_alpn_protocols(["http/1.1"])
    return context, expect_server(expected)


async def fetch(url: str, context: ssl.SSLContext, check: CheckPeer | None, *, timeout: float = FETCH_SECONDS) -> bytes:  # noqa: ASYNC109 - a bound of the exchange, given by tests
    """The document at ``url``; raises ``FetchFailed`` with the reason. ``check`` sees the peer's certificate first."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
            try:
                if check is not None:
                    check(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
                return await _get(reader, writer, parts.netloc, parts.path or "/")
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise FetchFailed(f"{url} did not answer within {timeout:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise FetchFailed(f"{url} did not prove itself: {error.verify_message}") from None
    except Unauthenticated as error:
        raise FetchFailed(f"{url} did not prove itself: {error.message}") from None
    except (OSError, ssl.SSLError, UnicodeError) as error:
        raise FetchFailed(f"{url} cannot be reached: {error}") from None
    except h11.RemoteProtocolError:
        raise FetchFailed(f"{url} does not speak HTTP") from None
    except Error as error:
        raise FetchFailed(f"{url}: {error.message}") from None


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str, path: str) -> bytes:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    headers = [
        ("host", authority),
        ("accept", "application/json"),
        ("user-agent", f"eastwest/{__version__}"),
        ("connection", "close"),
    ]
    request = connection.send(h11.Request(method="GET", target=path, headers=headers))
    assert request is not None, "a request has bytes"
    writer.write(request + (connection.send(h11.EndOfMessage()) or b""))
    await writer.drain()
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response):
            if event.status_code != 200:
                raise FetchFailed(f"the endpoint answered with status {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_DOCUMENT:
                raise FetchFailed(f"the endpoint's answer is larger than {MAX_DOCUMENT} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise FetchFailed("the endpoint closed the connection before its answer was whole")
