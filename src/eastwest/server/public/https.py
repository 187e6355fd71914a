"""HTTP and HTTPS listeners for what the authority shows to everybody: discovery, key sets, bundles, CRLs, OCSP.

Who connects is unknown here, so everything is bounded: connections (before TLS costs anything), the time to say
something, the age of a connection, the size of a request. Certificates change between two handshakes, without closing
the port.

    files = CertificateFiles(certificate, key)
    listener = PublicListener(app, "oidc", tls=files.listening)
    port = listener.bind("127.0.0.1", 0)
    await listener.run()
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from cryptography import x509
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from eastwest.errors import Exhausted, FailedPrecondition, InvalidInput
from eastwest.rpc.accepting import Acceptor
from eastwest.rpc.admission import Connections, as_many_as_possible
from eastwest.rpc.method import Place
from eastwest.rpc.tls import web_context

MAX_CONNECTIONS = 512
SHARE = 4
"""One listener has at most so large a part of the connections that the process can have."""
BACKLOG = 512
HANDSHAKE_SECONDS = 10.0
STOP_SECONDS = 1.0
"""How long what has begun may take when the server stops."""
FIRST_REQUEST_SECONDS = 10.0
MAX_AGE_SECONDS = 60.0
MAX_FILE_BYTES = 1024 * 1024
SOCKET_MODE = 0o660
_log = structlog.get_logger()


class CertificateFiles:
    """A listening TLS context whose certificate and key are two PEM files, read again once either has changed.

    The files are looked at for every handshake. A pair that cannot be used (half written, say) changes nothing: the
    last good one goes on serving, and ``problem`` says why.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises ``InvalidInput``, which names the file, when the pair cannot be used at all."""
        self.problem: str | None = None
        self.not_after = datetime.max.replace(tzinfo=UTC)
        self._certificate, self._key = certificate, key
        self._seen = self._signature()
        self._current = self._load()
        self.listening = self._current

        def choose(sock: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
            self.refresh()
            sock.context = self._current

        self.listening.sni_callback = choose

    def complaint(self, now: datetime) -> str:
        """What is wrong with the files as they are now, or ``""``: unusable, or the certificate in use has ended."""
        self.refresh()
        if self.problem is not None:
            return self.problem
        if self.not_after <= now:
            return f"{self._certificate} ended at {self.not_after:%Y-%m-%d %H:%MZ}: put a new pair in its place"
        return ""

    def refresh(self) -> None:
        """Read the files again if they have changed. Never raises."""
        seen = self._signature()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._current = self._load()
        except InvalidInput as error:
            self.problem = str(error)
            _log.error("https.certificate_unusable", problem=self.problem)
        else:
            self.problem = None
            _log.info("https.certificate_reloaded", certificate=str(self._certificate))

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_state(path) for path in (self._certificate, self._key))

    def _load(self) -> ssl.SSLContext:
        chain = _read(self._certificate)
        context = web_context(chain, _read(self._key), where=f"{self._certificate}, {self._key}")
        self.not_after = x509.load_pem_x509_certificate(chain).not_valid_after_utc
        return context


class PublicListener:
    """Serves one Starlette application on one port or unix socket, over TLS when a context is given."""

    def __init__(
        self,
        app: Starlette,
        name: str,
        *,
        tls: ssl.SSLContext | None = None,
        protocol: Callable[[uvicorn.Config, Serving, Place], asyncio.Protocol] | None = None,
        places: Connections | None = None,
    ) -> None:
        """``name`` begins the names of its settings, such as ``oidc`` for ``oidc_port``; ``protocol`` makes what speaks
        on each connection, in place of ``Impatient``, and ``places`` says which connections may be.
        """
        self._name = name
        self._tls = tls
        self._socket: socket.socket | None = None
        self._unix: Path | None = None
        self._stopping = asyncio.Event()
        self._running = False
        self._serving = Serving()
        self._protocol = protocol or Impatient
        # Strangers get half of all places, and prove nothing here.
        self._places = places or Connections(min(2 * MAX_CONNECTIONS, as_many_as_possible() // SHARE))
        self._config = uvicorn.Config(
            app,
            http=Impatient,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=5,
        )

    def bind(self, host: str, port: int) -> int:
        """Take the port (0: a free one) and return it; raises ``FailedPrecondition`` when that cannot be."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot listen on {host}:{port} for {self._name}: {error.strerror}",
                fix=f"set another {self._name}_address or {self._name}_port",
            ) from None
        return int(self._socket.getsockname()[1])

    def bind_unix(self, path: Path, mode: int = SOCKET_MODE) -> None:
        """Listen on a unix socket, for a proxy in front; one that a dead process left behind is replaced."""
        if path.is_socket():
            path.unlink()
        elif path.exists():
            raise FailedPrecondition(f"{path} exists and is not a socket", fix=f"set another {self._name}_socket")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o777 & ~mode)
        try:
            listening.bind(str(path))
            listening.listen(128)
        except OSError as error:
            listening.close()
            raise FailedPrecondition(
                f"cannot listen on {path} for {self._name}: {error.strerror}", fix=f"set another {self._name}_socket"
            ) from None
        finally:
            os.umask(before)
        self._socket, self._unix = listening, path

    async def run(self) -> None:
        """Serve until ``stop``."""
        assert self._socket is not None, "bind first"
        if self._stopping.is_set():
            return
        self._running = True
        acceptor = Acceptor(self._socket, self._tls, self._places.admit, self._connection, HANDSHAKE_SECONDS)
        acceptor.start(BACKLOG)
        try:
            await self._stopping.wait()
            await acceptor.close()
            await self._serving.finish()
        finally:
            await acceptor.close()
            self._serving.abort()
            if self._unix is not None:
                self._unix.unlink(missing_ok=True)

    def stop(self) -> None:
        """Ask ``run`` to end; where it has not begun, let go of the port."""
        self._stopping.set()
        if not self._running and self._socket is not None:
            self._socket.close()

    def _connection(self, place: Place) -> asyncio.Protocol:
        return self._protocol(self._config, self._serving, place)


