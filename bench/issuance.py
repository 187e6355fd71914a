"""CPU that the server spends on an X.509-SVID: gRPC over TLS in, recorded in the log, certificate out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Result, calibration, cpu_seconds, percentile, rss_mb, spread
from bench.processes import TRUST_DOMAIN, Helper, Server, scratch
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.rpc.client import method

NAMES = (
    "issuance_cpu_us_batch500",
    "issuance_cpu_us_batch50",
    "issuance_cpu_us_single",
    "issuance_cpu_us_concurrent32",
    "single_p50_ms_beside_batches",
    "single_p99_ms_beside_batches",
    "server_rss_mb",
)
ENTRIES = 500
PACE = 40
CREATE = method(entry_pb2.DESCRIPTOR.services_by_name["Entry"], "BatchCreateEntry")


def run(*, quick: bool) -> list[Result]:
    """All of it on one server with an attested agent that has 500 entries, and a second one for what is beside."""
    with (
        scratch() as folder,
        Server(folder / "data") as server,
        _client(server, folder) as client,
        _client(server, folder) as other,
    ):
        return [
            *_batches(server, client, 500, 1000 if quick else 2500, rounds=3 if quick else 7),
            *_batches(server, client, 50, 500 if quick else 1500, rounds=3 if quick else 5),
            *_singles(server, client, 300 if quick else 600, rounds=3 if quick else 7),
            *_concurrent(server, client, 320 if quick else 960, rounds=3 if quick else 5),
            *_beside(client, other, 5 if quick else 30),
            *_memory(server, client),
        ]


def _batches(server: Server, client: Helper, size: int, count: int, rounds: int) -> list[Result]:
    samples, seconds = [], []
    client.ask(do="prepare", count=size)
    client.ask(do="batches", size=size)
    for _ in range(rounds):
        client.ask(do="prepare", count=count)
        before = cpu_seconds(server.pid)
        seconds += client.ask(do="batches", size=size)["seconds"]
        samples.append((cpu_seconds(server.pid) - before) / count * 1e6)
    note = f"median of {rounds} rounds ({spread(samples)}); a batch takes {percentile(seconds, 0.5) * 1e3:.0f} ms; "
    name = f"issuance_cpu_us_batch{size}"
    return [Result(name, round(statistics.median(samples), 1), "us", rounds * count, note + calibration())]


def _singles(server: Server, client: Helper, count: int, rounds: int) -> list[Result]:
    samples, seconds = [], []
    for number in range(rounds + 1):
        client.ask(do="prepare", count=count)
        before = cpu_seconds(server.pid)
        times = client.ask(do="batches", size=1)["seconds"]
        if number:  # the first round warms up
            samples.append((cpu_seconds(server.pid) - before) / count * 1e6)
            seconds += times
    note = (
        f"median of {rounds} rounds ({spread(samples)}); a call takes p50 {percentile(seconds, 0.5) * 1e3:.1f}, "
        f"p99 {percentile(seconds, 0.99) * 1e3:.1f} ms; "
    )
    value = round(statistics.median(samples), 1)
    return [Result("issuance_cpu_us_single", value, "us", rounds * count, note + calibration())]


def _concurrent(server: Server, client: Helper, count: int, rounds: int) -> list[Result]:
    samples = []
    for _ in range(rounds):
        client.ask(do="prepare", count=count)
        before = cpu_seconds(server.pid)
        client.ask(do="at_once", tasks=32)
        samples.append((cpu_seconds(server.pid) - before) / count * 1e6)
    note = f"one SVID per call, 32 calls open on one connection; median of {rounds} rounds ({spread(samples)}); "
    value = round(statistics.median(samples), 1)
    return [Result("issuance_cpu_us_concurrent32", value, "us", rounds * count, note + calibration())]


def _beside(client: Helper, other: Helper, seconds: int) -> list[Result]:
    """Singles of one agent at a steady pace, while another agent's batches follow each other without a pause."""
    client.ask(do="prepare", count=500)
    other.ask(do="prepare", count=seconds * PACE)
    with ThreadPoolExecutor(1) as pool:
        flood = pool.submit(client.ask, do="flood", size=500, seconds=seconds)
        samples = [taken * 1e3 for taken in other.ask(do="paced", pace=PACE)["seconds"]]
        batches = flood.result()["seconds"]
    note = (
        f"{PACE} calls a second, beside {len(batches)} batches of 500 one after the other "
        f"(a batch takes p50 {percentile(batches, 0.5) * 1e3:.0f} ms); {calibration()}"
    )
    return [
        Result("single_p50_ms_beside_batches", round(percentile(samples, 0.5), 1), "ms", len(samples), note),
        Result("single_p99_ms_beside_batches", round(percentile(samples, 0.99), 1), "ms", len(samples), note),
    ]


def _memory(server: Server, client: Helper) -> list[Result]:
    client.ask(do="prepare", count=500)
    client.ask(do="batches", size=100)
    size = server.admin(lambda admin: admin.status()).log_size
    note = f"{ENTRIES} entries, one agent, after {size} log entries"
    return [Result("server_rss_mb", round(rss_mb(server.pid), 1), "MB", 1, note)]


@contextmanager
def _client(server: Server, folder: Path) -> Iterator[Helper]:
    token = server.token()
    agent = f"/spire/agent/join_token/{token}"

    request = entry_pb2.BatchCreateEntryRequest(entries=[entry(agent, number) for number in range(ENTRIES)])
    reply = server.call(CREATE, request)
    assert all(result.status.code == 0 for result in reply.results), reply.results[0]
    entries = folder / f"entries-{token}.json"
    entries.write_text(json.dumps([result.entry.id for result in reply.results]))
    with Helper("bench.issuance_client", server.address, server.bundle(), token, entries) as client:
        yield client


def entry(agent: str, number: int) -> types_pb2.Entry:
    """What is registered here: two selectors, under one agent."""
    return types_pb2.Entry(
        spiffe_id=types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=f"/prod/commerce/service-{number}"),
        parent_id=types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=agent),
        selectors=[
            types_pb2.Selector(type="unix", value=f"uid:{1000 + number}"),
            types_pb2.Selector(type="unix", value=f"path:/usr/bin/service-{number}"),
        ],
    )
