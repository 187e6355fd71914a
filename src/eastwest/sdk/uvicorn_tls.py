"""Uvicorn with client certificates: tells the application who is at the other end, by ASGI's ``tls`` extension.

    config = uvicorn.Config(app, http=TlsProtocol, ssl_context_factory=lambda *_: ServerTls(source).listening, ...)

Uvicorn itself verifies client certificates and then says nothing of them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from eastwest.sdk.peers import pem, shown_chain

Asgi = Any
"""Uvicorn's own types of scope and events are unions that no other library's types fit."""


class TlsProtocol(H11Protocol):
    """HTTP/1.1 whose scopes have ``extensions["tls"]`` (ASGI TLS extension 0.2)."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._tls: dict[str, Any] | None = None
        inner = self.app

        async def with_tls(scope: Asgi, receive: Asgi, send: Asgi) -> None:
            if self._tls is not None:
                scope["extensions"] = {**(scope.get("extensions") or {}), "tls": self._tls}
            await inner(scope, receive, send)

        self.app = with_tls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as Uvicorn's own
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._tls = {
                "server_cert": None,
                "client_cert_chain": [pem(der) for der in shown_chain(tls)],
                "client_cert_name": None,
                "client_cert_error": None,
                "tls_version": _VERSIONS.get(tls.version()),
                "cipher_suite": None,
            }

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            # Peers that idle do not read our goodbye, and asyncio would wait half a minute for theirs.
            self.loop.call_later(_GOODBYE_SECONDS, self.transport.abort)


_GOODBYE_SECONDS = 0.2
_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
