"""Starting apps and asking Envoys how they are."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from eastwest.cli.demo.app import READY
from eastwest.cli.demo.http1 import Request, encode_request, read_response
from eastwest.cli.demo.place import WORKLOADS, Place, Workload
from eastwest.cli.demo.processes import Lines, Process, Processes

START_TIMEOUT = 60.0
"""Seconds that a process may take until it is ready; generous, because the machine may be busy."""


class Launcher:
    """Starts the processes of one demo that are not Eastwest's own."""

    def __init__(self, place: Place, processes: Processes, *, tied: bool) -> None:
        self._place = place
        self._processes = processes
        self._parent = os.getpid() if tied else 0

    async def start_apps(self, outcome: str, *, key_file: Path | None = None) -> dict[str, Lines]:
        """All apps of an outcome, ready to serve and to call, by workload name."""
        apps = await asyncio.gather(*(self._start_app(workload, outcome, key_file) for workload in WORKLOADS))
        return {workload.name: app for workload, app in zip(WORKLOADS, apps, strict=True)}

    async def envoy_live(self, envoy: Process, admin: Path) -> None:
        """Wait until ``envoy`` serves."""

        async def live() -> bool | None:
            return True if (await envoy_admin(admin, "/ready"))[0] == 200 else None

        await envoy.ready(live, "it served", START_TIMEOUT)

    async def _start_app(self, workload: Workload, outcome: str, key_file: Path | None) -> Lines:
        uid = self._place.uids.of(workload)
        settings = {
            "name": workload.name,
            "socket": str(self._place.app_socket(workload, outcome)),
            "egress": str(self._place.egress_socket(workload, outcome)),
            "key_file": str(key_file or ""),
            "uid": -1 if uid is None else uid,
            "parent": self._parent,
        }
        prefix = "weak-" if outcome == "weak" else ""
        process = self._processes.start(
            f"{prefix}{workload.name}-app",
            [sys.executable, "-m", "eastwest.cli.demo.app", json.dumps(settings)],
            pipes=True,
        )
        app = Lines(process)
        await app.open()

        async def said_ready() -> bool | None:
            await app.ready.wait()
            return True

        await process.ready(said_ready, f"it said {READY!r}", START_TIMEOUT)
        return app


async def broken_connections(admin: Path, service: str) -> int:
    """How many connections to ``service`` the Envoy behind ``admin`` has lost with a call on them, or never got."""
    prefix = f"cluster.remote/{service}."
    wanted = ("upstream_cx_destroy_with_active_rq", "upstream_cx_connect_fail", "upstream_rq_pending_failure_eject")
    _, body = await envoy_admin(admin, "/stats?format=json")
    stats = {each["name"]: each["value"] for each in json.loads(body)["stats"] if "value" in each}
    return sum(int(stats.get(prefix + name, 0)) for name in wanted)


async def envoy_admin(socket: Path, path: str) -> tuple[int, bytes]:
    """Status and body of a GET at Envoy's administration socket; ``OSError`` when it does not answer."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(encode_request(Request("GET", path, {"host": "envoy", "connection": "close"})))
        await writer.drain()
        response = await read_response(reader)
        return response.status, response.body
    finally:
        writer.close()
