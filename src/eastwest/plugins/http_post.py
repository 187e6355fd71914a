"""POST to one configured HTTP(S) endpoint: bounded answers, verified TLS, secrets from private files, no redirects."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from eastwest.errors import FailedPrecondition, InvalidInput, PermissionDenied, Unavailable
from eastwest.plugins.secret_files import secret_from_file

MAX_ANSWER_BYTES = 256 * 1024
_WHOLE = 4
"""How many times ``timeout`` a request may take from its beginning to the answer's end."""
_LOCAL = frozenset({"127.0.0.1", "::1", "localhost"})
# The other side has read the request and does not want it; the rest may be otherwise later.
_FOR_GOOD = frozenset({400, 404, 405, 413, 415, 422})


class HttpPost:
    """Posts bodies to paths below ``url``, each on a connection of its own in a thread."""

    def __init__(self, url: str, *, ca_file: str = "", timeout: float = 15.0) -> None:
        """``url``: https, or http to this machine only. ``ca_file``: PEM, else the system's. ``timeout``: seconds."""
        self.where = url
        self._url = _checked(url)
        self._timeout = timeout
        self._tls = _context(ca_file) if self._url.scheme == "https" else None

    async def post(self, path: str, body: bytes, headers: Mapping[str, str], *, limit: int = MAX_ANSWER_BYTES) -> bytes:
        """The answer's body, where the status is 2xx; at most ``limit`` bytes of it are read, and more is an error.

        Raises ``InvalidInput`` where the body is refused for good, ``PermissionDenied`` for 401 and 403, and
        ``Unavailable`` for everything that may pass. The other side's own words are not quoted: they may be ours.
        """
        connection = self._connect()
        waiting = asyncio.ensure_future(asyncio.to_thread(self._post, connection, path, body, headers, limit))
        try:
            # The socket's own bound is one of each read: who answers byte by byte would hold the thread for ever.
            async with asyncio.timeout(self._timeout * _WHOLE):
                return await asyncio.shield(waiting)
        except TimeoutError:
            raise Unavailable("the answer takes too long", where=self.where) from None
        finally:
            if not waiting.done():
                waiting.add_done_callback(_forget)
                _break(connection)

    def _post(
        self, connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str], limit: int
    ) -> bytes:
        try:
            connection.request("POST", self._url.path.rstrip("/") + path, body, dict(headers))
            response = connection.getresponse()
            answer = response.read(limit + 1)
        except (OSError, http.client.HTTPException) as error:
            reason = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else type(error).__name__
            raise Unavailable(f"no answer ({reason})", where=self.where) from None
        finally:
            connection.close()
        if not 200 <= response.status < 300:
            self._refuse(response.status)
        if len(answer) > limit:
            raise Unavailable("the answer is too long", where=self.where)
        return answer

    def _refuse(self, status: int) -> None:
        if status in {401, 403}:
            raise PermissionDenied(f"refused (HTTP {status})", where=self.where, fix="check the credentials")
        if status in _FOR_GOOD:
            raise InvalidInput(f"not accepted (HTTP {status})", where=self.where, fix="check url and table")
        raise Unavailable(f"cannot be answered now (HTTP {status})", where=self.where)

    def _connect(self) -> http.client.HTTPConnection:
        host = self._url.hostname or ""
        if self._tls is None:
            return http.client.HTTPConnection(host, self._url.port or 80, timeout=self._timeout)
        return http.client.HTTPSConnection(host, self._url.port or 443, timeout=self._timeout, context=self._tls)


def _break(connection: http.client.HTTPConnection) -> None:
    """End what another thread does with a connection."""
    with suppress(OSError, AttributeError):  # closed meanwhile, or not open yet
        connection.sock.shutdown(socket.SHUT_RDWR)


def _forget(done: asyncio.Future[bytes]) -> None:
    """Nobody waits for the answer any more."""
    if not done.cancelled():
        done.exception()


def header_secret(path: str, option: str) -> str:
    """The secret in a private file, as a header can carry it; raises ``FailedPrecondition`` for what it cannot."""
    secret = secret_from_file(path, option)
    if not all(0x20 < byte < 0x7F for byte in secret):
        raise FailedPrecondition(f"the file of {option} holds more than visible ASCII", where=path)
    return secret.decode("ascii")


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"https", "http"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.username or parts.query or parts.fragment:
        raise InvalidInput("url is not usable", fix="such as https://collector.example:4318")
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        raise InvalidInput("url is plain http to another machine: anybody on the way could read it", fix="use https")
    return parts


def _context(ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError:
        raise FailedPrecondition("the file of ca_file holds no PEM certificates", where=ca_file) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
