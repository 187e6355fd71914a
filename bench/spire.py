"""The same client against SPIRE's server and against ours in one run, round by round, with the same requests.

Needs a ``spire-server`` in ``EASTWEST_BENCH_SPIRE_SERVER``; README.md says how one is built. Its defaults are kept,
but for the limits on calls, which would be what is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from bench.issuance import CREATE, entry
from bench.measure import Result, calibration, cpu_seconds, percentile, rss_mb, spread
from bench.processes import TRUST_DOMAIN, Helper, Process, Server, answers, free_port, scratch
from eastwest.api.spire.api.server.agent.v1 import agent_pb2
from eastwest.api.spire.api.server.bundle.v1 import bundle_pb2
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.rpc.client import Channel, method

VARIABLE = "EASTWEST_BENCH_SPIRE_SERVER"
SHAPES = ("batch500", "batch50", "single", "concurrent32", "create_entry")
NAMES = (
    *(f"spire_{shape}_cpu_us" for shape in SHAPES),
    *(f"spire_{shape}_ratio" for shape in SHAPES),
    "spire_visible_ms_p50",
    "spire_rss_mb",
)
ENTRIES = 500
_TOKEN = method(agent_pb2.DESCRIPTOR.services_by_name["Agent"], "CreateJoinToken")
_BUNDLE = method(bundle_pb2.DESCRIPTOR.services_by_name["Bundle"], "GetBundle")
_SERVER = """
server {{
    bind_address = "127.0.0.1"
    bind_port = "{port}"
    socket_path = "{folder}/api.sock"
    trust_domain = "{trust_domain}"
    data_dir = "{folder}"
    ratelimit {{
        attestation = false
        signing = false
    }}
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = "{folder}/datastore.sqlite3"
        }}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    KeyManager "disk" {{
        plugin_data {{
            keys_path = "{folder}/keys.json"
        }}
    }}
}}
"""


class SpireServer(Process):
    """SPIRE's server on a fresh directory: SQLite, keys on disk, join tokens."""

    def __init__(self, program: str, folder: Path) -> None:
        folder.mkdir()
        self.address = f"127.0.0.1:{free_port()}"
        self.admin_socket = folder / "api.sock"
        config = folder / "server.conf"
        config.write_text(
            _SERVER.format(port=self.address.rpartition(":")[2], folder=folder, trust_domain=TRUST_DOMAIN)
        )
        super().__init__([program, "run", "-config", config], folder / "server.log")

    def __enter__(self) -> Self:
        super().__enter__()
        self.wait_for("ready", lambda: answers(self.admin_socket))
        return self


class Side:
    """One of the two servers: what is done by administrators, through the API that both have."""

    def __init__(self, number: int, process: Process, address: str, socket: Path) -> None:
        self.number = number
        self.pid = process.pid
        self.address = address
        self._socket = socket
        self.token = self._call(_TOKEN, agent_pb2.CreateJoinTokenRequest(ttl=600)).value
        self._entries = 0

    def bundle(self, path: Path) -> Path:
        """Its roots in a file."""
        found = self._call(_BUNDLE, bundle_pb2.GetBundleRequest()).x509_authorities
        roots = [x509.load_der_x509_certificate(authority.asn1) for authority in found]
        path.write_bytes(b"".join(root.public_bytes(Encoding.PEM) for root in roots))
        return path

    def create(self, count: int) -> list[str]:
        """Register that many; their IDs."""
        agent = f"/spire/agent/join_token/{self.token}"
        numbers = range(self._entries, self._entries + count)
        self._entries += count
        request = entry_pb2.BatchCreateEntryRequest(entries=[entry(agent, number) for number in numbers])
        results = self._call(CREATE, request).results
        assert all(result.status.code == 0 for result in results), results[0]
        return [result.entry.id for result in results]

    def _call(self, descriptor: MethodDescriptor, request: Message) -> Any:
        async def main() -> Any:
            channel = Channel(path=str(self._socket))
            try:
                return await channel.unary(descriptor, request)
            finally:
                channel.close()

        return asyncio.run(main())


