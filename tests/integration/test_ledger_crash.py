"""kill -9 of a process that takes reports and seals them, again and again: each row is there once, sealed or not."""

import os
import random
import signal
import subprocess
import sys
import time

from eastwest.clock import SystemClock
from eastwest.ledger.query import DecisionQuery
from eastwest.ledger.segment import Found, compare_segments
from eastwest.log.entry import decode
from eastwest.log.note import NoteKey
from eastwest.log.verify import verify_log
from eastwest.server.config import LedgerSettings
from eastwest.server.journal import Journal
from eastwest.server.ledger.keeper import Ledger
from eastwest.store.database import Database
from eastwest.store.ledger_worker import file_hash
from eastwest.store.log import SqliteLog
from eastwest.store.log_files import LogDirectory
from eastwest.testing.log import ORIGIN, TestSigner

KILLS = int(os.environ.get("LEDGER_KILLS", "6"))
ROWS = 7

# Stores reports one after the other, from the sequence given on, while sealing without a pause. Prints each sequence
# once it is acknowledged. As an agent would, it sends the last one again that was not acknowledged.
WRITER = """
import asyncio, os, sys
from pathlib import Path
from test_ledger_crash import ROWS, opened
from eastwest.testing.ledgers import decision

async def main(folder, sequence):
    database, log, ledger = await opened(folder)
    os.write(1, b"ready\\n")

    async def report(sequence):
        while True:
            rows = [decision(sequence, reference=f"{sequence}.{n}") for n in range(ROWS)]
            assert await ledger.add("agent", "s", sequence, rows) == sequence
            os.write(1, b"%d\\n" % sequence)
            sequence += 1

    async def seal():
        while True:
            await ledger.sealer.seal(1000)
            await log.flush()
            await asyncio.sleep(0)

    await asyncio.gather(report(sequence), seal())

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


async def opened(folder):
    clock = SystemClock()
    database = Database.open(folder / "db", trust_domain="test.example", clock=clock)
    log = await SqliteLog.open(database, folder / "log", origin=ORIGIN, signer=TestSigner(), clock=clock)
    ledger = await Ledger.open(
        folder / "ledger",
        trust_domain="test.example",
        settings=LedgerSettings(),
        max_rows=1_000_000,
        log=log,
        journal=Journal(log, clock),
        clock=clock,
    )
    return database, log, ledger


async def test_each_acknowledged_row_is_there_once_when_the_process_is_killed(tmp_path):
    chance = random.Random(20261122)
    acknowledged = 0
    for _ in range(KILLS):
        # What was last sent may or may not have been stored; it comes again.
        acknowledged = _live_and_die(tmp_path, acknowledged + 1, chance.uniform(0.1, 0.9))
    assert acknowledged > KILLS * 20

    database, log, ledger = await opened(tmp_path)
    await ledger.sealer.seal(1000)
    await log.flush()
    assert await ledger.waiting() == 0
    files = LogDirectory(tmp_path / "log")
    assert verify_log(files, NoteKey.of(ORIGIN, TestSigner()), list(files.paths())).ok
    entries = [decode(raw) for raw in await log.entries(0, log.size)]
    facts = [
        (index, entry.kind, {name: entry.body[name] for name in entry.body if name not in {"time", "actor", "subject"}})
        for index, entry in enumerate(entries)
    ]
    names = [path.relative_to(tmp_path / "ledger") for path in (tmp_path / "ledger").rglob("dt=*/**/*.parquet")]
    report = compare_segments(facts, {str(name): Found(*file_hash(tmp_path / "ledger" / name)) for name in names})
    assert [str(problem) for problem in report.problems] == []
    assert report.sealed > 1

    references = []
    while page := await ledger.search(DecisionQuery(after=len(references), limit=5000)):
        references += [row["reference"] for row in page]
    stored = len(references) // ROWS
    assert stored in {acknowledged, acknowledged + 1}
    assert references == [f"{sequence}.{n}" for sequence in range(1, stored + 1) for n in range(ROWS)]
    assert report.rows == len(references)
    await ledger.close()
    await log.close()
    await database.close()


def _live_and_die(folder, sequence, seconds) -> int:
    """Run a writer, kill it after a while, and return the last sequence that it had acknowledged."""
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(sequence)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        first = process.stdout.readline()
        assert first == b"ready\n", process.stderr.read().decode()
        os.set_blocking(process.stdout.fileno(), False)
        said, end = b"", time.monotonic() + seconds
        while time.monotonic() < end:
            said += process.stdout.read() or b""
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.set_blocking(process.stdout.fileno(), True)
        said += process.stdout.read()
    whole = said[: said.rfind(b"\n") + 1].split()
    return int(whole[-1]) if whole else sequence - 1
