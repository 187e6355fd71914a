"""The program of every service of the demo: ``python -m eastwest.cli.demo.app '{...}'``.

It serves plain HTTP on a unix socket of mode 0600, and makes the calls that the demo asks for on standard
input, one JSON object a line, answered on standard output: so that a call really is made by the process and
uid of the workload that is said to make it. Standard library only, and everything is imported before root is
given up, because the new uid may not be able to read the interpreter's files.
"""

from __future__ import annotations

import asyncio
import contextlib
import encodings.idna  # noqa: F401 - connect() would import it, after root is gone
import json
import os
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eastwest.cli.demo.handlers import handler
from eastwest.cli.demo.http1 import (
    Malformed,
    Request,
    Response,
    encode_request,
    encode_response,
    read_request,
    read_response,
)
from eastwest.cli.demo.privilege import become, die_with_parent

READY = "ready"
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter, str]  # and the peer's certificate, PEM
_PATIENCE = 10.0  # seconds for one call
_ALERT_TIME = 2.0  # seconds in which a server refuses a handshake, if it does


@dataclass(frozen=True, slots=True)
class Settings:
    """One app: ``socket`` to serve on, ``egress`` the sidecar's way out, ``key_file`` of the shared key ("" for none).

    ``uid`` to become (-1: stay); ``parent`` is the pid to die with (0: nobody's).
    """

    name: str
    socket: str
    egress: str
    key_file: str = ""
    uid: int = -1
    parent: int = 0


