"""Health, readiness and metrics over plain HTTP, on loopback unless told otherwise."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eastwest.errors import FailedPrecondition


class HealthServer:
    """``/live``: the process answers. ``/ready``: it can issue now, or says why not. ``/metrics``: Prometheus."""

    def __init__(
        self, registry: CollectorRegistry, problems: Callable[[], list[str]], warnings: Callable[[], list[str]] = list
    ) -> None:
        """``problems`` keep it from issuing; ``warnings`` are told beside them and leave it ready."""

        async def live(_request: Request) -> Response:
            return JSONResponse({"status": "live"})

        async def ready(_request: Request) -> Response:
            found = problems()
            body = {"status": "not ready" if found else "ready", "problems": found, "warnings": warnings()}
            return JSONResponse(body, 503 if found else 200)

        async def metrics(_request: Request) -> Response:
            return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

        routes = [Route("/live", live), Route("/ready", ready), Route("/metrics", metrics)]
        self._app = Starlette(routes=routes)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._server: uvicorn.Server | None = None

    def bind(self, host: str, port: int) -> int:
        """Take the port (0: a free one) and return it; raises ``FailedPrecondition`` when it is taken."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise FailedPrecondition(
                f"cannot listen on {host}:{port} for health: {error.strerror}", fix="set another health_port"
            ) from None
        return int(self._socket.getsockname()[1])

    async def run(self) -> None:
        """Serve until ``stop``."""
        config = uvicorn.Config(self._app, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=5)
        self._server = _QuietServer(config)
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            # Also when this task was cancelled, which uvicorn itself does not expect.
            for server in getattr(self._server, "servers", ()):
                server.close()
            self._socket.close()

    def stop(self) -> None:
        """Ask ``run`` to end."""
        if self._server is not None:
            self._server.should_exit = True
        else:
            self._socket.close()


class _QuietServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the process has one place for signals."""

    def install_signal_handlers(self) -> None:
        return
