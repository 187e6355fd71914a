"""The transparency log: how fast it takes entries, what it adds to issuance, and how it answers when it is large."""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.issuance_core import NullRecorder, requests
from bench.log_entries import (
    KEY,
    SIGNER,
    WORKLOADS,
    GeneratedFiles,
    certificate_sha256,
    entry,
    generate,
    moment,
    node,
    serial,
    subject,
)
from bench.measure import Result, calibration, percentile, spread
from bench.processes import scratch
from eastwest.clock import SystemClock
from eastwest.entropy import SystemEntropy
from eastwest.issuance.issuer import Issuer
from eastwest.issuance.request import Instance
from eastwest.log.checkpoint import open_checkpoint
from eastwest.log.index import LogQuery, find
from eastwest.log.ports import Recorder
from eastwest.log.proof import LogProof
from eastwest.log.proven import ProvenReader
from eastwest.log.tiles import CHECKPOINT_PATH
from eastwest.store.database import Database
from eastwest.store.log import SqliteLog
from eastwest.store.log_index import SqliteLogIndex
from eastwest.testing import TestCA
from eastwest.testing.log import ORIGIN

NAMES = (
    "log_append_per_s",
    "log_verify_1m_s",
    "log_bytes_per_issuance",
    "log_issue_cpu_ratio",
    "log_issue_p99_ratio",
    "log_proof_10m_ms_p99",
    "log_search_10m_ms_p99",
    "log_index_bytes_per_entry",
)
BATCH = 100
WRITERS = 8
MOST_BEHIND = 100_000
"""Entries that wait for their checkpoint before writers wait for it: what counts is what goes on for ever."""


def run(*, quick: bool) -> list[Result]:
    """Everything, in temporary directories that go away; needs 3 GB of disk for a while."""
    results = []
    with scratch() as folder:
        results += asyncio.run(_append(folder / "append", seconds=5 if quick else 60))
        results += _verify(folder / "append")
        shutil.rmtree(folder / "append")
        results += asyncio.run(_issue(folder / "issue", rounds=4 if quick else 20))
        results += _large(folder / "large", 200_000 if quick else 10_000_000, 10 if quick else 50)
    return results


async def _append(folder: Path, seconds: int) -> list[Result]:
    """Entries of 1.7 kB by tasks that append 100 at a time, and checkpoints each second."""
    folder.mkdir()
    made = [entry(index) for index in range(20_000)]
    clock = SystemClock()
    database = Database.open(folder / "server.db", trust_domain="saas.example", clock=clock)
    log = await SqliteLog.open(database, folder / "log", origin=ORIGIN, signer=SIGNER, clock=clock)
    failures: list[Exception] = []
    publishing = asyncio.create_task(log.run(failures.append))
    waits: list[float] = []
    behind: list[int] = []
    begin, cpu = time.monotonic(), time.process_time()

    async def write(number: int) -> None:
        at = number * BATCH
        while time.monotonic() < begin + seconds:
            start = time.monotonic()
            await log.append(made[at : at + BATCH])
            waits.append(time.monotonic() - start)
            at = (at + WRITERS * BATCH) % len(made)
            behind.append(_behind(log))
            while _behind(log) > MOST_BEHIND:
                await asyncio.sleep(0.05)

    await asyncio.gather(*(write(number) for number in range(WRITERS)))
    took, cpu, size = time.monotonic() - begin, time.process_time() - cpu, log.size
    publishing.cancel()
    begin = time.monotonic()
    await log.flush()
    lag = time.monotonic() - begin
    await log.close()
    await database.close()
    if failures:
        raise failures[0]
    note = (
        f"{took:.0f} s, {WRITERS} tasks with {BATCH} entries of {len(made[0])} bytes each time, durable after p50 "
        f"{percentile(waits, 0.5) * 1e3:.0f}, p99 {percentile(waits, 0.99) * 1e3:.0f} ms; published each second, up to "
        f"{max(behind)} entries behind, the last {lag:.1f} s after the end; CPU {cpu / size * 1e6:.0f} us an entry; "
    )
    return [Result("log_append_per_s", round(size / took), "/s", size, note + calibration())]


