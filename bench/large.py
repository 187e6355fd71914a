"""100,000 registrations: how long a server takes to start with them, what it holds, and what a new one waits.

The entries belong to 1,000 nodes that never come, with three selectors each; one real agent has 100 of its own.
"""

from __future__ import annotations

import asyncio
import time

from bench import registration
from bench.measure import Result, calibration, percentile, rss_mb
from bench.processes import TRUST_DOMAIN, Agent, Server, scratch
from eastwest.api.spire.api.server.entry.v1 import entry_pb2
from eastwest.api.spire.api.types import types_pb2
from eastwest.rpc.client import Channel, method

NAMES = (
    "entries_100k_start_s",
    "entries_100k_rss_mb",
    "entries_100k_create_us",
    "registration_to_svid_100k_ms_p50",
    "registration_to_svid_100k_ms_p99",
)
ENTRIES, OF_EACH_NODE, BATCH = 100_000, 100, 500
_CREATE = method(entry_pb2.DESCRIPTOR.services_by_name["Entry"], "BatchCreateEntry")


def run(*, quick: bool) -> list[Result]:
    """Fill a server, start it again, register more."""
    count = ENTRIES // 10 if quick else ENTRIES
    with scratch() as folder:
        server = Server(folder / "data")
        with server:
            begin = time.perf_counter()
            asyncio.run(_fill(server, count))
            created = (time.perf_counter() - begin) / count * 1e6
        starts = []
        for _ in range(1 if quick else 3):
            begin = time.perf_counter()
            with server:
                starts.append(time.perf_counter() - begin)
        with server, Agent(server) as agent:
            samples = asyncio.run(registration.measure(server, agent, 20 if quick else 100))
            size = rss_mb(server.pid)
    what = f"{count} entries of {count // OF_EACH_NODE} nodes, 3 selectors each"
    waited = f"{what}; create entry -> pushed to the open stream ({max(samples):.1f} ms at most); {calibration()}"
    return [
        Result(
            "entries_100k_start_s",
            round(percentile(starts, 0.5), 2),
            "s",
            len(starts),
            f"{what}; process started -> ready",
        ),
        Result("entries_100k_rss_mb", round(size, 1), "MB", 1, f"{what}; after {len(samples)} more came and went"),
        Result(
            "entries_100k_create_us",
            round(created, 1),
            "us",
            count,
            f"wall time of an entry in batches of {BATCH}, recorded in the log",
        ),
        Result("registration_to_svid_100k_ms_p50", round(percentile(samples, 0.5), 1), "ms", len(samples), waited),
        Result("registration_to_svid_100k_ms_p99", round(percentile(samples, 0.99), 1), "ms", len(samples), waited),
    ]


async def _fill(server: Server, count: int) -> None:
    channel = Channel(path=str(server.data / "server" / "api.sock"))
    try:
        for start in range(0, count, BATCH):
            entries = [_entry(number) for number in range(start, min(start + BATCH, count))]
            reply = await channel.unary(_CREATE, entry_pb2.BatchCreateEntryRequest(entries=entries), deadline=60)
            assert all(result.status.code == 0 for result in reply.results), reply.results[0]
    finally:
        channel.close()


def _entry(number: int) -> types_pb2.Entry:
    node, of_node = divmod(number, OF_EACH_NODE)
    return types_pb2.Entry(
        spiffe_id=types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=f"/prod/domain-{of_node % 10}/service-{number}"),
        parent_id=types_pb2.SPIFFEID(trust_domain=TRUST_DOMAIN, path=f"/spire/agent/join_token/node-{node}"),
        selectors=[
            types_pb2.Selector(type="unix", value=f"uid:{1000 + of_node}"),
            types_pb2.Selector(type="unix", value=f"path:/usr/lib/apps/{of_node}/bin/server"),
            types_pb2.Selector(type="unix", value=f"group:domain-{of_node % 10}"),
        ],
    )