async def main(settings: Settings) -> None:
    """Serve until the standard input asks for more calls no longer, and then until killed."""
    loop = asyncio.get_running_loop()
    key = _read_key(settings.key_file)
    if settings.uid >= 0:
        become(settings.uid)
    if settings.parent:
        die_with_parent(settings.parent)
    handle = handler(settings.name, key)
    os.umask(0o177)  # the socket is made with mode 0600
    server = await asyncio.start_unix_server(lambda r, w: _serve(r, w, handle), settings.socket, limit=1 << 16)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    _say({READY: settings.name})
    worker = _Worker(settings, key)
    tasks: set[asyncio.Task[None]] = set()
    while line := await commands.readline():
        task = asyncio.create_task(_obey(worker, json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await server.serve_forever()


async def _obey(worker: _Worker, command: dict[str, Any]) -> None:
    match command["do"]:
        case "call":
            result = await worker.call(command)
        case "load":
            result = await worker.load(command)
        case "stop":
            worker.stopping.set()
            result = {}
        case other:
            result = {"error": f"unknown command {other}"}
    _say({"id": command["id"], **result})


class _Worker:
    """Makes calls as this workload."""

    def __init__(self, settings: Settings, key: str) -> None:
        self._settings = settings
        self._key = key
        self._kept: dict[str, _Connection] = {}
        self.stopping = asyncio.Event()

    async def call(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """One call; what came of it. The connection is its own, or one kept under the name that ``keep`` gives."""
        started = asyncio.get_running_loop().time()
        result: dict[str, Any] = {}
        name = command.get("keep", "")
        kept = self._kept.pop(name, None) if name else None
        result["reused"] = kept is not None
        try:
            async with asyncio.timeout(_PATIENCE):
                reader, writer, certificate = kept or await self._connect(command)
                if certificate:
                    result["peer_certificate"] = certificate
                try:
                    if command["via"] == "tls":
                        await _hear_alert(reader)
                    result |= await self._exchange(reader, writer, command)
                except BaseException:
                    writer.close()
                    raise
        except (OSError, Malformed, TimeoutError) as error:
            return result | {"error": _describe(error), "ms": _since(started)}
        if name and result["headers"].get("connection") != "close":
            self._kept[name] = reader, writer, certificate
        else:
            writer.close()
        return result | {"ms": _since(started)}

    async def load(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """The same call again and again over kept connections, ``rate`` a second, until told to stop."""
        self.stopping.clear()
        tally = _Tally()
        connections = int(command["connections"])
        interval = connections / float(command["rate"])
        async with asyncio.TaskGroup() as group:
            for index in range(connections):
                group.create_task(self._repeat(command, tally, interval, index * interval / connections))
        return {"calls": tally.calls, "failures": tally.failures, "connections": tally.connections}

    async def _repeat(self, command: Mapping[str, Any], tally: _Tally, interval: float, offset: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + offset
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self.stopping.is_set():
            try:
                async with asyncio.timeout(max(0.0, due - loop.time())):
                    await self.stopping.wait()
            except TimeoutError:
                due = max(due + interval, loop.time())
            else:
                break
            tally.calls += 1
            try:
                async with asyncio.timeout(_PATIENCE):
                    if streams is None:
                        reader, writer, _ = await self._connect(command)
                        streams = reader, writer
                        tally.connections += 1
                    result = await self._exchange(*streams, command)
                if result["status"] != 200:
                    tally.fail(f"status {result['status']} {result['headers'].get('x-eastwest-code', '')}")
                if result["headers"].get("connection") == "close":  # the peer is about to close; that is no failure
                    streams[1].close()
                    streams = None
            except (OSError, Malformed, TimeoutError) as error:
                tally.fail(_describe(error))
                if streams is not None:
                    streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    async def _connect(self, command: Mapping[str, Any]) -> _Connection:
        match command["via"]:
            case "sidecar":
                reader, writer = await asyncio.open_unix_connection(self._settings.egress)
            case "app-socket" | "borrowed-sidecar":
                reader, writer = await asyncio.open_unix_connection(command["socket"])
            case "plaintext":
                reader, writer = await asyncio.open_connection("127.0.0.1", command["port"])
            case "tls":
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", command["port"], ssl=_without_certificate(), server_hostname=command["service"]
                )
                session = writer.get_extra_info("ssl_object")
                return reader, writer, ssl.DER_cert_to_PEM_cert(session.getpeercert(binary_form=True))
        return reader, writer, ""

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: Mapping[str, Any]
    ) -> dict[str, Any]:
        headers = {"host": command["service"], **command.get("headers", {})}
        if self._key:
            headers["x-internal-key"] = self._key
        body = command.get("body", "").encode()
        writer.write(encode_request(Request(command["method"], command["path"], headers, body)))
        await writer.drain()
        response = await read_response(reader)
        text = response.body.decode(errors="replace")
        return {"status": response.status, "headers": dict(response.headers), "body": text}


class _Tally:
    """What a load came to; ``failures`` keeps one line for each failed call."""

    def __init__(self) -> None:
        self.calls = 0
        self.connections = 0
        self.failures: list[str] = []

    def fail(self, why: str) -> None:
        self.failures.append(why)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Any) -> None:
    try:
        while (request := await read_request(reader)) is not None:
            response: Response = handle(request)
            writer.write(encode_response(response))
            await writer.drain()
    except (OSError, Malformed):
        pass  # the peer went away or does not speak HTTP; there is nobody to tell
    finally:
        writer.close()


async def _hear_alert(reader: asyncio.StreamReader) -> None:
    """Give the server time to refuse: in TLS 1.3 it can do so only after our side has finished its handshake."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_ALERT_TIME):
            await reader.read(1)
            raise ConnectionResetError("closed after the handshake")


def _without_certificate() -> ssl.SSLContext:
    """TLS of somebody who has no identity and does not care whose the server has: an attacker's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _read_key(path: str) -> str:
    if not path:
        return ""
    return Path(path).read_text(encoding="ascii").strip()


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer in {_PATIENCE:g} s"
    for name in ("reason", "strerror"):  # of TLS, of the system
        if isinstance(text := getattr(error, name, None), str) and text:
            return text
    return str(error) or type(error).__name__


def _since(started: float) -> float:
    return round((asyncio.get_running_loop().time() - started) * 1000, 1)


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Settings(**json.loads(sys.argv[1]))))
