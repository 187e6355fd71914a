"""How long a changed policy takes to hold: ``apply`` -> the first new answer on a connection that stays open.

admin API: check, compile, store, record -> control stream -> agent: tree -> ECDS -> the service's Envoy
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from bench.load import Connection
from bench.measure import Result, calibration, percentile
from bench.processes import EASTWEST, TRUST_DOMAIN, Agent, Process, Server, answers, free_port, scratch
from eastwest.agent.envoy import envoy_binary
from eastwest.cli.admin import AdminClient

NAMES = (
    "policy_to_enforced_ms_p50",
    "policy_to_enforced_ms_p99",
    "policy_apply_ms_p50",
    "apply_to_enforced_100_ms_p50",
    "apply_to_enforced_100_ms_p99",
    "policy_apply_100_ms_p50",
)
_REQUEST = b"GET /v1/resource-0/42 HTTP/1.1\r\nhost: stock\r\n\r\n"


def run(*, quick: bool) -> list[Result]:
    """With 10 operations and policies, and with 100."""
    return [*_run(10, "policy_to_enforced", "", quick=quick), *_run(100, "apply_to_enforced", "_100", quick=quick)]


def _run(operations: int, name: str, label: str, *, quick: bool) -> list[Result]:
    """A server, an agent, two workloads with a sidecar each; this process applies and calls."""
    with scratch() as folder, ExitStack() as stack:
        server = stack.enter_context(Server(folder / "data"))
        app = stack.enter_context(_App(folder / "app.sock"))
        estate = _Estate(folder, free_port(), app.path, operations)
        server.admin(lambda admin: admin.apply_estate(estate.files(permitted=True)))
        agent = stack.enter_context(Agent(server, group="nodes"))
        for name in ("shop", "stock"):
            stack.enter_context(_sidecar(agent, folder, name, estate.envoys[name]))
        egress = folder / "shop" / "egress.sock"
        connection = _connect(agent, egress)
        totals, applied = asyncio.run(_changes(server, estate, connection, 5 if quick else 40))
        connection.close()
    note = f"{operations} operations, 2 workloads; apply called -> new answer on the same keep-alive connection; "
    note += calibration()
    share = "of that until the server had answered: checked, compiled, stored and recorded"
    return [
        Result(f"{name}{label}_ms_p50", round(percentile(totals, 0.5), 1), "ms", len(totals), note),
        Result(f"{name}{label}_ms_p99", round(percentile(totals, 0.99), 1), "ms", len(totals), note),
        Result(f"policy_apply{label}_ms_p50", round(percentile(applied, 0.5), 1), "ms", len(applied), share),
    ]


async def _changes(
    server: Server, estate: _Estate, connection: Connection, count: int
) -> tuple[list[float], list[float]]:
    totals, applied = [], []
    async with AdminClient.connect(server.data) as admin:
        for number in range(count + 2):
            permitted = number % 2 == 1
            begin = time.perf_counter()
            seen = asyncio.create_task(asyncio.to_thread(_until_answer, connection, 200 if permitted else 403))
            await admin.apply_estate(estate.files(permitted=permitted))
            answered = time.perf_counter()
            enforced = await seen
            if number > 1:  # the first ones warm up
                totals.append((enforced - begin) * 1e3)
                applied.append((answered - begin) * 1e3)
    return totals, applied


def _until_answer(connection: Connection, status: int) -> float:
    """Ask every millisecond until the answer is the new one; when that was."""
    deadline = time.perf_counter() + 20
    while time.perf_counter() < deadline:
        connection.send(_REQUEST)
        if connection.receive() == status:
            return time.perf_counter()
        time.sleep(0.001)
    raise RuntimeError(f"no answer {status} within 20 s")


def _connect(agent: Agent, egress: Path) -> Connection:
    """A connection of the caller's application that is answered 200."""
    agent.wait_for("the caller's way out", lambda: answers(egress))
    connection = Connection(str(egress))

    def works() -> bool:
        connection.send(_REQUEST)
        return connection.receive() == 200

    agent.wait_for("a call that works", works)
    return connection


