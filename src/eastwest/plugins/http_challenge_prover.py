"""The agent's side of ``http_challenge``: a listener that lives as long as one attestation."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Self

import msgspec

from eastwest.attest.node import ProverContext
from eastwest.errors import FailedPrecondition, InvalidInput
from eastwest.plugins.http_challenge import AttestationData, Nonce, path_of

MAX_HEAD = 8 * 1024
HEAD_SECONDS = 5.0
MAX_CALLERS = 32


class HttpChallengeProver:
    """Puts the server's nonce where the server looks for it, for the time of the attestation."""

    name = "http_challenge"
    repeatable = True

    class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """``[node_provers.http_challenge]``; ``address`` is ours, all else named as SPIRE's."""

        hostname: str = ""
        agentname: str = "default"
        port: int = 0
        advertised_port: int = 0
        address: str = ""

    def __init__(self, options: Options, hostname: str) -> None:
        self._options = options
        self._hostname = hostname
        self._path = path_of(options.agentname)
        self._nonce = b""
        self._server: asyncio.Server | None = None
        self._callers: set[asyncio.StreamWriter] = set()

    @classmethod
    def from_options(cls, options: Options, _context: ProverContext) -> Self:
        """As the entry point makes it; without ``hostname`` the machine's own name is used."""
        for name in ("port", "advertised_port"):
            if not 0 <= getattr(options, name) <= 65535:
                raise InvalidInput(f"{name} is {getattr(options, name)}", fix="choose 1 to 65535, or 0 for any")
        return cls(options, options.hostname or socket.gethostname())

    async def payload(self) -> bytes:
        await self.finish()
        options = self._options
        try:
            self._server = await asyncio.start_server(
                self._serve, options.address or None, options.port, limit=MAX_HEAD, family=_family(options)
            )
        except OSError as error:
            raise FailedPrecondition(
                f"http_challenge cannot listen on port {options.port}: {error.strerror or error}",
                fix="choose another port, or stop what holds it",
            ) from None
        port = self._server.sockets[0].getsockname()[1]
        return msgspec.json.encode(
            AttestationData(self._hostname, options.agentname, options.advertised_port or options.port or port)
        )

    async def answer(self, challenge: bytes) -> bytes:
        try:
            nonce = msgspec.json.decode(challenge, type=Nonce).nonce
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise InvalidInput("the server's challenge is not of SPIRE's form for http_challenge") from None
        if not nonce.isascii() or not nonce.isprintable() or len(nonce) > MAX_HEAD:
            raise InvalidInput("the server's challenge is not a line of text")
        self._nonce = nonce.encode()
        # SPIRE's agents send this; its plug-in protocol does not let an answer be empty.
        return b"\n"

    async def finish(self) -> None:
        server, self._server, self._nonce = self._server, None, b""
        if server is not None:
            server.close()
            for writer in list(self._callers):
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._callers) >= MAX_CALLERS:
            writer.transport.abort()
            return
        self._callers.add(writer)
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._reply(head.split(b"\r\n", 1)[0]))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            self._callers.discard(writer)
            with contextlib.suppress(OSError):
                writer.close()

    def _reply(self, line: bytes) -> bytes:
        words = line.split(b" ")
        found = len(words) == 3 and words[:2] == [b"GET", self._path.encode()] and self._nonce
        status, body = (b"200 OK", self._nonce + b"\n") if found else (b"404 Not Found", b"")
        return (
            b"HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
            b"Cache-Control: no-store\r\nConnection: close\r\n\r\n%s" % (status, len(body), body)
        )


def _family(options: HttpChallengeProver.Options) -> int:
    # A free port must be the same for both families, which two listeners do not give.
    return socket.AF_INET if not options.address and not options.port else socket.AF_UNSPEC