def _behind(log: SqliteLog) -> int:
    return log.size - (log.checkpoint.size if log.checkpoint else 0)


def _split(folder: Path, size: int) -> str:
    files = _bytes(folder / "log")
    return (
        f"database {(_bytes(folder) - files) / size:.0f}, public files {files / size:.0f} bytes for an entry of 1,700"
    )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _verify(folder: Path) -> list[Result]:
    """``eastwest log verify`` of the log that was just written, as a process."""
    vkey = folder / "log.vkey"
    vkey.write_text(KEY.vkey)
    size = open_checkpoint((folder / "log" / CHECKPOINT_PATH).read_bytes(), KEY).size
    command = [str(Path(sys.executable).with_name("eastwest")), "log", "verify"]
    begin = time.monotonic()
    subprocess.run(
        [*command, "--log-dir", folder / "log", "--vkey", vkey],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    took = time.monotonic() - begin
    note = f"eastwest log verify of {size} entries of 1.7 kB in {took:.1f} s, scaled to 1,000,000; {calibration()}"
    return [Result("log_verify_1m_s", round(took / size * 1e6, 1), "s", size, note)]


async def _issue(folder: Path, rounds: int) -> list[Result]:
    """Batches of 500 certificates: recorded, published and each with its receipt, against a recorder of nothing."""
    folder.mkdir()
    clock = SystemClock()
    ca = TestCA(now=clock.now())
    database = Database.open(folder / "server.db", trust_domain="saas.example", clock=clock)
    log = await SqliteLog.open(database, folder / "log", origin=ORIGIN, signer=SIGNER, clock=clock)
    failures: list[Exception] = []
    publishing = asyncio.create_task(log.run(failures.append))
    batch = requests(ca, 500)

    def issuer(recorder: Recorder) -> Issuer:
        return Issuer({"": ca.authority}, ca.jwt_key, recorder, clock, SystemEntropy(), Instance("bench", "0"))

    null, real = issuer(NullRecorder()), issuer(log)
    cpu: dict[str, list[float]] = {"without": [], "with": []}
    waits: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(rounds + 1):
        for name, one in (("without", null), ("with", real)):
            begin, start = time.process_time(), log.size
            took = await _batches(one, batch)
            if name == "with":
                # What belongs to these certificates: their publication and a receipt for each.
                await log.flush()
                await log.prove_all(range(start, log.size))
            if number:
                cpu[name].append((time.process_time() - begin) / len(took) / len(batch) * 1e6)
                waits[name] += took
    publishing.cancel()
    size = log.size
    await log.close()
    await database.close()
    if failures:
        raise failures[0]
    at_rest = _bytes(folder) / size
    ratios = [a / b for a, b in zip(cpu["with"], cpu["without"], strict=True)]
    long = {name: percentile(some, 0.99) * 1e3 for name, some in waits.items()}
    note = (
        f"batches of 500 through the real issuer, in turns: {statistics.median(cpu['with']):.0f} us a certificate with "
        f"entry, publication and receipt, {statistics.median(cpu['without']):.0f} without any ({spread(ratios, 2)}); "
    )
    times = f"p99 of a batch of 500: {long['with']:.0f} ms with, {long['without']:.0f} ms without; "
    count = rounds * len(batch) * 4
    return [
        Result("log_issue_cpu_ratio", round(statistics.median(ratios), 3), "", count, note + calibration()),
        Result("log_issue_p99_ratio", round(long["with"] / long["without"], 3), "", count, times + calibration()),
        Result("log_bytes_per_issuance", round(at_rest), "B", size, _split(folder, size)),
    ]


async def _batches(issuer: Issuer, batch: Sequence[object]) -> list[float]:
    took = []
    for _ in range(4):
        begin = time.monotonic()
        await issuer.issue_x509(batch)  # type: ignore[arg-type] # what requests() made
        took.append(time.monotonic() - begin)
    return took


def _large(folder: Path, size: int, rounds: int) -> list[Result]:
    folder.mkdir()
    begin = time.monotonic()
    files, _ = generate(folder, size)
    made = time.monotonic() - begin
    return measure_large(folder, files, rounds, f"made in {made:.0f} s; ")


def measure_large(folder: Path, files: GeneratedFiles, rounds: int, note: str = "") -> list[Result]:
    """Proofs and searches in a log that is there already."""
    chance = random.Random(10)
    proofs: list[float] = []
    for _ in range(rounds * 20):
        index = chance.randrange(files.size)
        begin = time.perf_counter()
        text = _receipt(files, index)
        proofs.append((time.perf_counter() - begin) * 1e3)
        LogProof.parse(text).verify(entry(index), KEY)
    searches: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, query, least in _queries(chance, files.size):
            with files.kept():
                _search(folder, files, query)
                begin = time.perf_counter()
                hits = _search(folder, files, query)
                searches.setdefault(name, []).append((time.perf_counter() - begin) * 1e3)
            if len(hits) < least or not all(query.normal().matches(raw) for _, raw in hits):
                raise AssertionError(f"{name}: {len(hits)} hits, {least} or more expected")
    each = ", ".join(f"{name} {percentile(some, 0.99):.1f}" for name, some in searches.items())
    slowest = max(percentile(some, 0.99) for some in searches.values())
    on_disk = (folder / "index.db").stat().st_size / files.size
    about = f"{files.size} entries, files in the page cache; all opened anew each time, every hit proven; "
    return [
        Result(
            "log_proof_10m_ms_p99",
            round(percentile(proofs, 0.99), 2),
            "ms",
            len(proofs),
            f"{files.size} entries; checkpoint verified and tiles read anew each time; p50 "
            f"{percentile(proofs, 0.5):.2f}; {calibration()}",
        ),
        Result(
            "log_search_10m_ms_p99",
            round(slowest, 1),
            "ms",
            rounds * len(searches),
            f"{about}the slowest of the p99 of each kind of search, at most 100 hits: {each}; {calibration()}",
        ),
        Result("log_index_bytes_per_entry", round(on_disk, 1), "B", files.size, f"{note}six values an entry"),
    ]


def _receipt(files: GeneratedFiles, index: int) -> str:
    raw = files.read(CHECKPOINT_PATH)
    return ProvenReader(files, open_checkpoint(raw, KEY)).receipt(index, raw.decode())


def _search(folder: Path, files: GeneratedFiles, query: LogQuery) -> list[tuple[int, bytes]]:
    reader = ProvenReader(files, open_checkpoint(files.read(CHECKPOINT_PATH), KEY))
    index = SqliteLogIndex.open(folder / "index.db", readonly=True)
    try:
        return list(find(index, reader.entry, query))
    finally:
        index.close()


def _queries(chance: random.Random, size: int) -> list[tuple[str, LogQuery, int]]:
    """Searches of each kind with how many hits there must be."""
    workload, index = chance.randrange(WORKLOADS), chance.randrange(size)
    start, end = moment(max(0, index - 3000)), moment(index)
    many = min(100, size // WORKLOADS // 2)
    return [
        ("subject", LogQuery(subject=subject(workload), newest_first=True), many),
        ("serial", LogQuery(serial=serial(index)), 1),
        ("certificate", LogQuery(certificate_sha256=certificate_sha256(index)), 1),
        ("registration", LogQuery(entry_id=f"entry-{workload:06d}"), many),
        ("node and time", LogQuery(node=node(workload), start=start, end=end), 0),
        ("kind", LogQuery(kind="policy.activated", newest_first=True), size // 100_000),
        ("subject and node", LogQuery(subject=subject(workload), node=node(workload)), many),
        ("subject before", LogQuery(subject=subject(workload), end=end, newest_first=True), 0),
        ("nothing there", LogQuery(subject="spiffe://saas.example/nobody"), 0),
    ]