def _sidecar(agent: Agent, folder: Path, name: str, envoy: Path) -> Process:
    directory = folder / name
    directory.mkdir()
    command = [EASTWEST, "sidecar", "run", "--data", agent.data, "--envoy", envoy]
    return Process([*command, "--egress-socket", directory / "egress.sock"], folder / f"{name}.log")


class _Estate:
    """Two workloads, told apart by the path of their Envoy, and a service whose first operation comes and goes."""

    def __init__(self, folder: Path, port: int, app: Path, operations: int) -> None:
        self._port = port
        self._operations = operations
        self._app = app
        self.envoys = {name: _program(folder / f"envoy-{name}") for name in ("shop", "stock")}

    def files(self, *, permitted: bool) -> dict[str, bytes]:
        """The estate as files; ``permitted``: whether the shop may read resource 0."""
        workloads = "".join(
            f'  - spiffe_id: "spiffe://{TRUST_DOMAIN}/prod/trade/{name}"\n    environment: prod\n    domain: trade\n'
            f"    owner: group:trade\n    node: group:nodes\n    profile: workload\n"
            f'    selectors: ["unix:path:{path}"]\n'
            for name, path in self.envoys.items()
        )
        operations = "".join(
            f"  - name: stock:resource-{number}:read\n"
            f'    match: {{method: GET, path: "/v1/resource-{number}/{{id}}"}}\n    sensitivity: restricted-read\n'
            for number in range(self._operations)
        )
        policies = "\n".join(_permit(number) for number in range(0 if permitted else 1, self._operations))
        texts = {
            "estate.yaml": _ESTATE.format(trust_domain=TRUST_DOMAIN, uid=os.geteuid()),
            "workloads/all.yaml": f"workloads:\n{workloads}",
            "profiles/workload.yaml": _PROFILE,
            "services/stock.yaml": _SERVICE.format(trust_domain=TRUST_DOMAIN, port=self._port, app=self._app)
            + operations,
            "policies/trade.cedar": policies,
        }
        return {path: text.encode() for path, text in texts.items()}


_ESTATE = """trust_domain: {trust_domain}
naming: "/{{environment}}/{{domain}}/{{service}}"
environments:
  - {{name: prod, kind: vm}}
domains:
  - {{name: trade, owners: [group:trade]}}
node_groups:
  - {{name: nodes, environment: prod, selectors: ["join_token:group:nodes"]}}
administrators:
  - {{who: "unix:uid:{uid}", may: [everything]}}
"""
_PROFILE = """profile: workload
doors: [workload-api, spire-api]
environments: [prod]
keys: [ec-p256, ec-p384, ed25519]
lifetime: {default: 1h, max: 4h}
names: {spiffe_id: exactly-one, dns: ["*.bench.test"]}
usage: [server, client]
revocation: by-expiry-and-containment
"""
_SERVICE = """service: stock
workload: spiffe://{trust_domain}/prod/trade/stock
owner: group:trade
domain: trade
listen: {{port: {port}, protocol: http, mtls: strict}}
upstream: {{unix: "{app}"}}
operations:
"""


def _permit(number: int) -> str:
    return (
        f'@id("shop-reads-resource-{number}")\n@owner("group:trade")\n@reason("the shop shows it")\npermit (\n'
        f'  principal == Workload::"spiffe://{TRUST_DOMAIN}/prod/trade/shop",\n'
        f'  action == Action::"stock:resource-{number}:read",\n  resource == Service::"stock"\n);\n'
    )


def _program(path: Path) -> Path:
    """An Envoy under a path of its own, which is how the unix attestor tells one from another without root."""
    try:
        path.hardlink_to(envoy_binary())
    except OSError:  # another file system
        shutil.copy2(envoy_binary(), path)
    return path


class _App:
    """The service's application: a thread that answers 200 to everything."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        start = asyncio.start_unix_server(self._serve, str(self.path))
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        return self

    def __exit__(self, *_exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()