def run(*, quick: bool) -> list[Result]:
    """Nothing, with a word on how to change that, where there is no SPIRE."""
    program = os.environ.get(VARIABLE)
    if not program:
        print(f"spire: not run: {VARIABLE} names no spire-server (see bench/README.md)", file=sys.stderr)
        return []
    with (
        scratch() as folder,
        Server(folder / "data") as ours,
        SpireServer(program, folder / "spire") as spire,
    ):
        sides = (
            Side(0, ours, ours.address, ours.data / "server" / "api.sock"),
            Side(1, spire, spire.address, spire.admin_socket),
        )
        arguments: list[str | Path] = []
        ids = []
        for side in sides:
            ids.append(side.create(ENTRIES))
            path = folder / f"entries-{side.number}.json"
            path.write_text(json.dumps(ids[-1]))
            arguments += [side.address, side.bundle(folder / f"bundle-{side.number}.pem"), side.token, path]
        with Helper("bench.issuance_client", *arguments) as client:
            for side in sides:
                client.ask(do="seen", at=side.number, entry=ids[side.number][-1])
            return _measure(sides, client, quick=quick)


def _measure(sides: tuple[Side, Side], client: Helper, *, quick: bool) -> list[Result]:
    rounds = 3 if quick else 7
    samples: dict[str, tuple[list[float], list[float]]] = {shape: ([], []) for shape in SHAPES}
    shapes: dict[str, tuple[int, Callable[[Side], object]]] = {
        "batch500": (1000 if quick else 2500, lambda side: client.ask(do="batches", at=side.number, size=500)),
        "batch50": (500 if quick else 1500, lambda side: client.ask(do="batches", at=side.number, size=50)),
        "single": (200 if quick else 400, lambda side: client.ask(do="batches", at=side.number, size=1)),
        "concurrent32": (320 if quick else 640, lambda side: client.ask(do="at_once", at=side.number, tasks=32)),
        "create_entry": (100, lambda side: [side.create(50) for _ in range(2)]),
    }
    for number in range(rounds + 1):
        for shape, (count, work) in shapes.items():
            if shape != "create_entry":
                client.ask(do="prepare", count=count)
            for side in sides if number % 2 else sides[::-1]:
                before = cpu_seconds(side.pid)
                work(side)
                used = (cpu_seconds(side.pid) - before) / count * 1e6
                if number:  # the first round warms up
                    samples[shape][side.number].append(used)
    results = []
    for shape, (ours, theirs) in samples.items():
        count = rounds * shapes[shape][0]
        results.append(_figure(shape, ours, theirs, count))
        results.append(_ratio(shape, ours, theirs))
    return [*results, _visible(sides, client, 4 if quick else 8), _memory(sides)]


def _figure(shape: str, ours: list[float], theirs: list[float], count: int) -> Result:
    note = (
        f"SPIRE's server ({spread(theirs)}); ours in the same rounds {statistics.median(ours):.0f} ({spread(ours)}); "
    )
    value = round(statistics.median(theirs), 1)
    return Result(f"spire_{shape}_cpu_us", value, "us", count, note + calibration())


def _ratio(shape: str, ours: list[float], theirs: list[float]) -> Result:
    ratios = [of_spire / of_ours for of_ours, of_spire in zip(ours, theirs, strict=True) if of_ours]
    note = f"SPIRE's CPU by ours, round by round ({spread(ratios, 2)})"
    return Result(f"spire_{shape}_ratio", round(statistics.median(ratios), 2), "", len(ratios), note)


def _visible(sides: tuple[Side, Side], client: Helper, count: int) -> Result:
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for side in sides:
            [made] = side.create(1)
            taken[side.number].append(client.ask(do="seen", at=side.number, entry=made)["seconds"] * 1e3)
    ours, theirs = taken
    note = (
        "entry created -> in the agent's GetAuthorizedEntries, asked every 10 ms (its agent asks every 5 s); at most "
        f"{max(theirs):.0f}; ours p50 {percentile(ours, 0.5):.1f}, at most {max(ours):.1f}"
    )
    return Result("spire_visible_ms_p50", round(percentile(theirs, 0.5), 1), "ms", count, note)


def _memory(sides: tuple[Side, Side]) -> Result:
    note = f"resident memory of SPIRE's server after all of the above; ours {rss_mb(sides[0].pid):.1f}"
    return Result("spire_rss_mb", round(rss_mb(sides[1].pid), 1), "MB", 1, note)