async def bounded_body(request: Request, limit: int) -> bytes:
    """The request's body; raises ``Exhausted`` as soon as it is larger than ``limit`` bytes."""
    too_large = Exhausted(f"the request is larger than {limit} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        raise InvalidInput("the caller went away within its request") from None
    return bytes(body)


class Serving:
    """What the connections of one listener share, in the shape that uvicorn's protocols expect."""

    def __init__(self) -> None:
        self.total_requests = 0
        self.connections: _Open = _Open()
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer has."""
        return [(b"date", formatdate(usegmt=True).encode())]

    async def finish(self) -> None:
        """Let what has begun end, for ``STOP_SECONDS``."""
        for connection in list(self.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.connections.emptied.wait()
                while self.tasks:
                    await asyncio.wait(self.tasks)
        except TimeoutError:
            pass

    def abort(self) -> None:
        """End all that is left."""
        for task in list(self.tasks):
            task.cancel()
        for connection in list(self.connections):
            connection.transport.abort()


class _Open(set[Any]):
    """Open connections; ``emptied`` is set while there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.emptied = asyncio.Event()
        self.emptied.set()

    def add(self, connection: Any) -> None:
        super().add(connection)
        self.emptied.clear()

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        if not self:
            self.emptied.set()


class Impatient(H11Protocol):
    """HTTP/1.1 for strangers: closes connections that say nothing, that are old, or that are too many."""

    _timer: asyncio.TimerHandle | None = None
    _asked = False

    def __init__(self, config: uvicorn.Config, serving: Any, place: Place) -> None:
        super().__init__(config, serving, {})
        self._place = place

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._place.ending = transport.abort
        self._place.busy = lambda: self.cycle is not None and not self.cycle.response_complete
        # Not all are counted that come by a unix socket.
        if len(self.connections) > MAX_CONNECTIONS and transport.get_extra_info("socket").family == socket.AF_UNIX:
            transport.abort()
            return
        self._timer = self.loop.call_later(FIRST_REQUEST_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self._asked:
            self._asked = True
            self._restart(MAX_AGE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._place.release()
        super().connection_lost(exc)

    def _restart(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.transport.abort)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content: Any = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidInput(
            f"cannot be read: {error.strerror}", where=str(path), fix="give a file that the server's user may read"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise InvalidInput(f"is larger than {MAX_FILE_BYTES} bytes", where=str(path))
    return bytes(content)
