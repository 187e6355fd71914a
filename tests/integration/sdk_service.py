"""A service without a proxy, in a process of its own: `sdk_service.py SOCKET SERVICE PORT`."""

import asyncio
import dataclasses
import json
import sys

import uvicorn

from eastwest.sdk.asgi import EnforcementMiddleware
from eastwest.sdk.source import RuleSource
from eastwest.sdk.tls import ServerTls
from eastwest.sdk.uvicorn_tls import TlsProtocol


async def application(scope, receive, send):
    """Answers with what it was handed."""
    if scope["type"] != "http":
        return
    await receive()
    if scope["path"] == "/slow":
        await asyncio.sleep(3)
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
    seen = {
        **dataclasses.asdict(scope["eastwest"]),
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode(),
        "query": scope["query_string"].decode(),
        "headers": headers,
    }
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})


async def main(socket: str, service: str, port: str) -> None:
    async with RuleSource(socket) as source:
        await source.ready(20)
        app = EnforcementMiddleware(application, source, service)
        tls = ServerTls(source)
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=int(port),
            http=TlsProtocol,
            ssl_context_factory=lambda *_: tls.listening,
            log_level="warning",
            lifespan="off",
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.02)
        print("ready", flush=True)
        await serving


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
